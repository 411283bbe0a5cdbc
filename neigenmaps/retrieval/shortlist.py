"""The S best of very many rows, for S from one to thousands: exact, and not in order.

Sorting out the best costs more than the products when codes are short. Here a sample of the rows tells, for each query,
a score that somewhat more than S rows reach; one pass over all rows, a block that fits the cache at a time, notes those
that do. A query whose sample misled it (fewer than S noted) is searched again without a threshold, so nothing is lost.

Letters: N rows, m numbers of each, Q queries, S shortlisted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 8192
BLOCK_QUERIES = 64  # with BLOCK_ROWS: 2 MiB of scores, the size of a cache
SAMPLED_AT_LEAST = 16_384  # rows
SAMPLED_SHARE = 32  # one row in so many, if that is more
DEVIATIONS = 4  # by which the threshold is set lower: fewer than one query in 10,000 falls short
SMALL_SCORES = 1 << 23  # without a threshold: scores in memory at a time


def shortlist(gallery_Nm: NDArray[np.float32], queries_Qm: NDArray[np.float32], n_best: int) -> NDArray[np.int64]:
    """Rows (Q, S) with the largest inner products, n_best = S <= N, in no order; equal scores at the edge either way."""
    n_rows = len(gallery_Nm)
    n_sampled = max(SAMPLED_AT_LEAST, n_rows // SAMPLED_SHARE)
    if 2 * n_sampled > n_rows or 8 * n_best > n_rows:
        return _by_partition(gallery_Nm, queries_Qm, n_best)
    sample = gallery_Nm[np.linspace(0, n_rows - 1, n_sampled).astype(np.int64)]
    expected = n_best * n_sampled / n_rows  # rows of the sample among the best; their number is Poisson's
    rank = min(n_sampled, int(np.ceil(expected + DEVIATIONS * (np.sqrt(expected) + 1))))
    best = np.empty((len(queries_Qm), n_best), dtype=np.int64)
    for start in range(0, len(queries_Qm), BLOCK_QUERIES):
        queries = queries_Qm[start : start + BLOCK_QUERIES]
        thresholds = np.partition(queries @ sample.T, n_sampled - rank, axis=1)[:, n_sampled - rank]
        best[start : start + BLOCK_QUERIES] = _above(gallery_Nm, queries, thresholds, n_best)
    return best


def _above(
    gallery_Nm: NDArray[np.float32], queries_Bm: NDArray[np.float32], thresholds_B: NDArray[np.float32], n_best: int
) -> NDArray[np.int64]:
    who, rows, scores = [], [], []
    for start in range(0, len(gallery_Nm), BLOCK_ROWS):
        scores_BR = queries_Bm @ gallery_Nm[start : start + BLOCK_ROWS].T
        hits = np.flatnonzero(scores_BR >= thresholds_B[:, None])
        by, row = np.divmod(hits, scores_BR.shape[1])
        who.append(by)
        rows.append(row + start)
        scores.append(scores_BR.reshape(-1)[hits])
    noted_by, noted, score = np.concatenate(who), np.concatenate(rows), np.concatenate(scores)
    order = np.argsort(noted_by, kind="stable")
    edges = np.searchsorted(noted_by[order], np.arange(len(queries_Bm) + 1))
    best = np.empty((len(queries_Bm), n_best), dtype=np.int64)
    for query in range(len(queries_Bm)):
        own = order[edges[query] : edges[query + 1]]
        if len(own) < n_best:
            best[query] = _by_partition(gallery_Nm, queries_Bm[query : query + 1], n_best)[0]
        else:
            best[query] = noted[own[np.argpartition(score[own], len(own) - n_best)[len(own) - n_best :]]]
    return best


def _by_partition(gallery_Nm: NDArray[np.float32], queries_Qm: NDArray[np.float32], n_best: int) -> NDArray[np.int64]:
    best = np.empty((len(queries_Qm), n_best), dtype=np.int64)
    step = max(1, SMALL_SCORES // len(gallery_Nm))
    for start in range(0, len(queries_Qm), step):
        scores = queries_Qm[start : start + step] @ gallery_Nm.T
        best[start : start + step] = np.argpartition(scores, -n_best, axis=1)[:, -n_best:]
    return best
