"""Measure a trained model on a labelled data set: kNN, linear probe and retrieval at every code length.

    neigenmaps evaluate checkpoints/digits/RUN digits      # evaluation/digits/

Held-out images are classified by, and retrieved from, training images. Beside our ordered codes stand the same outputs as trained,
in their principal components, and cut at random places, and the pixels' principal components. Writes evaluation.json, .md and .png.
"""

import argparse
import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from neigenmaps.commands.checkpoint import CHECKPOINT_HELP, add_place_arguments, load_model
from neigenmaps.console import make_console
from neigenmaps.data import DatasetSplits, load_splits
from neigenmaps.data.rows import store_with_channels
from neigenmaps.evaluation.comparison import compare_rotations, readings, reports_by_length
from neigenmaps.files import whole_file
from neigenmaps.functional.ranking import RetrievalReport
from neigenmaps.provenance import provenance
from neigenmaps.reporting import markdown_table, plot_truncation, truncation_table
from neigenmaps.reporting.spread import measures_of

SCORES = {
    "mean_average_precision": "mAP",
    "mean_average_precision_at_r": "mAP@R",
    "precision_at_k": "precision@k",
    "recall_at_k": "recall@k",
    "mean_reciprocal_rank": "MRR",
    "ndcg_at_k": "NDCG@k",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument(
        "data", help="a labelled data set: a name, a folder with a folder for each class, or an .npz file"
    )
    parser.add_argument("--out", type=Path, help="folder for the results (default: evaluation/ and the data's name)")
    parser.add_argument("-k", type=int, default=10, help="of precision, recall and NDCG")
    parser.add_argument("--max-bank", type=int, default=10_000, help="training images, evenly spread")
    parser.add_argument("--max-queries", type=int, default=2_000, help="held-out images, evenly spread")
    add_place_arguments(parser, download=True)


def run(arguments: argparse.Namespace) -> None:
    model = load_model(arguments.checkpoint, arguments.device)
    model.available_dims()  # refuses a model without an order before images are read
    loaded = load_splits(
        arguments.data,
        root=arguments.root,
        download=arguments.download,
        image_size=int(model.config["image_size"]),
    )
    channels = int(model.config["in_chans"])
    splits = DatasetSplits(*(store_with_channels(store, channels) for store in loaded))
    splits = DatasetSplits(splits.train.thin(arguments.max_bank), splits.test.thin(arguments.max_queries))
    console = make_console()
    with console.status(f"Encoding {len(splits.train)} and {len(splits.test)} images"):
        train, test = (model.encode(store.images_NCHW, space="projector").cpu() for store in splits)
    with console.status("Measuring every code length"):
        read = readings(model, splits, (train, test), max_bank=arguments.max_bank, max_queries=arguments.max_queries)
        reports = reports_by_length(read, k=arguments.k)  # first, as k can be refused
        curves = compare_rotations(read)
    console.print(truncation_table(curves))
    console.print(_scores_table(reports, arguments.k))
    record = {
        "checkpoint": str(arguments.checkpoint),
        "data": {"train": splits.train.source, "test": splits.test.source, "rows": [len(store) for store in splits]},
        "by_length": {name: [curve.as_dict() for curve in given] for name, given in curves.items()},
        "ours": {m: report._asdict() for m, report in reports.items()},
        "provenance": provenance(0),
    }
    out = arguments.out or Path("evaluation", Path(arguments.data).resolve().name.removesuffix(".npz"))
    replaced = ", in place of earlier ones" if (out / "evaluation.json").exists() else ""
    with whole_file(out / "evaluation.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    with whole_file(out / "evaluation.md") as path:
        path.write_text("\n".join(markdown_table(curves, measure=measure) for measure in measures_of(curves)))
    plot_truncation(curves, out / "evaluation.png")
    console.print(f"Results: [bold]{out}[/bold] (evaluation.json, .md, .png{replaced})", soft_wrap=True)


def _scores_table(reports: dict[int, RetrievalReport], k: int) -> Table:
    table = Table(title=f"Retrieval with our codes, k = {k}, %", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("numbers")
    for m in reports:
        table.add_column(str(m), justify="right")
    for name, shown in SCORES.items():
        table.add_row(shown, *(f"{100 * getattr(report, name):.1f}" for report in reports.values()))
    return table
