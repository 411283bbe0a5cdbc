"""Which images there are, without a look inside: files of a folder, or members of tar shards. A million in seconds."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from neigenmaps.data.decoding import SUFFIXES
from neigenmaps.data.splits import split_rows
from neigenmaps.errors import DataError

TEST_FOLDERS = ("test", "val")


@dataclass(frozen=True, eq=False)
class Listing:
    """Images below `root` by name, with class indices (None: no labels).

    places_N3: of images within tar files: which of `shards`, offset and size in bytes; None: names are paths.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    shards: tuple[str, ...] = ()
    places_N3: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, rows: Sequence[int]) -> Listing:
        labels = None if self.labels is None else tuple(self.labels[row] for row in rows)
        places = None if self.places_N3 is None else self.places_N3[rows]
        return Listing(self.root, tuple(self.names[row] for row in rows), labels, self.shards, places)

    def open(self, row: int) -> str | BinaryIO:
        """What `decode_image` takes."""
        if self.places_N3 is None:
            return os.path.join(self.root, self.names[row])
        shard, offset, size = self.places_N3[row].tolist()
        with (self.root / self.shards[shard]).open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))


class Parts(NamedTuple):
    class_names: tuple[str, ...]
    train: Listing
    test: Listing


def list_folder(folder: Path, test_share: float) -> Parts:
    """The parts of a folder of images, as `neigenmaps.data.folders` describes. DataError when there is no image."""
    test_folder = next((name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and test_folder is not None:
        train_files, test_files = image_files(folder, "train"), image_files(folder, test_folder)
        names = _class_names([*train_files, *test_files], depth=1)
        return Parts(names, _label(folder, train_files, names, depth=1), _label(folder, test_files, names, depth=1))
    # a lone folder "train" is a part without its counterpart; beside other folders it is a class (of trains)
    sub_folders = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    part, depth = ("train", 1) if sub_folders == ["train"] else ("", 0)
    files = image_files(folder, part)
    names = _class_names(files, depth)
    return split_listing(names, _label(folder, files, names, depth), test_share)


def split_listing(class_names: tuple[str, ...], whole: Listing, test_share: float) -> Parts:
    labels_N = None if whole.labels is None else np.asarray(whole.labels)
    train, test = split_rows(len(whole), labels_N, test_share, str(whole.root))
    return Parts(class_names, whole.rows(train.tolist()), whole.rows(test.tolist()))


def image_files(folder: Path, part: str) -> list[str]:
    """Sorted, so that row order doesn't depend on the file system. Hidden files (macOS leaves `._a.jpg`) are passed over.

    DataError when there is none, or a folder can't be listed.
    """
    found = sorted(
        name
        for name in _files_below(folder, part)
        if os.path.splitext(name)[1].lower() in SUFFIXES and not os.path.basename(name).startswith(".")
    )
    if not found:
        raise DataError(f"{folder / part}: found no image; expected files ending in {', '.join(SUFFIXES)}")
    return found


def file_states(folder: Path, files: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Size and time of change of each: what tells that a file was replaced."""
    for file in files:
        state = os.stat(os.path.join(folder, file))
        yield state.st_size, state.st_mtime_ns


def _files_below(folder: Path, part: str) -> Iterator[str]:
    """Relative paths; links to files are followed, links to folders are not."""
    pending = [part]
    while pending:
        below = pending.pop()
        prefix = f"{below}/" if below else ""
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(prefix + entry.name)
                    elif entry.is_file():
                        yield prefix + entry.name
        except OSError as error:
            raise DataError(
                f"{folder / below}: can't be listed ({error.strerror}); allow reading or move it"
            ) from error


def _class_names(files: list[str], depth: int) -> tuple[str, ...]:
    return tuple(sorted({parts[depth] for file in files if len(parts := file.split("/")) > depth + 1}))


def _label(folder: Path, files: list[str], class_names: tuple[str, ...], depth: int) -> Listing:
    index = {name: number for number, name in enumerate(class_names)}
    labels = tuple(index[parts[depth]] if len(parts := file.split("/")) > depth + 1 else -1 for file in files)
    return Listing(folder, tuple(files), None if all(label == -1 for label in labels) else labels)
