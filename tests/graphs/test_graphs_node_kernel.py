"""Nodes by their features and those around them: the kernel against loops, its eigenfunctions against eigh, refusals."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone

from neigenmaps.errors import GraphWarning, InputError, ShapeError
from neigenmaps.graphs import Graph, NeuralEigenmap, NodeKernel, graph_from_edges
from neigenmaps.graphs.node_kernel import NodeOperator
from oracles import graphs as oracle

N = 90


@pytest.fixture(scope="module")
def words() -> np.ndarray:
    """Ten words for every one of three topics, and one that nobody uses."""
    rng = np.random.default_rng(0)
    topic = np.repeat(np.arange(3), N // 3)
    x = (rng.random((N, 30)) < np.where(np.arange(30) // 10 == topic[:, None], 0.5, 0.1)).astype(np.float32)
    return np.concatenate([x, np.zeros((N, 1), np.float32)], axis=1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Edges mostly within topics; the last node has none."""
    rng = np.random.default_rng(1)
    topic = np.repeat(np.arange(3), N // 3)
    upper = np.triu(rng.random((N, N)) < np.where(topic[:, None] == topic, 0.15, 0.01), 1)
    upper[:, -1] = False
    with pytest.warns(GraphWarning, match="3 node"):
        return graph_from_edges(np.argwhere(upper), N)


@pytest.mark.parametrize("settings", [{}, {"steps": 0, "own": 0.0}, {"steps": 3, "own": 1.5, "rarity": 0.5}])
def test_the_kernel_is_that_of_its_definition(words: np.ndarray, graph: Graph, settings: dict) -> None:
    kernel = NodeKernel(graph, **settings)
    expected = oracle.node_kernel(graph.adjacency.toarray(), words, kernel.steps, kernel.own, kernel.rarity)
    for rows in (torch.from_numpy(words), sp.csr_matrix(words), torch.from_numpy(words).double()):
        factor_ND = kernel.factor(rows)
        assert factor_ND.dtype == torch.float32
        np.testing.assert_allclose(factor_ND @ factor_ND.T, expected, atol=2e-4 * np.abs(expected).max())


def test_the_network_finds_its_eigenfunctions(words: np.ndarray, graph: Graph) -> None:
    exact, vectors = np.linalg.eigh(oracle.node_kernel(graph.adjacency.toarray(), words, 2, 0.6, 0.25) / N)
    fitted = NeuralEigenmap(2, kernel=NodeKernel(graph), hidden=48, max_steps=200, batch_size=N, random_state=0)
    phi = fitted.fit_transform(words)
    np.testing.assert_allclose(fitted.eigenvalues_, exact[::-1][:2], rtol=0.01)
    np.testing.assert_allclose(phi.mean(0), 0, atol=1e-3)
    cosines = np.abs(phi.T @ vectors[:, ::-1][:, :2]) / np.sqrt(N)
    assert (np.diag(cosines) >= 0.99).all()
    for scaling, power in (("sqrt_eigenvalue", 0.5), ("eigenvalue", 1.0)):
        scaled = fitted.set_params(scaling=scaling).transform(words)
        np.testing.assert_allclose(scaled, phi * fitted.eigenvalues_**power, rtol=1e-5)
    np.testing.assert_allclose(fitted.transform(words[:7]), scaled[:7], rtol=1e-4, atol=1e-5)  # no graph is asked


def test_values_kept_or_summed_in_every_batch(words: np.ndarray, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    index = torch.tensor([5, 2, 80])
    kept = NodeOperator(torch.from_numpy(words), NodeKernel(graph), shift=0.0, device=torch.device("cpu"))
    monkeypatch.setattr("neigenmaps.graphs.node_kernel.WHOLE_NODES", N - 1)
    summed = NodeOperator(torch.from_numpy(words), NodeKernel(graph), shift=0.0, device=torch.device("cpu"))
    assert summed.kernel_NN is None
    torch.testing.assert_close(kept.block(index), summed.block(index))


def test_moments_are_those_of_the_centred_kernel_with_the_constant_added(words: np.ndarray, graph: Graph) -> None:
    rows = torch.from_numpy(words)
    operator = NodeOperator(rows, NodeKernel(graph), shift=0.0, device=torch.device("cpu"))
    dense = oracle.node_kernel(graph.adjacency.toarray(), words, 2, 0.6, 0.25) + 1
    functions = rows[:, :5].double() ** 2 + 0.3
    moments, values = operator.moments(lambda x: x[:, :5].double() ** 2 + 0.3, torch.Generator())
    torch.testing.assert_close(values, functions)
    expected = functions.numpy().T @ dense @ functions.numpy() / N**2
    np.testing.assert_allclose(moments.cross_KK / moments.pairs, expected, rtol=1e-4, atol=1e-5)


def test_shifted_and_in_small_batches_it_still_trains(words: np.ndarray, graph: Graph) -> None:
    fitted = NeuralEigenmap(
        2, kernel=NodeKernel(graph), shift=0.5, hidden=64, max_steps=30, batch_size=16, random_state=0
    )
    again = clone(fitted).set_params(random_state=0)
    np.testing.assert_array_equal(fitted.fit_transform(words), again.fit_transform(words))
    assert fitted.eigenvalues_[0] > 0.9


def test_refused_kernels(words: np.ndarray, graph: Graph) -> None:
    for name, values in {"steps": (-1, 1.5, None), "own": (-0.1, np.inf, "1"), "rarity": (-1.0, None)}.items():
        for value in values:
            with pytest.raises(InputError, match=f"{name} as a .*number of at least 0"):
                NodeKernel(graph, **{name: value})
    for bare in (np.eye(N), torch.eye(N), [[0, 1]]):
        with pytest.raises(InputError, match=r"give graph_from_edges\(edges, n_nodes\)"):
            NodeKernel(bare)
    with pytest.raises(ShapeError, match="one row of X for every node"):
        NeuralEigenmap(2, kernel=NodeKernel(graph)).fit(words[:-1])
    with pytest.raises(InputError, match="same for all"):
        NodeKernel(graph).factor(torch.ones(N, 3))
    with pytest.raises(InputError, match="got both"):
        NeuralEigenmap(2, kernel=NodeKernel(graph), pairs=graph).fit(words)
    with pytest.raises(InputError, match="solver"):
        NeuralEigenmap(2, kernel=NodeKernel(graph), solver="eigenvectors").fit(words)
