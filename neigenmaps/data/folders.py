"""Folders of image files and of tar shards: listed, decoded once into a packed store in the cache, opened by memory map ever after.

    folder/cat/a.jpg, folder/dog/b.png             sub-folders are classes; a seeded split makes train and test
    folder/a.jpg, folder/b.png                     no labels
    folder/train/..., folder/test/... (or val/)    explicit parts, each of either kind; train alone is split
    folder/a.tar, folder/b.tar; a.tar itself       WebDataset shards, see `neigenmaps.data.shards`

Sub-folders may be nested; the topmost one names the class. An image beside class folders is unlabelled (-1). Images become
RGB (grey ones too), photographs stand upright as their EXIF orientation says, the shorter side is resized to `image_size`
(bicubic, antialiased), and the centre square is kept.

The cache entry is named by what went into it: absolute path, files with sizes and times of change, image size. So a changed
folder is packed anew and a stale entry is never opened; old entries may be deleted at any time. Packing runs on all cores, holds
some megabytes of images at a time, and goes on where it was killed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from neigenmaps.data.decoding import decode_image
from neigenmaps.data.listing import Listing, Parts, file_states, list_folder
from neigenmaps.data.progress import showing_progress
from neigenmaps.data.resumable import ResumableWriter
from neigenmaps.data.shards import list_shards, shard_files, shard_root
from neigenmaps.data.splits import DatasetSplits
from neigenmaps.data.store import SCHEMA_VERSION, open_store
from neigenmaps.data.unreadable import Allowed, check_unreadable, first_names
from neigenmaps.errors import DataError

DEFAULT_IMAGE_SIZE = 64
DECODING = 2  # raised when a file's pixels come out otherwise, so that no store packed before is opened: 2 is upright
CHUNK_IMAGES, CHUNK_BYTES = 256, 1 << 22  # that a process decodes before it hands them over
WORTH_PROCESSES = 2_000  # images; starting them takes as long as decoding some hundred


def load_folder(
    path: Path, *, image_size: int | None, cache_dir: Path | None, test_share: float, max_unreadable_share: float
) -> DatasetSplits:
    """Splits of a folder of images or of shards, or of one shard, packed on the first call. Warns of unreadable images.

    Raises DataError if there are no images, or more than `max_unreadable_share` of them can't be read; for shards also as
    `list_shards`.
    """
    size = DEFAULT_IMAGE_SIZE if image_size is None else image_size
    listed: Callable[[], Parts]
    if shards := shard_files(path):
        key = _cache_key(path, [size, test_share], shard_root(path), shards)
        listed = lambda: list_shards(path, test_share)  # noqa: E731  # only when there is something to pack
    else:
        parts = list_folder(path, test_share)
        n_train = len(parts.train)
        key = _cache_key(path, [size, parts.class_names, n_train], path, parts.train.names + parts.test.names)
        listed = lambda: parts  # noqa: E731
    stores = _open_or_pack((cache_dir or default_cache_dir()) / key, path, listed, size, max_unreadable_share)
    _warn_of_unreadable(path, stores, max_unreadable_share)
    return stores


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/neigenmaps, or ~/.cache/neigenmaps."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neigenmaps"


def _cache_key(path: Path, facts: list[Any], root: Path, files: tuple[str, ...]) -> str:
    digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, DECODING, str(path.resolve()), *facts]).encode())
    for file, (size, changed) in zip(files, file_states(root, files), strict=True):
        digest.update(f"{file}\0{size}\0{changed}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _open_or_pack(
    entry: Path, path: Path, listed: Callable[[], Parts], size: int, max_unreadable_share: float
) -> DatasetSplits:
    places = {part: entry / part for part in ("train", "test")}
    if not all(place.exists() for place in places.values()):
        parts = listed()
        allowed = Allowed(max_unreadable_share, len(parts.train) + len(parts.test))
        for part, listing in (("train", parts.train), ("test", parts.test)):
            if not places[part].exists():
                _pack_unless_made(places[part], f"{path} ({part})", listing, parts.class_names, size, allowed)
    return DatasetSplits(*(open_store(place) for place in places.values()))


def _pack_unless_made(
    place: Path, source: str, listing: Listing, class_names: tuple[str, ...], size: int, allowed: Allowed
) -> None:
    try:
        _pack(place, source, listing, class_names, size, allowed)
    except DataError:
        if not place.exists():  # else another process packed the same files first: open its store
            raise


def _pack(
    place: Path, source: str, listing: Listing, class_names: tuple[str, ...], size: int, allowed: Allowed
) -> None:
    """Raises DataError as soon as more than the allowed share of all images can't be read; what was packed so far is kept."""
    with ResumableWriter(place) as writer, showing_progress(f"Packing {source}", len(listing), writer.done) as show:
        skipped = list(writer.skipped)
        for rows, kept, images in decoded(listing, size, start=writer.done):
            skipped += [listing.names[row] for row in sorted(set(rows) - set(kept))]
            if kept:
                labels = None if listing.labels is None else torch.tensor([listing.labels[row] for row in kept])
                writer.append(torch.from_numpy(images), labels)
            writer.save(rows.stop, skipped=skipped)
            if rows.stop < len(listing):
                check_unreadable(source, skipped, allowed, rows.stop)
            show(len(rows))
        if len(skipped) == len(listing):
            raise DataError(f"{source}: none of {len(skipped)} files could be read: {first_names(skipped)}")
        writer.finish(class_names=class_names, source=source, skipped=skipped)


Chunk = tuple[range, list[int], npt.NDArray[np.uint8]]  # rows, those that could be read, and their images


class _Chunks(Dataset[Chunk]):
    def __init__(self, listing: Listing, size: int, start: int) -> None:
        self.listing, self.size = listing, size
        length = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (3 * size * size)))
        self.rows = [range(one, min(one + length, len(listing))) for one in range(start, len(listing), length)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Chunk:
        rows = self.rows[number]
        images = np.empty((len(rows), 3, self.size, self.size), np.uint8)
        kept: list[int] = []
        for row in rows:
            image = decode_image(self.listing.open(row), self.size)
            if image is not None:
                images[len(kept)] = image
                kept.append(row)
        return rows, kept, images[: len(kept)]


def decoded(listing: Listing, size: int, *, start: int = 0) -> Iterator[Chunk]:
    """All images from row `start` on, in order: by processes, a few chunks ahead, where that is worth their start.

    Threads would not do: small files spend most of their time in Python.
    """
    chunks = _Chunks(listing, size, start)
    n_left = len(listing) - start
    workers = cores() if n_left >= WORTH_PROCESSES and not multiprocessing.current_process().daemon else 1
    apart = torch.Generator()  # else the loader would draw a seed from the generator that training goes on with
    yield from DataLoader(
        chunks, batch_size=None, num_workers=workers if workers > 1 else 0, collate_fn=_as_it_is, generator=apart
    )


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _as_it_is(chunk: Any) -> Any:
    """Arrays stay arrays, and go through pipes: torch would put them into shared memory, of which containers have little."""
    return chunk


def _warn_of_unreadable(path: Path, splits: DatasetSplits, max_share: float) -> None:
    skipped = splits.train.skipped + splits.test.skipped
    if not skipped:
        return
    allowed = Allowed(max_share, len(splits.train) + len(splits.test) + len(skipped))
    warnings.warn(
        f"{check_unreadable(str(path), skipped, allowed)}. They are left out; all names are in `ImageStore.skipped`, and in "
        "unreadable_files.txt of a run",
        UserWarning,
        stacklevel=4,
    )
