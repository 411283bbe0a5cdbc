"""Linear corrections against their definitions, chunks, rotations, ways back; the network's start, loss and draws."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.geometry_correction import (
    after_ridge,
    agreement_map,
    correction_moments,
    diagonal_correction,
    directions,
    drift,
    drift_summary,
    ridge_correction,
    with_way_back,
)
from neigenmaps.functional.mlp_correction import MLPCorrection, fit_mlp_correction
from oracles import geometry_correction as oracle

M, N, K = 4, 80, 5


@pytest.fixture
def u() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.3], dtype=torch.float64)
    shared = torch.randn(1, N, K, generator=generator, dtype=torch.float64) * spread
    return shared + 0.6 * torch.randn(M, N, K, generator=generator, dtype=torch.float64)


@pytest.fixture
def weights() -> Tensor:
    return torch.rand(M, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1


def turn(seed: int = 2) -> Tensor:
    return torch.linalg.qr(torch.randn(K, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q


def test_consensus_leaves_the_space_itself_out(u: Tensor, weights: Tensor) -> None:
    unit, consensus, kept = directions(u, weights)
    np.testing.assert_allclose(consensus.numpy(), oracle.consensus_of_others(u.numpy(), weights.numpy()), atol=1e-13)
    torch.testing.assert_close(unit.norm(dim=2), torch.ones(M, N, dtype=torch.float64))
    assert torch.equal(kept, weights)
    changed = u.clone()
    changed[0] = changed[0].flip(0)
    torch.testing.assert_close(directions(changed)[1][0], directions(u)[1][0], rtol=0, atol=1e-13)


def test_a_row_that_no_other_space_has_counts_for_nothing(u: Tensor) -> None:
    present = torch.ones(M, N)
    present[1:, 7] = 0
    without = torch.cat([u[:, :7], u[:, 8:]], dim=1)
    for got, expected in zip(correction_moments(u, present), correction_moments(without), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("relative", [0.01, 1.0])
def test_ridges_solve_the_penalised_problem(u: Tensor, weights: Tensor, relative: float) -> None:
    unit = np.stack([oracle.unit(rows) for rows in u.numpy()])
    consensus, w = oracle.consensus_of_others(u.numpy(), weights.numpy()), weights.numpy()
    moments = correction_moments(u, weights)
    own = ridge_correction(moments, ridge=relative, shared=False).numpy()
    for m in range(M):
        expected = oracle.weighted_ridge(unit[m], consensus[m], w[m], relative)
        np.testing.assert_allclose(own[m], expected, atol=1e-12)
    shared = ridge_correction(moments, ridge=relative, shared=True).numpy()
    flat = oracle.weighted_ridge(unit.reshape(-1, K), consensus.reshape(-1, K), w.reshape(-1), relative)
    for m in range(M):
        np.testing.assert_allclose(shared[m], flat, atol=1e-12)


def test_agreement_is_whitening_and_correlation(u: Tensor) -> None:
    ridged = after_ridge(correction_moments(u), 0.05)
    ridges, after = ridged.maps_MKK, agreement_map(ridged, 0.02)
    assert torch.equal(ridges, ridge_correction(correction_moments(u), ridge=0.05, shared=False))
    codes = np.stack([oracle.unit(rows) for rows in u.numpy()]) @ ridges.numpy()
    expected = oracle.agreement_map(codes, 0.02)
    np.testing.assert_allclose((after @ after.T).numpy(), expected, rtol=1e-8, atol=1e-8 * expected.max())
    torch.testing.assert_close(after, after.T)


def test_diagonal_is_a_wiener_filter() -> None:
    """Shared variances s^2 and noise n^2 along known axes: shrinkage is proportional to s^2 / (s^2 + n^2)."""
    generator = torch.Generator().manual_seed(3)
    signal, noise = torch.tensor([1.0, 0.8, 0.5, 0.3, 0.1]).double(), torch.tensor([0.1, 0.5, 0.5, 0.3, 0.6]).double()
    rows = torch.randn(1, 60_000, K, generator=generator, dtype=torch.float64) * signal
    rows = rows + noise * torch.randn(M, 60_000, K, generator=generator, dtype=torch.float64)
    length = rows.norm(dim=2, keepdim=True)
    same_length = rows / length * length.mean()  # the maps see directions only
    axes = turn()
    found = axes @ diagonal_correction(correction_moments(same_length @ axes)) @ axes.T
    expected = signal**2 / (signal**2 + noise**2)
    assert (found - found.diagonal().diag()).abs().max() < 0.03
    torch.testing.assert_close(found.diagonal() / found[0, 0], expected / expected[0], rtol=0.12, atol=0.02)


def test_equal_noise_leaves_directions_alone() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(1, 20_000, K, generator=generator, dtype=torch.float64)
    rows = rows + torch.randn(M, 20_000, K, generator=generator, dtype=torch.float64)
    moments = correction_moments(rows)
    for correction in (diagonal_correction(moments), ridge_correction(moments, ridge=0.001, shared=True)[0]):
        assert drift(rows[0] @ correction, rows[0]).mean() < 1e-3


@pytest.mark.parametrize("rung", ["diagonal", "ridge", "shared", "agreement"])
def test_chunks_add_up_and_turning_the_universe_turns_the_result(u: Tensor, rung: str) -> None:
    def codes(rows: Tensor, moments_rows: list[Tensor]) -> Tensor:
        moments = correction_moments(moments_rows[0])
        for part in moments_rows[1:]:
            moments = moments.merge(correction_moments(part))
        if rung == "diagonal":
            return rows @ diagonal_correction(moments)
        if rung == "agreement":
            ridged = after_ridge(moments, 0.1)
            return rows @ ridged.maps_MKK @ agreement_map(ridged, 0.1)
        return rows @ ridge_correction(moments, ridge=0.1, shared=rung == "shared")

    expected = codes(u, [u])
    torch.testing.assert_close(codes(u, [u[:, :30], u[:, 30:]]), expected, rtol=1e-10, atol=1e-10)
    q = turn(5)
    torch.testing.assert_close(codes(u @ q, [u @ q]), expected @ q, rtol=1e-9, atol=1e-9)


def test_every_map_has_a_way_back() -> None:
    generator = torch.Generator().manual_seed(6)
    flat = torch.randn(3, K, 2, generator=generator, dtype=torch.float64) @ torch.randn(
        3, 2, K, generator=generator, dtype=torch.float64
    )
    lifted = with_way_back(flat)
    values = torch.linalg.svdvals(lifted)
    assert (values[:, -1] >= 0.999e-3 * values[:, 0]).all()
    assert torch.linalg.matrix_norm(lifted - flat, ord=2).max() <= 1.001e-3 * values.max()
    full = torch.eye(K, dtype=torch.float64) + 0.1 * flat[0]
    torch.testing.assert_close(with_way_back(full), full, rtol=1e-12, atol=1e-12)


def test_drift_of_known_angles() -> None:
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    moved = torch.tensor([[5.0, 0.0], [1.0, 1.0], [0.0, 4.0]])
    values = drift(moved, rows)
    assert values.tolist() == pytest.approx([0, 1 - 0.5**0.5, 1])
    summary = drift_summary(values)
    assert (summary.mean, summary.median) == pytest.approx((values.mean().item(), 1 - 0.5**0.5))
    assert summary.p95 == pytest.approx(np.quantile(values.numpy(), 0.95))


def two_of_eight() -> Tensor:
    """Three spaces that agree in two directions and not in the six others."""
    generator = torch.Generator().manual_seed(9)
    shared = torch.randn(1, 400, 8, generator=generator) * torch.tensor([1.0] * 2 + [0.0] * 6)
    return shared + torch.randn(3, 400, 8, generator=generator) * torch.tensor([0.1] * 2 + [0.7] * 6)


def test_network_begins_as_the_identity_and_its_loss_falls() -> None:
    rows = two_of_eight()
    generator = torch.Generator().manual_seed(7)
    start = fit_mlp_correction(rows, generator=generator, max_steps=1, learning_rate=0.0, weight_decay=0.0)
    torch.testing.assert_close(start.correction(rows[0]), rows[0], rtol=1e-6, atol=1e-6)
    fitted = fit_mlp_correction(rows, generator=torch.Generator().manual_seed(7), max_steps=100)
    assert fitted.n_steps == 100
    assert len(fitted.history) == 5
    assert min(fitted.history) < 0.9 * start.history[0]
    torch.testing.assert_close(fitted.correction(rows[0]).norm(dim=1), rows[0].norm(dim=1))


def test_network_is_what_the_formula_says(u: Tensor) -> None:
    fitted = fit_mlp_correction(u, generator=torch.Generator().manual_seed(8), max_steps=40).correction
    assert fitted.first_KH.shape == (K, 2 * K)
    norm, shift, first, b1, second, b2, gate, bg = (x.double().numpy() for x in fitted)
    for row in u[1, :5].numpy():
        direction = row / np.linalg.norm(row)
        x = (direction - direction.mean()) / np.sqrt(direction.var() + 1e-5) * norm + shift
        hidden = x @ first + b1
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2)))
        out = direction + 1 / (1 + np.exp(-(x @ gate + bg))) * (hidden @ second + b2)
        out = out / np.linalg.norm(out) * np.linalg.norm(row)
        np.testing.assert_allclose(fitted(torch.from_numpy(row[None]))[0].numpy(), out, atol=1e-10)


def test_network_turns_less_under_a_heavier_penalty() -> None:
    rows, moved = two_of_eight(), {}
    for penalty in (0.0, 20.0):
        fit = fit_mlp_correction(
            rows, generator=torch.Generator().manual_seed(10), penalty=penalty, tolerance=0.02, max_steps=100
        )
        moved[penalty] = drift(fit.correction(rows[0]), rows[0]).mean().item()
    assert moved[20.0] < 0.5 * moved[0.0]


def test_network_draws_from_its_generator_alone(u: Tensor) -> None:
    state = torch.random.get_rng_state()
    first = fit_mlp_correction(u, generator=torch.Generator().manual_seed(11), max_steps=25)
    torch.randn(3)
    torch.random.set_rng_state(state)
    second = fit_mlp_correction(u, generator=torch.Generator().manual_seed(11), max_steps=25)
    other = fit_mlp_correction(u, generator=torch.Generator().manual_seed(12), max_steps=25)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.correction, second.correction, strict=True))
    assert not torch.equal(first.correction.first_KH, other.correction.first_KH)
    assert not any(x.requires_grad for x in first.correction)
    assert isinstance(first.correction, MLPCorrection)


def test_wrong_input_is_refused(u: Tensor) -> None:
    moments = correction_moments(u)
    for rows, weights, error, message in (
        (u[:1], None, ShapeError, "two or more"),
        (u[0], None, ShapeError, "two or more"),
        (u * torch.nan, None, NonFiniteError, "finite"),
        (u, torch.ones(N), ShapeError, "one per row"),
        (u, -torch.ones(M, N), InputError, ">= 0"),
    ):
        with pytest.raises(error, match=message):
            correction_moments(rows, weights)
    with pytest.raises(InputError, match="ridge > 0"):
        ridge_correction(moments, ridge=0.0, shared=True)
    with pytest.raises(InputError, match="shrinkage > 0"):
        agreement_map(after_ridge(moments, 0.1), 0.0)
    alone = torch.ones(M, N)
    alone[0] = 0
    with pytest.raises(InputError, match="consensus in every space"):
        ridge_correction(correction_moments(u, alone), ridge=0.1, shared=False)
    with pytest.raises(InputError, match="10 rows"):
        fit_mlp_correction(u[:, :9], generator=torch.Generator())
    with pytest.raises(InputError, match="max_steps"):
        fit_mlp_correction(u, generator=torch.Generator(), max_steps=0)
