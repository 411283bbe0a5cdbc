"""FunnelSearch: shortlist on the first few numbers of all rows, score the survivors again on longer and longer prefixes.

    rows_0 = the shortlists[0] best of all N rows by their first stages[0] numbers
    rows_i = the shortlists[i] best of rows_(i-1) by their first stages[i] numbers;  the last stage keeps k

With stages (16, 64, 512) the work per row falls from 512 products to 16, and only the first 16 numbers of every row need
to stay in memory. What it costs is recall, which depends on how fast the spectrum decays: `calibrate` chooses shortlists
that reach a target on a sample of queries, `recall` measures on others. Where next to nothing decays they hold most rows, and
looking these up one by one takes longer than reading all in turn: then the search is exhaustive. Funnel retrieval: Kusupati
et al., arXiv 2205.13147.

Letters: Q queries, K code width, S shortlisted rows, k results.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from neigenmaps.errors import InputError
from neigenmaps.functional.ranking import Metric
from neigenmaps.retrieval.index import TruncatedIndex, as_store, cut_queries, named
from neigenmaps.retrieval.scoring import SearchResult, exhaustive, overlap
from neigenmaps.retrieval.store import CodeStore
from neigenmaps.types import Scaling

if TYPE_CHECKING:
    from torch import Tensor

    from neigenmaps.retrieval.store import Ids

    Array = Tensor | NDArray[Any]

PER_RESULT = 10  # rows each stage hands on, per row that the next one does, where no shortlists are given
COUNTED_AT_A_TIME = 1 << 24  # numbers
LOOKED_UP = 13  # times as long as one product of an exhaustive search takes that with a number of a listed row
READ_ONCE = 18  # times as long as that takes a number's reading, once for all queries (200,000 x 512, one core)


class FunnelRecall(NamedTuple):
    """mean: share of the true k nearest at full length that the funnel finds. worst: that of the worst query.

    standard_error: of the mean, over queries.
    """

    mean: float
    worst: float
    standard_error: float


class FunnelSearch:
    """The k rows most similar to the query at length stages[-1], looked for among ever fewer candidates.

    Where shortlists are so long that this would take longer, for so many queries at once, among all rows.

    codes, metric, scaling, diffusion, eigenvalues, ids, fingerprint: as `TruncatedIndex`. stages: rising code lengths, at least
    two. shortlists: rows that each stage but the last hands on, falling; when None, ten times as many as the next one
    does (for k = 10 and three stages: 1000, 100).

    Raises InputError for stages that do not rise within 1..K or shortlists that do not fit them, and what
    `TruncatedIndex` raises.
    """

    def __init__(
        self,
        codes: Array | CodeStore,
        stages: Sequence[int] = (16, 64, 512),
        *,
        shortlists: Sequence[int] | None = None,
        metric: Metric = "cosine",
        scaling: Scaling = "unit",
        diffusion: float = 0.0,
        eigenvalues: Array | None = None,
        ids: Ids | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.store = as_store(codes, eigenvalues=eigenvalues, ids=ids, fingerprint=fingerprint)
        self.stages = tuple(stages)
        rising = all(a < b for a, b in pairwise((0, *self.stages)))
        if len(self.stages) < 2 or not rising or self.stages[-1] > self.store.width:
            raise InputError(f"expected two or more rising stages within 1..{self.store.width}, got {self.stages}")
        self.shortlists = None if shortlists is None else self._checked_shortlists(shortlists)
        self._first = TruncatedIndex(self.store, self.stages[0], metric, scaling, diffusion=diffusion, method="flat")
        self._scorer = self._first.scorer

    def __len__(self) -> int:
        return len(self.store)

    def search(self, queries: Array, k: int = 10, *, fingerprint: str | None = None) -> SearchResult:
        """Scores at length stages[-1] and ids, (Q, k), best first; (k,) for one query (K,).

        queries: (Q, K), or already cut to stages[-1]. Errors as `TruncatedIndex.search`.
        """
        self.store.check_fingerprint(fingerprint)
        cut, single = cut_queries(queries, self.store.width, self.stages[-1])
        self._check_k(k)
        if self._pays(self._shortlists_for(k), len(cut)):
            scores, rows = self._funnel(cut, k)
        else:
            scores, rows = exhaustive(self.store, self._scorer, self._scorer.comparable(cut), k)
        return named(self.store, scores, rows, single)

    def recall(self, queries: Array, k: int = 10) -> FunnelRecall:
        """Of the shortlists, against exhaustive search at length stages[-1]; costs as much as that. Errors as `search`."""
        cut, _ = cut_queries(queries, self.store.width, self.stages[-1])
        self._check_k(k)
        _, found = self._funnel(cut, k)
        _, truth = exhaustive(self.store, self._scorer, self._scorer.comparable(cut), k)
        shares_Q = overlap(found, truth)
        error = float(shares_Q.std(ddof=1) / np.sqrt(len(shares_Q))) if len(shares_Q) > 1 else float("nan")
        return FunnelRecall(float(shares_Q.mean()), float(shares_Q.min()), error)

    def calibrate(self, queries: Array, k: int = 10, *, target: float = 0.99) -> Self:
        """Choose the shortest `shortlists` whose expected recall of these queries' true k nearest is at least `target`.

        What may be lost is lost where it spares most: in turn the neighbour is given up whose stage becomes cheapest by
        it, in numbers read. Costs an exhaustive search at every length. Choose the target with a margin: other queries,
        fewer or harder, may fall below it.
        Raises InputError unless 0 < target < 1, and what `search` raises.
        """
        if not 0 < target < 1:
            raise InputError(f"expected a target between 0 and 1, got {target}: it is a share of true neighbours")
        cut, _ = cut_queries(queries, self.store.width, self.stages[-1])
        self._check_k(k)
        _, truth_Qk = exhaustive(self.store, self._scorer, self._scorer.comparable(cut), k)
        positions_TS = np.stack([self._positions(cut[:, :m], truth_Qk).ravel() for m in self.stages[:-1]], axis=1)
        may_lose = int((1 - target) * len(positions_TS) + 1e-9)
        shortlists = _cheapest(positions_TS, np.array(self.stages[1:]), may_lose)
        self.shortlists = tuple(max(k, n) for n in np.minimum.accumulate(shortlists).tolist())
        return self

    def _funnel(self, cut_QK: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        kept = [*self._shortlists_for(k), k]
        scores = np.empty((len(cut_QK), 0), dtype=np.float32)
        first = self._scorer.comparable(cut_QK[:, : self.stages[0]])
        rows = self._first.shortlist_rows(first, kept[0])
        for m, keep in zip(self.stages[1:], kept[1:], strict=True):
            scores, rows = self._scorer.rescore(self.store, self._scorer.comparable(cut_QK[:, :m]), rows, keep)
        return scores, rows

    def _pays(self, shortlists: Sequence[int], n_queries: int) -> bool:
        looked_up = sum(rows * m for rows, m in zip(shortlists, self.stages[1:], strict=True))
        spared = (self.stages[-1] - self.stages[0]) * self.store.n_rows
        return LOOKED_UP * n_queries * looked_up < (READ_ONCE + n_queries) * spared

    def _shortlists_for(self, k: int) -> list[int]:
        n_before = len(self.stages) - 1
        wanted = self.shortlists or tuple(k * PER_RESULT ** (n_before - i) for i in range(n_before))
        return [min(max(keep, k), len(self.store)) for keep in wanted]

    def _positions(self, cut_Qm: NDArray[np.float32], truth_Qk: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many rows score at least as well as each true neighbour by the first m numbers, (Q, k), itself included."""
        m, queries = cut_Qm.shape[1], self._scorer.comparable(cut_Qm)
        true_codes = self._scorer.comparable(self.store.gather(truth_Qk.ravel(), m)).reshape(*truth_Qk.shape, m)
        own_Qk = (true_codes @ queries[:, :, None])[:, :, 0]
        # the products below round differently, and no row may fall behind itself
        own_Qk -= np.float32(1e-6) * (np.abs(true_codes) @ np.abs(queries)[:, :, None])[:, :, 0]
        counts_Qk = np.zeros(truth_Qk.shape, dtype=np.int64)
        step = max(1, COUNTED_AT_A_TIME // max(m, len(queries)))
        for start in range(0, self.store.n_rows, step):
            stop = min(start + step, self.store.n_rows)
            alive = self.store.alive_N[start:stop]
            scores_QB = np.sort(queries @ self._scorer.comparable(self.store.prefix(m, start, stop)[alive]).T, axis=1)
            for row, (scores, own) in enumerate(zip(scores_QB, own_Qk, strict=True)):
                counts_Qk[row] += len(scores) - np.searchsorted(scores, own, side="left")
        return counts_Qk

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= len(self.store):
            raise InputError(f"expected 1 <= k <= {len(self.store)}, the number of rows in the index, got k={k}")

    def _checked_shortlists(self, shortlists: Sequence[int]) -> tuple[int, ...]:
        given = tuple(shortlists)
        falling = all(a >= b for a, b in pairwise((*given, 1)))
        if len(given) != len(self.stages) - 1 or not falling:
            raise InputError(f"expected {len(self.stages) - 1} falling shortlists of at least 1, got {given}")
        return given


def _cheapest(positions_TS: NDArray[np.int64], lengths_S: NDArray[np.int64], may_lose: int) -> NDArray[np.int64]:
    """Shortlists (S,) that keep all but `may_lose` of T true neighbours, given the position of each in every stage.

    A stage that hands on n rows makes the next one read n times its length; lost in one stage is lost in all. One after
    the other the neighbour goes that spares most, which need not be the best set to lose.
    """
    in_reach = np.argsort(-positions_TS, axis=0, kind="stable")[: may_lose + 1]  # all others stay whatever is given up
    positions_TS = positions_TS[np.unique(in_reach)]
    for _ in range(may_lose):
        worst_S = positions_TS.argmax(axis=0)
        spared = [
            lengths_S @ (positions_TS.max(axis=0) - np.delete(positions_TS, one, axis=0).max(axis=0)) for one in worst_S
        ]
        positions_TS = np.delete(positions_TS, worst_S[int(np.argmax(spared))], axis=0)
    return positions_TS.max(axis=0)
