"""Rayleigh-Ritz over the training set: what turns a trained network into ordered eigenfunctions."""

from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError
from neigenmaps.functional.rayleigh_ritz import PairMoments, RitzResult, pair_moments, ritz_from_moments
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.nn.encoders import evaluation_mode
from neigenmaps.training.datamodule import CHUNK, ViewsDataModule
from neigenmaps.training.gather import share_buffers, sum_over_processes
from neigenmaps.training.sharding import gathered

Span = Literal["projector", "backbone"]


def fit_ritz(model: NeuralEigenmapModel, data: ViewsDataModule, *, pairs: int = 16384) -> RitzResult:
    """Order the model's functions over augmented pairs of the training images, and store the rotation in the model.

    Arguments and errors as in `ritz_of`.
    """
    ritz = ritz_of(model, data, pairs=pairs)
    model.set_ritz(ritz)
    return ritz


def ritz_of(
    model: NeuralEigenmapModel, data: ViewsDataModule, *, pairs: int = 16384, space: Span = "projector"
) -> RitzResult:
    """Rayleigh-Ritz on the span of one space of a network, over augmented pairs of the training images.

    pairs: how many at least; every training image is used equally often. Moments are summed in float64, batch by batch.
    Errors: InputError for fewer than 2 pairs; NonFiniteError when the model gives NaN or infinity.
    """
    _check_pairs(pairs)
    device = model.ritz_rotation.device
    share_buffers(model)
    with evaluation_mode(model), gathered(model):
        sign_rows = _functions(model, data.splits.train.images_NCHW[:CHUNK].to(device), space)
        moments = _moments(model, data, -(-pairs // len(data.splits.train)), space, torch.zeros_like(sign_rows[:1]))
    if not all(torch.isfinite(part).all() for part in moments):
        raise NonFiniteError("the trained network gives NaN or infinity: training diverged; lower lr or raise warmup")
    return ritz_from_moments(moments, sign_rows=sign_rows)


def _check_pairs(pairs: int) -> None:
    if pairs < 2:
        raise InputError(f"expected at least 2 pairs, got {pairs}")


def _functions(model: NeuralEigenmapModel, images_BCHW: Tensor, space: Span) -> Tensor:
    outputs = model(images_BCHW)
    return outputs.codes if space == "projector" else outputs.features


def _moments(
    model: NeuralEigenmapModel, data: ViewsDataModule, passes: int, space: Span, zeros_1K: Tensor
) -> PairMoments:
    empty = pair_moments(zeros_1K, zeros_1K)
    total = PairMoments(*(torch.zeros_like(part) for part in empty))  # a process may have no chunk
    for views_VBCHW in data.training_views(passes, zeros_1K.device):
        codes_VBK = _functions(model, views_VBCHW.flatten(0, 1), space).unflatten(0, views_VBCHW.shape[:2])
        total = total.merge(pair_moments(codes_VBK[0], codes_VBK[1]))
    return PairMoments(*(sum_over_processes(part) for part in total))


class FitRitz(Callback):
    """`fit_ritz` when training ends. checkpoint: a file to write once more afterwards, so that the order is in it."""

    def __init__(self, pairs: int = 16384, checkpoint: str | Path | None = None) -> None:
        _check_pairs(pairs)  # before hours of training
        self.pairs, self.checkpoint = pairs, checkpoint

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ViewsDataModule):
            raise InputError(f"FitRitz needs a ViewsDataModule to draw views from, got {type(data).__name__}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        fit_ritz(pl_module.model, trainer.datamodule, pairs=self.pairs)  # type: ignore[arg-type, attr-defined]
        if self.checkpoint is not None:
            trainer.save_checkpoint(self.checkpoint)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A resumed run with no epoch left to train never reaches `on_train_end`."""
        if pl_module.model.ritz_rank == 0:  # type: ignore[union-attr]
            self.on_train_end(trainer, pl_module)
