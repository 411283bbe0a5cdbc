"""Graphs from every source, what is mended and counted, what is refused; correct and smooth against plain loops."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import networkx
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from neigenmaps.errors import DataError, GraphWarning, InputError, NonFiniteError, ShapeError
from neigenmaps.graphs import (
    Graph,
    NeuralEigenmap,
    as_graph,
    correct_and_smooth,
    graph_from_adjacency,
    graph_from_edges,
    read_graph,
)
from neigenmaps.graphs.operators import WalkOperator
from oracles import graphs as oracle

pytestmark = pytest.mark.filterwarnings("ignore::neigenmaps.errors.GraphWarning")  # most graphs here have a lone node

EDGES = np.array([[0, 1], [1, 2], [2, 0], [2, 3]])
DENSE = np.array([[0, 1, 1, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
FEATURES = np.arange(10, dtype=np.float32).reshape(5, 2)
LABELS = np.array([0, 1, 0, 1, -1])


def same(graph: Graph) -> None:
    np.testing.assert_array_equal(graph.adjacency.toarray(), DENSE)
    np.testing.assert_array_equal(graph.edges(), [[0, 1], [0, 2], [1, 2], [2, 3]])
    assert (len(graph), graph.n_edges, graph.isolated.tolist()) == (5, 4, [4])


def test_every_form_gives_the_same_graph(tmp_path: Path) -> None:
    same(graph_from_edges(EDGES, 5))
    same(graph_from_edges(torch.from_numpy(EDGES.astype(np.int32)), 5))
    same(as_graph(sp.csr_matrix(np.triu(DENSE))))
    same(graph_from_adjacency(DENSE))
    drawn = networkx.Graph()
    drawn.add_nodes_from((n, {"x": FEATURES[n], "y": int(LABELS[n])}) for n in range(5))
    drawn.add_edges_from(EDGES.tolist())
    mask = torch.tensor([True, False, True, False, False])
    both_ways = torch.from_numpy(np.concatenate([EDGES, EDGES[:, ::-1]]).T.copy())
    data = SimpleNamespace(
        edge_index=both_ways,
        num_nodes=5,
        x=torch.from_numpy(FEATURES),
        y=torch.from_numpy(LABELS)[:, None],
        train_mask=mask,
    )
    np.savez(tmp_path / "edges.npz", edges=EDGES, x=FEATURES, labels=LABELS, train_idx=[0, 2])
    whole = sp.csr_matrix(FEATURES)
    triangle = sp.csr_matrix(np.triu(DENSE))
    np.savez(
        tmp_path / "adjacency.npz",
        adj_indptr=triangle.indptr,
        adj_indices=triangle.indices,
        adj_shape=triangle.shape,
        x_indptr=whole.indptr,
        x_indices=whole.indices.astype(np.uint16),
        x_data=whole.data,
        x_shape=whole.shape,
        labels=LABELS,
    )
    for given in (drawn, data, tmp_path / "edges.npz", str(tmp_path / "adjacency.npz")):
        graph = as_graph(given)
        same(graph)
        assert as_graph(graph) is graph
        features = graph.features.toarray() if sp.issparse(graph.features) else graph.features
        np.testing.assert_array_equal(features, FEATURES)
        np.testing.assert_array_equal(graph.labels_N, LABELS)
    assert (
        as_graph(data).splits["train"].tolist() == read_graph(tmp_path / "edges.npz").splits["train"].tolist() == [0, 2]
    )


class OpenGraph:
    """What OGB's `NodePropPredDataset` looks like: both directions, labels in a column, rows of a split by name."""

    labels: np.ndarray = LABELS[:, None]

    def __getitem__(self, number: int) -> tuple[dict, np.ndarray]:
        edges = np.concatenate([EDGES, EDGES[:, ::-1]]).T
        return {"edge_index": edges, "num_nodes": 5, "node_feat": FEATURES, "edge_feat": None}, self.labels

    def get_idx_split(self) -> dict[str, np.ndarray]:
        return {"train": np.array([0, 2]), "valid": np.array([1]), "test": np.array([3])}


def test_open_graph_benchmark() -> None:
    given = OpenGraph()
    graph = as_graph(given)
    same(graph)
    np.testing.assert_array_equal(graph.features, FEATURES)
    np.testing.assert_array_equal(graph.labels_N, LABELS)
    assert {name: rows.tolist() for name, rows in graph.splits.items()} == {"train": [0, 2], "val": [1], "test": [3]}
    given.labels = np.where(LABELS < 0, np.nan, LABELS)[:, None]  # as in ogbn-papers100M
    np.testing.assert_array_equal(as_graph(given).labels_N, LABELS)
    given.labels = np.zeros((5, 3), int)  # as in ogbn-proteins
    assert as_graph(given).labels_N is None


