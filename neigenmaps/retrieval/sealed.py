"""Sealed files: safetensors whose every tensor has a SHA-256 in the header, and the header one of its own.

Any safetensors reader opens them. They are written a piece at a time, so that an array never stands in memory twice,
and read as memory maps. The digests tell damage from use; they are no signature against somebody who can recompute them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from neigenmaps.errors import CheckpointError
from neigenmaps.files import whole_file

FORMAT = "neigenmaps.codes/1"
DTYPE_NAMES = {"int64": "I64", "float64": "F64", "float32": "F32", "float16": "F16", "uint8": "U8"}
ALIGNMENT = 64  # bytes; where the first tensor begins
HASHED_AT_A_TIME = 1 << 24  # bytes
UNKNOWN = "0" * 64  # stands in the header until the digest is known; digests all have this length


class Part(NamedTuple):
    """One array of the file: its pieces, concatenated along the first axis, have `shape`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[NDArray[Any]]

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def write_sealed(path: str | Path, parts: Sequence[Part], notes: dict[str, str]) -> None:
    """Write parts and notes to `path`, whole or not at all, power cuts included."""
    parts = sorted(parts, key=lambda part: (-np.dtype(part.dtype).itemsize, part.name))  # keeps every array aligned
    with whole_file(path) as unfinished, unfinished.open("w+b") as file:
        file.write(_header(parts, notes, dict.fromkeys((part.name for part in parts), UNKNOWN)))
        digests = {}
        for part in parts:
            sha = hashlib.sha256()
            for piece in part.pieces:
                data = np.ascontiguousarray(piece, dtype=part.dtype).reshape(-1).view(np.uint8).data
                sha.update(data)
                file.write(data)
            digests[part.name] = sha.hexdigest()
        file.seek(0)
        file.write(_header(parts, notes, digests))
        file.flush()
        os.fsync(file.fileno())  # before the rename, or a power cut could leave the new name on unwritten data


def read_sealed(path: str | Path, *, verify: bool) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Notes and memory-mapped arrays. verify: read everything once and compare digests; else sizes and header only.

    Raises CheckpointError when the file is missing, cut short, changed, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"expected codes saved by an index at {path}, found no such file: save one first")
    try:
        with safe_open(path, framework="pt") as file:
            notes = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, TypeError) as error:  # TypeError: a dtype that numpy lacks
        raise CheckpointError(f"{path} is cut short or no safetensors file ({error}): save the index again") from error
    if notes.get("format") != FORMAT:
        raise CheckpointError(
            f"expected format {FORMAT!r} in {path}, got {notes.get('format')!r}: save the index again"
        )
    seal, digests = notes.pop("digest", ""), _digests(path, notes)
    if seal != _seal(notes, {name: (str(array.dtype), array.shape) for name, array in arrays.items()}):
        raise CheckpointError(f"the header of {path} was changed after it was saved: save the index again")
    if digests.keys() != arrays.keys():
        raise CheckpointError(f"{path} has no digest for each of its arrays: save the index again")
    for name, array in arrays.items() if verify else ():
        if _digest(array) != digests[name]:
            raise CheckpointError(f"{path} is damaged: {name} differs from what was saved; save the index again")
    return notes, arrays


def _header(parts: Sequence[Part], notes: dict[str, str], digests: dict[str, str]) -> bytes:
    notes = {"format": FORMAT, **notes, "sha256": json.dumps(digests, sort_keys=True)}
    notes["digest"] = _seal(notes, {part.name: (part.dtype, part.shape) for part in parts})
    header: dict[str, Any] = {"__metadata__": notes}
    offset = 0
    for part in parts:
        end = offset + part.n_bytes
        header[part.name] = {
            "dtype": DTYPE_NAMES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _seal(notes: dict[str, str], layout: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    described = {name: [dtype, list(shape)] for name, (dtype, shape) in layout.items()}
    return hashlib.sha256(json.dumps([notes, described], sort_keys=True).encode()).hexdigest()


def _digests(path: Path, notes: dict[str, str]) -> dict[str, str]:
    try:
        digests = json.loads(notes["sha256"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} has no readable digests ({error}): save the index again") from error
    return digests if isinstance(digests, dict) else {}


def _digest(array: NDArray[Any]) -> str:
    sha = hashlib.sha256()
    for piece in _byte_pieces(array):
        sha.update(piece.data)
    return sha.hexdigest()


def _byte_pieces(array: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), HASHED_AT_A_TIME):
        yield flat[start : start + HASHED_AT_A_TIME]
