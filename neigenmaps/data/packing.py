"""Writes image stores (the folder that `neigenmaps.data.store` describes), in a stream and whole or not at all.

Rows go to a hidden sibling folder; at the end it is flushed to disk and renamed, so that a killed run can't leave a
half-written store which a later run would take for a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from torch import Tensor

from neigenmaps.data.store import CHUNK_BYTES, SCHEMA_VERSION, check_images, check_labels, file_sha256, sealed_digest
from neigenmaps.errors import DataError, ShapeError


class StoreWriter:
    """Appends rows to a new store; `finish` makes it appear, and leaving the block without it discards all.

        with StoreWriter(path) as writer:
            writer.append(images_NCHW, labels_N)
            writer.finish(class_names=names, source="where they came from")

    Only one chunk is held in memory. Raises DataError if `path` exists, ShapeError if rows differ in shape.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists():
            raise DataError(f"{self.path} already exists; expected a new path. Delete it or choose another one")
        # time_ns: a stale folder of a killed process must not collide with a new process of the same id
        self._folder = self.path.parent / f".{self.path.name}.{os.getpid()}.{time.time_ns()}.tmp"
        self._digest = hashlib.sha256()
        self._row_shape: tuple[int, ...] | None = None
        self._n_rows = 0
        self._labels: list[Tensor] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        self._file: BinaryIO = (self._folder / "images.npy").open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # after `finish` it is no longer there

    def append(self, images_NCHW: Tensor, labels_N: Tensor | None = None) -> None:
        """Adds rows. Either all calls bring labels or none does."""
        row_shape = tuple(images_NCHW.shape[1:])
        if self._row_shape is None:
            check_images(images_NCHW, str(self.path))
            self._row_shape = row_shape
            self._write_header()
        if row_shape != self._row_shape:
            raise ShapeError(f"{self.path}: expected rows of shape {self._row_shape}, got {row_shape}")
        rows = max(1, CHUNK_BYTES // images_NCHW[0].numel())
        for chunk_NCHW in images_NCHW.split(rows):
            array = chunk_NCHW.cpu().contiguous().numpy()
            self._digest.update(array.data)
            self._file.write(array.data)
        self._n_rows += len(images_NCHW)
        if labels_N is not None:
            self._labels.append(labels_N.cpu())

    def finish(self, *, class_names: Sequence[str] = (), source: str, skipped: Sequence[str] = ()) -> None:
        """Checks the whole, flushes it to disk and renames it into place.

        Raises DataError if no row was appended or another process made `path` meanwhile, ShapeError if labels
        don't match.
        """
        if self._row_shape is None:
            raise DataError(f"{source}: no image to store; expected at least one readable image")
        labels_N = torch.cat(self._labels) if self._labels else None
        if labels_N is not None:
            check_labels(labels_N, self._n_rows, tuple(class_names), source)
            np.save(self._folder / "labels.npy", labels_N.numpy(), allow_pickle=False)
        self._write_header()
        self._file.close()
        shape = (self._n_rows, *self._row_shape)
        description = {
            "schema_version": SCHEMA_VERSION,
            "shape": list(shape),
            "dtype": "uint8",
            "fingerprint": sealed_digest(self._digest, shape),
            "files": {path.name: _file_facts(path) for path in sorted(self._folder.glob("*.npy"))},
            "class_names": list(class_names),
            "source": source,
            "skipped": list(skipped),
        }
        (self._folder / "store.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        _publish(self._folder, self.path)

    def _write_header(self) -> None:
        """Written twice: before the first row, and with the true count at the end.

        numpy pads the header so that the first axis can grow in place (NumPy >= 1.25), hence both have one length.
        """
        assert self._row_shape is not None
        end = self._file.tell()
        self._file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (self._n_rows, *self._row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
        assert end == 0 or self._n_rows * int(np.prod(self._row_shape)) == end - self._file.tell()
        self._file.seek(max(end, self._file.tell()))


def write_store(
    path: str | Path,
    images_NCHW: Tensor,
    labels_N: Tensor | None = None,
    *,
    class_names: Sequence[str] = (),
    source: str,
    skipped: Sequence[str] = (),
) -> None:
    """Packs tensors into the folder `path`, whole or not at all.

    Raises DataError if `path` exists or there is no image, ShapeError if labels don't match the images.
    """
    with StoreWriter(path) as writer:
        writer.append(images_NCHW, labels_N)
        writer.finish(class_names=class_names, source=source, skipped=skipped)


def _file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _publish(folder: Path, path: Path) -> None:
    for file in [*folder.iterdir(), folder]:
        _fsync(file)
    try:
        folder.rename(path)
    except OSError as error:
        if path.exists():
            raise DataError(f"{path} was made by another process meanwhile; open that one") from error
        raise
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
