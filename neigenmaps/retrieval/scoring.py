"""Similarity of cut codes, and exhaustive search: what every other search is measured against.

Letters: N rows of the store, Q queries, m numbers of each code, S candidates per query, k results per query.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neigenmaps.errors import InputError
from neigenmaps.functional.ranking import Metric
from neigenmaps.retrieval.store import CodeStore
from neigenmaps.types import Scaling

if TYPE_CHECKING:
    from torch import Tensor

    Array = Tensor | NDArray[Any]

AT_A_TIME = 1 << 24  # numbers of the gallery in memory at once
RESCORED_AT_A_TIME = 1 << 19  # numbers of candidates, which are read three times: the size of a cache
SMALLEST_NORM = 1e-15  # below, float32 squares have lost digits or vanished
FEWEST_ROWS = 32  # to tell from a gallery how its codes are scaled


class SearchResult(NamedTuple):
    """scores: float32, falling. ids: of the user's own. Both (Q, k), or (k,) for a single query."""

    scores: NDArray[np.float32]
    ids: NDArray[Any]


def spectral_scale(eigenvalues_K: NDArray[np.float64], power: float, *, relative: bool) -> NDArray[np.float32]:
    """Eigenvalues, those below 0 as 0, to a power. relative: to the largest, so that high powers do not vanish; it changes no
    cosine and no order."""
    values_K = np.maximum(eigenvalues_K, 0)
    if relative and values_K.any():
        values_K = values_K / values_K.max()
    scale_K: NDArray[np.float32] = (values_K**power).astype(np.float32)
    return scale_K