def test_pytorch_geometric_itself() -> None:
    data = pytest.importorskip("torch_geometric.data", exc_type=ImportError)
    both_ways = torch.from_numpy(np.concatenate([EDGES, EDGES[:, ::-1]]).T.copy())
    mask = torch.tensor([True, False, True, False, False])
    x, y = torch.from_numpy(FEATURES), torch.from_numpy(LABELS)
    graph = as_graph(data.Data(x=x, edge_index=both_ways, y=y, train_mask=mask))
    same(graph)
    np.testing.assert_array_equal(graph.features, FEATURES)
    np.testing.assert_array_equal(graph.labels_N, LABELS)
    assert {name: rows.tolist() for name, rows in graph.splits.items()} == {"train": [0, 2]}
    bare = as_graph(data.Data(edge_index=both_ways, num_nodes=5))
    assert bare.features is None
    assert bare.labels_N is None


def test_loops_and_repeated_edges_are_dropped_and_counted() -> None:
    messy = np.concatenate([EDGES, EDGES[:2, ::-1], EDGES[:1], EDGES[:1], EDGES[1:2, ::-1], [[3, 3]]])
    graph = graph_from_edges(messy, 5)
    same(graph)
    assert (graph.n_self_loops, graph.n_duplicates) == (1, 3)  # an edge given once each way is no repetition
    weighted = graph_from_edges([[0, 1], [1, 0], [1, 2], [0, 1]], 3, weights_E=[2.0, 5.0, 1.0, 3.0])
    np.testing.assert_array_equal(weighted.adjacency.toarray(), [[0, 5, 0], [5, 0, 1], [0, 1, 0]])
    assert (weighted.n_self_loops, weighted.n_duplicates) == (0, 1)
    alike = graph_from_edges(messy, 5, weights_E=np.full(len(messy), 2.5))
    np.testing.assert_array_equal(alike.adjacency.toarray(), 2.5 * DENSE)


def test_edges_merge_as_in_a_dictionary() -> None:
    """1,000 random edges, many of them repeated, among few nodes; weights with ties."""
    rng = np.random.default_rng(0)
    edges, weights = rng.integers(0, 25, (1000, 2)), rng.integers(1, 6, 1000).astype(float)
    dense, seen, loops, repeated = np.zeros((25, 25)), set(), 0, 0
    for (a, b), weight in zip(edges.tolist(), weights, strict=True):
        if a == b:
            loops += 1
            continue
        repeated += (a, b) in seen
        seen.add((a, b))
        dense[a, b] = dense[b, a] = max(dense[a, b], weight)
    graph = graph_from_edges(edges, 25, weights_E=weights)
    np.testing.assert_array_equal(graph.adjacency.toarray(), dense)
    plain = graph_from_edges(edges, 25)
    np.testing.assert_array_equal(plain.adjacency.toarray(), dense > 0)
    one_way = sum((b, a) not in seen for a, b in seen)
    assert 0 < one_way < len(seen)
    assert {(one.n_self_loops, one.n_duplicates, one.n_one_way) for one in (graph, plain)} == {
        (loops, repeated, one_way)
    }


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        (EDGES, ["1 node(s) without edges"]),
        ([*EDGES, [4, 4], [3, 4]], ["1 self-loop(s)"]),
        ([*EDGES, *EDGES[:, ::-1], [3, 4], [0, 1], [0, 1]], ["2 repeated edge(s)", "1 edge(s) of one direction"]),
        ([*EDGES, [0, 0], [0, 1]], ["1 self-loop(s)", "1 repeated edge(s)", "1 node(s) without edges"]),
        ([*EDGES, [3, 4]], []),
        ([*EDGES, *EDGES[:, ::-1], [3, 4], [4, 3]], []),
        ([*EDGES, [3, 4], [4, 3]], [f"{len(EDGES)} edge(s) of one direction"]),
    ],
)
def test_what_a_graph_leaves_out_is_said_once(edges: list, words: list[str], tmp_path: Path) -> None:
    edges = np.array(edges)
    np.savez(tmp_path / "graph.npz", edges=edges, num_nodes=5)
    data = SimpleNamespace(edge_index=torch.from_numpy(edges.T.copy()), num_nodes=5)
    drawn = networkx.MultiDiGraph()
    drawn.add_nodes_from(range(5))
    drawn.add_edges_from(edges.tolist())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        graph = graph_from_edges(edges, 5)
        for given in (tmp_path / "graph.npz", data, drawn):
            as_graph(given)
        as_graph(graph)  # was read before
        NeuralEigenmap(1, pairs=graph, max_steps=1, hidden=8).fit(FEATURES)
    assert {one.category for one in said} <= {GraphWarning}
    assert len(said) == (4 if words else 0)
    kinds = ("self-loop(s)", "repeated edge(s)", "of one direction", "node(s) without edges")
    for one in said:
        assert all(word in str(one.message) for word in words)
        assert sum(kind in str(one.message) for kind in kinds) == len(words)


