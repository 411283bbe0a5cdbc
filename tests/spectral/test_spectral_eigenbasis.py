"""Known spectra, dense algebra as oracle, pieces, and refusals."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.spectral import laplacian_eigenbasis, neighbor_graph
from oracles import spectral as oracle


@pytest.mark.parametrize("n", [60, 700])
def test_path_and_cycle(n: int) -> None:
    j = np.arange(12)
    basis = laplacian_eigenbasis(sp.csr_matrix(oracle.path(n)), 12)
    np.testing.assert_allclose(basis.eigenvalues_K, 1 - np.cos(np.pi * j / (n - 1)), atol=1e-12)
    basis = laplacian_eigenbasis(sp.csr_matrix(oracle.cycle(n)), 11)
    np.testing.assert_allclose(basis.eigenvalues_K, 1 - np.cos(2 * np.pi * ((j[:11] + 1) // 2) / n), atol=1e-12)
    assert basis.residuals_K.max() < 1e-8
    assert basis.orthogonality_error < 1e-10
    assert basis.groups == ((0, 1), (1, 3), (3, 5), (5, 7), (7, 9), (9, 11))


def test_complete_graph_and_pieces() -> None:
    complete = np.ones((20, 20)) - np.eye(20)
    basis = laplacian_eigenbasis(sp.csr_matrix(complete), 20)
    np.testing.assert_allclose(basis.eigenvalues_K, [0] + [20 / 19] * 19, atol=1e-12)
    pieces = sp.block_diag([complete] * 3 + [np.zeros((1, 1))]).tocsr()
    assert (laplacian_eigenbasis(pieces, 6).eigenvalues_K < 1e-12).sum() == 4


@pytest.mark.parametrize("normalization", ["symmetric", "random_walk"])
def test_equals_dense_algebra(normalization: str) -> None:
    x = torch.randn(600, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph = neighbor_graph(x, 8)
    basis = laplacian_eigenbasis(graph, 10, normalization)
    expected = np.linalg.eigvalsh(oracle.normalized_laplacian(graph.adjacency.toarray().astype(float)))[:10]
    np.testing.assert_allclose(basis.eigenvalues_K, expected, atol=1e-12)
    gram = basis.eigenvectors_NK.T @ (basis.mass_N[:, None] * basis.eigenvectors_NK)
    torch.testing.assert_close(gram, torch.eye(10, dtype=torch.float64), atol=1e-9, rtol=0)


def test_refusals() -> None:
    w = sp.csr_matrix(oracle.path(5))
    for k in (0, 6):
        with pytest.raises(InputError, match="n_eigenvectors"):
            laplacian_eigenbasis(w, k)
    with pytest.raises(InputError, match="name one"):
        laplacian_eigenbasis(w, 2, "none")
    with pytest.raises(InputError, match="symmetric weights"):
        laplacian_eigenbasis(-w, 2)
    with pytest.raises(ShapeError, match="square"):
        laplacian_eigenbasis(sp.csr_matrix(np.ones((2, 3))), 1)


def test_torus_of_many_multiplicities_through_the_sparse_solver() -> None:
    """Eigenvalues come 4 and 8 at a time; one Lanczos start alone misses some and is wrong by 0.03."""
    one = sp.csr_matrix(oracle.cycle(30))
    c = 1 - np.cos(2 * np.pi * np.arange(30) / 30)
    basis = laplacian_eigenbasis(sp.kronsum(one, one), 30)
    np.testing.assert_allclose(basis.eigenvalues_K, np.sort((c[:, None] + c) / 2, axis=None)[:30], atol=1e-12)
    assert basis.residuals_K.max() < 1e-8
    assert basis.orthogonality_error < 1e-10


def test_first_function_of_the_random_walk_is_constant() -> None:
    basis = laplacian_eigenbasis(sp.csr_matrix(oracle.path(9)), 3, "random_walk")
    first = basis.eigenvectors_NK[:, 0]
    torch.testing.assert_close(first, torch.full_like(first, float(basis.degrees_N.sum() ** -0.5)))
    torch.testing.assert_close(basis.mass_N, basis.degrees_N)
