"""Values, gradients and expectations of the objectives against numpy loops and against exact enumeration."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from neigenmaps.functional import eigenmap as E
from oracles import eigenmap as oracle
from oracles import kernels

RTOL = 1e-10
Objective = Callable[[Tensor, Tensor], E.EigenmapResult]


def adaptive_oracle(cross_half: bool, center: bool) -> oracle.Loss:
    return lambda s, f: oracle.neural_eigenmap(
        s, f, alpha=0.7, adaptive_floor=0.05, cross_half=cross_half, center=center
    )


def constant_oracle(cross_half: bool, center: bool) -> oracle.Loss:
    return lambda s, f: oracle.neural_eigenmap(s, f, alpha=0.7, cross_half=cross_half, center=center)


PAIRS: dict[str, tuple[Callable[..., E.EigenmapResult], Callable[[bool], oracle.Loss]]] = {
    "sequential": (
        E.nested_low_rank_loss,
        lambda center: lambda s, f: oracle.nested_sequential(s, f, center=center),
    ),
    "joint": (
        lambda a, b, center: E.nested_low_rank_loss(a, b, nesting="joint", center=center),
        lambda center: lambda s, f: oracle.nested_joint(f, center=center),
    ),
    "octave": (
        lambda a, b, center: E.nested_low_rank_loss(a, b, nesting="octave", center=center),
        lambda center: lambda s, f: oracle.nested_octave(f, center=center),
    ),
    "sequential_shifted": (
        lambda a, b, center: E.nested_low_rank_loss(a, b, scale=1.7, threshold=0.3, center=center),
        lambda center: oracle.with_threshold(
            lambda s, f: oracle.nested_sequential(s, f, center=center), 1.7, 0.3, np.ones(4), center=center
        ),
    ),
    "joint_shifted": (
        lambda a, b, center: E.nested_low_rank_loss(a, b, nesting="joint", scale=0.6, threshold=0.4, center=center),
        lambda center: oracle.with_threshold(
            lambda s, f: oracle.nested_joint(f, center=center), 0.6, 0.4, np.array([4, 3, 2, 1]) / 4, center=center
        ),
    ),
    "spectral_contrastive": (
        E.spectral_contrastive_loss,
        lambda center: lambda s, f: oracle.spectral_contrastive(f, center=center),
    ),
    "constant": (
        lambda a, b, center: E.neural_eigenmap_loss(a, b, alpha=0.7, center=center),
        lambda center: constant_oracle(False, center),
    ),
    "constant_cross_half": (
        lambda a, b, center: E.neural_eigenmap_loss(a, b, alpha=0.7, cross_half=True, center=center),
        lambda center: constant_oracle(True, center),
    ),
    "adaptive": (
        lambda a, b, center: E.neural_eigenmap_loss(a, b, alpha=0.7, weighting="adaptive", floor=0.05, center=center),
        lambda center: adaptive_oracle(False, center),
    ),
    "adaptive_cross_half": (
        lambda a, b, center: E.neural_eigenmap_loss(
            a, b, alpha=0.7, weighting="adaptive", cross_half=True, floor=0.05, center=center
        ),
        lambda center: adaptive_oracle(True, center),
    ),
}


def outputs(batch: int = 7, width: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated views with a mean, unequal scales and a negative R_jj, so that no term or clamp is idle."""
    generator = torch.Generator().manual_seed(seed)
    image, noise1, noise2 = torch.randn(3, batch, width, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.5, 2.0, width, dtype=torch.float64)
    z1, z2 = scale * (image + 0.4 * noise1) + 0.3, scale * (image + 0.4 * noise2) + 0.3
    z2[:, 1] -= 2 * image[:, 1]
    return z1.requires_grad_(), z2.requires_grad_()


