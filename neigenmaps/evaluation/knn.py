"""k nearest neighbours: the label most of the k closest bank rows have, by cosine similarity."""

from __future__ import annotations

import torch
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.functional.ranking import check_labelled_codes, check_same_width, comparable


def knn_predict(
    bank_NF: Tensor,
    bank_labels_N: Tensor,
    queries_QF: Tensor,
    *,
    n_neighbors: int = 10,
    chunk: int = 256,
) -> Tensor:
    """Label of every query, shape (Q,), by an unweighted vote.

    A tied vote goes to the label with the larger summed similarity, and after that to the smaller label. Bank rows with
    a negative label are unlabelled and left out. At most `chunk` x N similarities exist at a time.

    Raises:
        ShapeError: codes that are not matrices, widths that differ, labels that do not match the bank.
        NonFiniteError: NaN or infinity in the codes.
        InputError: more neighbours than labelled bank rows, no bank or queries, n_neighbors < 1 or chunk < 1.
    """
    # queries have no labels here; zeros let one check serve both sides
    check_labelled_codes("query", queries_QF, bank_labels_N.new_zeros(len(queries_QF)))
    check_labelled_codes("bank", bank_NF, bank_labels_N)
    check_same_width(queries_QF, bank_NF)
    labelled_N = bank_labels_N >= 0
    bank_NF, bank_labels_N = comparable(bank_NF[labelled_N]), bank_labels_N[labelled_N]
    _check_sizes(n_neighbors, chunk, len(bank_NF))
    classes_C, bank_class_N = bank_labels_N.unique(return_inverse=True)  # sorted, so a smaller index is a smaller label

    predicted = []
    for queries in queries_QF.split(chunk):
        similarity_Bk, nearest_Bk = (comparable(queries) @ bank_NF.T).topk(n_neighbors, dim=1)
        predicted.append(classes_C[_vote(similarity_Bk, bank_class_N[nearest_Bk], len(classes_C))])
    return torch.cat(predicted)


def knn_accuracy(
    bank_NF: Tensor,
    bank_labels_N: Tensor,
    queries_QF: Tensor,
    query_labels_Q: Tensor,
    *,
    n_neighbors: int = 10,
    chunk: int = 256,
) -> float:
    """Share of labelled queries whose label `knn_predict` finds; queries with a negative label are ignored.

    Raises what `knn_predict` raises, and InputError when no query has a label.
    """
    check_labelled_codes("query", queries_QF, query_labels_Q)
    labelled_Q = query_labels_Q >= 0
    if not labelled_Q.any():
        raise InputError("expected labelled queries, got none: accuracy needs labels of 0 or more")
    predicted_Q = knn_predict(bank_NF, bank_labels_N, queries_QF[labelled_Q], n_neighbors=n_neighbors, chunk=chunk)
    return (predicted_Q == query_labels_Q[labelled_Q]).double().mean().item()


def _vote(similarity_Bk: Tensor, class_Bk: Tensor, n_classes: int) -> Tensor:
    empty_BC = similarity_Bk.new_zeros(len(similarity_Bk), n_classes)
    votes_BC = empty_BC.scatter_add(1, class_Bk, torch.ones_like(similarity_Bk))
    summed_BC = empty_BC.scatter_add(1, class_Bk, similarity_Bk)
    losing_BC = votes_BC < votes_BC.amax(dim=1, keepdim=True)
    return summed_BC.masked_fill(losing_BC, -torch.inf).argmax(dim=1)  # the first of equal maxima


def _check_sizes(n_neighbors: int, chunk: int, n_bank: int) -> None:
    if not 1 <= n_neighbors <= n_bank:
        raise InputError(
            f"expected 1 <= n_neighbors <= {n_bank} labelled bank rows, got {n_neighbors}: ask for fewer neighbours"
        )
    if chunk < 1:
        raise InputError(f"expected chunk >= 1, got {chunk}: it is the number of queries compared at a time")
