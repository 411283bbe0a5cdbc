"""Golden values, eigsh on the same matrix, Laplacians of known graphs, and points that were not there."""

import warnings
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.datasets import load_digits

from neigenmaps.errors import GraphWarning, IdentifiabilityWarning
from neigenmaps.functional.kernels import arc_cosine_kernel, polynomial_kernel, rbf_kernel
from neigenmaps.graphs import NeuralEigenmap, graph_from_edges
from neigenmaps.graphs.operators import smoothest_functions
from neigenmaps.spectral import laplacian_eigenbasis, neighbor_graph, nystrom_extension
from oracles import graphs as oracle
from oracles import spectral

QUICK = {
    "max_steps": 40,
    "hidden": 96,
    "batch_size": 128,
    "random_state": 0,
}  # smooth functions: the solve does the rest
ROWS = {
    "A": (oracle.gaussian_quantiles(800), "rbf", {"gamma": 0.5}, oracle.GOLDEN_A),
    "B": (oracle.even_grid(-2, 2, 800), "rbf", {"gamma": 0.5}, oracle.GOLDEN_B),
    "C": (oracle.even_grid(-1, 1, 800), "polynomial", {"degree": 4, "coef0": 1.5}, oracle.GOLDEN_C),
}


@pytest.mark.parametrize("name", ROWS)
def test_golden_kernels(name: str) -> None:
    """Eigenvalues are off by what 800 quantiles leave of the integral; |cos| on the matrix itself is 1 - 1e-6."""
    x, kernel, parameters, golden = ROWS[name]
    found = NeuralEigenmap(len(golden), kernel=kernel, kernel_params=parameters, **QUICK).fit(x)
    np.testing.assert_allclose(found.eigenvalues_, golden, rtol=0.01)
    matrix = {"rbf": rbf_kernel, "polynomial": polynomial_kernel}[kernel](*[torch.from_numpy(x)] * 2, **parameters)
    values, vectors = oracle.leading(matrix.numpy() / len(x), len(golden))
    np.testing.assert_allclose(found.eigenvalues_, values, rtol=1e-3)
    assert oracle.cosines(found.transform(x), vectors).min() >= 0.999


def test_gaussian_kernel_gives_hermite_functions_at_points_not_seen() -> None:
    x, kernel, parameters, golden = ROWS["A"]
    found = NeuralEigenmap(len(golden), kernel=kernel, kernel_params=parameters, **QUICK).fit(x)
    between = oracle.gaussian_quantiles(1001)
    values = found.transform(between)
    assert oracle.cosines(values, oracle.gaussian_rbf_functions(between, len(golden))).min() >= 0.999
    gram = values.T @ values / len(values)
    np.testing.assert_allclose(gram, np.eye(len(golden)), atol=0.01)


def test_a_kernel_of_rank_five_has_no_sixth_function() -> None:
    x, kernel, parameters, _ = ROWS["C"]
    found = NeuralEigenmap(6, kernel=kernel, kernel_params=parameters, **QUICK).fit(x)
    assert abs(found.eigenvalues_[5]) < 1e-6 * found.eigenvalues_[0]  # the fifth is 8e-4 of it


def digits() -> tuple[np.ndarray, np.ndarray]:
    images = load_digits().data / 16
    order = np.random.default_rng(0).permutation(len(images))
    return images[order[:700]], images[order[700:1000]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel", [partial(rbf_kernel, gamma=1 / 8), partial(arc_cosine_kernel, order=1)], ids=["rbf", "arc_cosine"]
)
def test_digits_equal_the_same_matrix(kernel: partial) -> None:
    """Eight functions of real data; the same functions at rows not seen, beside the exact extension."""
    seen, unseen = digits()
    a, b = torch.from_numpy(seen), torch.from_numpy(unseen)
    values, vectors = oracle.leading(kernel(a, a).numpy() / len(a), 8)
    extended = kernel(b, a).numpy() @ vectors
    found = NeuralEigenmap(8, kernel=kernel, max_steps=150, hidden=256, random_state=0).fit(seen)
    np.testing.assert_allclose(found.eigenvalues_, values, rtol=0.01)
    assert oracle.cosines(found.transform(seen), vectors).min() >= 0.99
    assert oracle.cosines(found.transform(unseen), extended).min() >= 0.98


def grid() -> tuple[sp.csr_matrix, np.ndarray]:
    points = np.stack(np.meshgrid(np.arange(14), np.arange(10), indexing="ij"), -1).reshape(-1, 2) / 5
    return sp.kronsum(sp.csr_matrix(spectral.path(10)), sp.csr_matrix(spectral.path(14))).tocsr(), points


@pytest.mark.parametrize("steps", [1, 3])
def test_grid_and_path_have_their_laplacian_spectrum(steps: int) -> None:
    path = sp.csr_matrix(spectral.path(100)), np.linspace(-1, 1, 100)[:, None]
    for adjacency, points in (grid(), path):
        values, functions, degrees = oracle.walk(adjacency.toarray(), 7, steps)
        found = NeuralEigenmap(6, pairs=adjacency, walk_steps=steps, **QUICK).fit(points)
        np.testing.assert_allclose(1 - found.eigenvalues_, 1 - values[1:], rtol=0.01)
        assert oracle.cosines(found.transform(points), functions[:, 1:], degrees).min() >= 0.99


def test_outputs_fitted_to_eigenvectors() -> None:
    """Here training alone must do it: the last layer is only ordered, not solved over the hidden units."""
    adjacency, points = grid()
    values, functions, degrees = oracle.walk(adjacency.toarray(), 5, 1)
    settings = {"span": "outputs", "max_steps": 300, "hidden": 96, "batch_size": 128, "lr": 1e-2, "random_state": 0}
    found = NeuralEigenmap(4, pairs=adjacency, solver="eigenvectors", **settings).fit(points)
    np.testing.assert_allclose(1 - found.eigenvalues_, 1 - values[1:], rtol=0.02)
    assert oracle.cosines(found.transform(points), functions[:, 1:], degrees).min() >= 0.995


