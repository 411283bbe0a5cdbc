"""LightningCLI over one module and one data module: a YAML file is checked against their constructors.

What is unusual: `run.*` says where the run folder lies, which a run that never took a step does not leave behind; `--resume auto`
goes on with the newest whole checkpoint of the same settings; an unknown key is answered with the nearest known one.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import yaml  # type: ignore[import-untyped]
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from neigenmaps.errors import CheckpointError, InputError
from neigenmaps.files import whole_file
from neigenmaps.provenance import provenance
from neigenmaps.training.callbacks import RunProgressBar, say
from neigenmaps.training.checkpoints import WholeCheckpointIO, last_good_checkpoint, read_checkpoint
from neigenmaps.training.datamodule import ViewsDataModule
from neigenmaps.training.module import EigenmapModule
from neigenmaps.training.parser import SuggestingParser
from neigenmaps.training.ritz import FitRitz
from neigenmaps.training.sharding import FSDP
from neigenmaps.training.weight_averaging import EMAWeights

STAMP = "NEIGENMAPS_RUN_STAMP"  # processes that Lightning starts inherit it, and so agree on the run folder


SAME_RESULT = {
    "download",
    "root",
    "cache_dir",
    "resident",
    "max_unreadable_share",
    "compile",
}  # settings that only say how data come, and by which program the same sums are taken


class LastCheckpoint(ModelCheckpoint):
    """A type of its own, as Lightning keeps the state of callbacks by type and period. SIGTERM makes it save once more."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.global_step > 0:
            assert self.dirpath is not None
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")


