"""The smoothest functions on a graph: eigenvectors of its normalised Laplacian, by rising eigenvalue.

    symmetric    L = I - D^-1/2 W D^-1/2, phi^T phi = I
    random_walk  L = I - D^-1 W, psi = D^-1/2 phi, psi^T D psi = I; the first function of a piece is constant

Solved as the largest eigenvalues of D^-1/2 W D^-1/2: shift-invert on L fills in, and singular values would mistake -1
for 1. Pieces are solved one by one: a Krylov space started from one vector need not see an eigenvalue twice.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh  # type: ignore[import-untyped]
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.linalg import column_signs
from neigenmaps.spectral.components import component_labels
from neigenmaps.spectral.graph import NeighborGraph

Normalization = Literal["symmetric", "random_walk"]

DENSE_UP_TO = 500  # nodes of a piece


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """float64. residuals_K: |A phi - (1 - lambda) phi|. groups: (start, stop) of eigenvalues that count as equal."""

    eigenvalues_K: Tensor
    eigenvectors_NK: Tensor
    degrees_N: Tensor
    mass_N: Tensor
    residuals_K: Tensor
    orthogonality_error: float
    groups: tuple[tuple[int, int], ...]
    normalization: Normalization

    def first(self, k: int) -> Eigenbasis:
        """The k smoothest functions alone. Raises InputError unless 1 <= k <= K."""
        if not 1 <= k <= len(self.eigenvalues_K):
            raise InputError(f"expected 1 <= k <= {len(self.eigenvalues_K)}, got {k}")
        return replace(
            self,
            eigenvalues_K=self.eigenvalues_K[:k],
            eigenvectors_NK=self.eigenvectors_NK[:, :k],
            residuals_K=self.residuals_K[:k],
            groups=tuple((start, min(stop, k)) for start, stop in self.groups if start < k),
        )


def laplacian_eigenbasis(
    graph: NeighborGraph | sp.csr_matrix,
    n_eigenvectors: int,
    normalization: Normalization = "symmetric",
    *,
    tolerance: float = 1e-10,
    same: float = 1e-6,
) -> Eigenbasis:
    """The `n_eigenvectors` smoothest functions. same: neighbouring eigenvalues this close share a group.

    Raises InputError unless 1 <= n_eigenvectors <= N, for unknown names and negative weights; ShapeError if not square.
    """
    weights = (graph.adjacency if isinstance(graph, NeighborGraph) else sp.csr_matrix(graph)).astype(np.float64)
    n = weights.shape[0]
    if weights.shape != (n, n):
        raise ShapeError(f"expected a square adjacency, got {weights.shape}")
    if normalization not in ("symmetric", "random_walk"):
        raise InputError(f"expected normalization 'symmetric' or 'random_walk', got {normalization!r}: name one")
    if not 1 <= n_eigenvectors <= n:
        raise InputError(f"expected 1 <= n_eigenvectors <= {n} (the number of nodes), got {n_eigenvectors}")
    if abs(weights - weights.T).max() > 0 or not (weights.data >= 0).all():
        raise InputError("expected symmetric weights of at least 0: build the graph with neighbor_graph")
    degrees = weights @ np.ones(n)
    root = np.sqrt(np.where(degrees > 0, degrees, 1.0))
    inverse = sp.diags(1 / root)
    operator = (
        inverse @ weights @ inverse + sp.diags((degrees == 0).astype(float))
    ).tocsr()  # alone: eigenvalue 0 of L
    values, vectors = _largest_by_piece(operator, n_eigenvectors, tolerance)
    residuals = np.linalg.norm(operator @ vectors - vectors * values, axis=0)
    orthogonality = float(np.abs(vectors.T @ vectors - np.eye(n_eigenvectors)).max())
    eigenvalues = np.maximum(1 - values, 0.0)
    mass = np.ones(n) if normalization == "symmetric" else root**2
    functions = torch.from_numpy(vectors / np.sqrt(mass)[:, None])
    cuts = [0, *(np.flatnonzero(np.diff(eigenvalues) > same) + 1).tolist(), n_eigenvectors]
    return Eigenbasis(
        eigenvalues_K=torch.from_numpy(eigenvalues),
        eigenvectors_NK=functions * column_signs(functions),
        degrees_N=torch.from_numpy(degrees),
        mass_N=torch.from_numpy(mass),
        residuals_K=torch.from_numpy(residuals),
        orthogonality_error=orthogonality,
        groups=tuple(itertools.pairwise(cuts)),
        normalization=normalization,
    )


def _largest_by_piece(operator: sp.csr_matrix, k: int, tolerance: float) -> tuple[NDArray[Any], NDArray[Any]]:
    labels = component_labels(operator)
    values, columns = [], []
    for piece in range(labels.max() + 1):
        nodes = np.flatnonzero(labels == piece)
        some, inside = _largest(operator[nodes][:, nodes], min(k, len(nodes)), tolerance)
        whole = np.zeros((len(labels), len(some)))
        whole[nodes] = inside
        values.append(some)
        columns.append(whole)
    joined = np.concatenate(values)
    order = np.argsort(-joined, kind="stable")[:k]
    return joined[order], np.concatenate(columns, axis=1)[:, order]


def _largest(operator: sp.csr_matrix, k: int, tolerance: float) -> tuple[NDArray[Any], NDArray[Any]]:
    n = operator.shape[0]
    if n <= DENSE_UP_TO or 3 * k >= n:
        values, vectors = np.linalg.eigh(operator.toarray())
        return values[::-1][:k], vectors[:, ::-1][:, :k]
    rng = np.random.default_rng(0)
    values, vectors = eigsh(operator, k, which="LA", tol=tolerance, v0=rng.standard_normal(n))
    for _ in range(k):  # one start vector may not see all of a multiple eigenvalue: search what is left
        rest = LinearOperator((n, n), matvec=partial(_deflated, operator, vectors), dtype=np.float64)
        left, missed = eigsh(rest, 1, which="LA", tol=tolerance, v0=rng.standard_normal(n))
        if left[0] <= values.min() + 1e-9:
            break
        basis = np.linalg.qr(np.concatenate([vectors, missed], axis=1))[0]
        ritz, rotation = np.linalg.eigh(basis.T @ (operator @ basis))
        values, vectors = ritz[1:], basis @ rotation[:, 1:]
    order = np.argsort(-values)
    return values[order], vectors[:, order]


def _deflated(operator: sp.csr_matrix, vectors: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """What is left of the operator beside the known eigenvectors, which move to eigenvalue -2, below its spectrum."""
    along = vectors.T @ x
    outside = operator @ (x - vectors @ along)
    result: NDArray[Any] = outside - vectors @ (vectors.T @ outside) - 2 * (vectors @ along)
    return result
