"""Rayleigh-Ritz over the training set: what turns a trained network into ordered eigenfunctions."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from neigenmaps.errors import InputError
from neigenmaps.functional.rayleigh_ritz import PairMoments, RitzResult, pair_moments, ritz_from_moments
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.training.datamodule import CHUNK, ViewsDataModule
from neigenmaps.training.gather import sum_over_processes


@torch.no_grad()
def fit_ritz(model: NeuralEigenmapModel, data: ViewsDataModule, *, pairs: int = 16384) -> RitzResult:
    """Order the model's functions over augmented pairs of the training images, and store the rotation in the model.

    pairs: how many at least; every training image is used equally often. Moments are summed in float64, batch by batch.
    """
    if pairs < 2:
        raise InputError(f"expected at least 2 pairs, got {pairs}")
    rows = len(data.splits.train)
    device = model.ritz_rotation.device
    was_training = model.training
    model.eval()
    total: PairMoments | None = None
    for views_VBCHW in data.training_views(-(-pairs // rows), device):
        codes_VBK = model(views_VBCHW.flatten(0, 1)).codes.unflatten(0, views_VBCHW.shape[:2])
        moments = pair_moments(codes_VBK[0], codes_VBK[1])
        total = moments if total is None else total.merge(moments)
    if total is None:  # more processes than chunks: this one had none
        empty = torch.zeros(1, model.ritz_rotation.shape[0], device=device)
        total = PairMoments(*(torch.zeros_like(part) for part in pair_moments(empty, empty)))
    total = PairMoments(*(sum_over_processes(part) for part in total))
    sign_rows = model(data.splits.train.images_NCHW[:CHUNK].to(device)).codes
    ritz = ritz_from_moments(total, sign_rows=sign_rows)
    model.set_ritz(ritz)
    model.train(was_training)
    return ritz


class FitRitz(Callback):
    """`fit_ritz` when training ends. checkpoint: a file to write once more afterwards, so that the order is in it."""

    def __init__(self, pairs: int = 16384, checkpoint: str | Path | None = None) -> None:
        self.pairs, self.checkpoint = pairs, checkpoint

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ViewsDataModule):
            raise InputError(f"FitRitz needs a ViewsDataModule to draw views from, got {type(data).__name__}")
        fit_ritz(pl_module.model, data, pairs=self.pairs)  # type: ignore[arg-type]
        if self.checkpoint is not None:
            trainer.save_checkpoint(self.checkpoint)
