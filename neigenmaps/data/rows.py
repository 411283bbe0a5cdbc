"""Images one after the other, with names, read only when they are asked for: what embedding a gallery needs.

    open_rows("path/to/folder", image_size=32)      names are paths within the folder; nothing is packed or cached
    open_rows("path/to/shards", image_size=32)      names are shard.tar/member
    open_rows("cifar10", image_size=32)             names are train/0, train/1, ..., test/0, ...

Files are decoded as `neigenmaps.data.decoding` says. Grey images become RGB and RGB ones grey, as `channels` says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.data.datasets import DATASETS, load_splits
from neigenmaps.data.decoding import decode_image
from neigenmaps.data.listing import Listing, file_states, image_files
from neigenmaps.data.shards import index_shards, shard_files, shard_root
from neigenmaps.data.store import ImageStore
from neigenmaps.errors import DataError, InputError

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's


@dataclass(frozen=True)
class ImageRows:
    """`read(rows)`: for each a uint8 image (channels, size, size), or None where the file can't be read.

    fingerprint: changes with names, and with sizes and times of files or contents of arrays. origins_N: the same for each
    image alone; a row of a data set or of a tar shard changes with any other of it.
    """

    names: tuple[str, ...]
    source: str
    fingerprint: str
    origins_N: NDArray[np.int64]
    read: Callable[[Sequence[int]], list[Tensor | None]]

    def __len__(self) -> int:
        return len(self.names)


def open_rows(
    data: str, *, image_size: int, channels: int = 3, root: str | Path = "data", download: bool = False
) -> ImageRows:
    """Rows of a folder of images or tar shards, an .npz, or a data set by name, all parts of it. Errors as `load_splits`."""
    if image_size < 1 or channels not in (1, 3):
        raise InputError(f"expected image_size >= 1 and channels 1 or 3, got {image_size} and {channels}")
    path = Path(data).expanduser()
    if data not in DATASETS and (path.is_dir() or path.suffix == ".tar"):
        return _file_rows(path, image_size, channels)
    splits = load_splits(data, root=root, download=download, image_size=image_size)
    names = tuple(
        f"{part}/{row}" for part, store in zip(("train", "test"), splits, strict=True) for row in range(len(store))
    )
    n_train = len(splits.train)

    def read(rows: Sequence[int]) -> list[Tensor | None]:
        images = [
            splits.train.images_NCHW[row] if row < n_train else splits.test.images_NCHW[row - n_train] for row in rows
        ]
        return [with_channels(image, channels) for image in images]

    fingerprint = hashlib.sha256("".join(store.fingerprint for store in splits).encode()).hexdigest()
    origins_N = _origins(names, (f"{fingerprint} {channels}" for _ in names))
    return ImageRows(names, data, fingerprint, origins_N, read)


def read_image(path: str | Path, *, image_size: int, channels: int = 3) -> Tensor:
    """One file as a uint8 image (channels, size, size). DataError when it is missing or no image."""
    path = Path(path)
    image = decode_image(path, image_size, channels)
    if image is None:
        why = "it cannot be read as an image" if path.is_file() else "there is no such file"
        raise DataError(f"{path}: expected an image file, but {why}")
    return torch.from_numpy(image)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 images (..., C, H, W) with 1 or 3 channels, grey by the weights of ITU-R 601."""
    if images.shape[-3] == channels:
        return images
    if channels == 3:
        return images.expand(*images.shape[:-3], 3, -1, -1)
    weights = torch.tensor(GREY)[:, None, None]
    return (images * weights).sum(-3, keepdim=True).round().to(torch.uint8)


def store_with_channels(store: ImageStore, channels: int) -> ImageStore:
    """The store itself where it has them already."""
    images = with_channels(store.images_NCHW, channels)
    if images is store.images_NCHW:
        return store
    source = f"{store.source} in {channels} channel(s)"
    return ImageStore.from_tensors(images.contiguous(), store.labels_N, class_names=store.class_names, source=source)


def _file_rows(path: Path, image_size: int, channels: int) -> ImageRows:
    if shards := shard_files(path):
        listing, files = index_shards(shard_root(path), shards), shards
    else:
        listing = Listing(path, tuple(image_files(path, "")), None)
        files = listing.names
    states = list(file_states(listing.root, files))
    facts = [str(path.resolve()), listing.names, states]
    of_row = range(len(listing)) if listing.places_N3 is None else listing.places_N3[:, 0].tolist()
    origins_N = _origins(listing.names, (f"{states[file]} {image_size} {channels}" for file in of_row))

    def read_one(row: int) -> Tensor | None:
        image = decode_image(listing.open(row), image_size, channels)
        return None if image is None else torch.from_numpy(image)

    def read(rows: Sequence[int]) -> list[Tensor | None]:
        with ThreadPoolExecutor() as pool:  # PIL releases the interpreter while it decodes
            return list(pool.map(read_one, rows))

    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return ImageRows(listing.names, str(path.resolve()), fingerprint, origins_N, read)


def _origins(names: Iterable[str], states: Iterable[str]) -> NDArray[np.int64]:
    digests = [
        hashlib.blake2b(f"{n}\n{s}".encode(), digest_size=8).digest() for n, s in zip(names, states, strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)
