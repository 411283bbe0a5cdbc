"""Module, data and trainer of a training run that takes a fraction of a second."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from neigenmaps.data import ViewLaw
from neigenmaps.training import EigenmapModule, FitRitz, ViewsDataModule

BATCH = 16
STEPS_PER_EPOCH = 4  # of 70 rows, 6 of which are dropped
ORDERING_PAIRS = 70  # the default of 16,384 takes a hundred times as long as such a run


def make_data(path: Path, **changes: Any) -> ViewsDataModule:
    arguments: dict[str, Any] = {"batch_size": BATCH, "seed": 3, "laws": [ViewLaw(rotate=10, noise=0.1)]}
    return ViewsDataModule(str(path), **arguments | changes)


def make_module(seed: int = 0, **changes: Any) -> EigenmapModule:
    torch.manual_seed(seed)
    return EigenmapModule(**{"width": 4, "hidden": 8, "lr": 1e-2} | changes)


def make_trainer(folder: Path, epochs: int = 1, **changes: Any) -> pl.Trainer:
    arguments: dict[str, Any] = {
        "default_root_dir": folder,
        "max_epochs": epochs,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    trainer = pl.Trainer(**arguments | changes)
    if not any(isinstance(callback, FitRitz) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        trainer.callbacks.append(FitRitz(ORDERING_PAIRS))  # type: ignore[attr-defined]
    return trainer
