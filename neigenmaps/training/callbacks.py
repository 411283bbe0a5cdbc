"""Callbacks that watch. They read one shared pass over the probe set (the validation loop) and never write into training."""

import warnings
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich import get_console
from torch import Tensor

from neigenmaps.errors import IdentifiabilityWarning, InputError
from neigenmaps.evaluation import distinct_count, effective_rank, knn_accuracy, offdiagonal_rms
from neigenmaps.functional.rayleigh_ritz import PairMoments, pair_moments
from neigenmaps.training.datamodule import ViewsDataModule

ORDER_TOLERANCE = 0.01  # about the sampling error of an eigenvalue on a probe set of some thousand pairs


class OnlineKNN(Callback):
    """kNN accuracy of held-out images by the first numbers of the raw codes, centred: `eval/knn_8`, ..., `eval/knn_full`.

    dims: code lengths; those not below the code's are left to `full`, with a warning. n_neighbors: of the vote.
    Without labels it says so, and measures nothing.
    """

    def __init__(self, dims: Sequence[int] = (8, 32), n_neighbors: int = 10) -> None:
        if min(dims, default=1) < 1:
            raise InputError(f"OnlineKNN: expected code lengths of at least 1, got {tuple(dims)}")
        self.dims, self.n_neighbors = tuple(dims), n_neighbors
        self._lengths: tuple[int, ...] = ()  # none: nothing to measure
        self._codes: list[Tensor] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._lengths = ()
        width: int = pl_module.model.config["width"]  # type: ignore[union-attr,index,assignment]
        if not isinstance(data, ViewsDataModule):
            raise InputError(f"OnlineKNN needs a ViewsDataModule, got {type(data).__name__}")
        if data.probe.labels_N is None:
            warnings.warn("OnlineKNN: these images have no labels, so that no accuracy is measured", stacklevel=2)
            return
        if longer := [m for m in self.dims if m > width]:
            warnings.warn(f"OnlineKNN: no code lengths {longer}, as the code has {width} numbers", stacklevel=2)
        self._lengths = (*(m for m in self.dims if m < width), width)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._codes = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._lengths:
            self._codes.append(outputs["codes"].detach().float())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: ViewsDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if sum(map(len, self._codes)) < len(data.probe):  # no labels, sanity check, fast_dev_run, limit_val_batches
            return
        codes, labels = torch.cat(self._codes), data.probe.labels_N
        assert labels is not None
        labels, bank = labels.to(codes.device), data.probe_bank
        codes = codes - codes[:bank].mean(0)
        for m in self._lengths:
            accuracy = knn_accuracy(
                codes[:bank, :m],
                labels[:bank],
                codes[bank:, :m],
                labels[bank:],
                n_neighbors=min(self.n_neighbors, bank),
            )
            name = "full" if m == codes.shape[1] else str(m)
            pl_module.log(f"eval/knn_{name}", accuracy, prog_bar=m == self._lengths[0], sync_dist=True)
        self._codes = []


class SpectrumMonitor(Callback):
    """How far the outputs are ordered eigenfunctions, on views of the probe set.

    Logs `spectrum/mean_eigenvalue` (mean R_jj / G_jj), `offdiagonal_rms` (of the normalised G: 0 when orthogonal),
    `effective_rank`, `distinct` (outputs that are not copies), `ordered` (share of neighbours whose eigenvalues fall).
    Warns once, with what to do, when the objective can't tell the measured functions apart.
    """

    def __init__(self) -> None:
        self._moments: PairMoments | None = None
        self._warned = False

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._moments = None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        moments = pair_moments(*outputs["view_codes"].detach())
        self._moments = moments if self._moments is None else self._moments.merge(moments)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self._moments is None:
            return
        _, second_KK, cross_KK = self._moments.expectations()
        power_K = second_KK.diagonal()
        eigenvalues_K = torch.where(power_K > 0, cross_KK.diagonal() / power_K.clamp_min(1e-30), 0.0)
        falls = eigenvalues_K[1:] <= eigenvalues_K[:-1] + ORDER_TOLERANCE
        measured = {
            "mean_eigenvalue": eigenvalues_K.mean().item(),
            "offdiagonal_rms": offdiagonal_rms(second_KK),
            "effective_rank": effective_rank(eigenvalues_K),
            "distinct": float(distinct_count(second_KK)),
            "ordered": falls.double().mean().item() if len(eigenvalues_K) > 1 else 1.0,
        }
        pl_module.log_dict(
            {f"spectrum/{name}": value for name, value in measured.items()}, batch_size=1, sync_dist=True
        )
        doubt = pl_module.objective.doubt_spectrum(eigenvalues_K.clamp_min(0))  # type: ignore[union-attr,operator]
        if doubt and not self._warned:
            warnings.warn(doubt, IdentifiabilityWarning, stacklevel=2)
            self._warned = True
        self._moments = None


class RunProgressBar(RichProgressBar):
    """One line at 100 columns: metrics by their last name, without the version number of the run folder."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name.rsplit("/", 1)[-1]: value for name, value in metrics.items() if name != "v_num"}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if trainer.is_global_zero:
            get_console().print("Ordering the functions by Rayleigh-Ritz over the training data ...")


@rank_zero_only
def say(line: str) -> None:
    """Print a line once, above the bar, however many processes there are."""
    get_console().print(line, soft_wrap=True, markup=False, highlight=False)
