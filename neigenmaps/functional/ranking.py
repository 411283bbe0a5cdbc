"""Retrieval scores from ranks alone: average precision, precision and recall at k, reciprocal rank, NDCG.

Only the order of the scores counts, so every number here is unchanged by a rising map of the score, and a negative
score means nothing special. Items with equal scores are ordered against the method: irrelevant ones first. A collapsed
code, where all scores tie, therefore earns the worst value rather than that of a lucky order.

The functions on ranks take `relevant_QN`: boolean, sorted best first (`sort_relevance`), listing *all* items. The
functions on codes (`mean_average_precision`, `retrieval_map`, `retrieval_report`) rank the gallery for a few queries at
a time, so that Q x N never stands in memory; NumPy arrays serve as well as tensors.

Labels are integers, one per row: relevant means equal, and a negative label means "unlabelled": such gallery rows are
left out, and such queries have no relevant items. Or boolean (N, C), several labels per row: relevant means at least
one in common (the custom on COCO), and a row without any is relevant to nothing.

Letters: Q queries, N gallery rows, F feature width, C classes, B queries at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError

Metric = Literal["cosine", "inner_product"]
Convention = Literal["all_relevant", "retrieved_only"]

LARGEST_SCORES = 1 << 26  # similarities at a time, a quarter of a GiB
LARGEST_SORT = 1 << 20  # sorted at a time: several arrays of 64-bit numbers, which should stay near the cache


class RankingScores(NamedTuple):
    """Average precision of every query, and its mean over the queries that have something to find."""

    mean_average_precision: float
    average_precision_Q: Tensor  # 0 where a query has no relevant item; those are left out of the mean
    n_without_relevant: int


class RetrievalReport(NamedTuple):
    """Means over the queries that have something to find."""

    mean_average_precision: float
    mean_average_precision_at_r: float
    precision_at_k: float
    recall_at_k: float
    mean_reciprocal_rank: float
    ndcg_at_k: float
    k: int
    n_without_relevant: int


def average_precision(
    relevant_QN: Tensor, *, cutoff: int | None = None, convention: Convention = "all_relevant"
) -> Tensor:
    """AP_q = (sum of the precision at the position of every relevant item) / (number of relevant items), shape (Q,).

    The precision at position n is the share of relevant items among the first n. Queries without relevant items get 0;
    `retrieval_map` counts them and leaves them out of its mean. The result is float64 (float32 on MPS, which has no
    float64).

    cutoff: only the first so many positions count. The divisor is then min(number of relevant items, cutoff), so that a
    perfect ranking earns 1. convention: "retrieved_only" divides by the number of relevant items *among those first
    positions* instead, as the code published with Neural Eigenmaps does: one hit at the top and nothing else earns 1.

    Raises:
        ShapeError: not two-dimensional, or no items.
        InputError: not boolean, a cutoff outside 1..N, or an unknown convention.
    """
    _check_relevance(relevant_QN)
    _check_convention(convention)
    if cutoff is not None:
        _check_k(relevant_QN, cutoff, "cutoff")
    dtype = _precise_dtype(relevant_QN)
    first_QN = relevant_QN[:, :cutoff]
    found_QN = first_QN.cumsum(dim=1)
    positions_N = torch.arange(1, first_QN.shape[1] + 1, device=relevant_QN.device)
    precision_QN = found_QN.to(dtype) / positions_N
    n_found_Q = found_QN[:, -1]
    if cutoff is not None and convention == "all_relevant":
        n_found_Q = relevant_QN.sum(dim=1).clamp(max=cutoff)
    return (precision_QN * first_QN).sum(dim=1) / n_found_Q.clamp(min=1)


def average_precision_at_r(relevant_QN: Tensor) -> Tensor:
    """AP over the first R_q positions, R_q the number of items relevant to query q; shape (Q,), 0 where R_q = 0.

    (1 / R_q) sum over relevant positions n <= R_q of the precision at n: Musgrave et al., arXiv 2003.08505.
    """
    _check_relevance(relevant_QN)
    n_relevant_Q1 = relevant_QN.sum(dim=1, keepdim=True)
    positions_N = torch.arange(1, relevant_QN.shape[1] + 1, device=relevant_QN.device)
    early_QN = relevant_QN & (positions_N <= n_relevant_Q1)
    precision_QN = early_QN.cumsum(dim=1).to(_precise_dtype(relevant_QN)) / positions_N
    return (precision_QN * early_QN).sum(dim=1) / n_relevant_Q1[:, 0].clamp(min=1)


def precision_at_k(relevant_QN: Tensor, k: int) -> Tensor:
    """Share of relevant items among the first k, shape (Q,). Raises InputError unless 1 <= k <= N."""
    _check_relevance(relevant_QN)
    _check_k(relevant_QN, k)
    return relevant_QN[:, :k].sum(dim=1).to(_precise_dtype(relevant_QN)) / k


def recall_at_k(relevant_QN: Tensor, k: int) -> Tensor:
    """Share of all relevant items that are among the first k, shape (Q,); 0 for a query without any.

    Raises InputError unless 1 <= k <= N.
    """
    _check_relevance(relevant_QN)
    _check_k(relevant_QN, k)
    n_relevant_Q = relevant_QN.sum(dim=1).clamp(min=1)
    return relevant_QN[:, :k].sum(dim=1).to(_precise_dtype(relevant_QN)) / n_relevant_Q


def reciprocal_rank(relevant_QN: Tensor) -> Tensor:
    """1 / position of the first relevant item, shape (Q,); 0 for a query without any."""
    _check_relevance(relevant_QN)
    first_Q = relevant_QN.to(torch.uint8).argmax(dim=1)  # argmax gives the first of equal maxima
    return relevant_QN.any(dim=1) / (first_Q + 1).to(_precise_dtype(relevant_QN))


def ndcg_at_k(gains_QN: Tensor, k: int) -> Tensor:
    """DCG = sum_{n <= k} gain_n / log2(n + 1), divided by that of the best possible order; (Q,), 0 without any gain.

    gains_QN: boolean, or numbers of at least 0 (such as how many labels are shared), sorted by the method, best first.

    Raises:
        ShapeError: not two-dimensional, or no items.
        InputError: k outside 1..N, or gains that are negative or not finite.
    """
    _check_two_dimensional(gains_QN)
    _check_k(gains_QN, k)
    gains_QN = gains_QN.to(_precise_dtype(gains_QN))
    if not (gains_QN.isfinite() & (gains_QN >= 0)).all():
        raise InputError("expected finite gains of at least 0, got others: say how much each item is worth")
    discounts_K = torch.arange(2, k + 2, device=gains_QN.device).to(gains_QN.dtype).log2()
    best_QK = gains_QN.topk(k, dim=1).values
    ideal_Q = (best_QK / discounts_K).sum(dim=1)
    dcg_Q = (gains_QN[:, :k] / discounts_K).sum(dim=1)
    return torch.where(ideal_Q > 0, dcg_Q / ideal_Q.clamp(min=torch.finfo(ideal_Q.dtype).tiny), ideal_Q)


def sort_relevance(scores_QN: Tensor, relevant_QN: Tensor) -> Tensor:
    """`relevant_QN` in falling order of score; among equal scores the irrelevant items come first.

    relevant_QN: boolean, or integer gains below 2**31 (equal scores: the smallest gain first).

    Raises:
        ShapeError: shapes that differ, not two-dimensional, or no items.
        InputError: relevance that is neither boolean nor integer, or negative. NonFiniteError: NaN among the scores.
    """
    if scores_QN.shape != relevant_QN.shape:
        raise ShapeError(
            f"expected scores and relevance of one shape, got {tuple(scores_QN.shape)} and {tuple(relevant_QN.shape)}: "
            "give one score for every pair of query and item"
        )
    _check_two_dimensional(relevant_QN)
    if relevant_QN.dtype.is_floating_point or relevant_QN.dtype.is_complex:
        raise InputError(
            f"expected boolean relevance or integer gains, got {relevant_QN.dtype}: compare labels with =="
        )
    if relevant_QN.dtype != torch.bool and (relevant_QN < 0).any():
        raise InputError("expected gains of at least 0, got negative ones: say how much each item is worth")
    if scores_QN.isnan().any():
        raise NonFiniteError("expected scores that can be ordered, got NaN: look at the codes that made them")
    if scores_QN.dtype != torch.float64:
        return _sort_by_one_key(scores_QN.float(), relevant_QN)
    small_QN = relevant_QN.to(torch.uint8) if relevant_QN.dtype == torch.bool else relevant_QN
    irrelevant_first_QN = small_QN.argsort(dim=1, stable=True)
    order_QN = scores_QN.gather(1, irrelevant_first_QN).argsort(dim=1, descending=True, stable=True)
    return relevant_QN.gather(1, irrelevant_first_QN).gather(1, order_QN)


def mean_average_precision(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    metric: Metric = "cosine",
    cutoff: int | None = None,
    convention: Convention = "all_relevant",
    chunk: int = 256,
) -> float:
    """`retrieval_map(...).mean_average_precision`: one number, arguments and errors as there."""
    return retrieval_map(
        queries,
        gallery,
        query_labels,
        gallery_labels,
        metric=metric,
        cutoff=cutoff,
        convention=convention,
        chunk=chunk,
    ).mean_average_precision


def retrieval_map(
    query_codes_QF: Tensor,
    gallery_codes_NF: Tensor,
    query_labels_Q: Tensor,
    gallery_labels_N: Tensor,
    *,
    metric: Metric = "cosine",
    cutoff: int | None = None,
    convention: Convention = "all_relevant",
    chunk: int = 256,
) -> RankingScores:
    """Mean average precision when every query ranks the whole gallery; labels as in the module's first lines.

    cutoff, convention: as in `average_precision`. Under "retrieved_only" the mean goes over *all* queries, those
    without a hit counting 0, as in the code published with Neural Eigenmaps; its numbers cannot be set beside others'.

    An all-zero code has cosine 0 with everything. Similarities are computed in float32 at least. Equal codes tie
    exactly only up to the rounding of the matrix product. At most `chunk` x N similarities exist at a time.

    Raises:
        ShapeError: codes that are not matrices, widths that differ, labels that do not match their codes.
        NonFiniteError: NaN or infinity in the codes.
        InputError: an empty gallery, no query with a relevant item, an unknown metric, or chunk < 1.
    """
    _check_convention(convention)

    def score(gains_BN: Tensor) -> tuple[Tensor, ...]:
        relevant_BN = gains_BN > 0
        return average_precision(relevant_BN, cutoff=cutoff, convention=convention), relevant_BN.any(dim=1)

    average_precision_Q, answerable = _scores_of_queries(
        score, query_codes_QF, gallery_codes_NF, query_labels_Q, gallery_labels_N, metric=metric, chunk=chunk
    )
    answerable_Q = answerable > 0
    counted_Q = torch.ones_like(answerable_Q) if convention == "retrieved_only" else answerable_Q
    mean = _mean(average_precision_Q, answerable_Q, counted_Q)
    return RankingScores(mean, average_precision_Q, int((~answerable_Q).sum()))


def retrieval_report(
    query_codes_QF: Tensor,
    gallery_codes_NF: Tensor,
    query_labels_Q: Tensor,
    gallery_labels_N: Tensor,
    *,
    k: int = 10,
    metric: Metric = "cosine",
    chunk: int = 256,
) -> RetrievalReport:
    """Every score of this module in one pass. NDCG's gain is the number of shared labels (1 where rows have one label).

    Raises InputError for k beyond the labelled gallery, and what `retrieval_map` raises.
    """

    def score(gains_BN: Tensor) -> tuple[Tensor, ...]:
        relevant_BN = gains_BN > 0
        return (
            average_precision(relevant_BN),
            average_precision_at_r(relevant_BN),
            precision_at_k(relevant_BN, k),
            recall_at_k(relevant_BN, k),
            reciprocal_rank(relevant_BN),
            ndcg_at_k(gains_BN, k),
            relevant_BN.any(dim=1),
        )

    *scores_Q, answerable = _scores_of_queries(
        score, query_codes_QF, gallery_codes_NF, query_labels_Q, gallery_labels_N, metric=metric, chunk=chunk
    )
    answerable_Q = answerable > 0
    ap, ap_at_r, precision, recall, rank, ndcg = (_mean(score_Q, answerable_Q, answerable_Q) for score_Q in scores_Q)
    return RetrievalReport(ap, ap_at_r, precision, recall, rank, ndcg, k, int((~answerable_Q).sum()))


def comparable(codes_NF: Tensor, metric: Metric = "cosine") -> Tensor:
    """Codes whose inner products are the scores of `metric`, in float32 at least: half precision makes false ties."""
    codes_NF = codes_NF if codes_NF.dtype == torch.float64 else codes_NF.float()
    return F.normalize(codes_NF, dim=1) if metric == "cosine" else codes_NF


def check_labelled_codes(name: str, codes_NF: Tensor, labels_N: Tensor) -> None:
    """Raise unless `codes_NF` is a finite, non-empty matrix with one integer label for every row."""
    if codes_NF.ndim != 2 or labels_N.shape != codes_NF.shape[:1]:
        raise ShapeError(
            f"expected {name} codes (N, F) with labels (N,), got {tuple(codes_NF.shape)} and {tuple(labels_N.shape)}: "
            "flatten the codes and give every row one label"
        )
    if codes_NF.numel() == 0:
        raise InputError(f"expected at least one {name} code, got shape {tuple(codes_NF.shape)}: pass a non-empty set")
    if labels_N.dtype.is_floating_point or labels_N.dtype == torch.bool:
        raise InputError(f"expected integer {name} labels, got {labels_N.dtype}: convert them with .long()")
    if not torch.isfinite(codes_NF).all():
        raise NonFiniteError(f"expected finite {name} codes, got NaN or infinity: look at the encoder that made them")


def check_same_width(query_codes_QF: Tensor, gallery_codes_NF: Tensor) -> None:
    """Raise ShapeError unless both sets have codes of the same width."""
    if query_codes_QF.shape[1] != gallery_codes_NF.shape[1]:
        raise ShapeError(
            f"expected codes of one width, got {query_codes_QF.shape[1]} and {gallery_codes_NF.shape[1]}: "
            "cut both sets to the same length"
        )


def _scores_of_queries(
    score: Callable[[Tensor], tuple[Tensor, ...]],
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    metric: Metric,
    chunk: int,
) -> Tensor:
    """(scores, Q) of what `score` says of the gains of a few queries at a time."""
    scores: Tensor | None = None
    done = 0
    for gains_BN in _ranked_gains(queries, gallery, query_labels, gallery_labels, metric=metric, chunk=chunk):
        columns = score(gains_BN)
        if scores is None:  # in one place: small results kept between large blocks would hold these blocks' pages
            scores = gains_BN.new_empty(len(columns), len(queries), dtype=_precise_dtype(gains_BN))
        for row_Q, column_B in zip(scores, columns, strict=True):
            row_Q[done : done + len(gains_BN)] = column_B
        done += len(gains_BN)
    assert scores is not None  # an empty set of queries was refused
    return scores


def _ranked_gains(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, *, metric: Metric, chunk: int
) -> Iterator[Tensor]:
    """For the queries in order, a few at a time: (B, N) what each gallery row is worth, best score first."""
    queries, gallery = torch.as_tensor(queries), torch.as_tensor(gallery)
    query_labels, gallery_labels = torch.as_tensor(query_labels), torch.as_tensor(gallery_labels)
    _check_labels("query", queries, query_labels)
    _check_labels("gallery", gallery, gallery_labels)
    check_same_width(queries, gallery)
    _check_label_kinds(query_labels, gallery_labels)
    _check_metric(metric, chunk)
    if gallery_labels.ndim == 1 and not (labelled_N := gallery_labels >= 0).all():
        gallery, gallery_labels = gallery[labelled_N], gallery_labels[labelled_N]
    if len(gallery) == 0:
        raise InputError("expected a gallery with labelled rows, got none: pass codes whose labels are 0 or more")
    gallery = comparable(gallery, metric)
    chunk = max(1, min(chunk, LARGEST_SCORES // len(gallery)))
    for codes, labels in zip(queries.split(chunk), query_labels.split(chunk), strict=True):
        yield from _ranked_chunk(comparable(codes, metric) @ gallery.T, labels, gallery_labels)


def _ranked_chunk(scores_BN: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> Iterator[Tensor]:
    block = max(1, LARGEST_SORT // scores_BN.shape[1])
    for scores, labels in zip(scores_BN.split(block), query_labels.split(block), strict=True):
        yield sort_relevance(scores, _gains(labels, gallery_labels))


def _gains(query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """(B, N) boolean, or with several labels per row how many they share."""
    if query_labels.ndim == 1:
        return query_labels[:, None] == gallery_labels
    return (query_labels.float() @ gallery_labels.float().T).to(torch.int32)


def _sort_by_one_key(scores_QN: Tensor, gains_QN: Tensor) -> Tensor:
    """Sorts integers whose high bits are the score and whose low bits are the gain: no indices, no second sort."""
    bits_QN = (scores_QN + 0.0).view(torch.int32)  # the sum turns -0, which equals 0, into 0
    rising_QN = torch.where(bits_QN < 0, bits_QN ^ 0x7FFFFFFF, bits_QN)  # integers in the order of the floats
    keys_QN = (-rising_QN.long() << 31) | gains_QN
    if keys_QN.device.type == "cpu":
        keys_QN.numpy().sort(axis=1)  # in place, and some 10 times as fast as torch's
    else:
        keys_QN = keys_QN.sort(dim=1).values
    return (keys_QN & 0x7FFFFFFF).to(gains_QN.dtype)


def _mean(score_Q: Tensor, answerable_Q: Tensor, counted_Q: Tensor) -> float:
    if not answerable_Q.any():
        raise InputError("expected queries with a relevant item, got none: queries and gallery share no label")
    return score_Q[counted_Q].mean().item()


def _precise_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _check_two_dimensional(values_QN: Tensor) -> None:
    if values_QN.ndim != 2 or values_QN.shape[1] == 0:
        raise ShapeError(f"expected relevance (Q, N) with N >= 1, got {tuple(values_QN.shape)}: one row per query")


def _check_relevance(relevant_QN: Tensor) -> None:
    _check_two_dimensional(relevant_QN)
    if relevant_QN.dtype != torch.bool:
        raise InputError(f"expected boolean relevance, got {relevant_QN.dtype}: compare labels with ==")


def _check_k(relevant_QN: Tensor, k: int, name: str = "k") -> None:
    if not 1 <= k <= relevant_QN.shape[1]:
        raise InputError(f"expected 1 <= {name} <= {relevant_QN.shape[1]} items, got {name}={k}: choose a smaller cut")


def _check_convention(convention: str) -> None:
    if convention not in ("all_relevant", "retrieved_only"):
        raise InputError(
            f"expected convention 'all_relevant' or 'retrieved_only', got {convention!r}: name one of them"
        )


def _check_metric(metric: str, chunk: int) -> None:
    if metric not in ("cosine", "inner_product"):
        raise InputError(f"expected metric 'cosine' or 'inner_product', got {metric!r}: name one of them")
    if chunk < 1:
        raise InputError(f"expected chunk >= 1, got {chunk}: it is the number of queries scored at a time")


def _check_labels(name: str, codes_NF: Tensor, labels: Tensor) -> None:
    if labels.ndim == 2 and labels.dtype == torch.bool:
        check_labelled_codes(name, codes_NF, torch.zeros(len(labels), dtype=torch.int64))
    else:
        check_labelled_codes(name, codes_NF, labels)


def _check_label_kinds(query_labels: Tensor, gallery_labels: Tensor) -> None:
    if query_labels.shape[1:] != gallery_labels.shape[1:]:
        raise ShapeError(
            f"expected the same classes for queries and gallery, got labels of shape {tuple(query_labels.shape)} and "
            f"{tuple(gallery_labels.shape)}: give both one integer per row, or both booleans (N, C)"
        )