def test_isolated_nodes_embed_by_their_features() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 3))
    ring = np.stack([np.arange(39), (np.arange(39) + 1) % 39], axis=1)
    codes = NeuralEigenmap(2, pairs=graph_from_edges(ring, 40), max_steps=5, hidden=16, random_state=0).fit_transform(
        rows
    )
    assert np.isfinite(codes[39]).all()


def test_walks_follow_the_powers_of_the_transition_matrix() -> None:
    """200,000 draws of both ends, weighted or not, beside D (D^-1 W)^t / sum W."""
    for weights in (None, np.array([1.0, 4.0, 2.0, 0.5])):
        graph = graph_from_edges(EDGES, 5, weights_E=weights)
        dense = graph.adjacency.toarray().astype(float)
        degrees = dense.sum(1)
        transition = dense / np.where(degrees > 0, degrees, 1)[:, None]
        for steps in (1, 2, 3):
            walk = WalkOperator(torch.zeros(5, 1), graph.adjacency, steps=steps, shift=0, device=torch.device("cpu"))
            first, last = walk.pairs(200_000, torch.Generator().manual_seed(0))
            counted = np.zeros((5, 5))
            np.add.at(counted, (first.numpy(), last.numpy()), 1 / 200_000)
            expected = degrees[:, None] / degrees.sum() * np.linalg.matrix_power(transition, steps)
            np.testing.assert_allclose(counted, expected, atol=5e-3)