class Scorer:
    """What makes inner products the scores of `metric` under `scaling` and `diffusion`, for codes of any length."""

    def __init__(self, store: CodeStore, metric: Metric, scaling: Scaling, diffusion: float = 0.0) -> None:
        if metric not in ("cosine", "inner_product"):
            raise InputError(f"expected metric 'cosine' or 'inner_product', got {metric!r}: name one of them")
        if scaling not in ("unit", "sqrt_eigenvalue"):
            raise InputError(f"expected scaling 'unit' or 'sqrt_eigenvalue', got {scaling!r}: name one of them")
        if not 0 <= diffusion < math.inf:
            raise InputError(f"expected a diffusion of at least 0, got {diffusion}: it is a power of the eigenvalues")
        self.metric, self.scaling, self.diffusion = metric, scaling, diffusion
        self._scale_K: NDArray[np.float32] | None = None
        power = diffusion + (0.5 if scaling == "sqrt_eigenvalue" else 0.0)
        if power:
            if store.eigenvalues_K is None:
                raise InputError(
                    "scaling='sqrt_eigenvalue' and diffusion need eigenvalues: pass model.eigenvalues, or scaling='unit' alone"
                )
            if scaling == "sqrt_eigenvalue":
                _refuse_scaled_already(store)
            self._scale_K = spectral_scale(store.eigenvalues_K, power, relative=metric == "cosine")

    def comparable(self, codes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cut codes (..., m), scaled, and of length 1 under the cosine; zero rows stay zero."""
        if self._scale_K is not None:
            codes = codes * self._scale_K[: codes.shape[-1]]
        return unit_rows(codes) if self.metric == "cosine" else codes

    def rescore(
        self, store: CodeStore, queries_Qm: NDArray[np.float32], rows_QS: NDArray[np.int64], keep: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The `keep` best of each query's candidates by their first m numbers, best first: scores and rows, (Q, keep)."""
        n_candidates, m = rows_QS.shape[1], queries_Qm.shape[1]
        scores = np.empty((len(rows_QS), keep), dtype=np.float32)
        kept = np.empty((len(rows_QS), keep), dtype=np.int64)
        step = max(1, RESCORED_AT_A_TIME // (n_candidates * m))
        for start in range(0, len(rows_QS), step):
            part = slice(start, start + step)
            rows = rows_QS[part]
            codes_BSm = store.gather(rows.reshape(-1), m).reshape(*rows.shape, m)
            scores[part], kept[part] = best_of(self.similarities(codes_BSm, queries_Qm[part]), rows, keep)
        return scores, kept

    def similarities(self, codes_BSm: NDArray[np.float32], queries_Bm: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (B, S) of cut codes, as they are stored, with the comparable query they are listed for."""
        if self._scale_K is not None:
            codes_BSm = codes_BSm * self._scale_K[: codes_BSm.shape[-1]]
        products: NDArray[np.float32] = (codes_BSm @ queries_Bm[:, :, None])[:, :, 0]
        if self.metric == "inner_product":
            return products
        norms = np.sqrt(np.einsum("bsm,bsm->bs", codes_BSm, codes_BSm))
        if not _safe(norms).all():
            return (unit_rows(codes_BSm) @ queries_Bm[:, :, None])[:, :, 0]
        return products / norms


def exhaustive(
    store: CodeStore, scorer: Scorer, queries_Qm: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and rows (Q, k) of the best among all rows, compared by their first m numbers; a few rows in memory at a time."""
    m = queries_Qm.shape[1]
    step = max(k, AT_A_TIME // m)
    scores = np.empty((len(queries_Qm), 0), dtype=np.float32)
    rows = np.empty((len(queries_Qm), 0), dtype=np.int64)
    for start in range(0, store.n_rows, step):
        stop = min(start + step, store.n_rows)
        alive = np.flatnonzero(store.alive_N[start:stop])
        if not len(alive):
            continue
        gallery = scorer.comparable(store.prefix(m, start, stop)[alive])
        found, index = faiss().knn(queries_Qm, gallery, min(k, len(alive)), metric=faiss().METRIC_INNER_PRODUCT)
        scores = np.concatenate([scores, found], axis=1)
        rows = np.concatenate([rows, start + alive[index]], axis=1)
        scores, rows = best_of(scores, rows, min(k, scores.shape[1]))
    return scores, rows


def best_of(
    scores_QS: NDArray[np.float32], rows_QS: NDArray[np.int64], keep: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `keep` best candidates of each query, in falling order."""
    if keep < scores_QS.shape[1]:
        chosen = np.argpartition(-scores_QS, keep - 1, axis=1)[:, :keep]
        scores_QS, rows_QS = np.take_along_axis(scores_QS, chosen, 1), np.take_along_axis(rows_QS, chosen, 1)
    order = np.argsort(-scores_QS, axis=1, kind="stable")
    return np.take_along_axis(scores_QS, order, 1), np.take_along_axis(rows_QS, order, 1)


def overlap(found_Qk: NDArray[np.int64], truth_Qk: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each query's true rows that were found, (Q,)."""
    return np.array([np.isin(truth, found).mean() for found, truth in zip(found_Qk, truth_Qk, strict=True)])


def unit_rows(codes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (last axis) divided by their length; zero rows stay zero."""
    norms = np.sqrt(np.einsum("...m,...m->...", codes, codes))[..., None]
    lost = ~_safe(norms)
    if lost.any():
        largest = np.abs(codes).max(axis=-1, keepdims=True)
        codes = np.where(lost & (largest > 0), codes / np.where(largest > 0, largest, 1), codes)
        norms = np.sqrt(np.einsum("...m,...m->...", codes, codes))[..., None]
        norms[norms == 0] = 1
    unit: NDArray[np.float32] = codes / norms
    return unit


def _safe(norms: NDArray[np.float32]) -> NDArray[np.bool_]:
    return (norms > SMALLEST_NORM) & np.isfinite(norms)


def _refuse_scaled_already(store: CodeStore) -> None:
    """Codes of variance mu would get variance mu squared: an error that no later number would show."""
    assert store.eigenvalues_K is not None
    seen = store.prefix(store.width, 0, min(store.n_rows, 4096)).astype(np.float64)
    mean_squares_K = np.square(seen).mean(axis=0)
    told_K = (store.eigenvalues_K > 0) & (mean_squares_K > 0)
    if len(seen) < FEWEST_ROWS or not told_K.any():
        return
    log_mu, log_square = np.log(store.eigenvalues_K[told_K]), np.log(mean_squares_K[told_K])
    from_mu, from_one = np.abs(log_square - log_mu).mean(), np.abs(log_square).mean()
    if np.abs(log_mu).mean() > 0.5 and from_mu < 0.25 * from_one:
        raise InputError(
            "scaling='sqrt_eigenvalue' multiplies codes of variance 1, and these have the eigenvalues as variance already: "
            "pass codes of encode(..., scaling='unit'), or scaling='unit' to search these as they are"
        )


def faiss() -> Any:
    """faiss, imported when first needed: `import neigenmaps.retrieval` stays light, and SWIG's warnings stay inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import faiss as module
    return module
