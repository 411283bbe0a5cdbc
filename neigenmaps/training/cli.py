"""LightningCLI over one module and one data module: a YAML file is checked against their constructors.

What is unusual: `run.*` says where the run folder lies, checkpoints are read without running pickled code, and an unknown key is
answered with the nearest known one.
"""

import difflib
import json
import os
import pickle
import re
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from neigenmaps.errors import CheckpointError
from neigenmaps.files import whole_file
from neigenmaps.provenance import provenance
from neigenmaps.training.datamodule import ViewsDataModule
from neigenmaps.training.module import EigenmapModule
from neigenmaps.training.ritz import FitRitz

STAMP = "NEIGENMAPS_RUN_STAMP"  # processes that Lightning starts inherit it, and so agree on the run folder


class SuggestingParser(LightningArgumentParser):
    """Answers an unknown key with the nearest known one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if unknown := re.search(r"(?:[Kk]ey '|[Aa]rguments?: --)([\w.]+)", message):
            parser = getattr(ex, "subcommand_parser", None) or self
            known = [action.dest for parser in (self, *self._subparsers_of(parser)) for action in parser._actions]
            if near := difflib.get_close_matches(unknown.group(1).removeprefix("fit."), known, n=1):
                message = f"{message.rstrip()} Did you mean '{near[0]}'?"
        super().error(message, ex)

    @staticmethod
    def _subparsers_of(parser: Any) -> list[Any]:
        choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
        return [parser, *(sub for names in choices for sub in names.values())]


class RunRecord(SaveConfigCallback):
    """Beside `config.yaml`, `provenance.json`: what ran, where, on which versions."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert trainer.log_dir is not None
        record = provenance(self.config.get("seed_everything"), device=trainer.strategy.root_device)
        with whole_file(Path(trainer.log_dir) / "provenance.json") as path:
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        if path := self.config[self.config.subcommand].get("ckpt_path"):
            read_checkpoint(path)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config[self.config.subcommand]
        run = config.run
        stamp = run.version or os.environ.setdefault(STAMP, datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
        self.run_folder = Path(run.root) / run.name / stamp
        if config.trainer.logger is None:
            loggers = (CSVLogger, TensorBoardLogger)
            kwargs["logger"] = [logger(run.root, name=run.name, version=stamp) for logger in loggers]
        if config.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = str(self.run_folder)
        self.trainer_defaults["callbacks"] = self._callbacks(config)
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, config: Any) -> list[Callback]:
        run, folder = config.run, self.run_folder
        keeps = config.trainer.enable_checkpointing is not False
        callbacks: list[Callback] = [FitRitz(run.ritz_pairs, folder / "last.ckpt" if keeps else None)]
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        if keeps:
            last = ModelCheckpoint(folder, "last", every_n_epochs=run.save_every_n_epochs, enable_version_counter=False)
            kept = ModelCheckpoint(folder, "{epoch}", every_n_epochs=run.keep_every_n_epochs, save_top_k=-1)
            callbacks += [last, kept]
        return callbacks

    def before_fit(self) -> None:
        self.config_init[self.config.subcommand]["weights_only"] = True


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's contents, without running pickled code. CheckpointError when it is missing, corrupt or not ours."""
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"expected a checkpoint of neigenmaps in {path}, which cannot be read ({error}): "
            "it is missing, truncated, or not one of ours; use last.ckpt or epoch=*.ckpt of a run folder"
        ) from error
    if not isinstance(contents, dict) or "model_config" not in contents:
        raise CheckpointError(f"{path} is a checkpoint, but not one of neigenmaps: expected an entry 'model_config'")
    return contents