def gradients(loss: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    return [g.numpy() for g in torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("batch", [7, 8])
def test_value_and_gradient_equal_the_loops(name: str, center: bool, batch: int) -> None:
    objective, make_oracle = PAIRS[name]
    z1, z2 = outputs(batch)
    a, b = z1.detach().numpy(), z2.detach().numpy()
    loss = objective(z1, z2, center=center).loss
    np.testing.assert_allclose(loss.item(), make_oracle(center)((a, b), (a, b)), rtol=RTOL)
    expected = oracle.gradient(make_oracle(center), a, b)
    for got, want in zip(gradients(loss, z1, z2), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("cross_half", [True, False])
@pytest.mark.parametrize("weighting", ["constant", "adaptive"])
def test_gradient_without_stop_gradient_equals_the_loops(weighting: E.Weighting, cross_half: bool) -> None:
    z1, z2 = outputs()
    loss = E.neural_eigenmap_loss(
        z1, z2, alpha=0.7, weighting=weighting, stop_gradient=False, cross_half=cross_half, floor=0.05
    ).loss
    written = (adaptive_oracle if weighting == "adaptive" else constant_oracle)(cross_half, True)
    expected = oracle.gradient(written, z1.detach().numpy(), z2.detach().numpy(), stopped=False)
    for got, want in zip(gradients(loss, z1, z2), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("stopped", [True, False])
def test_paper_loss_is_the_published_code_to_the_digit(stopped: bool) -> None:
    z1, z2 = outputs()
    a, b = z1.detach().numpy(), z2.detach().numpy()
    loss = E.paper_neural_eigenmap_loss(z1, z2, alpha=0.3, stop_gradient=stopped).loss

    def published(s: oracle.Views, f: oracle.Views) -> float:
        return oracle.published_code(s, f, alpha=0.3)

    np.testing.assert_allclose(loss.item(), published((a, b), (a, b)), rtol=RTOL)
    for got, want in zip(gradients(loss, z1, z2), oracle.gradient(published, a, b, stopped=stopped), strict=True):
        np.testing.assert_allclose(got, want, rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize(("width", "readme"), [(2048, 0.01), (4096, 0.005), (8192, 0.0025)])
def test_paper_alpha_is_ten_times_the_readme_value(width: int, readme: float) -> None:
    assert E.paper_alpha(width) == pytest.approx(10 * readme, rel=1e-12)


def test_paper_default_alpha_is_the_readme_rule() -> None:
    z1, z2 = outputs()
    default, explicit = E.paper_neural_eigenmap_loss(z1, z2), E.paper_neural_eigenmap_loss(z1, z2, alpha=20.48 / 4)
    torch.testing.assert_close(default.loss, explicit.loss, rtol=1e-12, atol=0)


def test_default_floor_is_the_noise_level() -> None:
    z1, z2 = outputs(batch=64)
    default, explicit = (
        E.neural_eigenmap_loss(z1, z2, alpha=1.0, weighting="adaptive", floor=floor).loss
        for floor in (None, 2 * (2 * 4 / 64) ** 0.5)
    )
    other = E.neural_eigenmap_loss(z1, z2, alpha=1.0, weighting="adaptive", floor=0.2).loss
    assert default == explicit
    assert default != other


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("sequential", "joint", "octave")])
def test_result_parts_make_up_the_loss(name: str) -> None:
    result = PAIRS[name][0](*outputs(), center=True)
    weight, gain = (0.7, 1.0) if name.startswith(("constant", "adaptive")) else (1.0, 2.0)
    torch.testing.assert_close(result.loss, weight * result.orthogonality - gain * result.alignment)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("center", [True, False])
def test_eigenvalues_are_centred_rayleigh_quotients_whatever_the_loss_centres(name: str, center: bool) -> None:
    z1, z2 = outputs()
    eigenvalues = PAIRS[name][0](z1, z2, center=center).eigenvalues
    a, b = z1.detach().numpy(), z2.detach().numpy()
    mean = np.concatenate([a, b]).mean(0)
    power = (np.concatenate([a, b]) - mean) ** 2
    np.testing.assert_allclose(eigenvalues.numpy(), ((a - mean) * (b - mean)).mean(0) / power.mean(0), rtol=RTOL)
    assert not eigenvalues.requires_grad


# Expectations, by enumeration: every batch of pairs that a small joint law can produce, with its probability.

JOINT = kernels.random_joint(np.random.default_rng(3), states=3, concentration=0.4)


def expected_loss(objective: Objective, table: Tensor, joint: np.ndarray, batch: int) -> Tensor:
    """Exact E[loss] over batches of independent pairs; `table` holds the functions' values at the states."""
    states = len(joint)
    total = torch.zeros((), dtype=torch.float64)
    for cells in itertools.product(range(states**2), repeat=batch):
        rows, columns = np.divmod(np.array(cells), states)
        total = total + joint[rows, columns].prod() * objective(table[rows], table[columns]).loss
    return total


def random_table(states: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(states, width, generator=generator, dtype=torch.float64).requires_grad_()


def population(table: Tensor, joint: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values f, weights d, T f and G = E[f f^T] of the functions in `table`, uncentred."""
    f, weights = table.detach().numpy(), joint.sum(1)
    return f, weights, joint @ f / weights[:, None], f.T @ (weights[:, None] * f)


def pushing_weights(name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """a_j and M_ij in the population gradient -4 (a_j T f_j - sum_i M_ij G_ij f_i)."""
    level = np.arange(width, 0, -1) / width
    harmonic = 1 / np.arange(1, width + 1)
    octave = np.array([harmonic[j:].sum() for j in range(width)]) / harmonic.sum()
    return {
        "sequential": (np.ones(width), np.triu(np.ones((width, width)))),
        "joint": (level, np.minimum.outer(level, level)),
        "octave": (octave, np.minimum.outer(octave, octave)),
        "spectral_contrastive": (np.ones(width), np.ones((width, width))),
    }[name]


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("name", ["sequential", "joint", "octave", "spectral_contrastive"])
def test_low_rank_losses_are_unbiased_and_push_as_the_population_does(name: str, batch: int) -> None:
    """The trap of section 4.3: with a factor 2 lost, function j is deflated by half of the earlier ones."""
    table = random_table(states=3, width=3)
    f, weights, applied, second = population(table, JOINT)
    gain, push = pushing_weights(name, width=3)
    objective = PAIRS[name][0]
    loss = expected_loss(lambda a, b: objective(a, b, center=False), table, JOINT, batch)
    cross = f.T @ (weights[:, None] * applied)
    # the sequential penalty counts each pair once with weight 2: as a value, M is symmetric again
    value_push = np.maximum(push, push.T)
    np.testing.assert_allclose(
        loss.item(), -2 * (gain * np.diag(cross)).sum() + (value_push * second**2).sum(), rtol=RTOL
    )
    expected = -4 * (gain * applied - f @ (push * second))
    (got,) = gradients(loss, table)
    np.testing.assert_allclose(got / weights[:, None], expected, rtol=RTOL, atol=1e-12)


def sign_table() -> Tensor:
    """Functions with values +-1: E[f^2] = 1 in every batch, so that unit variance adds no bias of its own."""
    return torch.tensor([[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("cross_half", [True, False])
def test_cross_half_is_unbiased_and_the_plain_square_is_too_large_by_the_variance(cross_half: bool) -> None:
    joint = np.array([[0.5, 0.1], [0.1, 0.3]])
    table, batch = sign_table(), 4

    def penalty(z1: Tensor, z2: Tensor) -> E.EigenmapResult:
        result = E.neural_eigenmap_loss(z1, z2, alpha=1.0, cross_half=cross_half, center=False)
        return result._replace(loss=result.orthogonality)

    f = table.numpy()
    cross = f.T @ joint @ f
    variance = 1 - cross**2  # of f_i(x) f_j(x+), whose square is always 1
    expected = np.triu(cross**2 + (0 if cross_half else variance / batch), 1).sum()
    np.testing.assert_allclose(expected_loss(penalty, table, joint, batch).item(), expected, rtol=RTOL)


def test_separating_alpha_is_the_strict_bound_of_the_toy_kernel() -> None:
    mu = torch.from_numpy(kernels.finite(kernels.interval_joint(96, 0.03)).eigenvalues[:12].copy())
    assert E.separating_alpha(mu).item() == pytest.approx(0.943, abs=5e-4)
    assert E.separating_alpha(mu.flip(0)) == E.separating_alpha(mu)
    # below the bound only by way of every pair, not of neighbours: 1/(4 mu_k) is reached at mu_i = 2 mu_j
    assert E.separating_alpha(torch.tensor([0.5, 0.25])).item() == pytest.approx(1.0)


@pytest.mark.parametrize("eigenvalue_count", [4, 8, 12])
def test_separating_alpha_is_where_the_game_stops_repeating(eigenvalue_count: int) -> None:
    mu = kernels.finite(kernels.interval_joint(96, 0.03)).eigenvalues[:eigenvalue_count]
    bound = E.separating_alpha(torch.from_numpy(mu.copy())).item()
    above = kernels.best_response_winners(mu, 1.001 * bound, eigenvalue_count)
    below = kernels.best_response_winners(mu, 0.999 * bound, eigenvalue_count)
    assert above == list(range(eigenvalue_count))
    assert len(set(below)) < eigenvalue_count