def test_functions_to_fit_leave_out_the_constant_and_lonely_nodes() -> None:
    """A triangle, a path of four and a node alone: the indicators of the pieces hold the constant as a sum."""
    edges = np.array([[0, 1], [1, 2], [0, 2], [4, 5], [5, 6], [6, 7]])
    with pytest.warns(GraphWarning, match="1 node"):
        adjacency = graph_from_edges(edges, 8).adjacency
    degrees = np.asarray(adjacency.sum(1)).ravel()
    law = degrees / degrees.sum()
    functions = smoothest_functions(adjacency, 9, torch.device("cpu")).double().numpy()
    assert (functions[3] == 0).all()
    assert (functions[:, 6:] == 0).all()  # seven nodes less the constant
    np.testing.assert_allclose(law @ functions, 0, atol=1e-6)
    np.testing.assert_allclose((functions.T * law) @ functions, np.diag([1.0] * 6 + [0] * 3), atol=1e-5)
    triangle = np.where(np.arange(8) < 3, 0.5, -0.5)
    np.testing.assert_allclose(np.abs(np.corrcoef(functions[law > 0, 0], triangle[law > 0])[0, 1]), 1, atol=1e-6)


def test_cycle_has_fourier_pairs() -> None:
    angle = 2 * np.pi * np.arange(200) / 200
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = NeuralEigenmap(8, pairs=sp.csr_matrix(spectral.cycle(200)), **QUICK).fit(points)
    order = np.repeat(np.arange(1, 5), 2)
    np.testing.assert_allclose(1 - found.eigenvalues_, 1 - np.cos(2 * np.pi * order / 200), rtol=0.01)
    phi = found.transform(points)
    for n in range(1, 5):
        pair = np.sqrt(2) * np.stack([np.cos(n * angle), np.sin(n * angle)], axis=1)
        assert np.linalg.svd(pair.T @ phi[:, 2 * n - 2 : 2 * n] / 200)[1].min() >= 0.99


def test_blocks_are_found_where_features_say_nothing() -> None:
    """Twenty numbers of noise name a node, no more: the untrained span has none of the blocks (|cos| .13), so training must."""
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(3), 80)
    upper = np.triu(rng.random((240, 240)) < np.where(block[:, None] == block, 0.3, 0.03), 1)
    adjacency = (upper | upper.T).astype(float)
    points = rng.standard_normal((240, 20))
    values, functions, degrees = oracle.walk(adjacency, 3)
    found = NeuralEigenmap(2, pairs=sp.csr_matrix(adjacency), max_steps=300, hidden=128, random_state=0).fit(points)
    np.testing.assert_allclose(found.eigenvalues_, values[1:], rtol=0.01)
    assert oracle.cosines(found.transform(points), functions[:, 1:], degrees).min() >= 0.99


@pytest.mark.slow
def test_neighbour_graph_of_digits() -> None:
    """Measured, 2,000 steps: |cos| .999 on the rows given, .993 on 397 others beside Nystrom's formula."""
    images = load_digits().data / 16
    order = np.random.default_rng(0).permutation(len(images))
    seen, unseen = images[order[:1400]], images[order[1400:]]
    graph = neighbor_graph(seen, 30, metric="euclidean")
    basis = laplacian_eigenbasis(graph, 11, "random_walk")
    found = NeuralEigenmap(10, kernel=graph, max_steps=2000, random_state=0).fit(seen)
    np.testing.assert_allclose(found.eigenvalues_, 1 - basis.eigenvalues_K[1:], rtol=0.01)
    functions = basis.eigenvectors_NK[:, 1:].numpy()
    assert oracle.cosines(found.transform(seen), functions, graph.degrees).min() >= 0.99
    extended = nystrom_extension(graph, basis, unseen)[:, 1:].numpy()
    assert oracle.cosines(found.transform(unseen), extended).min() >= 0.985


def test_a_kernel_of_the_wrong_sign_is_named() -> None:
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    settings = {"max_steps": 5, "random_state": 0}
    for scale in (1.0, 1e-6):
        for negative in (-scale * np.eye(40), lambda a, b, scale=scale: -scale * rbf_kernel(a, b, gamma=0.3)):
            with pytest.warns(IdentifiabilityWarning, match="no positive eigenvalues") as caught:
                NeuralEigenmap(4, kernel=negative, **settings).fit(x)
            assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            NeuralEigenmap(4, kernel=scale * np.eye(40), **settings).fit(x)
            NeuralEigenmap(4, kernel=-scale * np.eye(40), shift=scale, **settings).fit(x)


def test_indefinite_kernel_needs_its_shift() -> None:
    """Eigenvalues 1 and -0.6 among zeros: asked for all of them, it says which shift the last one needs."""
    x = np.random.default_rng(0).standard_normal((20, 5))
    even, odd = np.ones(20), np.tile([1.0, -1.0], 10)
    matrix = np.outer(even, even) - 0.6 * np.outer(odd, odd)
    settings = {"kernel": matrix, "max_steps": 5, "random_state": 0}
    with pytest.warns(IdentifiabilityWarning, match=r"set shift to 0\.6"):
        NeuralEigenmap(20, **settings).fit(x)
    found = NeuralEigenmap(20, shift=0.6, **settings).fit(x)
    np.testing.assert_allclose(found.eigenvalues_[[0, -1]], [1, -0.6], rtol=1e-6)
    assert oracle.cosines(found.transform(x)[:, -1:], odd[:, None]) > 0.999
