"""Functions of a graph carried on to points that were not there when it was built (Nystrom's formula).

    phi_j(x) = 1 / (1 - lambda_j) sum_i w(x, x_i) / sqrt(d(x) d_i) phi_j(x_i),     d(x) = sum_i w(x, x_i)

A new point gets the edges it would have had as a row: to its nearest rows, and to rows among its nearer surroundings
that would have chosen it. Written for psi = D^-1/2 phi this is an average over neighbours, which is what is computed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.spectral.eigenbasis import Eigenbasis
from neigenmaps.spectral.graph import NeighborGraph, edge_weights
from neigenmaps.spectral.nearest import nearest_rows

if TYPE_CHECKING:
    from neigenmaps.spectral.neighbors import Array

SURROUNDINGS = (
    2  # times n_neighbors: the rows asked whether they would have chosen the new point; more change the third digit
)
QUERIES_AT_A_TIME = 1 << 14


def nystrom_extension(graph: NeighborGraph, basis: Eigenbasis, X_new: Array, *, smallest: float = 0.05) -> Tensor:
    """Values (Q, K) of the basis at new points, in its dtype and on its device.

    At a row of the graph (nearer than 1e-6 of the cloud's spread) that row's own edges count, bridges included, so that
    its values come back, up to the residual of the eigensolver over 1 - lambda. All pairs are compared: O(Q N).

    smallest: least 1 - lambda_j; the formula divides by it, so noise grows where lambda comes near 1.
    Raises ShapeError if the basis has other rows or X_new other columns, NonFiniteError, InputError for zero rows under
    "angular" and where 1 - lambda_j is too small; then `basis.first(k)` keeps what can be extended.
    """
    n, k = basis.eigenvectors_NK.shape
    if n != len(graph.reach_N):
        raise ShapeError(f"expected the basis of this graph, {len(graph.reach_N)} rows, got one of {n} rows")
    affinity_K = 1 - basis.eigenvalues_K.detach().cpu().double().numpy()
    able = int((affinity_K >= smallest).sum())
    if able < k:
        raise InputError(
            f"expected 1 - lambda >= {smallest}, got {affinity_K[-1]:.3g} at function {k}: extend the first {able}, "
            f"basis.first({able}), or give every row more neighbours"
        )
    rows = graph.cloud.place(X_new)
    walk_NK = basis.eigenvectors_NK.detach().cpu().double().numpy()
    if basis.normalization == "symmetric":
        walk_NK = walk_NK / np.sqrt(graph.degrees)[:, None]
    values_QK = np.empty((len(rows), k))
    for start in range(0, len(rows), QUERIES_AT_A_TIME):
        part = slice(start, start + QUERIES_AT_A_TIME)
        weights = _edges(graph, rows[part])
        degrees = weights @ np.ones(n)
        values_QK[part] = (weights @ walk_NK) / degrees[:, None] / affinity_K
        if basis.normalization == "symmetric":
            values_QK[part] *= np.sqrt(degrees)[:, None]
    return torch.from_numpy(values_QK).to(basis.eigenvectors_NK)


def extended_eigenbasis(graph: NeighborGraph, basis: Eigenbasis, X: Array, *, smallest: float = 0.05) -> Eigenbasis:
    """The basis of a graph of landmarks carried to all rows of X: columns of length 1, as orthogonal as it reports.

    Eigenvalues, groups and residuals stay those of the landmarks, degrees and masses are of no row of X: none are kept.
    smallest, and errors: as in `nystrom_extension`.
    """
    phi_NK = nystrom_extension(graph, basis, X, smallest=smallest)
    phi_NK = phi_NK / phi_NK.norm(dim=0)
    off_KK = phi_NK.mT @ phi_NK - torch.eye(phi_NK.shape[1], dtype=phi_NK.dtype, device=phi_NK.device)
    error, none = float(off_KK.abs().max()), phi_NK.new_empty(0)
    return replace(basis, eigenvectors_NK=phi_NK, degrees_N=none, mass_N=none, orthogonality_error=error)


def _edges(graph: NeighborGraph, rows: NDArray[Any]) -> sp.csr_matrix:
    """Weights (Q, N) in float64 of the edges between placed rows and the graph's."""
    n, k, kernel = len(graph.reach_N), graph.settings["n_neighbors"], graph.settings["kernel"]
    near = nearest_rows(torch.from_numpy(rows), torch.from_numpy(graph.cloud.rows_NF), min(n, SURROUNDINGS * k))
    index, distances = near.index_Qk.numpy(), near.distance_Qk.numpy().astype(np.float64) * graph.cloud.unit
    known = distances[:, 0] <= 1e-6 * graph.cloud.spread
    distances = np.maximum(distances, graph.floor)
    reach_Q1, reach_QM = distances[:, k - 1 : k], graph.reach_N[index]
    chooses, chosen = distances <= reach_Q1, distances <= reach_QM
    forward = np.where(chooses, edge_weights(kernel, distances, reach_Q1, reach_QM), 0)
    backward = np.where(chosen, edge_weights(kernel, distances, reach_QM, reach_Q1), 0)
    values = (forward + backward) / 2 if kernel == "gaussian" else np.maximum(forward, backward)
    values[known] = 0
    starts = np.arange(0, index.size + 1, index.shape[1])
    new = sp.csr_matrix((values.ravel(), index.ravel(), starts), shape=(len(rows), n))
    new.eliminate_zeros()
    same = np.flatnonzero(known)
    own = sp.csr_matrix((np.ones(len(same)), (same, index[same, 0])), shape=(len(rows), n))
    return (new + own @ graph.adjacency.astype(np.float64)).tocsr()
