"""CodeStore: the codes of a gallery at full length, in memory or on disk, with ids of the user's own.

A code is cut by reading fewer columns, so one store serves every length. On disk columns lie in blocks of doubling
width (0-16, 16-32, 32-64, ...): the first m numbers of all rows are read without touching the others. A loaded store is
a memory map; only rows and columns that a search looks at are brought in.

Rows are appended, and removed by marking, so a row's number never changes while the store lives; `save` leaves removed
rows out. Letters: N rows, removed ones included, K code width, R rows asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neigenmaps.errors import CheckpointError, InputError, NonFiniteError, ShapeError
from neigenmaps.retrieval.sealed import Part, read_sealed, write_sealed

if TYPE_CHECKING:
    Array = Tensor | NDArray[Any]
    Ids = Tensor | NDArray[Any] | Sequence[int] | Sequence[str]

FIRST_BLOCK = 16  # columns in the narrowest block on disk
AT_A_TIME = 1 << 22  # numbers copied or checked at a time


class CodeStore:
    """Codes (N, K), best number first, float32 or float16; other kinds are stored as float32.

    An array is kept without copying: do not change it afterwards. ids: distinct integers or strings, 0 .. N-1 when
    None. eigenvalues: (K,), what each number is worth. fingerprint: of the model that made the codes
    (`fingerprint_model`); codes and queries that name another one are refused. notes: free text kept in the file, such
    as where the images lie. origins: (N,) integers that change with what a row was made from (`ImageRows.origins`).

    Raises:
        ShapeError: codes that are not a matrix, ids, eigenvalues or origins of another length.
        NonFiniteError: NaN or infinity in codes or eigenvalues.
        InputError: no rows, repeated ids, or ids that are neither integers nor strings.
    """

    def __init__(
        self,
        codes: Array,
        *,
        ids: Ids | None = None,
        eigenvalues: Array | None = None,
        fingerprint: str | None = None,
        notes: Mapping[str, str] | None = None,
        origins: NDArray[np.int64] | None = None,
    ) -> None:
        rows = checked_codes("gallery", codes)
        self.width = rows.shape[1]
        self.ids = np.arange(len(rows)) if ids is None else _checked_ids(ids, len(rows))
        self.eigenvalues_K = None if eigenvalues is None else _checked_eigenvalues(eigenvalues, self.width)
        self.fingerprint = fingerprint
        self.notes = _checked_notes(notes or {})
        self.origins_N = _checked_origins(origins, len(rows))
        self.alive_N = np.ones(len(rows), dtype=bool)
        self._segments, self._n_given = [_Segment((0,), (rows,))], 1

    def __len__(self) -> int:
        """Rows that have not been removed."""
        return int(self.alive_N.sum())

    @property
    def n_rows(self) -> int:
        """Rows, removed ones included."""
        return len(self.alive_N)

    def prefix(self, m: int, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """The first m numbers of rows start:stop, (R, m)."""
        stop = self.n_rows if stop is None else stop
        return self._copy(m, np.empty((stop - start, m), dtype=np.float32), slice(start, stop))

    def gather(self, rows_R: NDArray[np.int64], m: int) -> NDArray[np.float32]:
        """The first m numbers of the rows listed, (R, m)."""
        return self._copy(m, np.empty((len(rows_R), m), dtype=np.float32), rows_R)

    def add(self, codes: Array, ids: Ids | None = None, *, fingerprint: str | None = None) -> None:
        """Append rows. ids None: the integers after the largest. Best in large portions: each copies what was added before.

        Raises InputError for ids that exist already or codes of another model, and what the constructor raises; then
        nothing has been added.
        """
        self.check_fingerprint(fingerprint)
        rows = checked_codes("added", codes, width=self.width)
        if ids is None and self.ids.dtype.kind == "U":
            raise InputError("expected ids for the added codes, got None: this store's ids are strings")
        first = int(self.ids.max()) + 1 if ids is None else 0
        new = np.arange(first, first + len(rows)) if ids is None else _checked_ids(ids, len(rows))
        if new.dtype.kind != self.ids.dtype.kind:
            raise InputError(f"expected ids like the store's ({self.ids.dtype}), got {new.dtype}: use one kind of id")
        known = np.isin(new, self.ids[self.alive_N])
        if known.any():
            raise InputError(f"{int(known.sum())} ids are in use, first {new[known][0]!r}: remove these rows first")
        self.ids = np.concatenate([self.ids, new])
        self.alive_N = np.concatenate([self.alive_N, np.ones(len(rows), dtype=bool)])
        self.origins_N = np.concatenate([self.origins_N, _checked_origins(None, len(rows))])
        given, added = self._segments[: self._n_given], self._segments[self._n_given :]
        parts = [segment.blocks[0] for segment in added] + [rows.astype(given[0].blocks[0].dtype)]
        self._segments = [*given, _Segment((0,), (np.concatenate(parts),))]

    def remove(self, ids: Ids) -> None:
        """Take out the rows with these ids. Raises InputError for ids that are not there; then nothing is removed."""
        given = np.asarray(ids)
        gone = self.alive_N & np.isin(self.ids, given)
        missing = ~np.isin(given, self.ids[gone])
        if missing.any():
            raise InputError(
                f"{int(missing.sum())} ids are not in the store, first {given[missing][0]!r}: leave them out"
            )
        self.alive_N = self.alive_N & ~gone

    def check_fingerprint(self, fingerprint: str | None) -> None:
        """Raise InputError if `fingerprint` and the store's are both known and differ."""
        if None not in (fingerprint, self.fingerprint) and fingerprint != self.fingerprint:
            raise InputError(
                f"expected codes of the model {str(self.fingerprint)[:12]!r} that filled this store, got codes of "
                f"{str(fingerprint)[:12]!r}: encode both with one model"
            )

    def save(self, path: str | Path) -> None:
        """Write all rows, at full length, whole or not at all; an existing file is replaced. InputError when empty."""
        rows = np.flatnonzero(self.alive_N)
        if not len(rows):
            raise InputError("expected rows to save, got an empty store: every row has been removed")
        parts = [*_id_parts(self.ids[rows])]
        if self.eigenvalues_K is not None:
            parts.append(Part("eigenvalues", "float64", (self.width,), [self.eigenvalues_K]))
        if self.origins_N.any():
            parts.append(Part("origins", "int64", (len(rows),), [self.origins_N[rows]]))
        dtype = str(self._segments[0].blocks[0].dtype)
        for a, b in pairwise(_block_edges(self.width)):
            parts.append(Part(f"codes_{a}_{b}", dtype, (len(rows), b - a), self._pieces(rows, a, b)))
        write_sealed(path, parts, {"fingerprint": json.dumps(self.fingerprint), "notes": json.dumps(self.notes)})

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Self:
        """Memory-map what `save` wrote.

        verify: read the whole file once and compare its digests; without, only sizes and header are checked, and
        opening takes no longer for a large file than for a small one.
        Raises CheckpointError when the file is missing, cut short, changed, or holds something else.
        """
        notes, arrays = read_sealed(path, verify=verify)
        try:
            return cls._of(arrays, json.loads(notes["fingerprint"]), json.loads(notes.get("notes", "{}")))
        except KeyError as error:
            raise CheckpointError(f"{path} has no {error}: save the index again") from error
        except ValueError as error:  # InputError and JSONDecodeError among them
            raise CheckpointError(f"{path} does not hold a code store: {error}") from error

    @classmethod
    def joined(cls, stores: Sequence[CodeStore]) -> Self:
        """One store after the other, sharing their memory; eigenvalues, fingerprint and notes of the first.

        Raises InputError for no stores, or ids that occur twice, ShapeError for other widths, and InputError for codes
        of several models or precisions.
        """
        if not stores:
            raise InputError("expected stores to join, got none")
        first = stores[0]
        for other in stores[1:]:
            first.check_fingerprint(other.fingerprint)
            if other.width != first.width:
                raise ShapeError(f"expected codes of width {first.width}, got {other.width}: encode with one model")
        kinds = {(str(block.dtype), one.ids.dtype.kind) for one in stores for s in one._segments for block in s.blocks}
        if len(kinds) > 1:
            raise InputError(f"expected stores of one precision and one kind of ids, got {sorted(kinds)}: convert them")
        store = cls.__new__(cls)  # not __init__, which would read every number
        store.width, store.eigenvalues_K = first.width, first.eigenvalues_K
        store.fingerprint, store.notes = first.fingerprint, dict(first.notes)
        store.alive_N = np.concatenate([one.alive_N for one in stores])
        store.ids = np.concatenate([one.ids for one in stores])
        store.origins_N = np.concatenate([one.origins_N for one in stores])
        _checked_ids(store.ids[store.alive_N], int(store.alive_N.sum()))
        store._segments = [segment for one in stores for segment in one._segments]
        store._n_given = len(store._segments)
        return store

    @classmethod
    def _of(cls, arrays: dict[str, NDArray[Any]], fingerprint: str | None, notes: Mapping[str, str]) -> Self:
        names = {int(name.split("_")[1]): name for name in arrays if name.startswith("codes_")}
        starts = tuple(sorted(names))
        blocks = tuple(arrays[names[start]] for start in starts)
        ends = tuple(start + block.shape[1] for start, block in zip(starts, blocks, strict=True))
        if not starts or starts != (0, *ends[:-1]) or len({(len(block), block.dtype) for block in blocks}) != 1:
            raise InputError("its columns do not join up")
        store = cls.__new__(cls)  # not __init__, which would read every number
        store.width = ends[-1]
        store.ids = _checked_ids(_read_ids(arrays), len(blocks[0]))
        eigenvalues = arrays.get("eigenvalues")
        store.eigenvalues_K = None if eigenvalues is None else _checked_eigenvalues(eigenvalues, store.width)
        store.fingerprint, store.notes = fingerprint, _checked_notes(notes)
        store.alive_N = np.ones(len(blocks[0]), dtype=bool)
        store.origins_N = _checked_origins(arrays.get("origins"), len(blocks[0]))
        store._segments, store._n_given = [_Segment(starts, blocks)], 1
        return store

    def _copy(self, m: int, out: NDArray[Any], rows: slice | NDArray[np.int64], first: int = 0) -> NDArray[Any]:
        """Fill `out` with columns first:m of `rows`."""
        offset = 0
        for segment in self._segments:
            n = len(segment.blocks[0])
            if isinstance(rows, slice):
                here = slice(max(rows.start, offset), min(rows.stop, offset + n))
                target: Any = slice(here.start - rows.start, max(here.stop, here.start) - rows.start)
                source: Any = slice(here.start - offset, max(here.stop, here.start) - offset)
            elif len(self._segments) == 1:
                target, source = slice(None), rows
            else:
                target = np.flatnonzero((rows >= offset) & (rows < offset + n))
                source = rows[target] - offset
            for start, block in zip(segment.starts, segment.blocks, strict=True):
                a, b = max(first, start), min(m, start + block.shape[1])
                if a < b:
                    out[target, a - first : b - first] = block[source, a - start : b - start]
            offset += n
        return out

    def _pieces(self, rows: NDArray[np.int64], a: int, b: int) -> Iterator[NDArray[Any]]:
        step = max(1, AT_A_TIME // (b - a))
        dtype = self._segments[0].blocks[0].dtype
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            yield self._copy(b, np.empty((len(some), b - a), dtype=dtype), some, first=a)


class _Segment(NamedTuple):
    """Rows in memory or on disk: block i holds columns starts[i] to starts[i + 1]."""

    starts: tuple[int, ...]
    blocks: tuple[NDArray[Any], ...]


def fingerprint_model(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and contents of the model's state: equal weights, equal fingerprint."""
    state = model.state_dict()
    if not state:
        raise InputError("expected a model with weights, got one without: there is nothing to tell it by")
    sha = hashlib.sha256()
    for name, value in sorted(state.items()):
        value = value.detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def checked_codes(name: str, codes: Array, *, width: int | None = None) -> NDArray[Any]:
    """A finite, non-empty matrix in float16 or float32; its memory is shared where possible."""
    tensor = torch.as_tensor(codes).detach().cpu()
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise (ShapeError if tensor.ndim != 2 else InputError)(
            f"expected non-empty {name} codes (N, K), got shape {tuple(tensor.shape)}: one row per item"
        )
    if width is not None and tensor.shape[1] != width:
        raise ShapeError(f"expected {name} codes of width {width}, got {tensor.shape[1]}: encode with the same model")
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise InputError(f"expected real {name} codes, got {tensor.dtype}: convert them with .float()")
    rows: NDArray[Any] = (tensor if tensor.dtype == torch.float16 else tensor.float()).numpy()
    step = max(1, AT_A_TIME // rows.shape[1])
    for start in range(0, len(rows), step):
        finite = np.isfinite(rows[start : start + step]).all(axis=1)
        if not finite.all():
            raise NonFiniteError(
                f"expected finite {name} codes, got NaN or infinity, first in row {start + int((~finite).argmax())}: "
                "look at the encoder that made them"
            )
    return rows


def _checked_ids(ids: Any, n_rows: int) -> NDArray[Any]:
    array = np.asarray(ids)
    if array.shape != (n_rows,):
        raise ShapeError(f"expected ids ({n_rows},), got {array.shape}: give every row one id")
    if array.dtype.kind in "iu" and np.can_cast(array.dtype, np.int64, casting="same_kind"):
        array = array.astype(np.int64)
    elif array.dtype.kind != "U":
        raise InputError(f"expected ids as integers or strings, got {array.dtype}: convert them")
    ordered = np.sort(array)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise InputError(f"expected distinct ids, got {len(repeated)} repeated, first {repeated[0]!r}: name rows once")
    return array


def _checked_eigenvalues(eigenvalues: Any, width: int) -> NDArray[np.float64]:
    values: NDArray[np.float64] = torch.as_tensor(eigenvalues).detach().cpu().double().numpy()
    if values.shape != (width,):
        raise ShapeError(f"expected eigenvalues ({width},), got {values.shape}: one for each number of a code")
    if not np.isfinite(values).all():
        raise NonFiniteError("expected finite eigenvalues, got NaN or infinity: look at Rayleigh-Ritz")
    return values


def _checked_origins(origins: NDArray[np.int64] | None, n_rows: int) -> NDArray[np.int64]:
    """0 where nobody knows."""
    array = np.zeros(n_rows, dtype=np.int64) if origins is None else np.asarray(origins)
    if array.shape != (n_rows,) or array.dtype != np.int64:
        raise ShapeError(f"expected int64 origins ({n_rows},), got {array.dtype} {array.shape}: give every row one")
    return array


def _checked_notes(notes: Any) -> dict[str, str]:
    if not isinstance(notes, Mapping) or not all(isinstance(text, str) for item in notes.items() for text in item):
        raise InputError(f"expected notes from str to str, got {notes!r}: convert the values")
    return dict(notes)


def _block_edges(width: int) -> list[int]:
    """0, 16, 32, 64, ..., width."""
    edges = [0]
    while (edge := max(FIRST_BLOCK, 2 * edges[-1])) < width:
        edges.append(edge)
    return [*edges, width]


def _id_parts(ids: NDArray[Any]) -> Iterator[Part]:
    if ids.dtype.kind != "U":
        yield Part("ids", "int64", ids.shape, [ids])
        return
    texts = [text.encode() for text in ids.tolist()]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    yield Part("id_ends", "int64", ends.shape, [ends])
    yield Part("id_bytes", "uint8", (int(ends[-1]),), [np.frombuffer(b"".join(texts), dtype=np.uint8)])


def _read_ids(arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    if "ids" in arrays:
        return arrays["ids"]
    data, ends = arrays["id_bytes"].tobytes(), arrays["id_ends"]
    return np.array([data[a:b].decode() for a, b in pairwise([0, *ends.tolist()])])
