"""What the verbs mean by CHECKPOINT, and by a device."""

import argparse
from pathlib import Path

import torch

from neigenmaps.errors import CheckpointError, InputError
from neigenmaps.nn import NeuralEigenmapModel

CHECKPOINT_HELP = "a run folder, a model/ folder, or a .ckpt file"


def add_place_arguments(parser: argparse.ArgumentParser, *, download: bool = False) -> None:
    """Where data sets lie, whether they may be fetched, and where the work is done: the same for every verb."""
    parser.add_argument("--root", default="data", help="where data sets known by name lie")
    if download:
        parser.add_argument("--download", action="store_true", help="fetch a data set known by name")
    parser.add_argument("--device", default="auto")


def load_model(path: str | Path, device: str = "auto") -> NeuralEigenmapModel:
    """The model of a run folder (its model/, else its last.ckpt), of a folder written by `save_pretrained`, or of a .ckpt.

    CheckpointError when there is none, or it is corrupt; no pickled code is run.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return NeuralEigenmapModel.from_pretrained(folder).to(chosen_device(device))
    file = path / "last.ckpt" if path.is_dir() else path
    if file.suffix != ".ckpt" or not file.is_file():
        found = (
            "no such file or folder" if not path.exists() else "neither model/ nor last.ckpt" if path.is_dir() else path
        )
        saved = (*path.glob("*/last.ckpt"), *path.glob("*/model/config.json"))
        runs = {path / one.relative_to(path).parts[0] for one in saved}
        newest = max(runs, key=lambda folder: folder.stat().st_mtime, default=None)
        hint = f": did you mean {newest}?" if newest else ""
        raise CheckpointError(f"{path}: expected {CHECKPOINT_HELP}, found {found}{hint}")
    from neigenmaps.training.saved_models import read_model  # here, as only this case needs Lightning

    return read_model(file).to(chosen_device(device))


def chosen_device(name: str) -> torch.device:
    """auto: a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try --device cpu") from error
