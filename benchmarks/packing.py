"""What a large folder costs before the first step: listing, packing, opening again; as files and as tar shards.

    python benchmarks/packing.py                                            # 1,000,000 files of 48 x 48 pixels: some minutes
    python benchmarks/packing.py --files 4000 --width 500 --height 375      # photographs
    python benchmarks/packing.py --data path/to/folder                      # a folder of one's own

The folder is made for the purpose, of --unique different JPEG files with hard links to them in 1,000 class folders, and removed
again: so its files come from the page cache, and no disk is measured. Memory is the largest resident set, of this process beyond
what its imports took, and of any of the processes that decode. Rates: images decoded in order by one process (--alone of them) and
by one for each core. Shards: the same images, --alone of them, in tar files of 10,000.
"""

import argparse
import io
import json
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neigenmaps.data import folders
from neigenmaps.data.datasets import load_splits
from neigenmaps.data.listing import list_folder
from neigenmaps.data.shards import index_shards
from neigenmaps.files import whole_file
from neigenmaps.provenance import provenance

CLASSES, SHARD = 1_000, 10_000
MB = 2**20


class Stopwatch:
    """Seconds of the clock, and CPU seconds of this process and of its finished children."""

    def __init__(self) -> None:
        self.started, self.cpu = time.perf_counter(), cpu_seconds()

    def read(self) -> dict[str, float]:
        return {
            "seconds": round(time.perf_counter() - self.started, 2),
            "cpu_seconds": round(cpu_seconds() - self.cpu, 2),
        }


def cpu_seconds() -> float:
    return sum(
        one.ru_utime + one.ru_stime for one in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def make_folder(folder: Path, options: argparse.Namespace) -> None:
    draw = np.random.default_rng(0)
    originals = []
    for number in range(options.unique):
        coarse = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)  # smooth: noise would be no JPEG of common size
        image = Image.fromarray(coarse).resize((options.width, options.height), Image.Resampling.BICUBIC)
        originals.append(folder / f".{number:04}.jpg")
        image.save(originals[-1])
    for number in range(CLASSES):
        (folder / f"{number:04}").mkdir()
    for number in range(options.files):
        os.link(originals[number % options.unique], folder / f"{number % CLASSES:04}" / f"{number:07}.jpg")


def make_shards(images: Path, shards: Path, count: int) -> int:
    """Bytes of `count` images in shards."""
    listing = list_folder(images, 0.2).train
    shards.mkdir()
    for start in range(0, min(count, len(listing)), SHARD):
        with tarfile.open(shards / f"{start // SHARD:05}.tar", "w") as archive:
            for row in range(start, min(start + SHARD, count, len(listing))):
                for suffix, content in ((".jpg", (images / listing.names[row]).read_bytes()), (".cls", b"1")):
                    info = tarfile.TarInfo(f"{row:07}{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return sum(path.stat().st_size for path in shards.iterdir())


def decode(listing: Any, size: int, alone: bool) -> dict[str, float]:
    watch, given = Stopwatch(), folders.cores
    folders.cores = (lambda: 1) if alone else given
    n = sum(len(kept) for _, kept, _ in folders.decoded(listing, size))
    folders.cores = given
    found = watch.read()
    return found | {"images": n, "images_per_second": round(n / found["seconds"])}


def peak(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def measure(images: Path, work: Path, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    before = peak(resource.RUSAGE_SELF)
    watch = Stopwatch()
    parts = list_folder(images, 0.2)
    yield "list", watch.read() | {"files": len(parts.train) + len(parts.test)}
    some = parts.train.rows(range(min(options.alone, len(parts.train))))
    yield "decode, one process", decode(some, options.size, alone=True)
    yield "decode, a process a core", decode(some, options.size, alone=False)
    del parts, some
    for name in ("pack", "open again"):
        watch = Stopwatch()
        splits = load_splits(str(images), image_size=options.size, cache_dir=work / "cache")
        found: dict[str, Any] = watch.read()
        n = len(splits.train) + len(splits.test)
        store = sum(path.stat().st_size for path in (work / "cache").rglob("images.npy"))
        memory = {
            "this": round(peak(resource.RUSAGE_SELF) - before),
            "largest other": round(peak(resource.RUSAGE_CHILDREN)),
        }
        yield (
            name,
            found
            | {
                "images": n,
                "images_per_second": round(n / found["seconds"]),
                "store_mb": round(store / MB),
                "peak_mb": memory,
            },
        )
    size = make_shards(images, work / "shards", options.alone)
    watch = Stopwatch()
    listing = index_shards(work / "shards", sorted(path.name for path in (work / "shards").iterdir()))
    yield "index shards", watch.read() | {"images": len(listing), "mb": round(size / MB)}
    yield "decode shards, a process a core", decode(listing, options.size, alone=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of images, instead of one made for the purpose")
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--unique", type=int, default=1_000)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--size", type=int, default=32, help="of the packed images")
    parser.add_argument("--alone", type=int, default=50_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "packing.json")
    options = parser.parse_args()
    given = {name: value for name, value in vars(options).items() if name not in ("out", "data")}
    record: dict[str, Any] = {"provenance": provenance(0), "arguments": given, "cores": folders.cores()}
    record |= {"load_before": os.getloadavg()[0], "stages": {}}  # above 1: a machine that others use
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = options.data
        if images is None:
            images = work / "images"
            images.mkdir()
            make_folder(images, options)
        for name, found in measure(images, work, options):
            record["stages"][name] = found
            print(name, found, flush=True)
    record["load_after"] = os.getloadavg()[0]
    with whole_file(options.out) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
