"""Codes for those who do not have this package: a faiss index, or plain arrays."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neigenmaps.errors import InputError
from neigenmaps.files import whole_file
from neigenmaps.retrieval.scoring import faiss, unit_rows
from neigenmaps.retrieval.store import CodeStore

FILLED_AT_A_TIME = 1 << 24  # numbers


def export_faiss(store: CodeStore, folder: str | Path, *, truncate_dim: int | None = None) -> None:
    """`codes.faiss`, an exact index of inner products over codes cut and then brought to length 1, and `ids.json`.

    So scores are cosines for queries of length 1; what faiss calls i is entry i of ids.json.
    """
    folder, m, rows = Path(folder), _length(store, truncate_dim), np.flatnonzero(store.alive_N)
    index = faiss().IndexFlatIP(m)
    step = max(1, FILLED_AT_A_TIME // m)
    for start in range(0, len(rows), step):
        index.add(unit_rows(store.gather(rows[start : start + step], m)))
    with whole_file(folder / "codes.faiss") as path, whole_file(folder / "ids.json") as names:
        faiss().write_index(index, str(path))
        names.write_text(json.dumps(store.ids[rows].tolist(), ensure_ascii=False) + "\n", encoding="utf-8")


def export_numpy(store: CodeStore, path: str | Path, *, truncate_dim: int | None = None) -> None:
    """An .npz with `codes` (N, m), `ids` (N,) and, where known, `eigenvalues` (m,); it needs no pickle to be read."""
    m, rows = _length(store, truncate_dim), np.flatnonzero(store.alive_N)
    arrays: dict[str, NDArray[np.generic]] = {"codes": store.gather(rows, m), "ids": store.ids[rows]}
    if store.eigenvalues_K is not None:
        arrays["eigenvalues"] = store.eigenvalues_K[:m]
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # of a file: NumPy would add .npz to a path


def _length(store: CodeStore, truncate_dim: int | None) -> int:
    m = store.width if truncate_dim is None else truncate_dim
    if not 1 <= m <= store.width:
        raise InputError(f"expected 1 <= truncate_dim <= {store.width}, the code width, got {m}")
    if not len(store):
        raise InputError("expected a store with rows, got an empty one: every row has been removed")
    return m
