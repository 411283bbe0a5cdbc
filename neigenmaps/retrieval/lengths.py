"""How many numbers of a code are enough: from eigenvalues alone, and from a held-out curve with an interval.

Letters: N codes, K code width, L lengths tried, Q held-out queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.ranking import Metric, retrieval_map
from neigenmaps.retrieval.index import TruncatedIndex
from neigenmaps.retrieval.scoring import spectral_scale
from neigenmaps.retrieval.store import checked_codes

if TYPE_CHECKING:
    Array = Tensor | NDArray[Any]

NEIGHBOURS = 10  # that a cut code finds, and that the full code judges, where there are no labels
FEWEST_QUERIES = 20  # below, an interval by resampling means little
ROUNDING = 1e-6  # relative; float32 eigenvalues that sum to the target exactly should reach it


class DimSuggestion(NamedTuple):
    """dim: the shortest length whose quality is at least target x the best of all lengths tried, the full one among them.

    interval: (low, high), where dim falls for the middle `confidence` share of resampled queries. dim_by_eigenvalues:
    the shortest length that holds the share `target` of the eigenvalues' sum. lengths_L, quality_L: the held-out
    curve; quality is mean average precision with labels, else how near the neighbours found are, see `suggest_dim`.
    """

    dim: int
    interval: tuple[int, int]
    dim_by_eigenvalues: int
    lengths_L: tuple[int, ...]
    quality_L: tuple[float, ...]
    n_queries: int


def suggest_dim(
    codes: Array,
    labels: Array | None = None,
    target: float = 0.99,
    *,
    eigenvalues: Array | None = None,
    diffusion: float = 0.0,
    lengths: Sequence[int] | None = None,
    metric: Metric = "cosine",
    max_queries: int = 1_000,
    confidence: float = 0.95,
    n_resamples: int = 1_000,
    generator: torch.Generator | None = None,
) -> DimSuggestion:
    """How long codes must be to keep the share `target` of what the best length achieves, often but not always the full one.

    A fifth of the rows, at most `max_queries`, are held out as queries and search the rest at every length. labels: as
    in `functional.ranking`, integers or boolean (N, C). Without them the full code judges the 10 rows that a cut code finds:

        quality = (mean similarity of the 10 found - chance) / (that of its own 10 nearest - chance),  chance: of all rows

    so that rows as near as the nearest count as much. eigenvalues: when None, `dim_by_eigenvalues` takes the mean squares of
    the codes' columns, which are near them for `encode`'s default scaling. diffusion: as `TruncatedIndex`, and for the search
    that will be run with it: without labels the full code is believed, and where later functions count almost as much as
    the first, so is whatever noise they hold. lengths: tried, the full one is always among them; when None, steps of a factor
    sqrt(2). generator: of the split and the resamples; seed 0 when None.

    The interval says how far the choice is due to the queries drawn; it does not know the gallery grown ten times.

    Raises:
        ShapeError: codes that are not a matrix, labels or eigenvalues of another length.
        NonFiniteError: NaN or infinity in the codes.
        InputError: fewer than 100 rows, a target or confidence outside (0, 1), a negative diffusion or one without eigenvalues,
            a length outside 1..K, or no query whose label occurs in the rest.
    """
    rows = checked_codes("given", codes)
    n_rows, width = rows.shape
    n_queries = min(max_queries, n_rows // 5)
    if n_queries < FEWEST_QUERIES:
        raise InputError(
            f"expected at least {5 * FEWEST_QUERIES} codes and {FEWEST_QUERIES} queries, got {n_rows} codes and "
            f"max_queries={max_queries}: too few to hold queries out"
        )
    for name, share in (("target", target), ("confidence", confidence)):
        if not 0 < share < 1:
            raise InputError(f"expected {name} between 0 and 1, got {share}: it is a share")
    if n_resamples < 1:
        raise InputError(f"expected n_resamples >= 1, got {n_resamples}: the interval is made of them")
    if not 0 <= diffusion < np.inf:
        raise InputError(f"expected a diffusion of at least 0, got {diffusion}: it is a power of the eigenvalues")
    if diffusion and eigenvalues is None:
        raise InputError("diffusion needs eigenvalues: pass model.eigenvalues, cut to the codes' width")
    tried = _checked_lengths(lengths, width)
    values_K = _checked_eigenvalues(eigenvalues, rows)
    if diffusion and values_K.max() > 0:
        rows = rows * spectral_scale(values_K, diffusion, relative=True)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    order = torch.randperm(n_rows, generator=generator)
    queries, rest = order[:n_queries], order[n_queries:]
    if labels is None:
        quality_QL = _nearness_curves(rows[queries.numpy()], rows[rest.numpy()], tried, metric)
    else:
        quality_QL = _precision_curves(torch.from_numpy(rows), torch.as_tensor(labels), queries, rest, tried, metric)

    drawn = torch.randint(len(quality_QL), (n_resamples, len(quality_QL)), generator=generator).numpy()
    dims = [_shortest(quality_QL[some].mean(axis=0), tried, target) for some in drawn]
    edge = (1 - confidence) / 2
    low, high = np.quantile(dims, [edge, 1 - edge], method="inverted_cdf")
    curve_L = quality_QL.mean(axis=0)
    return DimSuggestion(
        dim=_shortest(curve_L, tried, target),
        interval=(int(low), int(high)),
        dim_by_eigenvalues=_share_reached(values_K, target),
        lengths_L=tried,
        quality_L=tuple(curve_L.tolist()),
        n_queries=len(quality_QL),
    )


def _precision_curves(
    rows: Tensor, labels: Tensor, queries: Tensor, rest: Tensor, lengths: Sequence[int], metric: Metric
) -> NDArray[np.float64]:
    """Average precision (Q, L) of the queries that have something to find."""
    if len(labels) != len(rows):
        raise ShapeError(f"expected one label for each of {len(rows)} codes, got {len(labels)}")
    columns = []
    for m in lengths:
        scores = retrieval_map(rows[queries, :m], rows[rest, :m], labels[queries], labels[rest], metric=metric)
        columns.append(scores.average_precision_Q)
    answerable_Q = columns[-1] > 0  # average precision is above 0 exactly where something is relevant
    return torch.stack(columns, dim=1)[answerable_Q].double().numpy()


def _nearness_curves(
    queries: NDArray[Any], rest: NDArray[Any], lengths: Sequence[int], metric: Metric
) -> NDArray[np.float64]:
    """(Q, L): how near in the full code those are that each length finds; 1 on average for the full code's own."""
    full = TruncatedIndex(rest, metric=metric, method="flat")
    found = [full.truncated(m).search(queries, NEIGHBOURS).ids for m in lengths]
    queries, rest = full.scorer.comparable(queries), full.scorer.comparable(rest)
    chance_Q = queries @ rest.mean(axis=0, dtype=np.float64)
    gain_QL = np.stack([np.einsum("qk,qnk->q", queries, rest[ids]) / NEIGHBOURS - chance_Q for ids in found], axis=1)
    largest = gain_QL[:, -1].mean()
    return gain_QL / largest if largest > 0 else np.ones_like(gain_QL)


