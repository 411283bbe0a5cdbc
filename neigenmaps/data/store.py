"""A packed image store: one uint8 array in a folder, opened by memory map.

    folder/
      store.json     schema version, shape, dtype, sizes and sha256 of the files, class names, source, skipped files
      images.npy     (N, C, H, W) uint8
      labels.npy     (N,) int64, absent when nothing is labelled; -1 marks a row without a label

Read here, written in `neigenmaps.data.packing`. No file is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neigenmaps.errors import DataError, InputError, ShapeError

SCHEMA_VERSION = 1
CHUNK_BYTES = 1 << 24  # 16 MiB: large enough for full disk speed, small beside any machine's memory
ROW_AXES = 4


@dataclass(frozen=True, eq=False)  # tensors have no single truth value, so no generated ==
class ImageStore:
    """Images with optional labels; the unit in which data sets travel.

    `images_NCHW` is uint8 and may be memory mapped. `labels_N` is int64, with -1 where a row has no label, or None
    where none has one. `class_names` may be empty (classes without names). `fingerprint` is the sha256 of the images'
    bytes followed by their shape: equal fingerprints mean equal images in equal order. `skipped` lists the files that
    could not be read when the store was packed.

    Raises ShapeError for wrong axes or a label count that differs from N, DataError for an empty store, a wrong dtype,
    or a label outside -1 .. len(class_names) - 1.
    """

    images_NCHW: Tensor
    labels_N: Tensor | None
    class_names: tuple[str, ...]
    source: str
    fingerprint: str
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_images(self.images_NCHW, self.source)
        if self.labels_N is not None:
            check_labels(self.labels_N, len(self.images_NCHW), self.class_names, self.source)

    @classmethod
    def from_tensors(
        cls, images_NCHW: Tensor, labels_N: Tensor | None = None, *, class_names: Sequence[str] = (), source: str
    ) -> Self:
        """A store in memory; the fingerprint is computed here."""
        check_images(images_NCHW, source)
        return cls(images_NCHW, labels_N, tuple(class_names), source, image_fingerprint(images_NCHW))

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageStore:
        """The rows `indices`, in that order, as a copy in memory with a fingerprint of its own.

        Raises InputError for indices that are no integers or lie outside 0 .. N - 1.
        """
        index_M = torch.as_tensor(indices, device=self.images_NCHW.device)
        if index_M.dtype not in (torch.int64, torch.int32) or index_M.ndim != 1:
            raise InputError(
                f"subset: expected a list or 1-d tensor of integers, got {index_M.dtype} with {index_M.ndim} axes"
            )
        if len(index_M) and not (int(index_M.min()) >= 0 and int(index_M.max()) < len(self)):
            raise InputError(
                f"subset: expected indices in 0 .. {len(self) - 1}, got {index_M.min()} .. {index_M.max()}"
            )
        labels_M = None if self.labels_N is None else self.labels_N[index_M]
        return ImageStore.from_tensors(
            self.images_NCHW[index_M], labels_M, class_names=self.class_names, source=f"{self.source} (subset)"
        )

    def thin(self, at_most: int) -> ImageStore:
        """The rows `thin_rows(at_most)`; itself when it has no more."""
        return self if len(self) <= at_most else self.subset(self.thin_rows(at_most))

    def thin_rows(self, at_most: int) -> Tensor:
        """At most so many row numbers, evenly spread, so that a store sorted by class keeps every class."""
        if len(self) <= at_most:
            return torch.arange(len(self))
        return torch.linspace(0, len(self) - 1, at_most).round().long()

    def to(self, device: torch.device | str) -> ImageStore:
        """The same store with its tensors on `device`."""
        labels_N = None if self.labels_N is None else self.labels_N.to(device)
        images_NCHW = self.images_NCHW.to(device)
        return ImageStore(images_NCHW, labels_N, self.class_names, self.source, self.fingerprint, self.skipped)


def image_fingerprint(images_NCHW: Tensor) -> str:
    """sha256 of the bytes in row order followed by the shape, read in chunks so that a memory map stays one."""
    digest = hashlib.sha256()
    rows = max(1, CHUNK_BYTES // max(1, images_NCHW[0].numel()))
    for chunk_NCHW in images_NCHW.split(rows):
        digest.update(chunk_NCHW.cpu().contiguous().numpy().data)
    return sealed_digest(digest, images_NCHW.shape)


def open_store(path: str | Path, *, verify: bool = False) -> ImageStore:
    """Opens a packed store by memory map.

    Schema, shapes, dtypes and file sizes are always checked: that is free and finds every truncation. `verify=True`
    also reads all bytes and compares their sha256, which finds a flipped bit; it is off by default because it costs a
    pass over the disk (a minute for 10 GB) at each start of a run, while stores are written whole or not at all.

    The map is copy-on-write: the file can't be changed through the tensor. Raises DataError saying what to do.
    """
    path = Path(path)
    description = _read_description(path)
    try:
        for name, facts in description["files"].items():
            _check_file(path / name, facts, verify)
        images = _load_array(path / "images.npy", np.uint8)
        labels = _load_array(path / "labels.npy", np.int64) if "labels.npy" in description["files"] else None
        if list(images.shape) != description["shape"]:
            raise DataError(f"{path}: expected shape {description['shape']}, got {list(images.shape)}; {_REPACK}")
        store = ImageStore(
            images_NCHW=torch.from_numpy(images),
            labels_N=None if labels is None else torch.from_numpy(np.array(labels)),
            class_names=tuple(description["class_names"]),
            source=description["source"],
            fingerprint=description["fingerprint"],
            skipped=tuple(description["skipped"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}/store.json lacks or garbles {error}; {_REPACK}") from error
    if verify and image_fingerprint(store.images_NCHW) != store.fingerprint:
        raise DataError(f"{path}: the images don't have the fingerprint that store.json names; {_REPACK}")
    return store


_REPACK = "delete the folder and pack it again"


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / "store.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is no image store: it has no store.json. Pack one with write_store") from error
    except (ValueError, OSError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DataError(f"{path}/store.json can't be read ({error}); {_REPACK}") from error
    version = description.get("schema_version") if isinstance(description, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: expected store schema version {SCHEMA_VERSION}, got {version!r}; {_REPACK}")
    return description


def _check_file(path: Path, facts: dict[str, Any], verify: bool) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size != facts["bytes"]:
        raise DataError(f"{path}: expected {facts['bytes']} bytes, got {size or 'no file'}; {_REPACK}")
    if verify and file_sha256(path) != facts["sha256"]:
        raise DataError(f"{path}: its sha256 isn't the one in store.json, so it was changed or damaged; {_REPACK}")


def _load_array(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    try:
        # "c" is copy-on-write: a writable array, as torch.from_numpy wants, over a file that is opened for reading only
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is no readable .npy file ({error}); {_REPACK}") from error
    if array.dtype != dtype:
        raise DataError(f"{path}: expected {np.dtype(dtype)}, got {array.dtype}; {_REPACK}")
    return array


def check_images(images_NCHW: Tensor, source: str) -> None:
    if images_NCHW.ndim != ROW_AXES:
        raise ShapeError(f"{source}: expected images of shape (N, C, H, W), got {tuple(images_NCHW.shape)}")
    if images_NCHW.dtype != torch.uint8:
        raise DataError(f"{source}: expected uint8 images, got {images_NCHW.dtype}. Scale to 0 .. 255 and convert")
    if images_NCHW.numel() == 0:
        raise DataError(f"{source}: expected at least one image of at least one pixel, got {tuple(images_NCHW.shape)}")


def check_labels(labels_N: Tensor, n_rows: int, class_names: tuple[str, ...], source: str) -> None:
    if tuple(labels_N.shape) != (n_rows,):
        raise ShapeError(f"{source}: expected one label for each of {n_rows} images, got shape {tuple(labels_N.shape)}")
    if labels_N.dtype != torch.int64:
        raise DataError(f"{source}: expected int64 labels, got {labels_N.dtype}. Convert them with .long()")
    low, high = int(labels_N.min()), int(labels_N.max())
    if low < -1 or (class_names and high >= len(class_names)):
        top = len(class_names) - 1 if class_names else "any"
        raise DataError(f"{source}: expected labels in -1 .. {top} (-1 is unlabelled), got {low} .. {high}")


def sealed_digest(digest: Any, shape: Sequence[int]) -> str:
    """The shape comes last, because the number of rows is known only when all have been read."""
    digest = digest.copy()
    digest.update(repr(tuple(shape)).encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
