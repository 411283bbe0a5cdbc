"""Tar files in the layout of WebDataset: members that share a key (the path up to the first dot of its last part) are one sample.

    shards/a-000.tar        0001.jpg 0001.cls 0002.jpg 0002.cls ...    one image a key; `.cls` holds its class as an integer
    shards/train-000.tar, shards/val-000.tar                           or in folders train/ and test/ (or val/): explicit parts

Members of other kinds (.json, .txt) are passed over; a sample without `.cls` is unlabelled (-1). Shards are not compressed: then
an image is found by its offset, and an index of names and places is all that is kept. Read with Python's own tarfile: no network,
no pipes.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from neigenmaps.data.decoding import SUFFIXES
from neigenmaps.data.listing import TEST_FOLDERS, Listing, Parts, split_listing
from neigenmaps.errors import DataError

TEST_WORDS = {*TEST_FOLDERS, "validation"}
END_OF_ARCHIVE = bytes(tarfile.BLOCKSIZE)


def shard_files(path: Path) -> tuple[str, ...]:
    """Names of shards relative to `shard_root(path)`, sorted; none where `path` is no tar file and holds none."""
    if path.is_file():
        return (path.name,) if path.suffix == ".tar" else ()
    places = ["", *(name for name in ("train", *TEST_FOLDERS) if (path / name).is_dir())]
    return tuple(sorted(os.path.join(place, name) for place in places for name in _tars(path / place)))


def shard_root(path: Path) -> Path:
    return path.parent if path.is_file() else path


def list_shards(path: Path, test_share: float) -> Parts:
    """The parts of a tar file or a folder of them.

    Raises DataError for a shard that is compressed, torn or no tar file, for a key that has two images or two classes within a
    shard, for a class that is no integer, and when there is no image.
    """
    root, shards = shard_root(path), shard_files(path)
    train = [shard for shard in shards if "train" in _words(shard)]
    test = [shard for shard in shards if TEST_WORDS & _words(shard) and shard not in train]
    if train and test:
        return Parts((), index_shards(root, train), index_shards(root, test))
    return split_listing((), index_shards(root, shards), test_share)


def _tars(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (one.name for one in entries if one.name.endswith(".tar") and not one.name.startswith("."))


def _words(shard: str) -> set[str]:
    return set(re.split(r"[^a-z]+", shard.lower()))


def index_shards(root: Path, shards: Sequence[str]) -> Listing:
    """All images of some shards, in order. Errors as `list_shards`."""
    names: list[str] = []
    labels: list[int] = []
    places: list[tuple[int, int, int]] = []
    for number, shard in enumerate(shards):
        images, classes = _index(root / shard)
        for key, (name, offset, size) in images.items():
            names.append(f"{shard}/{name}")
            labels.append(classes.get(key, -1))
            places.append((number, offset, size))
    if not names:
        raise DataError(f"{root}: found no image in {len(shards)} tar file(s); expected members such as 0001.jpg")
    labelled = any(label != -1 for label in labels)
    return Listing(root, tuple(names), tuple(labels) if labelled else None, tuple(shards), np.array(places))


def _index(path: Path) -> tuple[dict[str, tuple[str, int, int]], dict[str, int]]:
    """Images (name, offset, size) and classes of one shard by key."""
    images: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive, path.open("rb") as file:
            end = 0
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps them all
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                key, suffix = _split(member.name)
                if not member.isreg() or os.path.basename(key).startswith("."):
                    continue
                if suffix in SUFFIXES:
                    _once(images, key, path, "image")
                    images[key] = (member.name, member.offset_data, member.size)
                elif suffix == ".cls":
                    _once(classes, key, path, "class")
                    file.seek(member.offset_data)
                    classes[key] = _class(file.read(member.size), path, member.name)
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != END_OF_ARCHIVE:
                raise DataError(f"{path}: ends without the mark of a whole tar file; it is torn: copy it again")
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{path}: no whole, uncompressed tar file ({error}); copy it again, or unpack its compression"
        ) from error
    return images, classes


def _split(name: str) -> tuple[str, str]:
    """Key, and all from the first dot of the last part: a mask 1.seg.png belongs to 1.jpg, and is no second image."""
    folder, _, last = name.rpartition("/")
    stem, dot, rest = last[1:].partition(".")  # a first dot hides a file
    return f"{folder}/{last[:1]}{stem}", (dot + rest).lower()


def _once(found: dict[str, tuple[str, int, int]] | dict[str, int], key: str, path: Path, kind: str) -> None:
    if key in found:
        raise DataError(
            f"{path}: the key {key.lstrip('/')!r} has a second {kind}; expected one, as in 0001.jpg and 0001.cls"
        )


def _class(content: bytes, path: Path, name: str) -> int:
    try:
        label = int(content)
    except ValueError:
        label = -2
    if label < -1:
        raise DataError(f"{path}: {name} holds {content[:20]!r}; expected a class as an integer of at least 0, or -1")
    return label
