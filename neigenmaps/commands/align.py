"""Align saved models with references, as AlignmentMonitor does while training runs: the numbers are the same.

    neigenmaps align checkpoints/digits/RUN                        # references and images as the run's config.yaml states
    neigenmaps align RUN --references teacher=other/model pixels   # or others; --probe for other images
    neigenmaps align checkpoints/digits --out comparison           # all runs of a folder, each with each

Every checkpoint becomes one file in the run's alignment/ (with --out in OUT/RUN/); those that are there already are not
measured again. `neigenmaps report RUN` draws them. Two runs or more are also compared with each other and the references:
OUT/comparison.html shows similarities, the tree of models and their universe, OUT/comparison.json holds the numbers.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

from neigenmaps.commands.checkpoint import add_place_arguments, chosen_device
from neigenmaps.console import make_console
from neigenmaps.data import ImageStore, load_splits
from neigenmaps.data.progress import showing_progress
from neigenmaps.errors import InputError
from neigenmaps.evaluation.alignments import Alignment
from neigenmaps.evaluation.convergence import Layer, ReferencePanel
from neigenmaps.evaluation.model_comparison import compare_models
from neigenmaps.evaluation.references import Reference
from neigenmaps.files import whole_file
from neigenmaps.reporting.comparison_report import report_comparison
from neigenmaps.training.alignment_monitor import AlignmentMonitor
from neigenmaps.training.offline_alignment import align_saved, watched_by
from neigenmaps.training.saved_models import Saved, SavedReference, find_runs, reference_of, run_folder

COMPARISON = Path("comparison")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, folder of runs, model/ folder, or .ckpt files"
    )
    parser.add_argument(
        "--references",
        nargs="+",
        metavar="NAME=WHAT",
        help="pixels, pca:N, laplacian_eigenmap:N, shipped:NAME, a model folder, a .ckpt, a file of features; NAME= is optional",
    )
    parser.add_argument("--probe", help="images, by name or path of a data set; its held-out part is taken")
    parser.add_argument("--probe-size", type=int, help="at most so many of them, evenly spread (default 1000)")
    parser.add_argument("--layers", nargs="+", choices=get_args(Layer), help="the first one leads (default backbone)")
    parser.add_argument("--n-eigenvectors", type=int, help="smooth functions that are compared (default 30)")
    parser.add_argument("--n-permutations", type=int, help="of every null (default 49)")
    parser.add_argument(
        "--refit", action="store_true", default=None, help="fit the universe with every checkpoint in it, not beside it"
    )
    parser.add_argument("--out", type=Path, help="folder of the results instead of each run's alignment/")
    parser.add_argument("--cache", type=Path, help="folder that keeps the references' features and bases")
    add_place_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    runs, console = find_runs(arguments.runs), make_console()
    stated = watched_by(run_folder(next(iter(runs.values()))))
    monitor = stated[0] if stated else AlignmentMonitor()
    monitor.probe_size = arguments.probe_size or monitor.probe_size
    if arguments.probe is not None:
        size = int(next(iter(runs.values()))[0].load().config["image_size"])
        probe = load_splits(arguments.probe, root=arguments.root, image_size=size).test.thin(monitor.probe_size)
    elif stated is not None:
        stated[1].setup()
        probe = monitor.probe_images(stated[1])
    else:
        raise InputError(
            f"{run_folder(next(iter(runs.values())))} has no config.yaml with an AlignmentMonitor that says which images to "
            "embed: name them with --probe, such as --probe digits"
        )
    asked = {name: getattr(arguments, name) for name in ("n_eigenvectors", "n_permutations", "refit")}
    settings = replace(monitor.settings, **{name: value for name, value in asked.items() if value is not None})
    known = monitor.references if arguments.references is None else named_references(arguments.references)
    layers: tuple[Layer, ...] = tuple(arguments.layers or monitor.layers)
    cache = arguments.cache or monitor.cache
    with showing_progress("Aligning checkpoints", sum(map(len, runs.values()))) as show:
        panel = ReferencePanel(known, probe, settings, cache=cache)
        histories: dict[str, list[Alignment]] = {}
        for name, saved in runs.items():
            folder = alignment_folder(saved, name, arguments.out)
            histories[name] = []
            for alignment in align_saved(panel, saved, folder, layers, device=chosen_device(arguments.device)):
                histories[name].append(alignment)
                show(1)
    for name, saved in runs.items():
        console.print(f"{name}: {alignment_folder(saved, name, arguments.out)}", soft_wrap=True, markup=False)
        console.print(f"  {histories[name][-1].summary()}", markup=False)
    if len(runs) > 1:
        out = arguments.out or COMPARISON
        path = compare(runs, known, probe, panel, layers[0], histories, out)
        console.print(f"Comparison of all with all: [bold]{path}[/bold]", soft_wrap=True)
    else:
        console.print("One run: name several, or a folder of them, to compare them with each other.", soft_wrap=True)


def compare(
    runs: dict[str, list[Saved]],
    known: dict[str, Reference],
    probe: ImageStore,
    panel: ReferencePanel,
    layer: Layer,
    histories: dict[str, list[Alignment]],
    out: Path,
) -> Path:
    """The last model of every run beside the references: `comparison.json`, and the page, whose path comes back."""
    last: dict[str, Reference] = {name: SavedReference(saved[-1], layer) for name, saved in runs.items()}
    if shared := last.keys() & known.keys():
        raise InputError(f"run and reference are both called {sorted(shared)}: name the reference with NAME=")
    comparison = compare_models(ReferencePanel({**last, **known}, probe, panel.settings))
    with whole_file(out / "comparison.json") as path:
        path.write_text(json.dumps(comparison.as_dict() | {"facts": panel.facts}, indent=2) + "\n")
    return report_comparison(out, comparison, histories, probe)


def alignment_folder(saved: list[Saved], name: str, out: Path | None) -> Path:
    return run_folder(saved) / "alignment" if out is None else out / name


def named_references(texts: list[str]) -> dict[str, Reference]:
    """NAME=WHAT, or WHAT alone, which is its own name. InputError for a name given twice."""
    found: dict[str, Reference] = {}
    for text in texts:
        name, equals, what = text.partition("=")
        if not equals or Path(text).exists():  # epoch=9.ckpt is a file
            name, what = text, text
        if name in found:
            raise InputError(f"two references are called {name!r}: give them names with NAME=WHAT")
        found[name] = reference_of(what)
    return found