class StopAtInterrupt(Callback):
    """Ctrl-C ends training as SIGTERM does, after the step under way and with all steps saved; a second one ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        lightning_listens = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        if lightning_listens and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._stop)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _stop(self, *given: Any) -> None:
        self._restore()
        self.asked = True
        say("Stopping after this step, and saving. Ctrl-C once more stops at once.")
        signal.raise_signal(signal.SIGTERM)

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None


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
        parser.add_argument(
            "--run.save_every_n_steps", type=int | None, default=None, help="the same, where epochs take long"
        )
        parser.add_argument("--run.keep_every_n_epochs", type=int, default=100, help="how often a checkpoint is kept")
        parser.add_argument(
            "--run.ritz_pairs", type=int, default=16384, help="pairs that order the functions at the end"
        )
        parser.add_argument(
            "--run.ema_decay", type=float | None, default=None, help="average weights over about 1 / (1 - decay) steps"
        )
        parser.add_argument(
            "--resume",
            type=Literal["never", "auto"],
            default="never",
            help="auto: go on with the newest good checkpoint of the same settings below <run.root>/<run.name>, if any",
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
        fitting = self.config.subcommand == "fit"
        if self.checkpoint is not None:
            (self.model.check_resume if fitting else self.model.check_checkpoint)(self.checkpoint)
            self.first_step = int(self.checkpoint["global_step"])
            self.checkpoint = None  # Lightning reads its own copy
            if fitting:
                self._tell_of_changes(Path(self.config.fit.ckpt_path))
        elif fitting and self.config.fit.resume == "auto":
            self._resume()

    def _resume(self) -> None:
        runs = self.run_folder.parent
        found = last_good_checkpoint(runs, self._check_same_run)
        for line in found.skipped:
            say(f"Skipped: {line}")
        if found.path is None:
            say(f"No checkpoint to go on from in {runs}: starting anew.")
            return
        say(f"Going on from {found.path} (step {found.step}).")
        self.config_init.fit.ckpt_path = str(found.path)
        self.first_step = found.step
        self._tell_of_changes(found.path)

    def _tell_of_changes(self, checkpoint: Path) -> None:
        """In a line each: settings that are others from here on, and a longer or shorter schedule."""
        record = checkpoint.parent / "config.yaml"
        if not record.exists():
            return
        settings = self._settings(record)
        if differ := differing(*settings):
            say(
                f"Trained so far with other settings: {', '.join(differ)}. This run's hold from here on, but for learning rate and "
                "weight decay, which stay the checkpoint's."
            )
        for name, (theirs, ours) in changed(*settings, "trainer", ["max_epochs", "max_steps"]).items():
            say(
                f"{name} was {theirs} and is {ours}: the learning rate goes on where the schedule of this length is after "
                f"step {self.first_step}."
            )

    def _check_same_run(self, path: Path, checkpoint: dict[str, Any]) -> None:
        """CheckpointError unless the checkpoint comes from a run with the settings of this one, as its `config.yaml` tells."""
        self.model.check_resume(checkpoint)
        record = path.parent / "config.yaml"
        if not record.exists():
            raise CheckpointError("no config.yaml beside it says what it was trained with")
        if differ := differing(*self._settings(record)):
            raise CheckpointError(f"trained with other settings: {', '.join(differ)}")

    def _settings(self, record: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Those of a run's `config.yaml`, and those of this one."""
        ours = self._parser("fit").dump(self.config.fit, skip_none=False)
        return yaml.safe_load(record.read_text()), yaml.safe_load(ours)

    def fit(self, **arguments: Any) -> None:
        """`trainer.fit`, in `fit_seconds`. Ctrl-C and SIGTERM end with the command that resumes, all steps saved, and the exit
        code that a shell gives them."""
        missing = [folder for folder in (self.run_folder, *self.run_folder.parents) if not folder.exists()]
        started = time.perf_counter()
        try:
            self.trainer.fit(**arguments)
        except SIGTERMException as stopped:  # a SystemExit, too
            word, cause = ("stopped", signal.SIGINT) if self.interrupt.asked else ("terminated", signal.SIGTERM)
            if self.trainer.is_global_zero:
                print(f"{word} at step {self.trainer.global_step}; {self.how_to_resume()}", file=sys.stderr)
            raise SystemExit(128 + cause) from stopped
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
        if config.trainer.strategy == "fsdp":
            kwargs["strategy"] = FSDP()
        if config.trainer.plugins is None:
            kwargs["plugins"] = [WholeCheckpointIO()]
        self.trainer_defaults["callbacks"] = self._callbacks(config)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise InputError(f"trainer: {error}") from error
        if config.trainer.sync_batchnorm and trainer.strategy.root_device.type == "cpu":
            raise InputError("trainer.sync_batchnorm: expected GPUs, got CPUs, on which torch has none: leave it false")
        return trainer

    def _callbacks(self, config: Any) -> list[Callback]:
        run, folder = config.run, self.run_folder
        keeps = config.trainer.enable_checkpointing is not False
        self.interrupt = StopAtInterrupt()
        callbacks: list[Callback] = [self.interrupt]
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(RunProgressBar())  # before the next, whose work it announces
        if run.ema_decay is not None:
            callbacks.append(EMAWeights(run.ema_decay))  # before the next, which orders the averaged network
        callbacks.append(self.ordering(run.ritz_pairs, folder / "last.ckpt" if keeps else None))
        if keeps:
            # by default Lightning would save after validations only, and a killed run would lose all epochs since the last one
            at_end: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
            when = {"every_n_epochs": run.save_every_n_epochs}
            if run.save_every_n_steps is not None:
                when = {"every_n_train_steps": run.save_every_n_steps}
            last = LastCheckpoint(folder, "last", **when, **at_end)
            kept = ModelCheckpoint(folder, "{epoch}", every_n_epochs=run.keep_every_n_epochs, save_top_k=-1, **at_end)
            callbacks += [last, kept]
        return callbacks

    def ordering(self, pairs: int, checkpoint: Path | None) -> Callback:
        """What puts the functions in order at the end."""
        return FitRitz(pairs, checkpoint)


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Names of settings of which a run's result depends, length apart, and that are not the same."""
    parts: dict[str, list[str] | None] = {"": ["seed_everything"], "model": None, "data": None, "run": ["ema_decay"]}
    return [name for part, names in parts.items() for name in changed(theirs, ours, part, names)]


def changed(
    theirs: dict[str, Any], ours: dict[str, Any], part: str, names: list[str] | None
) -> dict[str, tuple[Any, Any]]:
    """Both values by full name, of one part of the settings (none: the whole) and some of its names, or all."""
    if part:
        theirs, ours = theirs.get(part, {}), ours[part]
    return {
        f"{part}.{name}" if part else name: (theirs.get(name), ours[name])
        for name in (ours if names is None else names)
        if name not in SAME_RESULT and theirs.get(name) != ours[name]
    }


def _remove(folders: list[Path]) -> None:
    """A run's folder, first of all, and those above it that were made for it, unless another run has moved in."""
    if folders:
        shutil.rmtree(folders[0], ignore_errors=True)  # perhaps nothing was written yet
    with contextlib.suppress(OSError):  # not empty, or never made
        for folder in folders[1:]:
            folder.rmdir()
