"""Retrieval between two spaces whose rows match: ranks, CSLS, gallery size, bootstrap, agreement of many spaces.

Ties count against the method, as in `ranking`, and so do scores that differ by rounding only. No more than `chunk` x G
scores exist at a time. CSLS: Conneau et al. 2018 (1710.04087).

Letters: Q queries, G gallery rows, F feature width, N matched rows, P pairs of spaces, D bootstrap draws, M models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, RowMismatchError, ShapeError
from neigenmaps.functional.ranking import average_precision, check_same_width, comparable, sort_relevance

ROUNDING = 16  # in units of the precision: products of unit rows that differ by less are ties


class PairRanks(NamedTuple):
    """How every query of one space fared in a gallery of another."""

    first_rank_Q: Tensor  # 1-based place of the first match
    average_precision_Q: Tensor  # float64; 1 / first_rank where a query has one match


class Interval(NamedTuple):
    """A value with its bootstrap percentiles."""

    value: float
    low: float
    high: float


class Agreement(NamedTuple):
    """How closely M spaces agree on the direction of each row."""

    delta_plus: float  # mean cosine distance over rows and unordered pairs of spaces: 0 is agreement, 1 is chance
    gamma_90: float  # .90 quantile over rows of the norm of the mean unit vector: 1 is agreement


def pair_ranks(
    queries_QF: Tensor,
    gallery_GF: Tensor,
    *,
    query_ids_Q: Tensor | None = None,
    gallery_ids_G: Tensor | None = None,
    csls: int | None = None,
    chunk: int = 256,
) -> PairRanks:
    """Places of the matches of every query when the gallery falls by cosine.

    Row i matches row i; with ids (integers, both or neither), rows of equal id match. A row of zeros has cosine 0 with
    everything.

    csls: number of neighbours k. Scores become 2 cos(q, g) - r(g), r(g) the mean cosine of g to its k nearest queries:
        what is near to everything is near to nothing. (The query's own term doesn't change its order.)

    Raises:
        ShapeError, NonFiniteError: codes that are not matrices of one width, or not finite; ids that don't fit.
        RowMismatchError: no ids, and different numbers of rows.
        InputError: no rows, one kind of ids without the other, ids that are no integers, a query without a match,
            csls outside 1..Q, chunk < 1.
    """
    _check_codes("query", queries_QF)
    _check_codes("gallery", gallery_GF)
    check_same_width(queries_QF, gallery_GF)
    if chunk < 1:
        raise InputError(f"expected chunk >= 1, got {chunk}: it is the number of queries scored at a time")
    if csls is not None and not 1 <= csls <= len(queries_QF):
        raise InputError(f"expected 1 <= csls <= {len(queries_QF)} queries, got {csls}: it counts neighbours")
    _check_ids(queries_QF, gallery_GF, query_ids_Q, gallery_ids_G)
    dtype = torch.promote_types(queries_QF.dtype, gallery_GF.dtype)
    queries_QF, gallery_GF = comparable(queries_QF.to(dtype)), comparable(gallery_GF.to(dtype))
    hub_G = None if csls is None else hubness(queries_QF, gallery_GF, csls, chunk=chunk)
    rounding = ROUNDING * torch.finfo(gallery_GF.dtype).eps
    ranks, precisions = [], []
    for start in range(0, len(queries_QF), chunk):
        block = slice(start, start + chunk)
        scores_BG = queries_QF[block] @ gallery_GF.T
        if hub_G is not None:
            scores_BG = 2 * scores_BG - hub_G
        if query_ids_Q is None or gallery_ids_G is None:
            own_B1 = scores_BG.diagonal(start)[:, None] - rounding
            rank_B = (scores_BG >= own_B1).sum(dim=1)  # counts the match itself
            precision_B = 1 / rank_B.double()
        else:
            relevant_BG = query_ids_Q[block, None] == gallery_ids_G
            sorted_BG = sort_relevance(scores_BG - rounding * relevant_BG, relevant_BG)
            rank_B = sorted_BG.to(torch.uint8).argmax(dim=1) + 1
            precision_B = average_precision(sorted_BG)
        ranks.append(rank_B)
        precisions.append(precision_B)
    return PairRanks(torch.cat(ranks), torch.cat(precisions))


def hubness(queries_QF: Tensor, gallery_GF: Tensor, k: int, *, chunk: int = 256) -> Tensor:
    """Mean inner product of every gallery row with its k nearest queries, shape (G,); unit rows in, cosines out."""
    return torch.cat([(rows @ queries_QF.T).topk(k, dim=1).values.mean(dim=1) for rows in gallery_GF.split(chunk)])


def rank_at_gallery_sizes(first_rank_Q: Tensor, gallery_size: int, sizes: Sequence[int], *, k: int = 1) -> Tensor:
    """Rank-k expected in a random gallery of each size that holds the one match, per query and size (Q, S), float64.

    Of the G - 1 other rows r - 1 come first. The probability that fewer than k of them are among the g - 1 drawn is
    hypergeometric, so nothing is sampled. With CSLS, hubness stays that of the whole gallery.

    Raises InputError unless 1 <= every size <= gallery_size, k >= 1 and ranks lie in 1..gallery_size.
    """
    if not sizes or not all(1 <= size <= gallery_size for size in sizes):
        raise InputError(f"expected sizes between 1 and the gallery's {gallery_size} rows, got {list(sizes)}")
    if k < 1:
        raise InputError(f"expected k >= 1, got {k}: Rank-k asks for the first k places")
    if first_rank_Q.numel() == 0 or first_rank_Q.min() < 1 or first_rank_Q.max() > gallery_size:
        raise InputError(f"expected ranks between 1 and {gallery_size}, got others: pass what pair_ranks returned")
    ahead_Q1 = first_rank_Q[:, None].double() - 1
    drawn_S = torch.tensor(sizes, dtype=torch.float64, device=first_rank_Q.device) - 1
    behind_Q1 = gallery_size - 1 - ahead_Q1
    total_S = _log_choose(drawn_S.new_tensor(gallery_size - 1), drawn_S)
    chance_QS = torch.zeros(len(first_rank_Q), len(sizes), dtype=torch.float64, device=first_rank_Q.device)
    for j in range(k):
        chance_QS += (
            _log_choose(ahead_Q1, drawn_S.new_tensor(j)) + _log_choose(behind_Q1, drawn_S - j) - total_S
        ).exp()
    return chance_QS.clamp(max=1.0)


def bootstrap_counts(n_rows: int, n_draws: int, generator: torch.Generator) -> Tensor:
    """How often each row is drawn when n_rows rows are drawn with replacement, (D, N), float64; each line sums to N.

    Use one table for all methods: their differences are then those on the same rows. Raises InputError unless both
    numbers are positive.
    """
    if n_rows < 1 or n_draws < 1:
        raise InputError(f"expected at least one row and one draw, got {n_rows} and {n_draws}: 1,000 draws are common")
    drawn_DN = torch.randint(n_rows, (n_draws, n_rows), generator=generator, device=generator.device)
    counts_DN = torch.zeros(n_draws, n_rows, dtype=torch.float64, device=generator.device)
    return counts_DN.scatter_add_(1, drawn_DN, torch.ones_like(counts_DN))


def bootstrap_means(values_NP: Tensor, counts_DN: Tensor) -> Tensor:
    """Column means of every draw of rows, (D, P), float64. Raises RowMismatchError when the rows differ in number."""
    if values_NP.ndim != 2 or counts_DN.ndim != 2 or values_NP.shape[0] != counts_DN.shape[1]:
        raise RowMismatchError(
            f"expected values (N, P) and counts (D, N) of the same rows, got {tuple(values_NP.shape)} and "
            f"{tuple(counts_DN.shape)}: draw the counts for this number of rows"
        )
    return counts_DN.to(values_NP.device) @ values_NP.double() / len(values_NP)


def percentile_interval(value: float, draws_D: Tensor, level: float = 0.95) -> Interval:
    """`value` between the percentiles of its bootstrap draws. Raises InputError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise InputError(f"expected 0 < level < 1, got {level}: 0.95 leaves 2.5 % on each side")
    tails = draws_D.new_tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = draws_D.quantile(tails).tolist()
    return Interval(value, low, high)


