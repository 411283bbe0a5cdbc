"""LightningCLI over one module and one data module: a YAML file is checked against their constructors.

What is unusual: `run.*` says where the run folder lies, which a run that never took a step does not leave behind; checkpoints are
read without running pickled code; an unknown key is answered with the nearest known one.
"""

import contextlib
import json
import os
import pickle
import shlex
import shutil
import sys
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

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
from neigenmaps.training.parser import SuggestingParser
from neigenmaps.training.ritz import FitRitz

STAMP = "NEIGENMAPS_RUN_STAMP"  # processes that Lightning starts inherit it, and so agree on the run folder


class LastCheckpoint(ModelCheckpoint):
    """A type of its own, as Lightning keeps the state of callbacks by type and period."""


class RunRecord(SaveConfigCallback):
    """Of a fit, beside `config.yaml`: `provenance.json` (what ran, where, on which versions) and `unreadable_files.txt`, if any."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert trainer.log_dir is not None
        self.folder = Path(trainer.log_dir)  # asked here, on every process, as the answer is broadcast
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        record = provenance(self.config.get("seed_everything"), device=trainer.strategy.root_device)
        with whole_file(self.folder / "provenance.json") as path:
            path.write_text(json.dumps(record, indent=2) + "\n")
        if unreadable := trainer.datamodule.unreadable:  # type: ignore[attr-defined]
            with whole_file(self.folder / "unreadable_files.txt") as path:
                path.write_text("".join(f"{name}\n" for name in unreadable))


class EigenmapCLI(LightningCLI):
    """`fit` and `validate` over EigenmapModule and ViewsDataModule; a fit goes to `<run.root>/<run.name>/<run.version>/`."""

    module_class: type[pl.LightningModule] = EigenmapModule
    data_class: type[pl.LightningDataModule] = ViewsDataModule

    def __init__(self) -> None:
        super().__init__(
            self.module_class,
            self.data_class,
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
        if self.config.subcommand == "validate" and not config.ckpt_path:
            raise InputError(
                "validate measures a trained network: add --ckpt_path checkpoints/<name>/<date-time>/last.ckpt, "
                "with the config.yaml of that folder as --config"
            )
        self.checkpoint = read_checkpoint(config.ckpt_path) if config.ckpt_path else None

    def after_instantiate_classes(self) -> None:
        self.first_step = 0
        if self.checkpoint is not None:
            fitting = self.config.subcommand == "fit"
            (self.model.check_resume if fitting else self.model.check_checkpoint)(self.checkpoint)
            self.first_step = int(self.checkpoint["global_step"])
            self.checkpoint = None  # Lightning reads its own copy

    def fit(self, **arguments: Any) -> None:
        """`trainer.fit`, in `fit_seconds`. Ctrl-C ends with the command that resumes."""
        missing = [folder for folder in (self.run_folder, *self.run_folder.parents) if not folder.exists()]
        started = time.perf_counter()
        try:
            self.trainer.fit(**arguments)
        except SystemExit as stopped:
            if not isinstance(stopped.__context__, KeyboardInterrupt):  # which Lightning turns into an exit
                raise
            raise SystemExit(f"stopped at step {self.trainer.global_step}; {self.how_to_resume()}") from stopped
        finally:
            if self.trainer.interrupted and self.steps_taken == 0 and self.trainer.is_global_zero:
                _remove(missing)
        self.fit_seconds = time.perf_counter() - started

    @property
    def steps_taken(self) -> int:
        """By this process; 0 when a checkpoint was resumed that had taken them all."""
        return max(0, self.trainer.global_step - self.first_step)

    def how_to_resume(self) -> str:
        """The command that goes on from `last.ckpt` of this run."""
        last = self.run_folder / "last.ckpt"
        if not last.exists():
            every = self.config[self.config.subcommand].run.save_every_n_epochs
            return f"no checkpoint has been written yet (run.save_every_n_epochs is {every})"
        words = ["python", sys.argv[0], "fit", f"--config={self.run_folder / 'config.yaml'}", f"--ckpt_path={last}"]
        if self.config[self.config.subcommand].run.version is not None:
            words.append("--run.version=null")  # the folder of that name is taken
        return f"to go on from the last checkpoint:\n{shlex.join(words)}"

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config[self.config.subcommand]
        run, fitting = config.run, self.config.subcommand == "fit"
        stamp = run.version or os.environ.setdefault(STAMP, datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
        self.run_folder = Path(run.root) / run.name / stamp
        if fitting and (self.run_folder / "config.yaml").exists():
            raise InputError(
                f"{self.run_folder} already holds a run: choose another run.version, or none for a folder named by the time"
            )
        if config.trainer.logger is None:
            loggers = (CSVLogger, TensorBoardLogger) if fitting else ()  # a validation is printed, and leaves no folder
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
        callbacks: list[Callback] = []
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(RunProgressBar())  # before the next, whose work it announces
        callbacks.append(self.ordering(run.ritz_pairs, folder / "last.ckpt" if keeps else None))
        if keeps:
            # by default Lightning would save after validations only, and a killed run would lose all epochs since the last one
            at_end: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
            last = LastCheckpoint(folder, "last", every_n_epochs=run.save_every_n_epochs, **at_end)
            kept = ModelCheckpoint(folder, "{epoch}", every_n_epochs=run.keep_every_n_epochs, save_top_k=-1, **at_end)
            callbacks += [last, kept]
        return callbacks

    def ordering(self, pairs: int, checkpoint: Path | None) -> Callback:
        """What puts the functions in order at the end."""
        return FitRitz(pairs, checkpoint)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's contents, without running pickled code. CheckpointError when it is missing, corrupt or not ours."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # of a foreign file: refused below
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        # torch's own text is left to the cause: it recommends weights_only=False, which would run a stranger's code
        why = (
            error.strerror
            if isinstance(error, OSError)
            else "truncated, or more than tensors and plain values is in it"
        )
        raise CheckpointError(
            f"expected a checkpoint of neigenmaps in {path}, which cannot be read ({why}): "
            "use last.ckpt or epoch=*.ckpt of a run folder"
        ) from error
    if not isinstance(contents, dict) or "model_config" not in contents:
        raise CheckpointError(f"{path} is a checkpoint, but not one of neigenmaps: expected an entry 'model_config'")
    return contents


def _remove(folders: list[Path]) -> None:
    """A run's folder, first of all, and those above it that were made for it, unless another run has moved in."""
    if folders:
        shutil.rmtree(folders[0], ignore_errors=True)  # perhaps nothing was written yet
    with contextlib.suppress(OSError):  # not empty, or never made
        for folder in folders[1:]:
            folder.rmdir()
