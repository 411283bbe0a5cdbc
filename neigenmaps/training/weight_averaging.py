"""Averaged weights: Lightning's callback, made to end with ordered functions."""

import warnings
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging

from neigenmaps.errors import InputError
from neigenmaps.training.collapse_guard import CollapseGuard
from neigenmaps.training.sharding import FSDP

RITZ = ("ritz_rotation", "ritz_mean", "eigenvalues", "ritz_rank")


class EMAWeights(EMAWeightAveraging):
    """w_ema <- decay w_ema + (1 - decay) w after every step, from the weights of step `start` on, running statistics included.

    Validations and the model at the end are of the averaged weights, which checkpoints hold in `state_dict`; a resumed run goes on
    from the others, which lie beside them. About 1 / (1 - decay) steps are averaged: take far fewer than the run has, as the first
    weights are forgotten at this pace too. In a list of callbacks it comes last, after all that mend or measure; `run.ema_decay`
    puts it there.
    """

    def __init__(self, decay: float = 0.999, start: int = 0) -> None:
        if not 0 <= decay < 1 or start < 0:
            raise InputError(f"EMAWeights: expected decay in [0, 1) and start of at least 0, got {decay} and {start}")
        super().__init__(decay=decay, update_starting_at_step=start)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(one, CollapseGuard) for one in callbacks[callbacks.index(self) :]):
            raise InputError("EMAWeights before CollapseGuard would average what the guard takes back: list it after")
        if isinstance(trainer.strategy, FSDP):
            raise InputError("EMAWeights keeps a whole copy of the model, which FSDP spreads: leave one of them out")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that")
            super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The order of the functions is found once, at the end, for the averaged weights; Lightning's copy knows nothing of it."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        for name, value in checkpoint.get("current_model_state", {}).items():
            if name.rpartition(".")[2] in RITZ:
                checkpoint["state_dict"][name] = value
