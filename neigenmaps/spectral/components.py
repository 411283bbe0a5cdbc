"""Pieces of a graph, and the shortest edges that join them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from neigenmaps.spectral.neighbors import PointCloud, brute_force, distances_to


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

    The shortest edge out of any piece belongs to that tree, so the smallest piece is joined first, again and again:
    P pieces cost P - 1 searches from few rows. A bridge weighs as much as the lightest edge, less in proportion where
    it is longer than the typical neighbour distance.
    """
    labels = component_labels(adjacency)
    points = cloud.searchable(cloud.rows_NF)
    lightest = float(adjacency.data.min())
    bridges, spans = [], []
    sizes = np.bincount(labels)
    while (sizes > 0).sum() > 1:
        smallest = int(np.where(sizes > 0, sizes, len(labels) + 1).argmin())
        inside, outside = np.flatnonzero(labels == smallest), np.flatnonzero(labels != smallest)
        nearest = outside[brute_force(points[inside], points[outside], 1)]
        distances = distances_to(cloud, cloud.rows_NF[inside], nearest)[:, 0]
        best = int(distances.argmin())
        i, j = int(inside[best]), int(nearest[best, 0])
        span = max(float(distances[best]), floor)
        bridges.append(Bridge(min(i, j), max(i, j), float(np.float32(lightest * min(1.0, typical / span)))))
        spans.append(span)
        labels[inside] = labels[j]
        sizes = np.bincount(labels, minlength=len(sizes))
    ends = np.array([(bridge.i, bridge.j) for bridge in bridges])
    weights = np.array([bridge.weight for bridge in bridges])
    return _with_edges(adjacency, ends, weights), _with_edges(lengths, ends, np.array(spans)), tuple(bridges)


def _with_edges(matrix: sp.csr_matrix, ends: NDArray[np.int64], values: NDArray[np.float64]) -> sp.csr_matrix:
    one_way = sp.csr_matrix((values.astype(np.float32), (ends[:, 0], ends[:, 1])), shape=matrix.shape)
    joined = (matrix + one_way + one_way.T).tocsr()
    joined.sort_indices()
    return joined