def agreement(codes_MNK: Tensor) -> Agreement:
    """Delta+ and Gamma90 of M spaces with matched rows, as the code of 2602.06205 has them. A row of zeros counts as 0.

    Raises ShapeError for fewer than two spaces or no rows, NonFiniteError.
    """
    if codes_MNK.ndim != 3 or codes_MNK.shape[0] < 2 or 0 in codes_MNK.shape:
        raise ShapeError(f"expected codes (M, N, K) of two or more spaces, got {tuple(codes_MNK.shape)}: stack them")
    if not torch.isfinite(codes_MNK).all():
        raise NonFiniteError("expected finite codes, got NaN or infinity: look at the encoders that made them")
    unit_MNK = F.normalize(codes_MNK.double(), dim=2)
    n_models = len(unit_MNK)
    sum_NK = unit_MNK.sum(dim=0)
    # sum over unordered pairs of cosines = (||sum of unit rows||^2 - sum of their squared norms) / 2
    cosines_N = (sum_NK.square().sum(dim=1) - unit_MNK.square().sum(dim=(0, 2))) / (n_models * (n_models - 1))
    return Agreement((1 - cosines_N).mean().item(), (sum_NK.norm(dim=1) / n_models).quantile(0.9).item())


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """log of n over k; minus infinity where k lies outside 0..n."""
    inside = (k >= 0) & (k <= n)
    n, k = torch.where(inside, n, 0.0), torch.where(inside, k, 0.0)
    value = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return torch.where(inside, value, -torch.inf)