def _shortest(curve_L: NDArray[np.float64], lengths: Sequence[int], target: float) -> int:
    enough = curve_L >= target * curve_L.max() - ROUNDING
    return lengths[int(enough.argmax())]


def _share_reached(values_K: NDArray[np.float64], target: float) -> int:
    """Smallest m with sum of the first m >= target x sum of all."""
    total_K = np.cumsum(np.maximum(values_K, 0))
    return min(len(values_K), int(np.searchsorted(total_K, target * total_K[-1] * (1 - ROUNDING))) + 1)


def _checked_lengths(lengths: Sequence[int] | None, width: int) -> tuple[int, ...]:
    if lengths is None:
        steps = [round(2 ** (half / 2)) for half in range(2 * width.bit_length() + 1)]
        return tuple(sorted({m for m in steps if m < width} | {width}))
    if not all(1 <= m <= width for m in lengths):
        raise InputError(f"expected lengths within 1..{width}, the code width, got {list(lengths)}: drop the rest")
    return tuple(sorted({*lengths, width}))


def _checked_eigenvalues(eigenvalues: Array | None, rows: NDArray[Any]) -> NDArray[np.float64]:
    if eigenvalues is None:
        squares: NDArray[np.float64] = np.square(rows, dtype=np.float64).mean(axis=0)
        return squares
    values: NDArray[np.float64] = torch.as_tensor(eigenvalues).detach().cpu().double().numpy()
    if values.shape != (rows.shape[1],):
        raise ShapeError(f"expected eigenvalues ({rows.shape[1]},), got {values.shape}: one for each number of a code")
    return values
