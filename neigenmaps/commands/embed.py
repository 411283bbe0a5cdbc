"""Encode a folder of images, or a data set, into one file of codes.

    neigenmaps embed checkpoints/digits/RUN photos/ --out photos.safetensors --dims 64

The same line goes on where a killed one stopped, and after photos were added, removed or changed it encodes only the new ones.
Several processes share the work by --shard 0/4 ... 3/4, each with the same other arguments; the last to finish joins their blocks.
"""

import argparse
from pathlib import Path

from neigenmaps.commands.checkpoint import CHECKPOINT_HELP, add_place_arguments, load_model
from neigenmaps.console import make_console
from neigenmaps.data import open_rows
from neigenmaps.data.progress import showing_progress
from neigenmaps.data.unreadable import first_names
from neigenmaps.errors import InputError
from neigenmaps.retrieval.embedding import embed_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("data", help="a folder of images, an .npz file, or the name of a data set")
    parser.add_argument("--out", type=Path, required=True, help="where the codes go, such as codes.safetensors")
    parser.add_argument("--dims", type=int, default=None, help="length of the codes (default: all numbers)")
    parser.add_argument("--scaling", choices=["sqrt_eigenvalue", "unit"], default="sqrt_eigenvalue")
    parser.add_argument(
        "--shard", default="0/1", metavar="i/n", help="this process's part: every n-th block of images from the i-th"
    )
    parser.add_argument(
        "--block", type=int, default=1024, help="images between two savings; fewer where shards would have none"
    )
    parser.add_argument("--max-unreadable-share", type=float, default=0.01, help="of files that are no images")
    add_place_arguments(parser, download=True)


def run(arguments: argparse.Namespace) -> None:
    shard = _shard(arguments.shard)
    model = load_model(arguments.checkpoint, arguments.device)
    images = open_rows(
        arguments.data,
        image_size=int(model.config["image_size"]),
        channels=int(model.config["in_chans"]),
        root=arguments.root,
        download=arguments.download,
    )
    console = make_console()
    with showing_progress(f"Encoding {images.source}", -(-len(images) // shard[1])) as show:
        done = embed_images(
            model,
            images,
            arguments.out,
            dims=arguments.dims,
            scaling=arguments.scaling,
            shard=shard,
            block=arguments.block,
            max_unreadable_share=arguments.max_unreadable_share,
            notes={"model": str(Path(arguments.checkpoint).resolve())},
            on_block=show,
        )
    if done.skipped:
        names = first_names(done.skipped)
        console.print(f"Left out, as no image can be read from them: {names}", markup=False, soft_wrap=True)
    if done.n_missing:
        console.print(f"Encoded {done.n_encoded} images; other shards still have {done.n_missing} blocks to make.")
        return
    facts = [f"{done.n_encoded} encoded now"]
    if done.n_kept or done.n_gone:
        facts.append(f"{done.n_kept} kept from before, {done.n_gone} dropped as their images are gone or have changed")
    total = len(images) - len(done.skipped)
    console.print(f"{total} codes ({', '.join(facts)}): [bold]{done.path}[/bold]", soft_wrap=True)


def _shard(text: str) -> tuple[int, int]:
    index, slash, total = text.partition("/")
    if not (slash and index.isdecimal() and total.isdecimal() and int(index) < int(total)):
        raise InputError(f"expected --shard i/n with 0 <= i < n, such as 0/4, got {text!r}")
    return int(index), int(total)
