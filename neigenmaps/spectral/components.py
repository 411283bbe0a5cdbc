"""Pieces of a graph, and the shortest edges that join them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import Tensor

from neigenmaps.spectral.neighbors import CHUNK_ELEMENTS, PointCloud, distances_to


class Bridge(NamedTuple):
    """An edge that no row asked for, i < j."""

    i: int
    j: int
    weight: float


def component_labels(adjacency: sp.csr_matrix) -> NDArray[np.int32]:
    """Piece of every node, 0, 1, ... in order of first appearance."""
    labels: NDArray[np.int32] = connected_components(adjacency, directed=False)[1]
    return labels


def add_bridges(
    cloud: PointCloud, adjacency: sp.csr_matrix, lengths: sp.csr_matrix, typical: float, floor: float
) -> tuple[sp.csr_matrix, sp.csr_matrix, tuple[Bridge, ...]]:
    """Join all pieces by a minimum spanning tree of the distances between them.

    Boruvka's rounds: the shortest edge out of any piece belongs to the tree, so every piece but the largest adds its own,
    and the number of pieces halves at least; a round compares the rows of those pieces with all rows. A bridge weighs as
    much as the lightest edge, less in proportion where it is longer than the typical neighbour distance.
    """
    labels = component_labels(adjacency)
    points = cloud.rows_NF.astype(np.float32, copy=False)
    ends, spans = [], []
    while labels.max() > 0:
        merged = np.arange(labels.max() + 1)
        for span, i, j in sorted(_ways_out(cloud, points, labels)):
            ours, theirs = merged[labels[i]], merged[labels[j]]
            if ours != theirs:  # two pieces may have chosen each other, or several a ring of equal edges
                merged[merged == ours] = theirs
                ends.append((min(i, j), max(i, j)))
                spans.append(max(span, floor))
        labels = np.unique(merged, return_inverse=True)[1].astype(np.int32)[labels]
    lightest = float(adjacency.data.min())
    weights = [float(np.float32(lightest * min(1.0, typical / span))) for span in spans]
    bridges = tuple(Bridge(i, j, weight) for (i, j), weight in zip(ends, weights, strict=True))
    return (
        _with_edges(adjacency, np.array(ends), np.array(weights)),
        _with_edges(lengths, np.array(ends), np.array(spans)),
        bridges,
    )


def _ways_out(
    cloud: PointCloud, points: NDArray[np.float32], labels: NDArray[np.int32]
) -> Iterator[tuple[float, int, int]]:
    """(span, i, j) of the shortest edge from every piece but the largest to the rest."""
    sizes = np.bincount(labels)
    rank = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")  # the largest comes first, and is left out
    order = np.argsort(rank[labels], kind="stable")
    starts = np.concatenate([[0], np.cumsum(-np.sort(-sizes))])
    nearest = order[_nearest_outside(torch.from_numpy(points[order]), starts)]
    own = order[starts[1] :]
    spans = distances_to(cloud, cloud.rows_NF[own], nearest[:, None])[:, 0]
    for start, stop in itertools.pairwise(starts[1:] - starts[1]):
        best = start + int(spans[start:stop].argmin())
        yield float(spans[best]), int(own[best]), int(nearest[best])


def _nearest_outside(points_NF: Tensor, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Nearest row of another piece for each row from starts[1] on; pieces are the slices between starts."""
    n = len(points_NF)
    half_square_N = points_NF.square().sum(1) / 2
    step = max(1, CHUNK_ELEMENTS // n)
    found = []
    for first in range(int(starts[1]), n, step):
        last = min(n, first + step)
        score_BN = torch.addmm(half_square_N, points_NF[first:last], points_NF.mT, alpha=-1)
        touched = range(int(np.searchsorted(starts, first, "right")) - 1, int(np.searchsorted(starts, last)))
        for start, stop in ((int(starts[piece]), int(starts[piece + 1])) for piece in touched):
            score_BN[max(start, first) - first : min(stop, last) - first, start:stop] = torch.inf
        found.append(score_BN.argmin(1))
    return torch.cat(found).numpy()


def _with_edges(matrix: sp.csr_matrix, ends: NDArray[np.int64], values: NDArray[np.float64]) -> sp.csr_matrix:
    one_way = sp.csr_matrix((values.astype(np.float32), (ends[:, 0], ends[:, 1])), shape=matrix.shape)
    joined = (matrix + one_way + one_way.T).tocsr()
    joined.sort_indices()
    return joined
