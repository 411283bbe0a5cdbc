"""Alignment of what was saved: the functions that `AlignmentMonitor` calls, so that the numbers are equal.

runs = find_runs(["checkpoints/digits"])                  # saved models by run, in the order of their steps
monitor, data = watched_by("checkpoints/digits/RUN")      # as the run's config.yaml states them
panel = ReferencePanel(monitor.references, monitor.probe_images(data), monitor.settings)
for alignment in align_saved(panel, runs["RUN"], folder, monitor.layers): ...
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentError, ArgumentParser

from neigenmaps.errors import InputError
from neigenmaps.evaluation.alignments import Alignment, alignment_path, read_alignments, write_alignment
from neigenmaps.evaluation.convergence import Layer, ReferencePanel, embed_layers
from neigenmaps.training.alignment_monitor import AlignmentMonitor
from neigenmaps.training.datamodule import ViewsDataModule
from neigenmaps.training.saved_models import Saved


def watched_by(run: str | Path) -> tuple[AlignmentMonitor, ViewsDataModule] | None:
    """The monitor and the data that a run's `config.yaml` states; None without the file, or without a monitor in it.

    InputError when this version can't build them.
    """
    callbacks = (_stated(run).get("trainer") or {}).get("callbacks") or []
    named = [one for one in callbacks if isinstance(one, dict)]
    watching = [one for one in named if one.get("class_path", "").endswith("AlignmentMonitor")]
    data = data_of(run)
    if not watching or data is None:
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("monitor", type=AlignmentMonitor)
    return _made(run, parser, {"monitor": watching[0]}).monitor, data


def data_of(run: str | Path) -> ViewsDataModule | None:
    """The data that a run's `config.yaml` states, not yet read; None without the file. InputError when it can't be built."""
    stated = _stated(run).get("data")
    if stated is None:
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ViewsDataModule, "data")
    data: ViewsDataModule = _made(run, parser, {"data": stated}).data
    return data


def _stated(run: str | Path) -> dict[str, Any]:
    path = Path(run) / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def _made(run: str | Path, parser: ArgumentParser, stated: dict[str, Any]) -> Any:
    try:
        return parser.instantiate_classes(parser.parse_object(stated))
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(f"{Path(run) / 'config.yaml'} states what this version cannot make: {error}") from error


def align_saved(
    panel: ReferencePanel,
    saved: Sequence[Saved],
    folder: str | Path,
    layers: Sequence[Layer] = ("backbone",),
    *,
    device: str | torch.device = "cpu",
) -> Iterator[Alignment]:
    """Align a run's saved models in turn and write each into `folder`; those that lie there already are not measured again.

    InputError when the folder holds alignments with other references, images or settings.
    """
    known = {one.step: one for one in read_alignments(folder)}
    for one in known.values():
        if not panel.measured(one):
            raise InputError(
                f"{alignment_path(folder, one.step)} was measured on other images, with other references or other settings: "
                "give --out a folder of its own"
            )
    for model in saved:
        if model.step not in known or set(layers) - known[model.step].values.keys():
            rows = embed_layers(model.load().to(device), panel.probe.images_NCHW, layers)
            earlier = [step for step in known if step < model.step]
            previous = known[max(earlier)] if earlier else None
            known[model.step] = panel.align(rows, step=model.step, epoch=model.epoch, previous=previous)
            write_alignment(known[model.step], folder)
        yield known[model.step]
