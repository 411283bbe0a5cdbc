"""TruncatedIndex: nearest neighbours among codes cut to their first m numbers, by faiss.

The store keeps codes at full length; an index holds only the m numbers it compares. Cutting is therefore a choice at
search time, `index.truncated(32)`, and changes nothing on disk.

Letters: N rows of the store, Q queries, K code width, m numbers compared, k results.
"""

from __future__ import annotations

import math
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from neigenmaps.errors import InputError
from neigenmaps.functional.ranking import Metric
from neigenmaps.retrieval.scoring import Scorer, SearchResult, best_of, exhaustive, faiss, overlap
from neigenmaps.retrieval.shortlist import shortlist
from neigenmaps.retrieval.store import CodeStore, checked_codes
from neigenmaps.types import Scaling

if TYPE_CHECKING:
    from torch import Tensor

    from neigenmaps.retrieval.store import Ids

    Array = Tensor | NDArray[Any]

Method = Literal["auto", "flat", "hnsw", "ivf_pq"]

FLAT_UP_TO = 1 << 27  # numbers held (half a GiB); beyond, "auto" compresses
LINKS = 32  # per node of the small-world graph
IVF_PQ_LEAST = 39 * 256  # rows from which faiss can learn 256 centres of each sub-code
PER_CELL = 39  # rows per cell that faiss wants for learning
PROBED_SHARE = 16  # one in so many cells is searched
REFINED = 8  # times k candidates of an approximate search are scored again, exactly
BATCH = 32  # queries from which blocked products beat faiss's flat search, which takes short codes one query at a time
LARGEST_K = 1_000  # results up to which they do
STALE_SHARE = 0.5  # of removed rows in a graph or in cells before they are built anew
FILLED_AT_A_TIME = 1 << 24  # numbers


