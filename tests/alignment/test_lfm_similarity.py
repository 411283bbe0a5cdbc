"""`lfm_similarity`: networks that agree, rows that do not, symmetries, the null, and every refusal."""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from neigenmaps.alignment import LFMSimilarity, lfm_similarity, similarity_basis
from neigenmaps.errors import InputError, NonFiniteError, RowMismatchError, ShapeError
from neigenmaps.spectral import Eigenbasis, laplacian_eigenbasis, neighbor_graph
from oracles import map_scores as oracle

FEW = {"n_eigenvectors": 10, "n_neighbors": 12}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=seeded(seed), dtype=torch.float64)


def clusters(n: int = 150, seed: int = 0) -> Tensor:
    return 3 * normal(6, 8, seed)[torch.arange(n) % 6] + normal(n, 8, seed + 1)


def encoded(z: Tensor, seed: int, width: int = 30) -> Tensor:
    return torch.tanh(z @ normal(z.shape[1], width, seed) / 5)


@cache
def digit_features(seed: int) -> Tensor:
    """Hidden layer, 64 wide, of a network trained on three quarters of the handwritten digits, on the others."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images).float() / 16, torch.tensor(labels)
    held_out = torch.arange(len(x)) % 4 == 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden, head = torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)
    optimiser = torch.optim.Adam([*hidden.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(hidden(x[~held_out]).relu()), y[~held_out]).backward()
        optimiser.step()
    with torch.no_grad():
        return hidden(x[held_out]).relu()


def shuffled(x: Tensor, seed: int = 0) -> Tensor:
    return x[torch.randperm(len(x), generator=seeded(seed))]


@cache
def bases() -> tuple[Eigenbasis, Eigenbasis]:
    z = clusters()
    return tuple(similarity_basis(encoded(z, seed), **FEW) for seed in (1, 2))


def test_two_seeds_of_one_network_agree_and_shuffled_rows_do_not() -> None:
    x, y = digit_features(0), digit_features(1)
    true = lfm_similarity(x, y)
    chance = lfm_similarity(x, shuffled(y))
    assert true.score >= 0.70
    assert true.p_value == 1 / 200
    assert abs(chance.score) <= 0.02
    assert chance.p_value > 0.05
    assert float(true.panel["weighted_overlap"].z) > 50
    n = chance.n_eigenvectors - 1
    expected = (1 + n**2 * (n + 2) / len(x) ** 2) / (1 + n**2 * (2 * n + 1) / len(x) ** 2)  # and it tends to 1 with N
    assert float(chance.panel["paper_ratio"].value) == pytest.approx(expected, abs=0.03)
    other = lfm_similarity(x, encoded(normal(len(x), 5, 3), 4).float())
    assert abs(other.score) <= 0.02


def test_equal_spaces_score_one() -> None:
    x = clusters()
    result = lfm_similarity(x, x, **FEW)
    m = result.n_eigenvectors
    torch.testing.assert_close(result.functional_map, torch.eye(m).double(), atol=1e-9, rtol=0)
    assert result.score == pytest.approx(1, abs=1e-12)
    for name, entry in result.panel.items():
        assert float(entry.value) == pytest.approx(1, abs=1e-6), name
    assert float(result.distortion_x.abs().max()) < 1e-9
    assert float(result.angles.max()) < 1e-6


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
def test_rotations_shifts_and_scales_of_a_space_change_nothing(metric: str) -> None:
    x, y = clusters(), encoded(clusters(), 1)
    turned = x @ torch.linalg.qr(normal(8, 8, 5)).Q
    moved = 3 * turned + 2 if metric == "euclidean" else turned * (1 + torch.rand(len(x), 1, generator=seeded(0)))
    one, two = (lfm_similarity(z, y, metric=metric, **FEW) for z in (x, moved))
    assert two.score == pytest.approx(one.score, abs=1e-6)  # weights of graphs are float32
    assert lfm_similarity(x, moved, metric=metric, **FEW).score == pytest.approx(1, abs=1e-6)


def test_the_same_whatever_comes_first() -> None:
    basis_x, basis_y = bases()
    one = lfm_similarity(basis_x, basis_y, n_eigenvectors=10)
    two = lfm_similarity(basis_y, basis_x, n_eigenvectors=10)
    assert two.score == pytest.approx(one.score, abs=1e-12)
    assert two.p_value == one.p_value
    torch.testing.assert_close(two.functional_map, one.functional_map.T)
    torch.testing.assert_close(two.distortion_x, one.distortion_y)
    torch.testing.assert_close(two.worst_y, one.worst_x)
    for name in one.panel.keys() - {"paper_ratio", "paper_ratio_unsquared", "ratio_without_constant"}:
        for a, b in zip(one.panel[name], two.panel[name], strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)
    assert one.panel["paper_ratio"].value != two.panel["paper_ratio"].value


def turned(basis: Eigenbasis, seed: int) -> Eigenbasis:
    """Every eigenspace rotated, every single function flipped or not."""
    vectors = basis.eigenvectors_NK.clone()
    for start, stop in basis.groups:
        vectors[:, start:stop] = vectors[:, start:stop] @ torch.linalg.qr(normal(stop - start, stop - start, seed)).Q
        seed += 1
    return replace(basis, eigenvectors_NK=vectors)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_signs_rotations_in_eigenspaces_and_common_orders(seed: int, order_seed: int) -> None:
    """The second space is a ring, whose eigenvalues are double."""
    angle = torch.arange(150).double() * 2 * torch.pi / 150
    ring = similarity_basis(torch.stack([angle.cos(), angle.sin()], 1), n_eigenvectors=10, n_neighbors=4)
    assert [stop - start for start, stop in ring.groups[1:4]] == [2, 2, 2]
    ring = replace(ring, eigenvalues_K=ring.eigenvalues_K + 4e-7 * (torch.arange(11) % 2))  # equal, but for the solver
    one = lfm_similarity(bases()[0], ring, n_eigenvectors=10, n_permutations=3)
    order = torch.randperm(150, generator=seeded(order_seed))
    a, b = (
        replace(basis, eigenvectors_NK=basis.eigenvectors_NK[order], degrees_N=basis.degrees_N[order], mass_N=basis.mass_N)
        for basis in (turned(bases()[0], seed), turned(ring, seed + 50))
    )  # fmt: skip
    two = lfm_similarity(a, b, n_eigenvectors=10, n_permutations=3)
    assert one.n_eigenvectors == two.n_eigenvectors == 9  # 10 would split an eigenspace of the ring
    assert two.score == pytest.approx(one.score, abs=1e-10)
    for name in ("overlap", "overlap_without_constant", "nuclear", "orthogonality", "angle", "rows"):
        assert float(two.panel[name].value) == pytest.approx(float(one.panel[name].value), abs=1e-10)
    torch.testing.assert_close(two.curve[two.curve_at_gap], one.curve[one.curve_at_gap], atol=1e-10, rtol=0)
    assert one.curve_at_gap.tolist() == [False, True] * 4
    torch.testing.assert_close(two.distortion_x, one.distortion_x[order], atol=1e-9, rtol=0)


def test_the_score_does_not_jump_where_two_eigenvalues_meet() -> None:
    """Eigenvalue 10 of one space reaches the 11th: the hard cut moves from 10 to 9 functions."""
    basis_x, basis_y = bases()
    values = basis_x.eigenvalues_K.clone()
    results = []
    for gap, last in ((1e-7, ((9, 10), (10, 11))), (0.0, ((9, 11),))):
        values[9] = values[10] - gap
        met = replace(basis_x, eigenvalues_K=values.clone(), groups=(*((i, i + 1) for i in range(9)), *last))
        results.append(lfm_similarity(met, basis_y, n_eigenvectors=10, n_permutations=0))
    apart, met = results
    assert (apart.n_eigenvectors, met.n_eigenvectors) == (10, 9)
    assert met.score == pytest.approx(apart.score, abs=1e-6)
    assert abs(float(met.panel["overlap"].value - apart.panel["overlap"].value)) > 1e-3


def test_pieces_share_the_eigenvalue_zero_and_its_space_may_turn() -> None:
    rows = torch.cat([normal(40, 4, seed) + 40 * seed for seed in range(3)])
    graphs = [neighbor_graph(x, 8, "euclidean", disconnected="keep") for x in (rows, rows + 0.3 * normal(120, 4, 9))]
    basis_x, basis_y = (laplacian_eigenbasis(graph, 13) for graph in graphs)
    assert basis_x.groups[0] == (0, 3)
    one = lfm_similarity(*graphs, n_eigenvectors=12, n_permutations=0)
    two = lfm_similarity(turned(basis_x, 0), turned(basis_y, 10), n_eigenvectors=12, n_permutations=0)
    assert two.score == pytest.approx(one.score, abs=1e-10)
    root = basis_x.degrees_N.sqrt()
    other = basis_y.degrees_N.sqrt()
    assert float(one.functional_map[0, 0].abs()) == pytest.approx(float(root @ other / root.norm() / other.norm()))
    walk = [laplacian_eigenbasis(graph, 13, "random_walk") for graph in graphs]
    assert lfm_similarity(*walk, n_eigenvectors=12, n_permutations=0).score == pytest.approx(one.score, abs=1e-9)


def test_the_panel_by_the_oracle() -> None:
    basis_x, basis_y = bases()
    result = lfm_similarity(basis_x, basis_y, n_eigenvectors=10)
    m = result.n_eigenvectors
    assert m == 10
    phi, psi = (basis.eigenvectors_NK[:, :m].numpy() for basis in (basis_x, basis_y))
    w, v = ((basis.eigenvalues_K[m] - basis.eigenvalues_K[1:m]).numpy() for basis in (basis_x, basis_y))
    np.testing.assert_allclose(result.functional_map, psi.T @ phi, atol=1e-12)
    inner = phi[:, 1:], psi[:, 1:]
    value = oracle.operator_cosine(*inner, w, v)
    cosines = np.cos(oracle.angles(*inner))
    expected = {
        "paper_ratio": oracle.paper_ratio(psi.T @ phi, squared=True),
        "paper_ratio_unsquared": oracle.paper_ratio(psi.T @ phi, squared=False),
        "ratio_without_constant": oracle.paper_ratio(inner[1].T @ inner[0], squared=True),
        "overlap": (np.cos(oracle.angles(phi, psi)) ** 2).mean(),
        "overlap_without_constant": (cosines**2).mean(),
        "nuclear": cosines.mean(),
        "orthogonality": oracle.orthogonality(psi.T @ phi),
        "angle": 1 - np.rad2deg(oracle.angles(*inner)).mean() / 90,
        "rows": 1 - (np.mean(oracle.row_distortion(*inner)) + np.mean(oracle.row_distortion(*inner[::-1]))) / 2,
        "weighted_overlap": value,
    }
    assert expected.keys() == result.panel.keys()
    for name, number in expected.items():
        assert float(result.panel[name].value) == pytest.approx(number, abs=1e-9), name
    np.testing.assert_allclose(result.distortion_y, oracle.row_distortion(*inner[::-1]), atol=1e-10)
    np.testing.assert_allclose(result.curve[-1], expected["overlap_without_constant"])
    entry = result.panel["weighted_overlap"]
    assert entry.null_mean is not None
    assert entry.null_std is not None
    assert (
        result.score
        == float(entry.calibrated)
        == pytest.approx((value - float(entry.null_mean)) / (1 - float(entry.null_mean)))
    )


def test_permutations_agree_with_the_exact_means() -> None:
    basis_x, basis_y = bases()
    result = lfm_similarity(basis_x, basis_y, n_eigenvectors=10, n_permutations=2000)
    overlap, headline = result.panel["overlap_without_constant"], result.panel["weighted_overlap"]
    spread = float(overlap.null_std) / 2000**0.5
    assert abs(float(overlap.null_mean - result.curve_by_chance[-1])) < 4 * spread
    drawn = float(headline.value - headline.z * headline.null_std)  # the mean that z was taken from
    assert abs(drawn - float(headline.null_mean)) < 4 * float(headline.null_std) / 2000**0.5


def test_p_values_of_independent_spaces_are_uniform() -> None:
    p = []
    for i in range(60):
        x, y = normal(40, 3, i), normal(40, 4, 900 + i)
        p.append(lfm_similarity(x, y, n_eigenvectors=6, n_permutations=39, random_state=i).p_value)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_scores_fall_as_noise_rises() -> None:
    x = digit_features(0)
    noise = torch.randn(x.shape, generator=seeded(0)) * x.std()
    results = [lfm_similarity(x, x + level * noise, n_permutations=0) for level in (0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)]
    for values in (
        [result.score for result in results],
        [float(result.panel["overlap"].value) for result in results],
        [float(result.panel["rows"].value) for result in results],
    ):
        assert all(a > b for a, b in itertools.pairwise(values)), values
    assert results[0].score > 0.999
    assert results[-1].score < 0.5


def test_a_few_missing_rows_change_little() -> None:
    x, y = digit_features(0), digit_features(1)
    kept = torch.rand(len(x), generator=seeded(0)) > 0.05
    whole, part = lfm_similarity(x, y, n_permutations=0), lfm_similarity(x[kept], y[kept], n_permutations=0)
    assert part.score == pytest.approx(whole.score, abs=0.02)


def test_distortion_finds_the_rows_that_changed() -> None:
    """A cluster whose inner geometry is redrawn in the second space."""
    x = clusters(600)
    changed = torch.arange(600) % 6 == 0
    y = torch.where(changed[:, None], 3 * normal(6, 8, 0)[0] + normal(600, 8, 77), x)
    result = lfm_similarity(x, y, n_neighbors=60, n_permutations=0)
    for distortion in (result.distortion_x, result.distortion_y):
        above = distortion[changed][:, None] > distortion[~changed]
        assert float(above.double().mean()) > 0.95  # area under the ROC curve


def test_spaces_graphs_and_bases_are_one() -> None:
    z = clusters()
    x, y = encoded(z, 1), encoded(z, 2)
    arrays = lfm_similarity(x.numpy(), y.numpy(), **FEW)
    graphs = lfm_similarity(neighbor_graph(x, 12), neighbor_graph(y, 12), n_eigenvectors=10)
    cached = lfm_similarity(x, arrays.basis_y, **FEW)
    assert arrays.score == graphs.score == cached.score == lfm_similarity(x, y, **FEW).score
    assert cached.basis_y is arrays.basis_y
    assert isinstance(arrays, LFMSimilarity)
    assert lfm_similarity(x, y, **FEW, random_state=1).p_value is not None
    wide = similarity_basis(x, n_eigenvectors=20, n_neighbors=12)  # more functions than needed
    assert lfm_similarity(wide, y, **FEW).score == pytest.approx(arrays.score, abs=1e-9)


def test_dtype_follows_the_spaces() -> None:
    x, y = encoded(clusters(), 1).float(), encoded(clusters(), 2).float()
    tensors = "functional_map", "angles", "curve", "distortion_x", "distortion_y", "worst_x", "worst_y"
    for spaces, dtype in (((x, y), torch.float32), ((x, y.double()), torch.float64)):
        result = lfm_similarity(*spaces, **FEW, n_permutations=2)
        assert {getattr(result, name).dtype for name in tensors} == {dtype}
    single = [laplacian_eigenbasis(neighbor_graph(z, 12), 11, dtype=torch.float32) for z in (x, y)]
    result = lfm_similarity(*single, n_eigenvectors=10, n_permutations=2)
    assert result.functional_map.dtype == torch.float32
    assert result.score == pytest.approx(lfm_similarity(x, y, **FEW, n_permutations=0).score, abs=1e-4)
    assert lfm_similarity((10 * x).int(), y, **FEW, n_permutations=2).functional_map.dtype == torch.float64


def test_without_permutations_the_score_stays() -> None:
    one = lfm_similarity(*bases(), n_eigenvectors=10, n_permutations=0)
    two = lfm_similarity(*bases(), n_eigenvectors=10)
    assert one.p_value is None
    assert one.panel["overlap"].z is None
    assert one.score == two.score
    again = lfm_similarity(*bases(), n_eigenvectors=10)
    assert [float(entry.null_std) for entry in again.panel.values()] == [float(e.null_std) for e in two.panel.values()]


def test_wrong_input_is_refused() -> None:
    x = clusters(40)
    with pytest.raises(RowMismatchError, match="40 and 39"):
        lfm_similarity(x, x[1:], **FEW)
    bad = x.clone()
    bad[3, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="first in row 3"):
        lfm_similarity(x, bad, **FEW)
    with pytest.raises(ShapeError, match="flatten"):
        lfm_similarity(x[:, :, None], x, **FEW)
    with pytest.raises(ShapeError, match="flatten"):
        lfm_similarity(x, x[0, 0], **FEW)
    with pytest.raises(InputError, match="n_eigenvectors <= 39"):
        lfm_similarity(x, x)  # 50 functions of 40 rows
    with pytest.raises(InputError, match="n_eigenvectors >= 2"):
        lfm_similarity(x, x, n_eigenvectors=1)
    with pytest.raises(InputError, match="n_permutations >= 0"):
        lfm_similarity(x, x, **FEW, n_permutations=-1)
    with pytest.raises(InputError, match="n_neighbors < 40"):
        lfm_similarity(x, x, n_eigenvectors=5, n_neighbors=40)
    basis = similarity_basis(x, n_eigenvectors=5)
    with pytest.raises(InputError, match="at least 7 functions, got 6"):
        lfm_similarity(basis, x, n_eigenvectors=6)
    with pytest.raises(NonFiniteError, match="finite basis"):
        lfm_similarity(replace(basis, eigenvectors_NK=basis.eigenvectors_NK / 0), x, n_eigenvectors=5)
    with pytest.raises(InputError, match="equal"):
        lfm_similarity(torch.ones(40, 3), x, **FEW)
    complete = neighbor_graph(x, 39, kernel="uniform")  # one eigenvalue, 39 times
    with pytest.raises(InputError, match="gap in both spectra"):
        lfm_similarity(complete, x, n_eigenvectors=10)
