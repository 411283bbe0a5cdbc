"""Retrieval scores from ranks alone: average precision, recall, precision, reciprocal rank.

Only the order of the scores counts, so every number here is unchanged by a rising map of the score, and a negative
score means nothing special. Items with equal scores are ordered against the method: irrelevant ones first. A collapsed
code, where all scores tie, therefore earns the worst value rather than that of a lucky order.

Letters: Q queries, N gallery rows, F feature width. `relevant_QN` is boolean, sorted best first, and lists *all* items.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError

Metric = Literal["cosine", "inner_product"]


class RankingScores(NamedTuple):
    """Average precision of every query, and its mean over the queries that have something to find."""

    mean_average_precision: float
    average_precision_Q: Tensor  # 0 where a query has no relevant item; those are left out of the mean
    n_without_relevant: int


def average_precision(relevant_QN: Tensor) -> Tensor:
    """AP_q = (sum of the precision at the position of every relevant item) / (number of relevant items), shape (Q,).

    The precision at position n is the share of relevant items among the first n. Queries without relevant items get 0;
    `retrieval_map` counts them and leaves them out of its mean. The result is float64 (float32 on MPS, which has no
    float64).

    Raises:
        ShapeError: not two-dimensional, or no items.
        InputError: not boolean.
    """
    _check_relevance(relevant_QN)
    dtype = _precise_dtype(relevant_QN)
    found_QN = relevant_QN.cumsum(dim=1)
    positions_N = torch.arange(1, relevant_QN.shape[1] + 1, device=relevant_QN.device)
    precision_QN = found_QN.to(dtype) / positions_N
    return (precision_QN * relevant_QN).sum(dim=1) / found_QN[:, -1].clamp(min=1)


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


def sort_relevance(scores_QN: Tensor, relevant_QN: Tensor) -> Tensor:
    """`relevant_QN` in falling order of score; among equal scores the irrelevant items come first."""
    if scores_QN.shape != relevant_QN.shape:
        raise ShapeError(
            f"expected scores and relevance of one shape, got {tuple(scores_QN.shape)} and {tuple(relevant_QN.shape)}: "
            "give one score for every pair of query and item"
        )
    _check_relevance(relevant_QN)
    irrelevant_first_QN = relevant_QN.to(torch.uint8).argsort(dim=1, stable=True)
    order_QN = scores_QN.gather(1, irrelevant_first_QN).argsort(dim=1, descending=True, stable=True)
    return relevant_QN.gather(1, irrelevant_first_QN).gather(1, order_QN)


def retrieval_map(
    query_codes_QF: Tensor,
    gallery_codes_NF: Tensor,
    query_labels_Q: Tensor,
    gallery_labels_N: Tensor,
    *,
    metric: Metric = "cosine",
    chunk: int = 256,
) -> RankingScores:
    """Mean average precision when every query ranks the whole gallery; relevant means: the same label.

    Negative labels mean "unlabelled": such gallery rows are left out, and such queries have no relevant items. An
    all-zero code has cosine 0 with everything. Similarities are computed in float32 at least. Equal codes tie exactly
    only up to the rounding of the matrix product.

    At most `chunk` x N similarities exist at a time.

    Raises:
        ShapeError: codes that are not matrices, widths that differ, labels that do not match their codes.
        NonFiniteError: NaN or infinity in the codes.
        InputError: an empty gallery, no query with a relevant item, an unknown metric, or chunk < 1.
    """
    check_labelled_codes("query", query_codes_QF, query_labels_Q)
    check_labelled_codes("gallery", gallery_codes_NF, gallery_labels_N)
    check_same_width(query_codes_QF, gallery_codes_NF)
    _check_metric(metric, chunk)
    labelled_N = gallery_labels_N >= 0
    gallery_NF, gallery_labels_N = comparable(gallery_codes_NF[labelled_N], metric), gallery_labels_N[labelled_N]
    if len(gallery_NF) == 0:
        raise InputError("expected a gallery with labelled rows, got none: pass codes whose labels are 0 or more")

    precision, n_relevant = [], []
    for codes, labels in zip(query_codes_QF.split(chunk), query_labels_Q.split(chunk), strict=True):
        scores_BN = comparable(codes, metric) @ gallery_NF.T
        relevant_BN = labels[:, None] == gallery_labels_N
        precision.append(average_precision(sort_relevance(scores_BN, relevant_BN)))
        n_relevant.append(relevant_BN.sum(dim=1))
    return _mean_scores(torch.cat(precision), torch.cat(n_relevant))


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


def _mean_scores(average_precision_Q: Tensor, n_relevant_Q: Tensor) -> RankingScores:
    answerable_Q = n_relevant_Q > 0
    if not answerable_Q.any():
        raise InputError("expected queries with a relevant item, got none: queries and gallery share no label")
    mean = average_precision_Q[answerable_Q].mean().item()
    return RankingScores(mean, average_precision_Q, int((~answerable_Q).sum()))


def _precise_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _check_relevance(relevant_QN: Tensor) -> None:
    if relevant_QN.ndim != 2 or relevant_QN.shape[1] == 0:
        raise ShapeError(f"expected relevance (Q, N) with N >= 1, got {tuple(relevant_QN.shape)}: one row per query")
    if relevant_QN.dtype != torch.bool:
        raise InputError(f"expected boolean relevance, got {relevant_QN.dtype}: compare labels with ==")


def _check_k(relevant_QN: Tensor, k: int) -> None:
    if not 1 <= k <= relevant_QN.shape[1]:
        raise InputError(f"expected 1 <= k <= {relevant_QN.shape[1]} items, got k={k}: choose a smaller cut")


def _check_metric(metric: str, chunk: int) -> None:
    if metric not in ("cosine", "inner_product"):
        raise InputError(f"expected metric 'cosine' or 'inner_product', got {metric!r}: name one of them")
    if chunk < 1:
        raise InputError(f"expected chunk >= 1, got {chunk}: it is the number of queries scored at a time")