class TruncatedIndex:
    """The k rows whose first `truncate_dim` numbers are most similar to the query's.

    codes: (N, K), array, tensor or `CodeStore` (which several indexes may share). truncate_dim: all of them when None.
    metric: "cosine" of the cut codes, or their inner product. scaling: "unit" searches the codes as they are given;
    "sqrt_eigenvalue" multiplies number j of codes and queries by the square root of eigenvalue j first, so pass it
    codes of `encode(..., scaling="unit")`. ids: distinct integers or strings. fingerprint: of the model
    (`fingerprint_model`).

    diffusion: number j is also multiplied by eigenvalue j to this power. Later functions are smooth too, but less, and tell less
    about classes; at 8 or 16 a long code finds what the best short one does. It is the time of diffusion maps (Coifman and
    Lafon, 2006): inner products become the kernel of more random changes of the image, one after the other.

    method: "flat" compares with every row; "hnsw" walks a small-world graph (no training, twice the memory or more);
    "ivf_pq" searches a sixteenth of the cells of a compressed copy (m / 4 bytes or so a row). Both fetch more
    candidates than asked for and score them again exactly; `recall` says what they miss. "auto" is flat up to 2**27
    numbers, and "ivf_pq" beyond. An "ivf_pq" index shrunk below what it can learn from turns flat.

    Raises:
        InputError: truncate_dim outside 1..K, unknown names, an empty gallery, repeated ids, eigenvalues missing for
            "sqrt_eigenvalue" or diffusion, or applied already, or fewer than 9,984 rows for "ivf_pq".
        ShapeError, NonFiniteError: as `CodeStore`.
    """

    def __init__(
        self,
        codes: Array | CodeStore,
        truncate_dim: int | None = None,
        metric: Metric = "cosine",
        scaling: Scaling = "unit",
        *,
        diffusion: float = 0.0,
        eigenvalues: Array | None = None,
        ids: Ids | None = None,
        fingerprint: str | None = None,
        method: Method = "auto",
    ) -> None:
        self.store = as_store(codes, eigenvalues=eigenvalues, ids=ids, fingerprint=fingerprint)
        self.truncate_dim = self.store.width if truncate_dim is None else truncate_dim
        if not 1 <= self.truncate_dim <= self.store.width:
            raise InputError(f"expected 1 <= truncate_dim <= {self.store.width}, the code width, got {truncate_dim}")
        self.scorer = Scorer(self.store, metric, scaling, diffusion)
        self.method = _chosen_method(method, len(self.store), self.truncate_dim)
        self._build()

    def __len__(self) -> int:
        return len(self.store)

    def search(self, queries: Array, k: int = 10, *, fingerprint: str | None = None) -> SearchResult:
        """Scores and ids (Q, k), best first; (k,) for one query (K,).

        queries: (Q, K), or already cut to truncate_dim; scaled as the gallery's codes were given.
        Raises ShapeError for another width, NonFiniteError, and InputError for k outside 1 .. number of rows, or codes
        of another model than the gallery's.
        """
        self.store.check_fingerprint(fingerprint)
        cut, single = cut_queries(queries, self.store.width, self.truncate_dim)
        scores, rows = self.search_rows(self.scorer.comparable(cut), k)
        return named(self.store, scores, rows, single)

    def recall(self, queries: Array, k: int = 10) -> float:
        """Share of the true k nearest at this length that `search` finds, mean over queries: 1 for "flat", up to ties."""
        cut, _ = cut_queries(queries, self.store.width, self.truncate_dim)
        comparable = self.scorer.comparable(cut)
        _, found = self.search_rows(comparable, k)
        _, truth = exhaustive(self.store, self.scorer, comparable, k)
        return float(overlap(found, truth).mean())

    def truncated(self, truncate_dim: int) -> TruncatedIndex:
        """An index of another length over the same store."""
        scorer = self.scorer
        return TruncatedIndex(
            self.store, truncate_dim, scorer.metric, scorer.scaling, diffusion=scorer.diffusion, method=self.method
        )

    def add(self, codes: Array, ids: Ids | None = None, *, fingerprint: str | None = None) -> None:
        """Append codes at full length to the store; other indexes over it see them too. Errors as `CodeStore.add`."""
        self.store.add(codes, ids, fingerprint=fingerprint)

    def remove(self, ids: Ids) -> None:
        """Take rows out of the store. InputError for ids that are not there; then nothing is removed."""
        self.store.remove(ids)

    def save(self, path: str | Path) -> None:
        """Write the store, at full length, whole or not at all. Errors as `CodeStore.save`."""
        self.store.save(path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        truncate_dim: int | None = None,
        metric: Metric = "cosine",
        scaling: Scaling = "unit",
        *,
        diffusion: float = 0.0,
        method: Method = "auto",
        verify: bool = True,
    ) -> Self:
        """An index of any length over the store at `path`, memory-mapped; verify and errors as `CodeStore.load`."""
        store = CodeStore.load(path, verify=verify)
        return cls(store, truncate_dim, metric, scaling, diffusion=diffusion, method=method)

    def search_rows(self, queries_Qm: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows of the store, (Q, k), for queries that are cut and comparable already."""
        n_alive = len(self.store)
        if not isinstance(k, Integral) or not 1 <= k <= n_alive:
            raise InputError(f"expected a whole k, 1 <= k <= {n_alive}, the number of rows in the index, got k={k!r}")
        self._follow_store()
        if self.method == "flat":
            return self._flat_rows(queries_Qm, k)
        n_candidates = min(n_alive, max(REFINED * k, 64))
        rows = self._candidates(queries_Qm, n_candidates)
        scores, rows_Qk = np.empty((len(rows), k), np.float32), np.empty((len(rows), k), np.int64)
        short = (rows < 0).any(axis=1)  # the walk, or the cells, met too few rows
        if short.any():
            scores[short], rows_Qk[short] = exhaustive(self.store, self.scorer, queries_Qm[short], k)
        if not short.all():
            scores[~short], rows_Qk[~short] = self.scorer.rescore(self.store, queries_Qm[~short], rows[~short], k)
        return scores, rows_Qk

    def shortlist_rows(self, queries_Qm: NDArray[np.float32], n_best: int) -> NDArray[np.int64]:
        """The `n_best` rows of the store for comparable queries, (Q, n_best), in no order; of a "flat" index."""
        self._follow_store()
        rows: NDArray[np.int64] = self._rows[shortlist(self._held_codes(), queries_Qm, n_best)]
        return rows

    def _flat_rows(self, queries_Qm: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if len(queries_Qm) < BATCH or k > LARGEST_K:
            scores, found = self.faiss_index.search(queries_Qm, k)
            return scores, self._rows[found]
        held = self._held_codes()
        found = shortlist(held, queries_Qm, k)
        scores = np.empty(found.shape, dtype=np.float32)
        for start in range(0, len(found), BATCH):  # a few at a time: k codes of every query stand in memory
            part = slice(start, start + BATCH)
            scores[part] = (held[found[part]] @ queries_Qm[part, :, None])[:, :, 0]
        scores, found = best_of(scores, found, k)
        return scores, self._rows[found]

    def _held_codes(self) -> NDArray[np.float32]:
        """The codes inside a flat index, (N, m), not copied."""
        held = self.faiss_index
        codes_Nm: NDArray[np.float32] = faiss().rev_swig_ptr(held.get_xb(), held.ntotal * held.d)
        return codes_Nm.reshape(held.ntotal, held.d)

    def _candidates(self, queries_Qm: NDArray[np.float32], n_candidates: int) -> NDArray[np.int64]:
        alive = self.store.alive_N[self._rows]
        selector = None if alive.all() else faiss().IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        if self.method == "hnsw":
            parameters = faiss().SearchParametersHNSW(sel=selector, efSearch=max(64, 2 * n_candidates))
        else:
            n_probed = math.ceil(self.faiss_index.nlist / PROBED_SHARE)
            parameters = faiss().SearchParametersIVF(sel=selector, nprobe=max(n_probed, 8))
        _, found = self.faiss_index.search(queries_Qm, n_candidates, params=parameters)
        return np.where(found < 0, -1, self._rows[found])

    def _build(self) -> None:
        self._rows = np.flatnonzero(self.store.alive_N)  # of the store, in faiss's order
        self._n_followed = self.store.n_rows
        m, library = self.truncate_dim, faiss()
        if self.method == "ivf_pq" and len(self._rows) < IVF_PQ_LEAST:
            self.method = "flat"  # so many were removed that nothing is left to learn from
        if self.method == "flat":
            self.faiss_index = library.IndexFlatIP(m)
        elif self.method == "hnsw":
            self.faiss_index = library.IndexHNSWFlat(m, LINKS, library.METRIC_INNER_PRODUCT)
        else:
            self.faiss_index = self._learned_cells()
        self._fill(self._rows)

    def _learned_cells(self) -> Any:
        """IVF-PQ with about 4 sqrt(N) cells, and the finest sub-codes of at most half the numbers."""
        m, n_rows, library = self.truncate_dim, len(self._rows), faiss()
        n_cells = max(1, min(round(4 * math.sqrt(n_rows)), n_rows // PER_CELL))
        n_parts = max(d for d in range(1, max(1, m // 4) + 1) if m % d == 0)
        quantizer = library.IndexFlatIP(m)
        index = library.IndexIVFPQ(quantizer, m, n_cells, n_parts, 8, library.METRIC_INNER_PRODUCT)
        n_learning = min(n_rows, max(IVF_PQ_LEAST, 64 * n_cells))
        learning = self._rows[np.linspace(0, n_rows - 1, n_learning).astype(np.int64)]
        index.train(self.scorer.comparable(self.store.gather(learning, m)))
        return index

    def _fill(self, rows: NDArray[np.int64]) -> None:
        step = max(1, FILLED_AT_A_TIME // self.truncate_dim)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            contiguous = some[-1] - some[0] == len(some) - 1
            codes = (
                self.store.prefix(self.truncate_dim, int(some[0]), int(some[-1]) + 1)
                if contiguous
                else self.store.gather(some, self.truncate_dim)
            )
            self.faiss_index.add(self.scorer.comparable(codes))

    def _follow_store(self) -> None:
        """Take over what was added to or removed from the store since; another index may have done it."""
        alive = self.store.alive_N[self._rows]
        tolerated = 0 if self.method == "flat" else STALE_SHARE * len(alive)
        if (~alive).sum() > tolerated:
            self._build()
            return
        new = np.arange(self._n_followed, self.store.n_rows)
        self._n_followed = self.store.n_rows
        new = new[self.store.alive_N[new]]
        if len(new):
            self._rows = np.concatenate([self._rows, new])
            self._fill(new)


def as_store(
    codes: Array | CodeStore, *, eigenvalues: Array | None, ids: Ids | None, fingerprint: str | None
) -> CodeStore:
    """The store itself, or a new one over codes."""
    if not isinstance(codes, CodeStore):
        return CodeStore(codes, eigenvalues=eigenvalues, ids=ids, fingerprint=fingerprint)
    if any(value is not None for value in (eigenvalues, ids, fingerprint)):
        raise InputError(
            "expected ids, eigenvalues and fingerprint in the CodeStore, got them beside it: leave them out"
        )
    if not len(codes):
        raise InputError("expected a store with rows, got an empty one: every row has been removed")
    return codes


def cut_queries(queries: Array, width: int, truncate_dim: int) -> tuple[NDArray[np.float32], bool]:
    """Checked queries (Q, m), and whether there was a single one, without an axis of its own."""
    if not hasattr(queries, "ndim"):
        raise InputError(f"expected queries as a tensor or array (Q, K), got {type(queries).__name__}")
    single = queries.ndim == 1
    rows = checked_codes("query", queries[None] if single else queries)
    if rows.shape[1] not in (width, truncate_dim):
        checked_codes("query", rows, width=width)
    return np.ascontiguousarray(rows[:, :truncate_dim], dtype=np.float32), single


def named(store: CodeStore, scores: NDArray[np.float32], rows: NDArray[np.int64], single: bool) -> SearchResult:
    ids = store.ids[rows]
    return SearchResult(scores[0], ids[0]) if single else SearchResult(scores, ids)


def _chosen_method(method: str, n_rows: int, truncate_dim: int) -> Literal["flat", "hnsw", "ivf_pq"]:
    if method == "auto":
        return "flat" if n_rows * truncate_dim <= FLAT_UP_TO or n_rows < IVF_PQ_LEAST else "ivf_pq"
    if method == "ivf_pq" and n_rows < IVF_PQ_LEAST:
        raise InputError(
            f"expected at least {IVF_PQ_LEAST} rows to learn 'ivf_pq' from, got {n_rows}: use method='flat', which is "
            "exact and fast at this size"
        )
    if method not in ("flat", "hnsw", "ivf_pq"):
        raise InputError(f"expected method 'auto', 'flat', 'hnsw' or 'ivf_pq', got {method!r}: name one of them")
    return method  # type: ignore[return-value]
