"""Models that training saved: found by run, read without running pickled code, used as references."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from neigenmaps.data import ImageStore
from neigenmaps.errors import CheckpointError, InputError
from neigenmaps.evaluation.convergence import Layer, embed_layers
from neigenmaps.evaluation.references import Reference, file_digest, parse_reference
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.training.checkpoints import read_checkpoint


@dataclass(frozen=True)
class Saved:
    """A checkpoint file, or a folder of `save_pretrained`, whose step nobody knows and which counts as step 0."""

    path: Path
    step: int = 0
    epoch: int = 0

    def load(self) -> NeuralEigenmapModel:
        """The model, on the CPU; runs no pickled code. CheckpointError when it does not fit."""
        return NeuralEigenmapModel.from_pretrained(self.path) if self.path.is_dir() else read_model(self.path)


@dataclass(frozen=True)
class SavedReference(Reference):
    """A saved model by one of its layers."""

    saved: Saved
    layer: Layer = "backbone"

    def embed(self, images: ImageStore) -> Tensor:
        return embed_layers(self.saved.load(), images.images_NCHW, [self.layer])[self.layer]

    def key(self) -> str:
        path = self.saved.path
        return f"saved:{self.layer}:{file_digest(path / 'model.safetensors' if path.is_dir() else path)}"


def read_model(path: str | Path) -> NeuralEigenmapModel:
    """The model inside a training checkpoint. CheckpointError when there is none that fits."""
    contents, prefix = read_checkpoint(path), "model."
    try:
        model = NeuralEigenmapModel(**contents["model_config"])
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{path} holds no model of images of this version: {error}") from error
    state = contents["state_dict"].items()
    named = {name.removeprefix(prefix): tensor for name, tensor in state if name.startswith(prefix)}
    model.load_weights(named)
    return model


def reference_of(text: str) -> Reference:
    """`parse_reference`, which knows training checkpoints too."""
    is_checkpoint = text.endswith(".ckpt") and Path(text).is_file()
    return SavedReference(Saved(Path(text))) if is_checkpoint else parse_reference(text)


def find_runs(paths: Iterable[str | Path]) -> dict[str, list[Saved]]:
    """Saved models by run, each run's by step: of run folders, folders of runs, model folders, and checkpoint files.

    A run is named by its folder, with as many parents as tell it from the others. CheckpointError where nothing is saved.
    """
    found: dict[Path, list[Saved]] = {}
    for path in map(Path, paths):
        for folder, saved in _runs_of(path).items():
            found.setdefault(folder, []).extend(saved)
    by_step = {folder: {one.step: one for one in saved} for folder, saved in found.items()}
    names = distinct_names(list(by_step))
    return {names[folder]: [saved[step] for step in sorted(saved)] for folder, saved in by_step.items()}


def run_folder(saved: Sequence[Saved]) -> Path:
    """The folder that a run's saved models lie in."""
    path = saved[0].path
    return path.parent if path.is_file() or path.name == "model" else path


def distinct_names(folders: Sequence[Path]) -> dict[Path, str]:
    parts = {folder: folder.resolve().parts for folder in folders}
    for length in range(1, max((len(given) for given in parts.values()), default=1) + 1):
        names = {folder: "/".join(given[-length:]) for folder, given in parts.items()}
        if len(set(names.values())) == len(names):
            break
    return names if parts else {}


def _runs_of(path: Path) -> dict[Path, list[Saved]]:
    if path.suffix == ".ckpt":
        return {path.parent: [_saved(path)]}
    if checkpoints := sorted(path.glob("*.ckpt")):
        return {path: [_saved(one) for one in checkpoints if not one.name.startswith(".")]}
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return {path: [Saved(folder)]}
    below = sorted(one for one in path.iterdir() if one.is_dir()) if path.is_dir() else []
    runs = [one for one in below if any(one.glob("*.ckpt")) or (one / "model" / "config.json").is_file()]
    if not runs:
        raise CheckpointError(
            f"expected a run folder, a folder of runs, a model folder or a .ckpt file at {path}, found no saved model: a run "
            "writes last.ckpt every run.save_every_n_epochs, unless trainer.enable_checkpointing is false"
        )
    return {folder: saved for one in runs for folder, saved in _runs_of(one).items()}


def _saved(path: Path) -> Saved:
    contents = read_checkpoint(path)
    epochs = contents.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    return Saved(path, int(contents["global_step"]), int(epochs.get("ready", 0)))