def _check_codes(name: str, codes_NF: Tensor) -> None:
    if codes_NF.ndim != 2:
        raise ShapeError(f"expected {name} codes (N, F), got {tuple(codes_NF.shape)}: flatten the codes of each row")
    if codes_NF.numel() == 0:
        raise InputError(f"expected at least one {name} code, got shape {tuple(codes_NF.shape)}: pass a non-empty set")
    if not torch.isfinite(codes_NF).all():
        raise NonFiniteError(f"expected finite {name} codes, got NaN or infinity: look at the encoder that made them")


def _check_ids(
    queries_QF: Tensor, gallery_GF: Tensor, query_ids_Q: Tensor | None, gallery_ids_G: Tensor | None
) -> None:
    if query_ids_Q is None and gallery_ids_G is None:
        if len(queries_QF) != len(gallery_GF):
            raise RowMismatchError(
                f"expected as many queries as gallery rows, got {len(queries_QF)} and {len(gallery_GF)}: match the rows, "
                "or say with query_ids_Q and gallery_ids_G which belong together"
            )
        return
    if query_ids_Q is None or gallery_ids_G is None:
        raise InputError("expected ids of queries and gallery, or of neither, got one of them: pass both")
    for name, codes, ids in (("query", queries_QF, query_ids_Q), ("gallery", gallery_GF, gallery_ids_G)):
        if ids.shape != codes.shape[:1]:
            raise ShapeError(f"expected {name} ids ({len(codes)},), got {tuple(ids.shape)}: give every row one id")
        if ids.dtype.is_floating_point or ids.dtype == torch.bool:
            raise InputError(f"expected integer {name} ids, got {ids.dtype}: convert them with .long()")
    lost = ~torch.isin(query_ids_Q, gallery_ids_G)
    if lost.any():
        raise InputError(
            f"expected a match for every query, got none for {int(lost.sum())} of {len(lost)}, the first with id "
            f"{int(query_ids_Q[lost][0])}: drop these queries"
        )
