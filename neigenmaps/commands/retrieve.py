"""Find the images most similar to some query images.

    neigenmaps retrieve photos.safetensors --query holiday.jpg -k 10 --html found.html

CODES is a file of `neigenmaps embed`, which remembers its model and its images; --model and --images say where they lie now.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, stack

from neigenmaps.commands.checkpoint import CHECKPOINT_HELP, add_place_arguments, load_model
from neigenmaps.console import make_console
from neigenmaps.data import ImageRows, open_rows, read_image
from neigenmaps.errors import DataError, InputError
from neigenmaps.reporting.retrieval_page import Hit, HitRow, QueryResult, write_retrieval_page
from neigenmaps.retrieval import CodeStore, TruncatedIndex, fingerprint_model

SHOWN_LENGTHS = (8, 32)  # on the page, beside the length asked for
THUMBNAIL = 96  # pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("codes", type=Path, help="a file that `neigenmaps embed` wrote")
    parser.add_argument("--query", type=Path, nargs="+", required=True, help="image files")
    parser.add_argument("-k", type=int, default=10, help="how many to find")
    parser.add_argument("--dims", type=int, default=None, help="length at which codes are compared (default: all)")
    parser.add_argument(
        "--diffusion", type=float, default=0.0, help="damps later numbers by this power of their eigenvalue"
    )
    parser.add_argument("--html", type=Path, default=None, help="write a page with thumbnails here")
    parser.add_argument("--model", default=None, help=f"{CHECKPOINT_HELP} (default: the one that made the codes)")
    parser.add_argument("--images", default=None, help="folder or data set the codes are of (default: as then)")
    add_place_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    store = CodeStore.load(arguments.codes)
    model = load_model(arguments.model or _noted(store, "model", "--model"), arguments.device)
    store.check_fingerprint(fingerprint_model(model))
    size, channels = int(model.config["image_size"]), int(model.config["in_chans"])
    images = [read_image(path, image_size=size, channels=channels) for path in arguments.query]
    index = TruncatedIndex(store, arguments.dims, diffusion=arguments.diffusion)
    scaling: Any = _noted(store, "scaling", "")
    codes = model.encode(stack(images), store.width, scaling=scaling).cpu()
    scores, ids = index.search(codes, arguments.k)
    console = make_console()
    for path, row_scores, row_ids in zip(arguments.query, scores, ids, strict=True):
        console.print(f"{path}, by {index.truncate_dim} numbers", markup=False, soft_wrap=True)
        console.print(_table(row_scores, row_ids))
    if arguments.html is not None:
        _write_page(arguments, index, codes)
        console.print(f"Page: [bold]{arguments.html}[/bold]", soft_wrap=True)


def _noted(store: CodeStore, name: str, option: str) -> str:
    if name not in store.notes:
        advice = f"give {option}, or " if option else ""
        raise InputError(f"these codes do not say their {name}: {advice}make them with `neigenmaps embed`")
    return store.notes[name]


def _table(scores: Sequence[float], ids: Sequence[Any]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("rank", justify="right")
    table.add_column("cosine", justify="right")
    table.add_column("image", overflow="fold")
    for rank, (score, name) in enumerate(zip(scores, ids, strict=True), start=1):
        table.add_row(str(rank), f"{score:.4f}", str(name).replace("[", "\\["))
    return table


def _write_page(arguments: argparse.Namespace, index: TruncatedIndex, codes: Tensor) -> None:
    lengths = sorted({*(m for m in SHOWN_LENGTHS if m < index.truncate_dim), index.truncate_dim})
    found = {m: index.truncated(m).search(codes, arguments.k) for m in lengths}
    wanted = sorted({str(name) for result in found.values() for name in result.ids.ravel()})
    images = _thumbnails(arguments, index.store, wanted)
    results = [
        QueryResult(
            str(path),
            read_image(path, image_size=THUMBNAIL),
            [
                HitRow(
                    f"{m} numbers",
                    [
                        Hit(str(name), float(score), images.get(str(name)))
                        for score, name in zip(found[m].scores[row], found[m].ids[row], strict=True)
                    ],
                )
                for m in lengths
            ],
        )
        for row, path in enumerate(arguments.query)
    ]
    lead = f"The {arguments.k} most similar of {len(index)} images, by cosine, at several lengths of one and the same code."
    write_retrieval_page(arguments.html, f"Retrieved from {arguments.codes.name}", lead, results)


def _thumbnails(arguments: argparse.Namespace, store: CodeStore, names: Sequence[str]) -> dict[str, Tensor]:
    """Images by name; those that lie there no longer are left out."""
    source = arguments.images or _noted(store, "images", "--images")
    try:
        images: ImageRows = open_rows(source, image_size=THUMBNAIL, root=arguments.root)
    except DataError as error:
        raise DataError(f"{error}. Say with --images where the images lie now, or leave --html out") from error
    number = {name: row for row, name in enumerate(images.names)}
    known = [name for name in names if name in number]
    read = images.read([number[name] for name in known])
    return {name: image for name, image in zip(known, read, strict=True) if image is not None}