def test_moments_of_sampled_pairs_agree_with_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 300, (3000, 2))
    graph = graph_from_edges(edges, 300)
    rows = torch.from_numpy(rng.standard_normal((300, 2)))
    walk = WalkOperator(rows, graph.adjacency, steps=2, shift=0, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    exact = walk.moments(lambda x: x.tanh(), generator)[0].expectations()
    monkeypatch.setattr("neigenmaps.graphs.operators.KEPT_NUMBERS", 1)
    sampled = walk.moments(lambda x: x.tanh(), generator)[0].expectations()
    for one, other in zip(exact, sampled, strict=True):
        torch.testing.assert_close(one, other, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"edges_E2": np.zeros((0, 2), int)}, ShapeError, "E > 0"),
        ({"edges_E2": np.zeros((3, 3), int)}, ShapeError, "E, 2"),
        ({"edges_E2": EDGES + 0.5}, ShapeError, "integers"),
        ({"edges_E2": EDGES[:3].T}, ShapeError, r"transpose it, edges.T$"),
        ({"edges_E2": EDGES[:3].T * 1.0}, ShapeError, r"transpose it, edges.T$"),
        ({"edges_E2": EDGES * 1.0}, ShapeError, r"edges.astype\(int\)$"),
        ({"edges_E2": EDGES * np.nan}, ShapeError, r"float64 \(4, 2\)$"),
        ({"edges_E2": EDGES + 2}, InputError, r"from 0 to 4, got edge \(4, 5\) in row 3: is"),
        ({"edges_E2": EDGES + 3}, InputError, r"in row \d and \d more: is"),
        ({"edges_E2": EDGES - 1}, InputError, "counting start at 0"),
        ({"edges_E2": [[1, 1], [2, 2]]}, InputError, "self-loops alone"),
        ({"weights_E": [1, 2, 3]}, InputError, "4 finite weights"),
        ({"weights_E": [1, 2, 3, -1.0]}, InputError, "above 0, got -1.0 in row 3 and 0 more"),
        ({"weights_E": [1, np.nan, 3, np.inf]}, InputError, "above 0, got nan in row 1 and 1 more"),
        ({"features": FEATURES[:4]}, ShapeError, "one row for every node"),
        ({"features": FEATURES * np.nan}, NonFiniteError, "first in row 0"),
        ({"features": sp.csr_matrix(np.where(FEATURES == 5, np.inf, FEATURES))}, NonFiniteError, "row 2"),
        ({"labels_N": LABELS[:3]}, InputError, "5 labels"),
        ({"labels_N": LABELS + 0.5}, InputError, "as integers"),
        ({"splits": {"train": [0, 9]}}, InputError, "split 'train'"),
        ({"splits": {"train": [0.5]}}, InputError, "integers"),
        ({"splits": {"train": LABELS > 0}}, InputError, r"np.flatnonzero\(mask\)"),
        ({"splits": {"train": None}}, InputError, "split 'train' as integers"),
        ({"splits": 3}, InputError, "a dictionary of row numbers"),
        ({"n_nodes": None}, InputError, "n_nodes as a whole number"),
        ({"n_nodes": 5.0}, InputError, "n_nodes as a whole number"),
        ({"weights_E": "heavy"}, InputError, "weights as real numbers"),
        ({"features": "words"}, InputError, "features as real numbers, got str"),
        ({"features": [[1.0], [2.0, 3.0]]}, InputError, "features as numbers, got list"),
    ],
)
def test_refused_graphs(arguments: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        graph_from_edges(**{"edges_E2": EDGES, "n_nodes": 5} | arguments)


def test_refused_sources(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="square"):
        graph_from_adjacency(np.ones((2, 3)))
    with pytest.raises(InputError, match="zeros alone"):
        graph_from_adjacency(np.zeros((2, 2)))
    with pytest.raises(InputError, match="an adjacency as real numbers, got NoneType"):
        graph_from_adjacency(None)
    with pytest.raises(InputError, match="expected a Graph"):
        as_graph(b"graph")
    with pytest.raises(DataError, match="npz"):
        read_graph(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="npz"):
        read_graph(tmp_path / "text.npz")
    np.savez(tmp_path / "empty.npz", x=FEATURES)
    with pytest.raises(DataError, match="expected keys 'edges'"):
        read_graph(tmp_path / "empty.npz")


def test_correct_and_smooth_is_two_propagations() -> None:
    rng = np.random.default_rng(0)
    graph = graph_from_edges(rng.integers(0, 30, (60, 2)), 31)
    dense = graph.adjacency.toarray().astype(float)
    base = rng.dirichlet(np.ones(3), 31)
    rows, classes = np.arange(8), rng.integers(0, 3, 8)
    truth = np.eye(3)[classes]
    errors = np.zeros_like(base)
    errors[rows] = truth - base[rows]
    spread = 2 * oracle.propagate(dense, errors, 0.7, 20)
    start = base + spread
    start[rows] = truth
    expected = oracle.propagate(dense, start, 0.6, 20)
    found = correct_and_smooth(
        graph,
        torch.from_numpy(base),
        torch.from_numpy(rows),
        torch.from_numpy(classes),
        correct_alpha=0.7,
        smooth_alpha=0.6,
        rounds=20,
        scale=2.0,
    )
    linked = dense.sum(1) > 0
    np.testing.assert_allclose(found[linked], expected[linked], rtol=1e-10)
    np.testing.assert_allclose(found[30], base[30])  # isolated: as it was


def test_correct_and_smooth_mends_a_classifier_that_is_wrong_in_one_block() -> None:
    rng = np.random.default_rng(0)
    block = np.repeat([0, 1], 50)
    upper = np.triu(rng.random((100, 100)) < np.where(block[:, None] == block, 0.2, 0.01), 1)
    base = torch.full((100, 2), 0.4)
    base[:, 0] = 0.6  # says 0 everywhere
    known = torch.arange(0, 100, 10)
    scores = correct_and_smooth(graph_from_adjacency(upper), base, known, torch.from_numpy(block)[known])
    assert scores.dtype == torch.float32
    assert (scores.argmax(1).numpy() == block).mean() >= 0.98


def test_refused_corrections() -> None:
    graph = graph_from_edges(EDGES, 5)
    base, rows, classes = torch.full((5, 2), 0.5), torch.tensor([0]), torch.tensor([1])
    with pytest.raises(ShapeError, match="probabilities"):
        correct_and_smooth(graph, base[:4], rows, classes)
    with pytest.raises(NonFiniteError, match="classifier"):
        correct_and_smooth(graph, base * float("nan"), rows, classes)
    with pytest.raises(InputError, match="classes in"):
        correct_and_smooth(graph, base, rows, classes + 1)
    for settings in ({"correct_alpha": 1.0}, {"smooth_alpha": None}, {"rounds": 0}, {"rounds": "9"}):
        with pytest.raises(InputError, match=f"expected {next(iter(settings))} as a"):
            correct_and_smooth(graph, base, rows, classes, **settings)
    for given in ((None, base), (graph, None), (graph, base.numpy())):
        with pytest.raises(InputError, match="a Graph and tensors of probabilities"):
            correct_and_smooth(*given, rows, classes)
