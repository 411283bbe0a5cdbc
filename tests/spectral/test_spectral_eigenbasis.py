"""Known spectra, dense algebra as oracle, symmetries, pieces, multiplicities, and refusals; by every solver."""

import functools
import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.linalg import principal_cosines
from neigenmaps.spectral import Eigenbasis, NeighborGraph, laplacian_eigenbasis, neighbor_graph
from neigenmaps.spectral.eigensolvers import chebyshev_filter, sparse_on_device
from oracles import spectral as oracle

SOLVERS = ["dense", "arpack", "chebyshev"]
SPARSE_SOLVERS = ["arpack", "chebyshev"]


def cloud(n: int = 600, width: int = 5) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def product(*graphs: np.ndarray) -> sp.csr_matrix:
    """Cartesian product; of regular graphs its normalised eigenvalues are their means, weighted by degree."""
    whole = sp.csr_matrix(graphs[0])
    for graph in graphs[1:]:
        whole = sp.kronsum(whole, sp.csr_matrix(graph)).tocsr()
    return whole


def assert_precise(basis: Eigenbasis) -> None:
    assert basis.residuals_K.max() < 1e-8
    assert basis.orthogonality_error < 1e-10


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [60, 700])
def test_path_and_cycle(n: int, solver: str) -> None:
    j = np.arange(12)
    basis = laplacian_eigenbasis(sp.csr_matrix(oracle.path(n)), 12, solver=solver)
    np.testing.assert_allclose(basis.eigenvalues_K, 1 - np.cos(np.pi * j / (n - 1)), atol=1e-12)
    basis = laplacian_eigenbasis(sp.csr_matrix(oracle.cycle(n)), 11, solver=solver)
    np.testing.assert_allclose(basis.eigenvalues_K, 1 - np.cos(2 * np.pi * ((j[:11] + 1) // 2) / n), atol=1e-12)
    assert_precise(basis)
    assert basis.groups == ((0, 1), (1, 3), (3, 5), (5, 7), (7, 9), (9, 11))


@pytest.mark.parametrize("solver", SOLVERS)
def test_torus_of_many_multiplicities(solver: str) -> None:
    """A periodic grid: eigenvalues come 4 and 8 at a time; one Lanczos start alone misses some and is wrong by 0.03."""
    c = 1 - np.cos(2 * np.pi * np.arange(30) / 30)
    exact = np.sort((c[:, None] + c) / 2, axis=None)
    basis = laplacian_eigenbasis(product(oracle.cycle(30), oracle.cycle(30)), 30, solver=solver)
    np.testing.assert_allclose(basis.eigenvalues_K, exact[:30], atol=1e-12)
    assert basis.next_gap == pytest.approx(exact[30] - exact[29], abs=1e-12)
    assert_precise(basis)


@pytest.mark.parametrize("solver", SOLVERS)
def test_open_grid_of_unequal_sides(solver: str) -> None:
    """Grid a x b, normalised, has no closed form; with the corners' missing edges put back as loops it is combinatorial
    up to the degree 4: eigenvalues (2 - 2 cos(pi i / a) + 2 - 2 cos(pi j / b)) / 4."""
    a, b = 31, 17
    loops = [np.diag([1.0, *[0.0] * (n - 2), 1.0]) + oracle.path(n) for n in (a, b)]
    exact = (2 - np.cos(np.pi * np.arange(a)[:, None] / a) - np.cos(np.pi * np.arange(b) / b)) / 2
    basis = laplacian_eigenbasis(product(*loops), 20, solver=solver)
    np.testing.assert_allclose(basis.eigenvalues_K, np.sort(exact, axis=None)[:20], atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_hypercube_is_bipartite_and_its_largest_eigenvalue_never_comes_first(solver: str) -> None:
    """Eigenvalues 2 i / 10, C(10, i) times: 2 is as large on the adjacency side as 0, with the other sign."""
    cube = product(*[oracle.path(2)] * 10)
    basis = laplacian_eigenbasis(cube, 11, solver=solver)
    np.testing.assert_allclose(basis.eigenvalues_K, [0] + [0.2] * 10, atol=1e-12)
    assert basis.groups == ((0, 1), (1, 11))
    assert basis.ends_at_a_gap
    assert basis.next_gap == pytest.approx(0.2, abs=1e-12)
    assert_precise(basis)
    assert (basis.eigenvectors_NK[:, 0].diff().abs() < 1e-9).all()  # and not +-1 by side, the one of eigenvalue 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_last_group_that_is_not_whole_is_said(solver: str) -> None:
    basis = laplacian_eigenbasis(product(*[oracle.path(2)] * 10), 30, solver=solver)
    assert not basis.ends_at_a_gap
    assert abs(basis.next_gap) < 1e-12
    whole = basis.first(basis.groups[-1][0])
    assert whole.ends_at_a_gap
    assert whole.next_gap == pytest.approx(0.2, abs=1e-12)
    assert whole.groups == ((0, 1), (1, 11))
    assert not basis.first(5).ends_at_a_gap
    assert basis.first(30) is basis


def test_all_functions_leave_no_gap_to_speak_of() -> None:
    basis = laplacian_eigenbasis(sp.csr_matrix(oracle.path(9)), 9)
    assert basis.next_gap == math.inf
    assert basis.ends_at_a_gap
    assert basis.eigenvalues_K[-1] == pytest.approx(2)
    assert laplacian_eigenbasis(sp.csr_matrix(oracle.path(9)), 9, solver="chebyshev").eigenvalues_K[
        -1
    ] == pytest.approx(2)


def test_complete_graph_and_pieces() -> None:
    complete = np.ones((20, 20)) - np.eye(20)
    basis = laplacian_eigenbasis(sp.csr_matrix(complete), 20)
    np.testing.assert_allclose(basis.eigenvalues_K, [0] + [20 / 19] * 19, atol=1e-12)
    pieces = sp.block_diag([complete] * 3 + [np.zeros((1, 1))]).tocsr()
    order = np.random.default_rng(0).permutation(61)
    basis = laplacian_eigenbasis(pieces[order][:, order], 6)
    assert (basis.eigenvalues_K < 1e-12).sum() == 4
    assert_precise(basis)


def test_two_thousand_pieces() -> None:
    pieces = sp.block_diag([sp.csr_matrix(oracle.cycle(3))] * 2000).tocsr()
    basis = laplacian_eigenbasis(pieces, 5)
    assert (basis.eigenvalues_K < 1e-12).all()
    assert not basis.ends_at_a_gap
    assert_precise(basis)


@functools.cache
def dense_pairs() -> tuple[NeighborGraph, np.ndarray, np.ndarray]:
    graph = neighbor_graph(cloud(), 8)
    return graph, *np.linalg.eigh(oracle.normalized_laplacian(graph.adjacency.toarray().astype(float)))


@pytest.mark.parametrize("solver", SPARSE_SOLVERS)
@pytest.mark.parametrize("normalization", ["symmetric", "random_walk"])
def test_equals_dense_algebra(normalization: str, solver: str) -> None:
    graph, values, vectors = dense_pairs()
    basis = laplacian_eigenbasis(graph, 10, normalization, solver=solver)
    np.testing.assert_allclose(basis.eigenvalues_K, values[:10], atol=1e-12)
    gram = basis.eigenvectors_NK.T @ (basis.mass_N[:, None] * basis.eigenvectors_NK)
    torch.testing.assert_close(gram, torch.eye(10, dtype=torch.float64), atol=1e-9, rtol=0)
    symmetric = basis.mass_N[:, None].sqrt() * basis.eigenvectors_NK
    np.testing.assert_allclose(np.abs((symmetric.numpy() * vectors[:, :10]).sum(0)), 1, atol=1e-12)
    assert basis.normalization == normalization


@pytest.mark.parametrize("solver", SOLVERS)
def test_single_precision(solver: str) -> None:
    graph = neighbor_graph(cloud(900).float(), 12)
    double = laplacian_eigenbasis(graph, 20)
    single = laplacian_eigenbasis(graph, 20, solver=solver, dtype=torch.float32)
    assert {t.dtype for t in (single.eigenvalues_K, single.eigenvectors_NK, single.mass_N)} == {torch.float32}
    assert single.residuals_K.max() < 1e-5
    assert single.orthogonality_error < 1e-5
    torch.testing.assert_close(single.eigenvalues_K.double(), double.eigenvalues_K, atol=1e-5, rtol=0)


@pytest.mark.gpu
def test_on_the_device_of_the_data() -> None:
    graph = neighbor_graph(cloud(3000).cuda(), 12)
    there, here = laplacian_eigenbasis(graph, 20), laplacian_eigenbasis(graph, 20, device="cpu")
    assert there.eigenvectors_NK.is_cuda
    assert_precise(there)
    torch.testing.assert_close(there.eigenvalues_K.cpu(), here.eigenvalues_K, atol=1e-12, rtol=0)


@pytest.mark.parametrize("change", ["permuted", "rotated", "scaled"])
def test_eigenspaces_are_those_of_the_cloud(change: str) -> None:
    """Permuted rows, a rotated and shifted cloud, another unit of length."""
    x, order = cloud(700, 4), torch.arange(700)
    if change == "permuted":
        order = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(cloud(4, 4)).Q
    moved = {"permuted": x[order], "rotated": x @ rotation + 3, "scaled": 1000 * x}[change]
    plain, other = (laplacian_eigenbasis(neighbor_graph(y, 15, "euclidean"), 12) for y in (x, moved))
    torch.testing.assert_close(other.eigenvalues_K, plain.eigenvalues_K, atol=1e-6, rtol=0)  # weights are float32
    assert plain.ends_at_a_gap
    cosines = principal_cosines(other.eigenvectors_NK, plain.eigenvectors_NK[order])
    torch.testing.assert_close(cosines, torch.ones(12, dtype=torch.float64), atol=1e-8, rtol=0)


@pytest.mark.parametrize("degree", [1, 2, 25])
def test_the_filter_is_the_chebyshev_polynomial_that_is_one_at_one(degree: int) -> None:
    values, cut = np.linspace(-1, 1, 41), 0.3
    polynomial = np.polynomial.Chebyshev.basis(degree, domain=[-1, cut])
    diagonal = sparse_on_device(sp.diags(values).tocsr(), torch.float64, torch.device("cpu"))
    got = chebyshev_filter(diagonal, torch.ones(41, 1, dtype=torch.float64), degree, cut)[:, 0]
    np.testing.assert_allclose(got, polynomial(values) / polynomial(1.0), atol=1e-13)


@pytest.mark.parametrize("solver", SPARSE_SOLVERS)
def test_multiple_eigenspaces_of_permuted_rows_agree(solver: str) -> None:
    torus, order = product(oracle.cycle(26), oracle.cycle(26)), np.random.default_rng(0).permutation(26 * 26)
    plain, moved = (laplacian_eigenbasis(w, 21, solver=solver) for w in (torus, torus[order][:, order]))
    assert plain.ends_at_a_gap
    for start, stop in plain.groups:
        cosines = principal_cosines(moved.eigenvectors_NK[:, start:stop], plain.eigenvectors_NK[order, start:stop])
        torch.testing.assert_close(cosines, torch.ones(stop - start, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_solver_that_falls_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neigenmaps.spectral.eigensolvers.MOST_ROUNDS", 2)
    with pytest.warns(UserWarning, match="residuals of at most 1e-10"):
        basis = laplacian_eigenbasis(neighbor_graph(cloud(), 8), 10, solver="chebyshev")
    assert basis.residuals_K.max() > 1e-10
    assert basis.orthogonality_error < 1e-10
    assert basis.eigenvectors_NK.shape == (600, 10)


def test_refusals() -> None:
    w = sp.csr_matrix(oracle.path(5))
    for k in (0, 6):
        with pytest.raises(InputError, match="n_eigenvectors"):
            laplacian_eigenbasis(w, k)
    with pytest.raises(InputError, match="name one"):
        laplacian_eigenbasis(w, 2, "none")
    with pytest.raises(InputError, match="name one"):
        laplacian_eigenbasis(w, 2, solver="lobpcg")
    with pytest.raises(InputError, match="dtype"):
        laplacian_eigenbasis(w, 2, dtype=torch.float16)
    for wrong in (-w, w * np.nan, sp.csr_matrix(np.triu(w.toarray()))):
        with pytest.raises(InputError, match="symmetric weights"):
            laplacian_eigenbasis(wrong, 2)
    with pytest.raises(ShapeError, match="square"):
        laplacian_eigenbasis(sp.csr_matrix(np.ones((2, 3))), 1)


def test_first_function_of_the_random_walk_is_constant() -> None:
    basis = laplacian_eigenbasis(sp.csr_matrix(oracle.path(9)), 3, "random_walk")
    first = basis.eigenvectors_NK[:, 0]
    torch.testing.assert_close(first, torch.full_like(first, float(basis.degrees_N.sum() ** -0.5)))
    torch.testing.assert_close(basis.mass_N, basis.degrees_N)
