"""Folders of image files: listed, decoded once into a packed store in the cache, opened by memory map ever after.

    folder/cat/a.jpg, folder/dog/b.png             sub-folders are classes; a seeded split makes train and test
    folder/a.jpg, folder/b.png                     no labels
    folder/train/..., folder/test/... (or val/)    explicit parts, each of either kind; train alone is split

Sub-folders may be nested; the topmost one names the class. An image beside class folders is unlabelled (-1). Images become
RGB (grey ones too), photographs stand upright as their EXIF orientation says, the shorter side is resized to `image_size`
(bicubic, antialiased), and the centre square is kept.

The cache entry is named by what went into it: absolute path, files with sizes and times of change, image size. So a changed
folder is packed anew and a stale entry is never opened; old entries may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from torch import Tensor

from neigenmaps.data.packing import StoreWriter
from neigenmaps.data.splits import DatasetSplits, split_rows
from neigenmaps.data.store import SCHEMA_VERSION, ImageStore, open_store
from neigenmaps.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TEST_FOLDERS = ("test", "val")
DEFAULT_IMAGE_SIZE = 64
DECODING = 2  # raised when a file's pixels come out otherwise, so that no store packed before is opened: 2 is upright
DECODE_BATCH = 256  # images in memory at a time
NAMES_IN_MESSAGE = 3
UNREADABLE = (
    OSError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    ValueError,
    SyntaxError,
)  # all that PIL raises

UPRIGHT = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Listing(NamedTuple):
    """Image files relative to a root, with class indices (None: no labels)."""

    files: tuple[str, ...]
    labels: tuple[int, ...] | None


def load_folder(
    folder: Path, *, image_size: int | None, cache_dir: Path | None, test_share: float, max_unreadable_share: float
) -> DatasetSplits:
    """Splits of an image folder, packed on the first call. Warns of unreadable files.

    Raises DataError if there are no images, or more than `max_unreadable_share` of them can't be read.
    """
    class_names, train, test = _list_parts(folder, test_share)
    size = DEFAULT_IMAGE_SIZE if image_size is None else image_size
    entry = (cache_dir or default_cache_dir()) / _cache_key(folder, class_names, train, test, size)
    stores = [
        _open_or_pack(entry / part, folder, listing, class_names, size)
        for part, listing in (("train", train), ("test", test))
    ]
    splits = DatasetSplits(*stores)
    _judge_unreadable(folder, splits, len(train.files) + len(test.files), max_unreadable_share)
    return splits


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/neigenmaps, or ~/.cache/neigenmaps."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neigenmaps"


def _list_parts(folder: Path, test_share: float) -> tuple[tuple[str, ...], Listing, Listing]:
    test_folder = next((name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and test_folder is not None:
        train_files, test_files = image_files(folder, "train"), image_files(folder, test_folder)
        names = _class_names(train_files + test_files, depth=1)
        return names, _label(train_files, names, depth=1), _label(test_files, names, depth=1)
    # a lone folder "train" is a part without its counterpart; beside other folders it is a class (of trains)
    sub_folders = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    part, depth = ("train", 1) if sub_folders == ["train"] else ("", 0)
    files = image_files(folder, part)
    names = _class_names(files, depth)
    whole = _label(files, names, depth)
    labels_N = None if whole.labels is None else np.asarray(whole.labels)
    train_rows, test_rows = split_rows(len(files), labels_N, test_share, str(folder))
    return names, _rows(whole, train_rows.tolist()), _rows(whole, test_rows.tolist())


def image_files(folder: Path, part: str) -> list[str]:
    """Sorted, so that row order doesn't depend on the file system. Hidden files (macOS leaves `._a.jpg`) are passed over."""
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in (folder / part).rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise DataError(f"{folder / part}: found no image; expected files ending in {', '.join(SUFFIXES)}")
    return found


def _class_names(files: list[str], depth: int) -> tuple[str, ...]:
    return tuple(sorted({parts[depth] for file in files if len(parts := file.split("/")) > depth + 1}))


def _label(files: list[str], class_names: tuple[str, ...], depth: int) -> Listing:
    index = {name: number for number, name in enumerate(class_names)}
    labels = tuple(index[parts[depth]] if len(parts := file.split("/")) > depth + 1 else -1 for file in files)
    return Listing(tuple(files), None if all(label == -1 for label in labels) else labels)


