"""Retrieval from every space to every other: Rank-1/5/10, mAP, MRR, the worst pair, intervals, gallery size, clusters.

    table = any_to_any({name: aligner.transform(x, source=name) for name, x in unseen.items()})
    counts_DN = bootstrap_counts(table.n_rows, 1000, torch.Generator().manual_seed(0))
    table.mean("rank_1", counts_DN)              # Interval(value, low, high)
    difference(table, other, "rank_1", counts_DN)    # of two methods on the same draws of rows

A row drawn twice counts twice as a query in all pairs; the gallery stays whole. Letters as in `pair_ranking`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.alignment.aligner import AbstractAligner
from neigenmaps.alignment.rows import Rows, matched_rows
from neigenmaps.errors import InputError, RowMismatchError, ShapeError, UnknownNameError
from neigenmaps.functional.pair_ranking import (
    Interval,
    bootstrap_counts,
    bootstrap_means,
    pair_ranks,
    percentile_interval,
    rank_at_gallery_sizes,
)

Measure = Literal["rank_1", "rank_5", "rank_10", "map", "mrr"]


class WorstPair(NamedTuple):
    """The pair of lowest value, and the lowest value with its interval: of each draw's own worst pair."""

    source: str
    target: str
    interval: Interval


class ClusterScores(NamedTuple):
    """Of k-means against labels, by seed: adjusted Rand index and normalised mutual information."""

    ari: tuple[float, ...]
    nmi: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class RetrievalTable:
    """Places of all rows' matches in all ordered pairs of spaces. one_match: every row matches one row only."""

    pairs: tuple[tuple[str, str], ...]
    first_rank_NP: Tensor
    average_precision_NP: Tensor
    one_match: bool

    @property
    def n_rows(self) -> int:
        return len(self.first_rank_NP)

    def values(self, measure: Measure) -> Tensor:
        """Of every row as a query in every pair, (N, P) float64."""
        if measure not in get_args(Measure):
            raise UnknownNameError("measure", measure, get_args(Measure))
        if measure == "map":
            return self.average_precision_NP
        if measure == "mrr":
            return 1 / self.first_rank_NP.double()
        return (self.first_rank_NP <= int(measure.removeprefix("rank_"))).double()

    def by_pair(self, measure: Measure) -> dict[tuple[str, str], float]:
        """Mean over rows."""
        return dict(zip(self.pairs, self.values(measure).mean(dim=0).tolist(), strict=True))

    def mean(self, measure: Measure, counts_DN: Tensor, level: float = 0.95) -> Interval:
        """Over all pairs."""
        values_NP = self.values(measure)
        draws_D = bootstrap_means(values_NP, counts_DN).mean(dim=1)
        return percentile_interval(values_NP.mean().item(), draws_D, level)

    def worst_pair(self, measure: Measure, counts_DN: Tensor, level: float = 0.95) -> WorstPair:
        values_NP = self.values(measure)
        means_P = values_NP.mean(dim=0)
        draws_D = bootstrap_means(values_NP, counts_DN).amin(dim=1)
        interval = percentile_interval(means_P.min().item(), draws_D, level)
        return WorstPair(*self.pairs[int(means_P.argmin())], interval)

    def by_gallery_size(self, sizes: Sequence[int], k: int = 1) -> dict[int, float]:
        """Rank-k, mean over pairs, expected in random galleries of each size. Raises InputError unless one_match."""
        if not self.one_match:
            raise InputError("expected one match per row for galleries of another size, got several: leave labels out")
        ranks_Q = self.first_rank_NP.flatten()
        values_S = rank_at_gallery_sizes(ranks_Q, self.n_rows, sizes, k=k).mean(dim=0)
        return dict(zip(sizes, values_S.tolist(), strict=True))


def any_to_any(
    codes: Mapping[str, Rows], *, labels: Tensor | None = None, csls: int | None = None, chunk: int = 256
) -> RetrievalTable:
    """From every space to every other within one universe; labels: rows of one label match one another too.

    csls and chunk as in `pair_ranks`. Raises as `matched_rows` and `pair_ranks` do; ShapeError for codes of several widths.
    """
    rows = matched_rows(codes)
    if len({x_NF.shape[1] for x_NF in rows.spaces}) > 1:
        widths = {name: x_NF.shape[1] for name, x_NF in zip(rows.names, rows.spaces, strict=True)}
        raise ShapeError(f"expected codes of one width, got {widths}: transform all spaces into the universe first")
    spaces = dict(zip(rows.names, rows.spaces, strict=True))
    pairs = [(source, target) for source in spaces for target in spaces if source != target]
    return _table(pairs, ((spaces[source], spaces[target]) for source, target in pairs), labels, csls, chunk)


