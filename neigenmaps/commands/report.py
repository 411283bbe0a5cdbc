"""Write report.html into run folders: one page without network, from the files that lie there.

    neigenmaps report checkpoints/digits/RUN

Alignment curves, maps and drift come from alignment/ (AlignmentMonitor, or `neigenmaps align`), accuracy by code length from
summary.json, curves from metrics.csv; what is missing is left out. The images of the run's config.yaml are shown where they
can be read. For several runs beside each other see `neigenmaps align`.
"""

import argparse
from pathlib import Path

from rich.console import Console

from neigenmaps.console import make_console
from neigenmaps.data import DatasetSplits
from neigenmaps.errors import DataError, InputError
from neigenmaps.reporting.run_report import report_run
from neigenmaps.training.offline_alignment import data_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")


def run(arguments: argparse.Namespace) -> None:
    console = make_console()
    for folder in arguments.runs:
        path = report_run(folder, images_of(folder, console))
        console.print(f"Report: [bold]{path}[/bold]", soft_wrap=True)


def images_of(folder: Path, console: Console) -> DatasetSplits | None:
    """The run's images, or None, and why, where its config.yaml names none that can be read."""
    try:
        data = data_of(folder)
        if data is not None:
            data.setup()
            return data.splits
        console.print(f"{folder} has no config.yaml: the page shows no images", markup=False, soft_wrap=True)
    except (InputError, DataError, OSError) as error:
        console.print(f"The page shows no images: {error}", markup=False, soft_wrap=True)
    return None
