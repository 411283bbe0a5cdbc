"""The smoothest functions on a graph: eigenvectors of its normalised Laplacian, by rising eigenvalue.

    symmetric    L = I - D^-1/2 W D^-1/2, phi^T phi = I
    random_walk  L = I - D^-1 W, psi = D^-1/2 phi, psi^T D psi = I; the first function of a piece is constant

Solved as the largest eigenvalues of D^-1/2 W D^-1/2: shift-invert on L fills in, and singular values would mistake -1
for 1. One eigenvalue more than asked for is computed, which tells whether the last ones are all of their kind.
Pieces are solved one by one: a Krylov space started from one vector need not see an eigenvalue twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.linalg import column_signs
from neigenmaps.spectral.components import component_labels
from neigenmaps.spectral.eigensolvers import Eigenpairs, Solver, largest_eigenpairs, sparse_on_device
from neigenmaps.spectral.graph import NeighborGraph

Normalization = Literal["symmetric", "random_walk"]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SAME = {torch.float64: 1e-6, torch.float32: 1e-5}


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """residuals_K: |A phi - (1 - lambda) phi|. groups: (start, stop) of eigenvalues that count as equal.

    next_gap: from the last eigenvalue to the one that was left out, infinite if none was.
    ends_at_a_gap: no function equal to the last ones was left out. Otherwise the last group is part of an eigenspace,
    another part after another permutation of the rows: cut it off with `first(groups[-1][0])`, or ask for more.
    """

    eigenvalues_K: Tensor
    eigenvectors_NK: Tensor
    degrees_N: Tensor
    mass_N: Tensor
    residuals_K: Tensor
    orthogonality_error: float
    groups: tuple[tuple[int, int], ...]
    next_gap: float
    ends_at_a_gap: bool
    normalization: Normalization

    def first(self, k: int) -> Eigenbasis:
        """The k smoothest functions alone. Raises InputError unless 1 <= k <= K."""
        if not 1 <= k <= len(self.eigenvalues_K):
            raise InputError(f"expected 1 <= k <= {len(self.eigenvalues_K)}, got {k}")
        if k == len(self.eigenvalues_K):
            return self
        return replace(
            self,
            eigenvalues_K=self.eigenvalues_K[:k],
            eigenvectors_NK=self.eigenvectors_NK[:, :k],
            residuals_K=self.residuals_K[:k],
            groups=tuple((start, min(stop, k)) for start, stop in self.groups if start < k),
            next_gap=float(self.eigenvalues_K[k] - self.eigenvalues_K[k - 1]),
            ends_at_a_gap=any(stop == k for _, stop in self.groups),
        )


def laplacian_eigenbasis(
    graph: NeighborGraph | sp.csr_matrix,
    n_eigenvectors: int,
    normalization: Normalization = "symmetric",
    *,
    solver: Solver = "auto",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    tolerance: float | None = None,
    same: float | None = None,
) -> Eigenbasis:
    """The `n_eigenvectors` smoothest functions.

    solver: see `neigenmaps.spectral.eigensolvers`. dtype: float64, or float32 for half the memory and time.
    device: where to solve and leave the result; None is that of the graph's data.
    tolerance: of the residuals; None is 1e-10, in float32 1e-5. same: neighbouring eigenvalues this close share a group;
        None is 1e-6, in float32 1e-5.

    Raises InputError unless 1 <= n_eigenvectors <= N, for unknown names and negative weights; ShapeError if not square.
    Warns where the solver doesn't reach the tolerance.
    """
    weights = _checked(graph, n_eigenvectors, normalization, solver, dtype)
    n, k = weights.shape[0], n_eigenvectors
    if device is None:
        device = graph.cloud.device if isinstance(graph, NeighborGraph) else "cpu"
    device, same = torch.device(device), SAME[dtype] if same is None else same
    degrees: NDArray[np.float64] = weights @ np.ones(n)
    operator = _normalized(weights, degrees, np.float32 if dtype == torch.float32 else np.float64)
    pairs = _largest_by_piece(operator, min(k + 1, n), solver, dtype, device, tolerance or TOLERANCE[dtype])
    values_K, vectors_NK = pairs.values_K[:k], pairs.vectors_NK[:, :k]
    image_NK = sparse_on_device(operator, dtype, device) @ vectors_NK
    gram_KK = vectors_NK.mT @ vectors_NK
    eigenvalues = (1 - pairs.values_K).clamp(min=0)
    jumps = eigenvalues.diff()
    mass_N = torch.from_numpy(np.ones(n) if normalization == "symmetric" else np.where(degrees > 0, degrees, 1.0))
    mass_N = mass_N.to(device, dtype)
    functions_NK = vectors_NK / mass_N[:, None].sqrt() if normalization == "random_walk" else vectors_NK
    cuts = [0, *(torch.nonzero(jumps[: k - 1] > same)[:, 0] + 1).tolist(), k]
    next_gap = float(jumps[k - 1]) if k < n else math.inf
    return Eigenbasis(
        eigenvalues_K=eigenvalues[:k].clone(),
        eigenvectors_NK=functions_NK * column_signs(functions_NK),
        degrees_N=torch.from_numpy(degrees).to(device, dtype),
        mass_N=mass_N,
        residuals_K=(image_NK - vectors_NK * values_K).norm(dim=0),
        orthogonality_error=float((gram_KK - torch.eye(k, dtype=dtype, device=device)).abs().max()),
        groups=tuple(itertools.pairwise(cuts)),
        next_gap=next_gap,
        ends_at_a_gap=next_gap > same,
        normalization=normalization,
    )


def _checked(
    graph: NeighborGraph | sp.csr_matrix, k: int, normalization: str, solver: str, dtype: torch.dtype
) -> sp.csr_matrix:
    weights = graph.adjacency if isinstance(graph, NeighborGraph) else sp.csr_matrix(graph)
    n = weights.shape[0]
    if weights.shape != (n, n):
        raise ShapeError(f"expected a square adjacency, got {weights.shape}")
    if normalization not in get_args(Normalization):
        raise InputError(f"expected normalization 'symmetric' or 'random_walk', got {normalization!r}: name one")
    if solver not in get_args(Solver):
        raise InputError(f"expected solver 'auto', 'dense', 'arpack' or 'chebyshev', got {solver!r}: name one")
    if dtype not in TOLERANCE:
        raise InputError(f"expected dtype torch.float64 or torch.float32, got {dtype}")
    if not 1 <= k <= n:
        raise InputError(f"expected 1 <= n_eigenvectors <= {n} (the number of nodes), got {k}")
    if not isinstance(graph, NeighborGraph) and (
        not np.isfinite(weights.data).all() or (weights.data < 0).any() or abs(weights - weights.T).max() > 0
    ):
        raise InputError("expected symmetric weights of at least 0: build the graph with neighbor_graph")
    return weights


def _normalized(weights: sp.csr_matrix, degrees: NDArray[np.float64], dtype: type) -> sp.csr_matrix:
    """D^-1/2 W D^-1/2; a node without edges gets 1 on the diagonal: alone, its eigenvalue of L is 0."""
    inverse_root = 1 / np.sqrt(np.where(degrees > 0, degrees, 1.0))
    data = weights.data * np.repeat(inverse_root, np.diff(weights.indptr))
    data *= inverse_root[weights.indices]
    operator = sp.csr_matrix((data.astype(dtype, copy=False), weights.indices, weights.indptr), shape=weights.shape)
    return operator + sp.diags((degrees == 0).astype(dtype)).tocsr() if (degrees == 0).any() else operator


def _largest_by_piece(
    operator: sp.csr_matrix, k: int, solver: Solver, dtype: torch.dtype, device: torch.device, tolerance: float
) -> Eigenpairs:
    labels = component_labels(operator)
    if labels.max() == 0:
        return largest_eigenpairs(operator, k, solver, dtype, device, tolerance)
    nodes, found = [], []
    for piece_nodes, piece in _pieces(operator, labels):
        nodes.append(torch.from_numpy(piece_nodes).to(device))
        found.append(largest_eigenpairs(piece, min(k, len(piece_nodes)), solver, dtype, device, tolerance))
    joined = torch.cat([pairs.values_K for pairs in found])
    chosen = joined.argsort(descending=True, stable=True)[:k].tolist()
    origin = [(piece, column) for piece, pairs in enumerate(found) for column in range(len(pairs.values_K))]
    vectors_NK = torch.zeros(len(labels), k, dtype=dtype, device=device)
    for position, entry in enumerate(chosen):
        piece, column = origin[entry]
        vectors_NK[nodes[piece], position] = found[piece].vectors_NK[:, column]
    return Eigenpairs(joined[chosen], vectors_NK)


def _pieces(operator: sp.csr_matrix, labels: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int64], sp.csr_matrix]]:
    order = np.argsort(labels, kind="stable")
    sorted_operator = operator[order][:, order].tocsr()
    stops = np.cumsum(np.bincount(labels))
    for start, stop in itertools.pairwise([0, *stops.tolist()]):
        yield order[start:stop], sorted_operator[start:stop, start:stop]
