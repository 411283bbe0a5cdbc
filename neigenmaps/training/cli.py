"""LightningCLI over one module and one data module: a YAML file is checked against their constructors.

What is unusual: `run.*` says where the run folder lies, checkpoints are read without running pickled code, and an unknown key is
answered with the nearest known one.
"""

import difflib
import json
import os
import pickle
import re
import sys
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from neigenmaps.errors import CheckpointError, InputError
from neigenmaps.files import whole_file
from neigenmaps.provenance import provenance
from neigenmaps.training.callbacks import RunProgressBar
from neigenmaps.training.datamodule import ViewsDataModule
from neigenmaps.training.module import EigenmapModule
from neigenmaps.training.ritz import FitRitz

STAMP = "NEIGENMAPS_RUN_STAMP"  # processes that Lightning starts inherit it, and so agree on the run folder


class SuggestingParser(LightningArgumentParser):
    """Answers an unknown key with the nearest known one, in a few lines and without the list of all options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # else --model.width_ would silently be some longer name

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        message = message.rstrip()
        if near := nearest_key(
            message, [action.dest for one in self._with_subparsers(parser) for action in one._actions]
        ):
            message = f"{message}\nDid you mean '{near}'?"
        if self.exit_on_error:
            self.exit(2, f"error: {message}\n")
        super().error(message, ex)

    @staticmethod
    def _with_subparsers(parser: Any) -> list[Any]:
        choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
        return [parser, *(sub for names in choices for sub in names.values())]


def nearest_key(message: str, known: list[str]) -> str | None:
    """The name nearest to the unknown one that an error of jsonargparse speaks of; None if it speaks of none.

    known: the parser's keys. Names of a module are looked up there; for arguments of a class jsonargparse itself suggests.
    """
    if "Did you mean" in message:
        return None
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        unknown, known = found[2], dir(sys.modules[found[1]])
    elif found := re.search(r"[Oo]ption '([\w.]+)'|[Aa]rguments?: --([\w.]+)", message):
        unknown = found[1] or found[2]
    else:
        return None
    return next(iter(difflib.get_close_matches(unknown, known, n=1)), None)


class LastCheckpoint(ModelCheckpoint):
    """A type of its own, as Lightning keeps the state of callbacks by type and period."""


class RunRecord(SaveConfigCallback):
    """Beside `config.yaml`, `provenance.json`: what ran, where, on which versions."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert trainer.log_dir is not None
        self.folder = Path(trainer.log_dir)  # asked here, on every process, as the answer is broadcast
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        record = provenance(self.config.get("seed_everything"), device=trainer.strategy.root_device)
        with whole_file(self.folder / "provenance.json") as path:
            path.write_text(json.dumps(record, indent=2) + "\n")


class EigenmapCLI(LightningCLI):
    """`fit`, `validate`, ... over EigenmapModule and ViewsDataModule; everything goes to `<run.root>/<run.name>/<run.version>/`."""

    def __init__(self) -> None:
        super().__init__(
            EigenmapModule,
            ViewsDataModule,
            save_config_callback=RunRecord,
            seed_everything_default=0,
            trainer_defaults={"enable_model_summary": False, "num_sanity_val_steps": 0},
            parser_class=SuggestingParser,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run.root", type=str, default="checkpoints", help="folder of all runs")
        parser.add_argument("--run.name", type=str, default="run", help="folder of runs of this kind")
        parser.add_argument(
            "--run.version", type=str | None, default=None, help="folder of this run (default: date-time)"
        )
        parser.add_argument("--run.save_every_n_epochs", type=int, default=10, help="how often last.ckpt is written")
        parser.add_argument("--run.keep_every_n_epochs", type=int, default=100, help="how often a checkpoint is kept")
        parser.add_argument(
            "--run.ritz_pairs", type=int, default=16384, help="pairs that order the functions at the end"
        )
        parser.link_arguments("seed_everything", "data.seed")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """What the module has steps for."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in ("fit", "validate")}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        config.weights_only = True  # Lightning reads the checkpoint again, and by default runs what is pickled in it
        self.checkpoint = read_checkpoint(config.ckpt_path) if config.ckpt_path else None

    def after_instantiate_classes(self) -> None:
        if self.checkpoint is not None:
            self.model.check_checkpoint(self.checkpoint)
            self.checkpoint = None  # Lightning reads its own copy

    def before_fit(self) -> None:
        self._started = time.perf_counter()

    def after_fit(self) -> None:
        self.fit_seconds = time.perf_counter() - self._started

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config[self.config.subcommand]
        run = config.run
        stamp = run.version or os.environ.setdefault(STAMP, datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
        self.run_folder = Path(run.root) / run.name / stamp
        if (self.run_folder / "config.yaml").exists():
            raise InputError(
                f"{self.run_folder} already holds a run: choose another run.version, or none for a folder named by the time"
            )
        if config.trainer.logger is None:
            loggers = (CSVLogger, TensorBoardLogger)
            kwargs["logger"] = [logger(run.root, name=run.name, version=stamp) for logger in loggers]
        if config.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = str(self.run_folder)
        self.trainer_defaults["callbacks"] = self._callbacks(config)
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise InputError(f"trainer: {error}") from error

    def _callbacks(self, config: Any) -> list[Callback]:
        run, folder = config.run, self.run_folder
        keeps = config.trainer.enable_checkpointing is not False
        callbacks: list[Callback] = [FitRitz(run.ritz_pairs, folder / "last.ckpt" if keeps else None)]
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(RunProgressBar())
        if keeps:
            # by default Lightning would save after validations only, and a killed run would lose all epochs since the last one
            at_end: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
            last = LastCheckpoint(folder, "last", every_n_epochs=run.save_every_n_epochs, **at_end)
            kept = ModelCheckpoint(folder, "{epoch}", every_n_epochs=run.keep_every_n_epochs, save_top_k=-1, **at_end)
            callbacks += [last, kept]
        return callbacks


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's contents, without running pickled code. CheckpointError when it is missing, corrupt or not ours."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # of a foreign file: refused below
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"expected a checkpoint of neigenmaps in {path}, which cannot be read ({error}): "
            "it is missing, truncated, or not one of ours; use last.ckpt or epoch=*.ckpt of a run folder"
        ) from error
    if not isinstance(contents, dict) or "model_config" not in contents:
        raise CheckpointError(f"{path} is a checkpoint, but not one of neigenmaps: expected an entry 'model_config'")
    return contents
