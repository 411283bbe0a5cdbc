"""A store that a killed process left unfinished, taken up again where its last save stood.

parent/.name.unfinished/
  images.npy      rows as they come; what lies beyond the last save is cut off again
  labels.npy      of the rows saved
  progress.json   row shape, rows saved, items dealt with, names left out; written whole, after the rows are on the disk
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from neigenmaps.data.packing import StoreWriter
from neigenmaps.data.store import CHUNK_BYTES
from neigenmaps.errors import DataError
from neigenmaps.files import whole_file

SAVE_SECONDS = 10.0  # of work that a kill costs; a save costs a flush to the disk
PROGRESS = "progress.npz"


class ResumableWriter(StoreWriter):
    """A `StoreWriter` whose rows outlive a kill: leaving the block without `finish` keeps what was saved.

        with ResumableWriter(path) as writer:
            for item in range(writer.done, len(items)):      # done: how many items were dealt with before
                writer.append(...)
                writer.save(item + 1, skipped=names)         # at most every SAVE_SECONDS
            writer.finish(source=..., skipped=names)

    What the items are must follow from `path`. One process writes: others wait for it, and then are refused by DataError when it
    has finished.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._folder = self.path.parent / f".{self.path.name}.unfinished"
        self.done = 0
        self.skipped: tuple[str, ...] = ()
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        self._lock = self._own_folder()
        if not self._take_up():
            self._keep_only()
            self._file = (self._folder / "images.npy").open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        fcntl.flock(self._lock, fcntl.LOCK_UN)  # closing would not do, as forked processes have it open too
        os.close(self._lock)

    def save(self, done: int, *, skipped: Sequence[str] = ()) -> None:
        """What was appended so far belongs to the first `done` items and survives from here on, if the last save is long ago."""
        if time.monotonic() - self._saved_at < SAVE_SECONDS:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        facts = {"row_shape": self._row_shape, "rows": self._n_rows, "done": done, "skipped": list(skipped)}
        self._labels = [torch.cat(self._labels)] if self._labels else []
        labels = self._labels[0].numpy() if self._labels else np.empty(0, np.int64)
        with whole_file(self._folder / PROGRESS) as path:
            np.savez(path, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), labels=labels)
        self._saved_at = time.monotonic()

    def finish(self, *, class_names: Sequence[str] = (), source: str, skipped: Sequence[str] = ()) -> None:
        super().finish(class_names=class_names, source=source, skipped=skipped)
        (self.path / PROGRESS).unlink(missing_ok=True)  # last: a kill before it finishes anew

    def _own_folder(self) -> int:
        """A lock on the folder, which goes with the process that holds it."""
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                os.close(lock)
                raise DataError(f"{self.path} was made by another process meanwhile; open that one")
            if self._folder.exists() and os.path.samestat(os.fstat(lock), self._folder.stat()):
                return lock
            os.close(lock)  # of a folder that is gone

    def _take_up(self) -> bool:
        """Whether an earlier process left rows; they are read once more, for their checksum."""
        try:
            with np.load(self._folder / PROGRESS, allow_pickle=False) as saved:
                facts = json.loads(saved["facts"].tobytes())
                labels = [torch.from_numpy(saved["labels"])] if len(saved["labels"]) else []
            file = (self._folder / "images.npy").open("r+b")
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return False
        self._keep_only("images.npy", PROGRESS)  # a kill within a save or at the end leaves more
        rows, shape = facts["rows"], facts["row_shape"]
        left = rows * int(np.prod(shape)) if rows else 0
        if rows:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
        end = file.tell() + left
        if file.seek(0, os.SEEK_END) < end:  # a disk that lost what it had said it kept
            file.close()
            return False
        file.truncate(end)
        file.seek(end - left)
        digest = hashlib.sha256()
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            digest.update(chunk)
            left -= len(chunk)
        self._file, self._digest = file, digest
        self._row_shape, self._n_rows = tuple(shape) if rows else None, rows
        self._labels = labels
        self.done, self.skipped = facts["done"], tuple(facts["skipped"])
        return True

    def _keep_only(self, *names: str) -> None:
        for path in self._folder.iterdir():
            if path.name not in names:
                path.unlink()
