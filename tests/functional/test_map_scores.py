"""Scores of a functional map: definitions, what leaves them alone, what chance gives, and the maps that fool the paper's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neigenmaps.errors import ShapeError
from neigenmaps.functional import map_scores as ms
from oracles import map_scores as oracle

SYMMETRIC: list[Callable[[Tensor], Tensor]] = [ms.overlap, ms.nuclear_overlap, ms.orthogonality, ms.angle_score]


def span(n: int, k: int, seed: int, constant: bool = False) -> Tensor:
    """A random orthonormal basis; its first function constant if asked."""
    drawn = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if constant:
        drawn[:, 0] = 1
    return torch.linalg.qr(drawn).Q


def rotation(k: int, seed: int) -> Tensor:
    return span(k, k, seed)


def near(phi_NK: Tensor, noise: float, seed: int) -> Tensor:
    drawn = torch.randn(phi_NK.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(phi_NK + noise * drawn / len(phi_NK) ** 0.5).Q


def test_scores_equal_their_definitions() -> None:
    phi, psi = span(30, 4, 0), near(span(30, 4, 0), 0.7, 1)
    c = psi.T @ phi
    x, y = phi.numpy(), psi.numpy()
    cosines = np.cos(oracle.angles(x, y))
    assert float(ms.overlap(c)) == pytest.approx((cosines**2).mean(), abs=1e-12)
    assert float(ms.nuclear_overlap(c)) == pytest.approx(oracle.nuclear(c.numpy()), abs=1e-10)
    assert float(ms.orthogonality(c)) == pytest.approx(oracle.orthogonality(c.numpy()), abs=1e-12)
    assert float(ms.angle_score(c)) == pytest.approx(1 - np.rad2deg(oracle.angles(x, y)).mean() / 90, abs=1e-8)
    np.testing.assert_allclose(ms.principal_angles(c), oracle.angles(x, y), atol=1e-8)
    for squared in (True, False):
        assert float(ms.paper_ratio(c, squared=squared)) == pytest.approx(
            oracle.paper_ratio(c.numpy(), squared=squared), abs=1e-12
        )
    np.testing.assert_allclose(ms.row_distortion(c, phi), oracle.row_distortion(x, y), atol=1e-12)
    np.testing.assert_allclose(ms.row_distortion(c.T, psi), oracle.row_distortion(y, x), atol=1e-12)
    mean = (2 - ms.row_distortion(c, phi).mean() - ms.row_distortion(c.T, psi).mean()) / 2
    torch.testing.assert_close(ms.row_score(c, ms.row_energy(phi), ms.row_energy(psi)), mean)


def test_spans_of_different_width() -> None:
    phi, psi = span(30, 6, 0), span(30, 4, 1)
    c = psi.T @ phi
    cosines = np.cos(oracle.angles(phi.numpy(), psi.numpy()))
    assert float(ms.overlap(c)) == pytest.approx((cosines**2).mean(), abs=1e-12)
    assert float(ms.nuclear_overlap(c)) == pytest.approx(cosines.mean(), abs=1e-12)
    assert ms.overlap_curve(c).shape == (4,)
    assert ms.row_distortion(c, phi).shape == (30,)
    assert float(ms.overlap(phi[:, :4].T @ phi)) == pytest.approx(1)


def test_weighted_overlap_is_the_cosine_of_two_filters() -> None:
    phi, psi = span(20, 5, 0), near(span(20, 5, 0), 0.5, 1)[:, :4]
    w, v = torch.tensor([3.0, 2, 1, 0.5, 0]).double(), torch.tensor([1.0, 1, 0.2, 0.1]).double()
    got = ms.weighted_overlap(psi.T @ phi, w, v)
    assert float(got) == pytest.approx(oracle.operator_cosine(*(z.numpy() for z in (phi, psi, w, v))), abs=1e-12)
    torch.testing.assert_close(got, ms.weighted_overlap(phi.T @ psi, v, w))
    torch.testing.assert_close(got, ms.weighted_overlap(psi.T @ phi, 7 * w, v))
    ones = w.new_ones(4)
    torch.testing.assert_close(ms.weighted_overlap(psi.T @ phi[:, :4], ones, ones), ms.overlap(psi.T @ phi[:, :4]))
    assert float(ms.weighted_overlap(psi.T @ phi, 0 * w, v)) == 0  # no filter, no likeness


@pytest.mark.parametrize("constant", [False, True])
def test_mean_over_all_orders_of_the_rows_is_exact(constant: bool) -> None:
    phi, psi = span(6, 3, 0, constant), span(6, 2, 1, constant)
    w, v = torch.tensor([2.0, 1, 0.5]).double(), torch.tensor([1.0, 0.3]).double()
    got = ms.weighted_overlap_by_chance(phi, psi, w, v)
    assert float(got) == pytest.approx(oracle.mean_over_orders(*(z.numpy() for z in (phi, psi, w, v))), abs=1e-12)
    assert float(ms.weighted_overlap_by_chance(phi, psi, 0 * w, v)) == 0


def test_the_null_in_numbers() -> None:
    """Golden values of the methods document: N 2000, 50 functions, both spans with the constant function."""
    n, m = 2000, 50
    phi = span(n, m, 0, constant=True)
    ones = phi.new_ones(m)
    assert float(ms.weighted_overlap_by_chance(phi, phi, ones, ones)) == pytest.approx((1 + 49**2 / 1999) / 50)
    maps = torch.stack([span(n, m, seed, constant=True).T @ phi for seed in range(1, 9)])
    assert float(ms.overlap(maps).mean()) == pytest.approx(0.0440, abs=2e-3)
    assert float(ms.paper_ratio(maps).mean()) == pytest.approx(0.973, abs=3e-3)  # near 1, and nothing is shared
    assert float(ms.paper_ratio(maps[:, 1:, 1:]).mean()) == pytest.approx((m + 2) / (2 * m + 1), abs=0.02)
    without = torch.stack([span(n, m, seed).T @ span(n, m, 100 + seed) for seed in range(8)])
    assert float(ms.overlap(without).mean()) == pytest.approx(m / n, abs=1.5e-3)


@pytest.mark.parametrize(
    "c",
    [0.01 * torch.eye(6).double(), torch.diag(torch.arange(6.0)).double() / 50, torch.zeros(6, 6).double().index_put(
        (torch.tensor(2), torch.tensor(2)), torch.tensor(1.0).double())],
    ids=["small", "diagonal", "rank one"],
)  # fmt: skip
def test_maps_that_the_paper_calls_equal(c: Tensor) -> None:
    assert float(ms.paper_ratio(c)) == pytest.approx(1)
    assert float(ms.paper_ratio(c, squared=False)) == pytest.approx(1)
    for score in SYMMETRIC:
        assert float(score(c)) < 0.2


def test_an_orthogonal_map_has_every_score() -> None:
    c = rotation(5, 0)
    for score in SYMMETRIC:
        assert float(score(c)) == pytest.approx(1, abs=1e-7)
    phi = span(12, 5, 1)
    torch.testing.assert_close(ms.row_distortion(c, phi), torch.zeros(12).double(), atol=1e-12, rtol=0)
    assert float(ms.paper_ratio(torch.eye(5).double())) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_rotations_and_the_order_of_spaces(seed_x: int, seed_y: int) -> None:
    phi, psi = span(20, 5, 7), near(span(20, 5, 7), 0.6, 8)
    c, turned = psi.T @ phi, rotation(5, seed_y) @ psi.T @ phi @ rotation(5, seed_x)
    for score in SYMMETRIC:
        torch.testing.assert_close(score(turned), score(c), atol=1e-10, rtol=0)
        torch.testing.assert_close(score(c.T), score(c), atol=1e-10, rtol=0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed_x))
    torch.testing.assert_close(psi[order].T @ phi[order], c, atol=1e-12, rtol=0)


def test_the_paper_ratio_sees_rotations_of_the_source() -> None:
    phi, psi = span(20, 5, 7), near(span(20, 5, 7), 0.9, 8)
    c = psi.T @ phi
    assert abs(float(ms.paper_ratio(c @ rotation(5, 1)) - ms.paper_ratio(c))) > 1e-3
    torch.testing.assert_close(ms.paper_ratio(rotation(5, 1) @ c), ms.paper_ratio(c), atol=1e-10, rtol=0)


def test_a_batch_is_its_members() -> None:
    maps = torch.stack([span(20, 4, s).T @ span(20, 5, s + 9) for s in range(3)])
    w, v = torch.rand(5).double(), torch.rand(4).double()
    scores = [
        *SYMMETRIC, ms.paper_ratio, ms.overlap_curve, ms.principal_angles,
        lambda c: ms.weighted_overlap(c, w, v), lambda c: ms.row_score(c, torch.eye(5).double(), torch.eye(4).double()),
    ]  # fmt: skip
    for score in scores:
        torch.testing.assert_close(score(maps), torch.stack([score(c) for c in maps]))


def test_the_curve_is_the_overlap_of_first_functions() -> None:
    phi, psi = span(20, 5, 7), near(span(20, 5, 7), 0.6, 8)
    curve = ms.overlap_curve(psi.T @ phi)
    for m in range(1, 6):
        torch.testing.assert_close(curve[m - 1], ms.overlap(psi[:, :m].T @ phi[:, :m]))


def test_distortion_shows_where_a_function_is_missing() -> None:
    """Four blocks of rows: X has the indicator of each, Y has that of the last replaced by another function."""
    phi = torch.eye(4).double().repeat_interleave(5, dim=0) / 5**0.5
    psi = phi.clone()
    psi[:, 3] = torch.tensor([0] * 15 + [1, -1, 1, -1, 0]).double() / 2
    c = psi.T @ phi
    expected = torch.tensor([0.0] * 15 + [1.0] * 5).double()
    torch.testing.assert_close(ms.row_distortion(c, phi), expected)
    torch.testing.assert_close(ms.most_distorted_function(c, phi), expected / 5**0.5)
    silent = torch.cat([phi, torch.zeros(1, 4)])
    assert float(ms.row_distortion(c, silent)[-1]) == 1  # nothing of that row was there to keep
    with pytest.raises(ShapeError, match="C\\^T takes Y's"):
        ms.row_distortion(c[:, :3], phi)


def test_precision_follows_the_map() -> None:
    c = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)) / 3
    for score in (*SYMMETRIC, ms.paper_ratio, ms.overlap_curve, ms.principal_angles):
        assert score(c).dtype == torch.float32
    assert ms.weighted_overlap(c, torch.ones(3), torch.ones(3)).dtype == torch.float32
