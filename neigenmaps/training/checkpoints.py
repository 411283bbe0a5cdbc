"""Checkpoints that are written whole or not at all, read without running pickled code, and found again after a fault.

A process can be killed at any instruction, and a disk can lose what was not flushed. So a file is written beside its place,
flushed, and renamed; what a name points to is always one whole save. Files that came to harm otherwise (a copy cut short, a
flipped bit) are found by the checksums that torch writes for every tensor but does not look at when it reads.
"""

import errno
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO

from neigenmaps.errors import CheckpointError
from neigenmaps.files import whole_file


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's own writer keeps the unfinished file in the system's temporary folder; moving it to another disk is a copy."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        with whole_file(Path(path)) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class Search(NamedTuple):
    """path: the newest good checkpoint, None when there is none. step: how many it has taken. skipped: why newer ones were not."""

    path: Path | None
    step: int
    skipped: tuple[str, ...]


def last_good_checkpoint(runs: Path, check: Callable[[Path, dict[str, Any]], None]) -> Search:
    """The newest checkpoint of all run folders `runs/*/` that is whole and that `check` does not refuse by CheckpointError.

    Newest: by time of writing; of equal times the one with more steps in its name.
    """
    found = [path for path in runs.glob("*/*.ckpt") if not path.name.startswith(".")]  # those are unfinished
    skipped: list[str] = []
    for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        try:
            contents = read_checkpoint(path)
            check_finite(path, contents)
            check(path, contents)
        except CheckpointError as error:
            skipped.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        else:
            return Search(path, int(contents["global_step"]), tuple(skipped))
    return Search(None, 0, tuple(skipped))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's contents, without running pickled code. CheckpointError when it is missing, corrupt or not ours."""
    try:
        damaged = _damaged_part(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # of a foreign file: refused below
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        # torch's own text is left to the cause: it recommends weights_only=False, which would run a stranger's code
        why: str | None = "truncated, or more than tensors and plain values is in it"
        # EINVAL comes of seeking before the start of a torn file
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            why = error.strerror
        raise _unreadable(path, why) from error
    if damaged is not None:
        raise _unreadable(path, f"the checksum of {damaged} is wrong")
    if not isinstance(contents, dict) or "model_config" not in contents:
        raise CheckpointError(f"{path} is a checkpoint, but not one of neigenmaps: expected an entry 'model_config'")
    return contents


def count_the_next_epoch(trainer: pl.Trainer) -> None:
    """For `on_train_start`: so that a run resumed from the last step of an epoch counts the epochs after it.

    It counts that epoch as done, but Lightning would not count the next one as begun. The run's own checkpoints would then lag by
    one, and a run resumed from one of these would do an epoch twice.
    """
    loop = trainer.fit_loop
    epochs = loop.epoch_progress.current
    if loop.restarted_mid_epoch and epochs.ready == epochs.completed:
        loop.reset_restart_stage()


def check_finite(path: Path, contents: dict[str, Any]) -> None:
    """CheckpointError when a weight is NaN or infinite: a run that goes on from it can only stay so."""
    for name, value in contents["state_dict"].items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity")


def _damaged_part(path: str | Path) -> str | None:
    """Name of the first part of an archive whose bytes are not those that were written."""
    if not zipfile.is_zipfile(path):
        return None  # torn, or of another kind: torch says so
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _unreadable(path: str | Path, why: str | None) -> CheckpointError:
    return CheckpointError(
        f"expected a checkpoint of neigenmaps in {path}, which cannot be read ({why}): "
        "use last.ckpt or epoch=*.ckpt of a run folder"
    )