def any_to_any_translated(
    aligner: AbstractAligner,
    spaces: Mapping[str, Rows],
    *,
    labels: Tensor | None = None,
    csls: int | None = None,
    chunk: int = 256,
) -> RetrievalTable:
    """From every space to every other in the TARGET's own coordinates, after `aligner.translate`.

    The target's mean over these rows comes off both sides, since cosines about an arbitrary origin say little.
    """
    rows = matched_rows(spaces)
    means = {name: x_NF.mean(dim=0) for name, x_NF in zip(rows.names, rows.spaces, strict=True)}
    own = {name: x_NF - means[name] for name, x_NF in zip(rows.names, rows.spaces, strict=True)}
    pairs = [(source, target) for source in own for target in own if source != target]
    codes = (
        (aligner.translate(spaces[source], source=source, target=target) - means[target], own[target])
        for source, target in pairs
    )
    return _table(pairs, codes, labels, csls, chunk)


def difference(
    a: RetrievalTable, b: RetrievalTable, measure: Measure, counts_DN: Tensor, level: float = 0.95
) -> Interval:
    """a - b, mean over pairs, on the same draws of rows. Raises RowMismatchError for tables of other pairs or rows."""
    if a.pairs != b.pairs or a.n_rows != b.n_rows:
        raise RowMismatchError(
            f"expected tables of the same pairs and rows, got {len(a.pairs)} pairs of {a.n_rows} rows and "
            f"{len(b.pairs)} of {b.n_rows}: compare methods on one test set"
        )
    values_NP = a.values(measure) - b.values(measure)
    return percentile_interval(values_NP.mean().item(), bootstrap_means(values_NP, counts_DN).mean(dim=1), level)


def cluster_scores(
    codes: Mapping[str, Rows], labels: Tensor, *, n_clusters: int | None = None, seeds: Sequence[int] = range(5)
) -> ClusterScores:
    """k-means on the unit rows of all spaces together, against the labels of the rows; as many clusters as labels.

    Raises ShapeError unless there is one label per row and one width; further as in `matched_rows`.
    """
    from sklearn.cluster import KMeans  # here, so that `import neigenmaps.alignment` stays light
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    rows = matched_rows(codes)
    if labels.shape != (len(rows),) or len({x_NF.shape[1] for x_NF in rows.spaces}) > 1:
        raise ShapeError(
            f"expected codes of one width and labels ({len(rows)},), got widths "
            f"{[x_NF.shape[1] for x_NF in rows.spaces]} and {tuple(labels.shape)}: transform all spaces into the universe, "
            "and give every row one label"
        )
    units = torch.cat([F.normalize(x_NF.double(), dim=1) for x_NF in rows.spaces]).cpu().numpy()
    truth = np.tile(labels.cpu().numpy(), len(rows.spaces))
    ari, nmi = [], []
    for seed in seeds:
        means = KMeans(n_clusters or len(np.unique(truth)), n_init=3, max_iter=20, random_state=seed)
        found = means.fit_predict(units)
        ari.append(float(adjusted_rand_score(truth, found)))
        nmi.append(float(normalized_mutual_info_score(truth, found)))
    return ClusterScores(tuple(ari), tuple(nmi))


def _table(
    pairs: list[tuple[str, str]],
    codes: Iterable[tuple[Tensor, Tensor]],
    labels: Tensor | None,
    csls: int | None,
    chunk: int,
) -> RetrievalTable:
    found = [
        pair_ranks(queries, gallery, query_ids_Q=labels, gallery_ids_G=labels, csls=csls, chunk=chunk)
        for queries, gallery in codes
    ]
    return RetrievalTable(
        tuple(pairs),
        torch.stack([ranks.first_rank_Q for ranks in found], dim=1),
        torch.stack([ranks.average_precision_Q for ranks in found], dim=1),
        labels is None,
    )


__all__ = [
    "ClusterScores",
    "Interval",
    "Measure",
    "RetrievalTable",
    "WorstPair",
    "any_to_any",
    "any_to_any_translated",
    "bootstrap_counts",
    "cluster_scores",
    "difference",
]
