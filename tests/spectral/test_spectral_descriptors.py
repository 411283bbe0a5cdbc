"""Each descriptor against its written definition, and a contract that all keep."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.spectral import (
    Eigenbasis,
    NeighborGraph,
    WaveEnergies,
    geodesic_distances,
    geodesic_similarities,
    heat_kernel_signature,
    heat_kernel_to_anchors,
    heat_times,
    label_indicators,
    laplacian_eigenbasis,
    laplacian_of,
    latent_distances,
    neighbor_graph,
    unit_columns,
    wave_energies,
    wave_kernel_signature,
)
from oracles import spectral as oracle

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(50) % 4
ANCHORS = torch.tensor([3, 9, 20])
Descriptor = Callable[[Tensor, NeighborGraph, Eigenbasis, Tensor, Tensor], Tensor]
DESCRIPTORS: dict[str, Descriptor] = {
    "geodesic_distances": lambda x, graph, basis, anchors, labels: geodesic_distances(graph, anchors),
    "geodesic_similarities": lambda x, graph, basis, anchors, labels: geodesic_similarities(graph, anchors),
    "latent_distances": lambda x, graph, basis, anchors, labels: latent_distances(x, anchors),
    "euclidean": lambda x, graph, basis, anchors, labels: latent_distances(x, anchors, "euclidean"),
    "label_indicators": lambda x, graph, basis, anchors, labels: label_indicators(labels),
    "laplacian_of": lambda x, graph, basis, anchors, labels: laplacian_of(graph, label_indicators(labels)),
    "heat_kernel_signature": lambda x, graph, basis, anchors, labels: heat_kernel_signature(
        basis, heat_times(5, basis)
    ),
    "heat_kernel_to_anchors": lambda x, graph, basis, anchors, labels: heat_kernel_to_anchors(
        basis, anchors, heat_times(4, basis)
    ),
    "wave_kernel_signature": lambda x, graph, basis, anchors, labels: wave_kernel_signature(
        basis, wave_energies(10, basis)
    ),
}
OF_A_BASIS = ["heat_kernel_signature", "heat_kernel_to_anchors", "wave_kernel_signature"]


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_finite_and_carried_along_by_a_permutation_of_the_rows(name: str) -> None:
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    graph, moved = neighbor_graph(X, 6), neighbor_graph(X[order], 6)
    bases = laplacian_eigenbasis(graph, 8), laplacian_eigenbasis(moved, 8)
    plain = DESCRIPTORS[name](X, graph, bases[0], ANCHORS, LABELS)
    after = DESCRIPTORS[name](X[order], moved, bases[1], place[ANCHORS], LABELS[order])
    assert plain.ndim == 2
    assert torch.isfinite(plain).all()
    torch.testing.assert_close(after, plain[order], atol=1e-9, rtol=1e-9)


def torus(k: int) -> Eigenbasis:
    one = sp.csr_matrix(oracle.cycle(12))
    return laplacian_eigenbasis(sp.kronsum(one, one), k)


@pytest.mark.parametrize("name", OF_A_BASIS)
def test_signs_and_rotations_inside_eigenspaces_change_nothing(name: str) -> None:
    basis = torus(21)
    assert basis.groups[-1] == (13, 21)  # ends between two eigenspaces
    random = torch.Generator().manual_seed(0)
    for start, stop in basis.groups:
        rotation = torch.linalg.qr(torch.randn(stop - start, stop - start, generator=random, dtype=torch.float64)).Q
        basis.eigenvectors_NK[:, start:stop] @= rotation
    flat = DESCRIPTORS[name](X, None, basis, ANCHORS, LABELS)
    torch.testing.assert_close(flat, DESCRIPTORS[name](X, None, torus(21), ANCHORS, LABELS), atol=1e-12, rtol=1e-10)
    if name != "heat_kernel_to_anchors":  # all nodes of a torus are alike
        torch.testing.assert_close(flat, flat[:1].expand_as(flat), atol=1e-12, rtol=0)


def test_geodesics_equal_floyd_warshall() -> None:
    graph = neighbor_graph(X, 5)
    expected = oracle.shortest_paths(graph.lengths.toarray().astype(float))[:, [3, 9]]
    np.testing.assert_allclose(geodesic_distances(graph, torch.tensor([3, 9])), expected, atol=1e-12)
    for wrong in (torch.tensor([50]), torch.tensor([-1]), torch.tensor([1.0]), torch.tensor([]), torch.tensor(3)):
        with pytest.raises(InputError, match="anchors"):
            geodesic_distances(graph, wrong)


def test_geodesic_similarities_are_blind_to_units_and_zero_where_no_path_leads() -> None:
    graph, larger = neighbor_graph(X, 5, "euclidean"), neighbor_graph(100 * X, 5, "euclidean")
    similar = geodesic_similarities(graph, ANCHORS)
    torch.testing.assert_close(geodesic_similarities(larger, ANCHORS), similar, rtol=1e-5, atol=1e-6)
    distances = geodesic_distances(graph, ANCHORS)
    torch.testing.assert_close(geodesic_similarities(graph, ANCHORS, scale=1.0), torch.exp(-distances.square()))
    assert (similar[ANCHORS].diagonal() == 1).all()
    assert similar[distances > 0].median() == pytest.approx(np.exp(-1), rel=0.05)
    apart = neighbor_graph(torch.cat([X, X + 50]), 5, "euclidean", disconnected="keep")
    assert (geodesic_similarities(apart, ANCHORS)[50:] == 0).all()
    with pytest.raises(InputError, match="scale above 0"):
        geodesic_similarities(graph, ANCHORS, scale=0.0)


def test_latent_distances_equal_their_definition() -> None:
    unit = torch.from_numpy(oracle.unit_rows(X.numpy()))
    torch.testing.assert_close(latent_distances(X, ANCHORS), 1 - unit @ unit[ANCHORS].T)
    torch.testing.assert_close(latent_distances(X, ANCHORS, "euclidean"), (X[:, None] - X[ANCHORS]).norm(dim=2))
    assert latent_distances(X.float().numpy(), ANCHORS).dtype == torch.float32
    close = torch.tensor([[1.0, 0.0], [1.0, 1e-5]])
    assert latent_distances(close, torch.tensor([0]))[1, 0] == pytest.approx(5e-11)  # 1 - cos in float32 is 0


def test_latent_distances_refuse() -> None:
    with pytest.raises(ShapeError, match="rows of shape"):
        latent_distances(X[0], ANCHORS)
    with pytest.raises(InputError, match="name one"):
        latent_distances(X, ANCHORS, "angular")
    with pytest.raises(NonFiniteError, match="finite rows"):
        latent_distances(X / 0, ANCHORS)
    with pytest.raises(InputError, match="no direction"):
        latent_distances(0 * X, ANCHORS)
    with pytest.raises(InputError, match="anchors"):
        latent_distances(X, torch.tensor([50]))


def test_labels() -> None:
    labels = [5, 2, 2, 9]
    expected = torch.tensor([[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(label_indicators(labels), expected)
    torch.testing.assert_close(label_indicators(np.array(labels), [9, 2]), expected[:, [2, 0]])
    with pytest.raises(InputError, match=r"no row has label \[3\]"):
        label_indicators(labels, [2, 3])
    with pytest.raises(InputError, match="each class once"):
        label_indicators(labels, [2, 2])
    with pytest.raises(InputError, match="whole-numbered"):
        label_indicators(torch.tensor([1.0]))


def test_laplacian_equals_the_dense_one() -> None:
    weights = sp.block_diag([oracle.path(6), np.zeros((1, 1))]).tocsr()
    functions = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = oracle.normalized_laplacian(oracle.path(6)) @ functions[:6].numpy()
    got = laplacian_of(weights, functions)
    np.testing.assert_allclose(got[:6], expected, atol=1e-14)
    assert (got[6] == 0).all()
    assert laplacian_of(weights, functions.float()).dtype == torch.float32
    with pytest.raises(ShapeError, match="functions"):
        laplacian_of(weights, functions[:3])


def test_signatures_equal_their_sums() -> None:
    basis = laplacian_eigenbasis(neighbor_graph(X, 5), 8)
    values, vectors = basis.eigenvalues_K.numpy(), basis.eigenvectors_NK.numpy()
    heat = heat_kernel_signature(basis, torch.tensor([2.0]))[:, 0]
    np.testing.assert_allclose(heat, oracle.heat_kernel_signature(values, vectors, 2.0), rtol=1e-12)
    wave = wave_kernel_signature(basis, WaveEnergies(torch.tensor([-1.5]), 0.4))[:, 0]
    np.testing.assert_allclose(wave, oracle.wave_kernel_signature(values, vectors, -1.5, 0.4), rtol=1e-12)
    landmarks = heat_kernel_to_anchors(basis, ANCHORS, torch.tensor([1.0, 3.0]))
    kernel = (vectors * np.exp(-3.0 * values)) @ vectors[9]
    np.testing.assert_allclose(landmarks[:, 3], kernel, rtol=1e-12)  # second anchor, second time


def test_signatures_refuse() -> None:
    basis = laplacian_eigenbasis(neighbor_graph(X, 5), 8)
    for times in ([0.0], [float("inf")], []):
        with pytest.raises(InputError, match="times above 0"):
            heat_kernel_signature(basis, torch.tensor(times))
    for energies in (WaveEnergies(torch.tensor([0.0]), 0.0), WaveEnergies(torch.tensor([]), 1.0)):
        with pytest.raises(InputError, match="see wave_energies"):
            wave_kernel_signature(basis, energies)
    pieces = laplacian_eigenbasis(sp.block_diag([oracle.path(3)] * 3), 3)
    with pytest.raises(InputError, match="3 eigenvalues are zero"):
        heat_times(3, pieces)
    with pytest.raises(InputError, match="at least one basis"):
        wave_energies(3)


@pytest.mark.parametrize("n", [1, 2, 10, 27, 28, 100])
def test_wave_energies_never_run_backwards_nor_past_the_ends(n: int) -> None:
    basis = laplacian_eigenbasis(neighbor_graph(X, 5), 8)
    low, high = basis.eigenvalues_K[1].log(), basis.eigenvalues_K[-1].log()
    energies = wave_energies(n, basis)
    assert len(energies.energies_P) == n
    assert (energies.energies_P.diff() > 0).all()
    assert low < energies.energies_P[0] <= energies.energies_P[-1] < high
    if n >= 56:
        assert energies.sigma == pytest.approx(float(7 * (high - low) / n))


def test_two_spaces_share_one_scale() -> None:
    bases = [laplacian_eigenbasis(neighbor_graph(x, 5), 8) for x in (X, X.square())]
    spectra = torch.cat([basis.eigenvalues_K[1:] for basis in bases])
    times = heat_times(3, *bases)
    assert times[0] == pytest.approx(4 * np.log(10) / float(spectra.max()))
    assert times[-1] == pytest.approx(4 * np.log(10) / float(spectra.min()))
    assert times.dtype == torch.float64
    one, two = wave_energies(40, *bases), wave_energies(40, *bases[::-1])
    torch.testing.assert_close(one.energies_P, two.energies_P)
    far = wave_kernel_signature(bases[0], WaveEnergies(one.energies_P + 500, 0.1))
    torch.testing.assert_close(far[:, 0], bases[0].eigenvectors_NK[:, -1].square())  # no underflow to 0 / 0


def test_unit_columns() -> None:
    mass = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    functions = torch.cat([X, torch.zeros(50, 1, dtype=torch.float64)], 1)
    for weights in (mass, torch.ones_like(mass)):
        unit = unit_columns(functions, weights)
        norms = (weights[:, None] * unit.square()).sum(0)
        torch.testing.assert_close(norms, torch.tensor([1, 1, 1, 0], dtype=torch.float64))
    torch.testing.assert_close(unit_columns(functions), unit)
    with pytest.raises(ShapeError, match="mass"):
        unit_columns(functions, mass[:3])
