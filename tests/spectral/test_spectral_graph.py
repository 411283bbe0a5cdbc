"""Neighbour graphs: against scikit-learn, their symmetries, pieces and bridges, and every refusal."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.neighbors import NearestNeighbors

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.spectral import PAPER_GRAPHS, neighbor_graph
from neigenmaps.spectral.graph import DUPLICATE_FLOOR, KERNELS
from neigenmaps.spectral.neighbors import nearest_neighbors, point_cloud
from oracles import spectral as oracle


def cloud(n: int = 60, width: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_clusters() -> torch.Tensor:
    return torch.cat([cloud(20), cloud(20, seed=1) + 40])


def dense(matrix: sp.csr_matrix) -> np.ndarray:
    return matrix.toarray().astype(np.float64)


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_equal_those_from_scikit_learn_neighbours(metric: str, kernel: str) -> None:
    x = cloud().numpy() + 3
    rows = oracle.unit_rows(x) if metric == "angular" else x
    distances, index = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(rows).kneighbors()
    graph = neighbor_graph(x, 7, metric, kernel)
    np.testing.assert_allclose(dense(graph.adjacency), oracle.adjacency(distances, index, kernel), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(dense(graph.lengths), oracle.adjacency(distances, index, "distance"), rtol=1e-6)
    assert (graph.recall, graph.n_duplicates, graph.bridges) == (1.0, 0, ())


def test_adjacency_is_symmetric_float32_csr_without_a_diagonal() -> None:
    graph = neighbor_graph(cloud().float(), 5)
    adjacency = graph.adjacency
    assert adjacency.format == "csr"
    assert adjacency.dtype == np.float32
    assert adjacency.has_sorted_indices
    assert (adjacency != adjacency.T).nnz == 0
    assert (adjacency.diagonal() == 0).all()
    assert (graph.lengths.indices == adjacency.indices).all()
    np.testing.assert_allclose(graph.degrees, dense(adjacency).sum(1), rtol=1e-12)


def test_near_neighbours_far_from_the_origin_are_not_lost_to_rounding() -> None:
    x = cloud(200, 8)
    near, far = neighbor_graph(x, 6, "euclidean"), neighbor_graph(x + 1e6, 6, "euclidean")
    np.testing.assert_allclose(dense(far.adjacency), dense(near.adjacency), rtol=1e-5)


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
def test_permuted_rows_permute_the_graph(metric: str) -> None:
    x, order = cloud(), np.random.default_rng(0).permutation(60)
    plain, moved = neighbor_graph(x, 6, metric), neighbor_graph(x[order], 6, metric)
    np.testing.assert_allclose(dense(moved.adjacency), dense(plain.adjacency)[np.ix_(order, order)], rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_rotation_changes_nothing(kernel: str) -> None:
    rotation = torch.linalg.qr(cloud(5, 5, seed=2)).Q
    for metric in ("angular", "euclidean"):
        plain, turned = (neighbor_graph(x, 6, metric, kernel) for x in (cloud(), cloud() @ rotation))
        np.testing.assert_allclose(dense(turned.adjacency), dense(plain.adjacency), rtol=1e-6)


def test_angular_is_blind_to_the_length_of_rows() -> None:
    lengths = torch.logspace(-150, 150, 60, dtype=torch.float64)[:, None]
    plain, scaled = neighbor_graph(cloud(), 6), neighbor_graph(cloud() * lengths, 6)
    np.testing.assert_allclose(dense(scaled.adjacency), dense(plain.adjacency), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gaussian_weights_are_blind_to_the_scale_of_the_data(scale: float) -> None:
    plain, scaled = (neighbor_graph(x, 6, "euclidean") for x in (cloud(), cloud() * scale))
    np.testing.assert_allclose(dense(scaled.adjacency), dense(plain.adjacency), rtol=1e-6)


def test_constant_features_change_no_distance() -> None:
    constant = torch.full((60, 2), 7.0, dtype=torch.float64)
    plain = neighbor_graph(cloud(), 6, "euclidean")
    wider = neighbor_graph(torch.cat([cloud(), constant], 1), 6, "euclidean")
    np.testing.assert_allclose(dense(wider.adjacency), dense(plain.adjacency), rtol=1e-6)


def test_kinds_of_input_agree() -> None:
    x = cloud().float()
    plain = neighbor_graph(x, 6)
    for other in (x.numpy(), x.double(), x.clone().requires_grad_()):
        np.testing.assert_allclose(dense(neighbor_graph(other, 6).adjacency), dense(plain.adjacency), rtol=1e-5)
    assert neighbor_graph(torch.arange(40).reshape(20, 2), 3, "euclidean").n_components == 1  # integers
    assert neighbor_graph(x.half(), 6).adjacency.dtype == np.float32


@pytest.mark.parametrize("kernel", KERNELS)
def test_duplicate_rows_are_joined_at_the_floor(kernel: str) -> None:
    x = torch.cat([cloud(), cloud()[:4]])
    graph = neighbor_graph(x, 6, "euclidean", kernel)
    assert graph.n_duplicates == 8
    assert np.isfinite(graph.adjacency.data).all()
    for i in range(4):
        assert graph.adjacency[i, 60 + i] > 0
        assert graph.lengths[i, 60 + i] == pytest.approx(graph.floor)
    assert graph.floor == pytest.approx(DUPLICATE_FLOOR * np.median(graph.reach_N), rel=0.5)


def test_more_copies_than_neighbours_are_pieces_that_get_bridged() -> None:
    x = torch.cat([cloud(), cloud()[:1].repeat(20, 1), cloud()[1:2].repeat(20, 1)])
    graph = neighbor_graph(x, 4, "euclidean", "inverse_distance")
    assert graph.n_duplicates == 42
    assert graph.n_components == 1
    assert len(graph.bridges) == graph.n_components_found - 1 > 0


def test_two_heaps_of_copies_alone_still_make_a_graph() -> None:
    graph = neighbor_graph(cloud(2).repeat_interleave(10, 0), 3, "euclidean", "gaussian")
    assert graph.n_duplicates == 20
    assert graph.n_components == 1


def test_pieces_are_joined_by_the_nearest_pair_and_weakly() -> None:
    x = two_clusters()
    graph = neighbor_graph(x, 4, "euclidean")
    assert (graph.n_components_found, graph.n_components, len(graph.bridges)) == (2, 1, 1)
    bridge = graph.bridges[0]
    between = torch.cdist(x[:20], x[20:])
    i, j = divmod(int(between.argmin()), 20)
    assert (bridge.i, bridge.j) == (i, j + 20)
    kept = neighbor_graph(x, 4, "euclidean", disconnected="keep")
    assert 0 < bridge.weight < kept.adjacency.data.min()
    assert graph.adjacency[i, j + 20] == graph.adjacency[j + 20, i] == np.float32(bridge.weight)
    assert graph.lengths[i, j + 20] == pytest.approx(float(between.min()), rel=1e-6)
    assert graph.adjacency.nnz == kept.adjacency.nnz + 2


def test_bridges_are_a_minimum_spanning_tree_of_the_pieces() -> None:
    x = torch.cat([cloud(15, 3, seed=s) * 0.1 + 5 * cloud(6, 3, seed=9)[s] for s in range(6)])
    graph = neighbor_graph(x, 3, "euclidean")
    kept = neighbor_graph(x, 3, "euclidean", disconnected="keep")
    labels = sp.csgraph.connected_components(kept.adjacency)[1]
    pieces = labels.max() + 1
    gaps = np.zeros((pieces, pieces))
    for a in range(pieces):
        for b in range(pieces):
            gaps[a, b] = float(torch.cdist(x[labels == a], x[labels == b]).min()) if a != b else 0
    tree = sp.csgraph.minimum_spanning_tree(gaps)
    spans = sorted(float(graph.lengths[b.i, b.j]) for b in graph.bridges)
    np.testing.assert_allclose(spans, sorted(tree.data), rtol=1e-5)


def test_hundreds_of_heaps_are_joined_by_a_spanning_tree_even_where_spans_tie() -> None:
    corners = torch.cartesian_prod(*[torch.arange(4.0)] * 4)  # 256 heaps; the nearest ones all at distance 1
    graph = neighbor_graph(corners.repeat(5, 1), 3, "euclidean", "uniform")
    assert (graph.n_components_found, graph.n_components, len(graph.bridges)) == (256, 1, 255)
    assert sp.csgraph.connected_components(graph.adjacency)[0] == 1
    np.testing.assert_allclose([float(graph.lengths[b.i, b.j]) for b in graph.bridges], 1, rtol=1e-6)


def test_a_search_by_blocks_bridges_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([cloud(17, 3, seed=s) * 0.1 + 5 * cloud(30, 3, seed=9)[s] for s in range(30)])
    whole = neighbor_graph(x, 3, "euclidean")
    assert whole.n_components_found >= 30
    monkeypatch.setattr("neigenmaps.spectral.components.CHUNK_ELEMENTS", 7 * len(x))
    assert neighbor_graph(x, 3, "euclidean").bridges == whole.bridges


def test_pieces_are_kept_or_refused_on_request() -> None:
    kept = neighbor_graph(two_clusters(), 4, "euclidean", disconnected="keep")
    assert (kept.n_components, kept.bridges) == (2, ())
    with pytest.raises(InputError, match="2 pieces at n_neighbors=4"):
        neighbor_graph(two_clusters(), 4, "euclidean", disconnected="refuse")
    assert neighbor_graph(cloud(), 10, disconnected="refuse").n_components == 1


def test_approximate_search_finds_the_same_neighbours_and_tells_its_recall() -> None:
    x = cloud(2000, 16)
    exact, near = (nearest_neighbors(point_cloud(x, "angular"), 15, how) for how in ("exact", "approximate"))
    shared = np.mean([len(np.intersect1d(a, b)) / 15 for a, b in zip(exact.index_NK, near.index_NK, strict=True)])
    assert shared > 0.98
    assert near.recall == pytest.approx(shared, abs=0.02)
    assert neighbor_graph(x[:300], 15, method="approximate").recall > 0.98


def test_recall_falls_where_the_search_is_poor(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(points: np.ndarray, k: int) -> np.ndarray:
        found = np.random.default_rng(0).integers(0, len(points), (len(points), k))
        found[:5] = -1
        return found

    monkeypatch.setattr("neigenmaps.spectral.neighbors._in_near_cells", careless)
    poor = nearest_neighbors(point_cloud(cloud(500), "euclidean"), 5, "approximate")
    assert poor.recall < 0.2
    assert (poor.index_NK[:5] == nearest_neighbors(point_cloud(cloud(500), "euclidean"), 5).index_NK[:5]).all()


def test_paper_settings_run() -> None:
    for settings in PAPER_GRAPHS.values():
        graph = neighbor_graph(cloud(400), **settings)
        assert graph.settings == settings
        assert settings["n_neighbors"] == 299  # 300 with the row itself
    assert PAPER_GRAPHS["retrieval"]["kernel"] == "inverse_distance"


@pytest.mark.parametrize("n_neighbors", [0, -1, 60, 100])
def test_neighbours_out_of_range_are_refused(n_neighbors: int) -> None:
    with pytest.raises(InputError, match="1 <= n_neighbors < 60"):
        neighbor_graph(cloud(), n_neighbors)


def test_all_other_rows_may_be_neighbours() -> None:
    assert neighbor_graph(cloud(), 59, kernel="uniform").adjacency.nnz == 60 * 59


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_with_their_row(bad: float) -> None:
    x = cloud()
    x[7, 2] = bad
    with pytest.raises(NonFiniteError, match="1 of 60, first in row 7"):
        neighbor_graph(x, 5)


def test_zero_rows_have_no_angle() -> None:
    x = cloud()
    x[3] = x[9] = 0
    with pytest.raises(InputError, match="2 rows are all zero, first row 3"):
        neighbor_graph(x, 5)
    assert neighbor_graph(x, 5, "euclidean").n_duplicates == 2


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
def test_equal_rows_are_refused(metric: str) -> None:
    with pytest.raises(InputError, match="equal up to rounding"):
        neighbor_graph(torch.full((20, 3), 0.1), 4, metric)


@pytest.mark.parametrize("shape", [(5,), (0, 3), (4, 0), (2, 3, 4)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected rows"):
        neighbor_graph(torch.zeros(shape), 1)


@pytest.mark.parametrize(
    "arguments", [{"metric": "cosine"}, {"kernel": "rbf"}, {"method": "fast"}, {"disconnected": "join"}]
)
def test_unknown_names_are_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(InputError, match="name one of them"):
        neighbor_graph(cloud(), 5, **arguments)


def test_numbers_that_are_not_real_are_refused() -> None:
    with pytest.raises(InputError, match="real numbers"):
        neighbor_graph(torch.ones(4, 2, dtype=torch.bool), 1)
