"""Functions on a graph that two spaces share without knowing each other's coordinates. float64, (N, P)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.csgraph import dijkstra  # type: ignore[import-untyped]
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.spectral.eigenbasis import Eigenbasis
from neigenmaps.spectral.graph import NeighborGraph


def geodesic_distances(graph: NeighborGraph, anchors_P: Tensor) -> Tensor:
    """Length of the shortest path to every anchor; infinite where there is none. Lengths are distances, not 1 / w."""
    anchors = np.asarray(anchors_P)
    if anchors.ndim != 1 or len(anchors) == 0 or not (anchors.min() >= 0 and anchors.max() < len(graph.reach_N)):
        raise InputError(f"expected anchors, row numbers in 0..{len(graph.reach_N) - 1}, got {anchors_P}")
    return torch.from_numpy(dijkstra(graph.lengths.astype(np.float64), directed=False, indices=anchors).T.copy())


def heat_kernel_signature(basis: Eigenbasis, times_P: Tensor) -> Tensor:
    """sum_j exp(-t l_j) phi_j^2 / sum_j exp(-t l_j); times above 0."""
    times = torch.as_tensor(times_P, dtype=torch.float64)
    if times.ndim != 1 or len(times) == 0 or not (times > 0).all():
        raise InputError(f"expected times above 0, got {times_P}")
    decay_KP = torch.softmax(-basis.eigenvalues_K[:, None] * times, dim=0)
    return basis.eigenvectors_NK.square() @ decay_KP