def _rows(listing: Listing, rows: list[int]) -> Listing:
    labels = None if listing.labels is None else tuple(listing.labels[row] for row in rows)
    return Listing(tuple(listing.files[row] for row in rows), labels)


def _cache_key(folder: Path, class_names: tuple[str, ...], train: Listing, test: Listing, size: int) -> str:
    states = [(folder / file).stat() for file in train.files + test.files]
    facts = [SCHEMA_VERSION, DECODING, str(folder.resolve()), class_names, train, test, size]
    facts.append([(state.st_size, state.st_mtime_ns) for state in states])
    return f"{folder.resolve().name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}"


def _open_or_pack(path: Path, folder: Path, listing: Listing, class_names: tuple[str, ...], size: int) -> ImageStore:
    if not path.exists():
        try:
            _pack(path, folder, listing, class_names, size)
        except DataError:
            if not path.exists():  # else another process packed the same files first: open its store
                raise
    return open_store(path)


def _pack(path: Path, folder: Path, listing: Listing, class_names: tuple[str, ...], size: int) -> None:
    source = f"{folder} ({path.name})"
    skipped = []
    with StoreWriter(path) as writer:
        for rows, images in _decode_all(folder, listing.files, size, f"Packing {source}"):
            kept = [row for row, image in zip(rows, images, strict=True) if image is not None]
            skipped += [listing.files[row] for row, image in zip(rows, images, strict=True) if image is None]
            readable = [image for image in images if image is not None]
            if readable:
                labels = None if listing.labels is None else torch.tensor([listing.labels[row] for row in kept])
                writer.append(torch.stack(readable), labels)
        if len(skipped) == len(listing.files):
            raise DataError(f"{source}: none of {len(skipped)} files could be read: {_first_names(skipped)}")
        writer.finish(class_names=class_names, source=source, skipped=skipped)


def _decode_all(
    folder: Path, files: tuple[str, ...], size: int, title: str
) -> Iterator[tuple[range, list[Tensor | None]]]:
    """Batches of (rows, images); PIL releases the interpreter while it decodes, so threads are enough."""
    starts = range(0, len(files), DECODE_BATCH)
    with ThreadPoolExecutor() as pool:
        for start in track(starts, title, console=Console(stderr=True), transient=True):
            rows = range(start, min(start + DECODE_BATCH, len(files)))
            yield rows, list(pool.map(lambda row: decode_image(folder / files[row], size), rows))


def decode_image(path: Path, size: int, channels: int = 3) -> Tensor | None:
    """(channels, size, size) uint8, upright, the centre square; None if the file can't be read. channels: 1 is grey, 3 RGB."""
    try:
        with Image.open(path) as image:
            upright = _as_rgb(_upright(image))
            array = np.asarray(_fit(upright if channels == 3 else upright.convert("L"), size))
    except UNREADABLE:
        return None
    return torch.from_numpy(np.atleast_3d(array).transpose(2, 0, 1).copy())


def _upright(image: Image.Image) -> Image.Image:
    """As the EXIF orientation says. Not PIL's `exif_transpose`, which writes the whole EXIF anew and so fails on broken tags."""
    motion = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if motion is None else image.transpose(motion)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip 16 bits at 255 rather than scale them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _fit(image: Image.Image, size: int) -> Image.Image:
    """The centre square of the image with its shorter side resized to `size`, in one resampling."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _judge_unreadable(folder: Path, splits: DatasetSplits, n_files: int, max_share: float) -> None:
    skipped = splits.train.skipped + splits.test.skipped
    if not skipped:
        return
    message = f"{folder}: {len(skipped)} of {n_files} files can't be read as images: {_first_names(skipped)}"
    if len(skipped) > max_share * n_files:
        raise DataError(f"{message}. Repair or delete them, or raise max_unreadable_share (now {max_share})")
    warnings.warn(f"{message}. They are left out; all names are in `ImageStore.skipped`", UserWarning, stacklevel=4)


def _first_names(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:NAMES_IN_MESSAGE]) + (", ..." if len(names) > NAMES_IN_MESSAGE else "")
