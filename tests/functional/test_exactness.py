"""The one test a wrong objective cannot pass: trained on sampled pairs, do the outputs become the eigenfunctions?

Pair sampler -> network -> objective -> Adam, then compared on quadrature nodes or all states with the exact functions.
Downstream accuracy does not notice a deflation that is half of what it should be; these tests do.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neigenmaps.functional import eigenmap as E
from neigenmaps.functional.rayleigh_ritz import pair_moments, rayleigh_ritz, ritz_from_moments
from oracles import kernels

Array = kernels.Array
Objective = Callable[[Tensor, Tensor], E.EigenmapResult]

TOY = kernels.finite(kernels.interval_joint(64, 0.05))
RANDOM = kernels.finite(kernels.random_joint(np.random.default_rng(43), states=32, concentration=0.05))
RING = kernels.finite(kernels.ring_joint(24, width=1.0))
QUICK = {"steps": 1500, "rate": 4e-2}  # for a table of values: |cos| >= .998 on the toy kernel for three seeds


class Match(NamedTuple):
    """cosines: (k,) of output j with the true function j + 1 (0 is the constant), or with its whole eigenspace.

    values: Rayleigh quotients under the exact operator, powers: E[f_j^2], both relative errors to eigenvalue j + 1.
    distinct: how many true functions are some output's best match with |cos| >= .9.
    """

    cosines: Array
    values: Array
    powers: Array
    distinct: int


def match(outputs: Array, kernel: kernels.Kernel) -> Match:
    centred = outputs - kernel.weights @ outputs
    powers = kernel.weights @ centred**2
    overlaps = kernel.functions.T @ (kernel.weights[:, None] * centred) / np.sqrt(powers)  # (M, k)
    truth = kernel.eigenvalues[1 : outputs.shape[1] + 1]
    same_space = np.isclose(kernel.eigenvalues[:, None], truth, rtol=1e-6)
    best = np.abs(overlaps).argmax(0)[np.abs(overlaps).max(0) >= 0.9]
    quotients = (overlaps**2 * kernel.eigenvalues[:, None]).sum(0)
    return Match(
        np.sqrt((overlaps**2 * same_space).sum(0)),
        np.abs(quotients / truth - 1),
        np.abs(powers / truth - 1),
        len(set(best.tolist())),
    )


def perceptron(inputs: int, outputs: int, activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, outputs))


def network(kernel: kernels.Kernel, outputs: int, activation: type[nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # layers take no generator
        torch.manual_seed(seed)
        if kernel.points.ndim == 1:
            return nn.Embedding(len(kernel.points), outputs)  # a free table of values
        return perceptron(kernel.points.shape[1], outputs, activation)


def as_input(points: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(points)
    return tensor.float() if tensor.is_floating_point() else tensor


def train(
    kernel: kernels.Kernel,
    objective: Objective,
    *,
    outputs: int = 8,
    batch: int = 512,
    steps: int = 3000,
    rate: float = 2e-2,
    seed: int = 0,
    activation: type[nn.Module] = nn.SiLU,
) -> nn.Module:
    rng = np.random.default_rng(seed)
    net = network(kernel, outputs, activation, seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=rate, fused=True)  # one kernel: a third of the time
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        z1, z2 = net(as_input(np.concatenate(kernel.sample(rng, batch)))).chunk(2)
        optimiser.zero_grad()
        objective(z1, z2).loss.backward()
        optimiser.step()
        schedule.step()
    return net


def values(net: nn.Module, kernel: kernels.Kernel) -> Array:
    with torch.no_grad():
        return net(as_input(kernel.points)).double().numpy()


def learned(kernel: kernels.Kernel, objective: Objective, **settings: object) -> Match:
    return match(values(train(kernel, objective, **settings), kernel), kernel)  # type: ignore[arg-type]


def check(found: Match, *, cosine: float = 0.995, value: float = 0.01) -> None:
    assert found.cosines.min() >= cosine, found
    assert found.values.max() <= value, found


# --- the default objective on closed forms, eight functions


def test_gaussian_views_give_hermite_polynomials() -> None:
    """Three coordinates, so that no degree passes 2: a sampled He_8 has E[f^4] = 2e6 E[f^2]^2, beyond any batch.

    Fourth moments are the noise here too (15 for He_2): four seeds reach .994 to .997 on the worst function.
    """
    kernel = kernels.gaussian_views(np.sqrt([0.55, 0.5, 0.4]), degree=4)
    found = learned(kernel, E.nested_low_rank_loss, steps=4000, rate=1e-2)
    check(found, cosine=0.99)
    assert found.cosines.mean() >= 0.995
    assert found.distinct == 8
    assert found.powers.max() <= 0.05  # of a nested function, E[f^2] is the eigenvalue: a mean of squares, noisier


def test_one_gaussian_coordinate_gives_hermite_polynomials() -> None:
    """The golden kernel of the note, rho = .9, as far as batches of 512 see it (He_4 has E[f^4] = 639)."""
    found = learned(kernels.gaussian_views([0.9], degree=12), E.nested_low_rank_loss, outputs=3, rate=1e-2)
    check(found)
    assert found.distinct == 3


def test_circle_shift_gives_fourier_pairs() -> None:
    """Pairs share an eigenvalue: each output must lie in the eigenspace, and the two of a pair must span it."""
    kernel = kernels.circle_shift(0.2, frequencies=12)
    net = train(kernel, E.nested_low_rank_loss, steps=2500, rate=1e-2, activation=nn.Tanh)
    found = match(values(net, kernel), kernel)
    check(found)
    assert found.powers.max() <= 0.05
    for first in range(0, 8, 2):
        assert pair_cosine(values(net, kernel), kernel, first) >= 0.995


def pair_cosine(outputs: Array, kernel: kernels.Kernel, first: int) -> float:
    """Smallest principal cosine between outputs first, first + 1 and their two true functions."""
    root = np.sqrt(kernel.weights)[:, None]
    centred = (outputs - kernel.weights @ outputs)[:, first : first + 2]
    mine, true = np.linalg.qr(root * centred)[0], root * kernel.functions[:, first + 1 : first + 3]
    return float(np.linalg.svd(true.T @ mine, compute_uv=False).min())


def test_ring_with_double_eigenvalues_is_learned_as_pairs() -> None:
    found = values(train(RING, E.nested_low_rank_loss, **QUICK), RING)
    check(match(found, RING))
    assert min(pair_cosine(found, RING, first) for first in range(0, 8, 2)) >= 0.995


def test_hypercube_flips_give_parities() -> None:
    kernel = kernels.hypercube_flips([0.05, 0.1, 0.15, 0.2, 0.25])
    found = learned(kernel, E.nested_low_rank_loss, steps=3500, rate=1e-2)
    check(found)
    assert found.distinct == 8
    assert found.powers.max() <= 0.05


@pytest.mark.parametrize("pairs", [1, 3])
def test_one_length_for_every_row_is_no_restriction_where_a_symmetry_makes_rows_alike(pairs: int) -> None:
    """Of a ring all places look alike, so that sqrt(mu_j) phi_j, whole pairs of them, already have rows of power sum_j mu_j."""
    values_K = torch.from_numpy(RING.eigenvalues[1 : 1 + 2 * pairs])
    outputs = values_K.sqrt() * torch.from_numpy(RING.functions[:, 1 : 1 + 2 * pairs])
    torch.testing.assert_close(E.of_row_power(outputs, float(values_K.sum())), outputs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(E.of_row_power(3 * outputs, float(values_K.sum())), outputs, rtol=1e-9, atol=1e-9)


# --- every objective on finite kernels


@pytest.fixture(scope="module")
def nested() -> nn.Module:
    """The default objective, trained on the toy kernel."""
    return train(TOY, E.nested_low_rank_loss, **QUICK)


def test_nested_functions_are_exact_on_the_toy_kernel(nested: nn.Module) -> None:
    check_nested(match(values(nested, TOY), TOY))


def test_nested_functions_are_exact_on_a_random_kernel() -> None:
    check_nested(learned(RANDOM, E.nested_low_rank_loss, **QUICK))


def check_nested(found: Match) -> None:
    check(found)
    assert found.distinct == 8
    assert found.powers.max() <= 0.05


def test_a_threshold_shrinks_functions_and_a_scale_stretches_them() -> None:
    """f_j = scale sqrt(mu_j - threshold) phi_j, and nothing for functions below the threshold."""
    threshold = float(TOY.eigenvalues[4:6].mean())  # four functions lie above
    outputs = values(
        train(TOY, partial(E.nested_low_rank_loss, scale=3.0, threshold=threshold), outputs=6, **QUICK),
        TOY,
    )
    found = match(outputs[:, :4], TOY)
    check(found)
    assert found.distinct == 4
    centred = outputs - TOY.weights @ outputs
    expected = 9 * np.clip(TOY.eigenvalues[1:7] - threshold, 0, None)
    np.testing.assert_allclose(TOY.weights @ centred**2, expected, atol=0.05 * 9)


def constant_objective() -> Objective:
    bound = E.separating_alpha(torch.from_numpy(TOY.eigenvalues[1:9].copy())).item()
    return partial(E.neural_eigenmap_loss, alpha=1.5 * bound)


OTHERS: dict[str, tuple[Objective, dict[str, float]]] = {
    # pulls on each function are averaged over lengths, so that the last ones move k times slower: a higher rate
    "joint": (partial(E.nested_low_rank_loss, nesting="joint"), {"steps": 1500, "rate": 2e-1}),
    "octave": (partial(E.nested_low_rank_loss, nesting="octave"), {"steps": 1500, "rate": 2e-1}),
    # with half as many steps copies have not parted yet
    "constant": (constant_objective(), {}),
    "adaptive": (partial(E.neural_eigenmap_loss, alpha=1.0, weighting="adaptive"), {}),
    "adaptive_cross_half": (partial(E.neural_eigenmap_loss, alpha=1.0, weighting="adaptive", cross_half=True), {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_ordered_objectives_are_exact_on_the_toy_kernel(name: str) -> None:
    objective, settings = OTHERS[name]
    found = learned(TOY, objective, **settings)
    check(found)
    assert found.distinct == 8


def test_unordered_loss_and_rayleigh_ritz_are_exact_on_fresh_pairs() -> None:
    net = train(TOY, E.spectral_contrastive_loss, **QUICK)
    raw = match(values(net, TOY), TOY)
    assert raw.cosines.min() < 0.9  # a span without order; were it ordered, the test below would show nothing
    moments = None
    rng = np.random.default_rng(99)
    for _ in range(20):
        with torch.no_grad():
            z1, z2 = (net(as_input(side)) for side in TOY.sample(rng, 20_000))
        part = pair_moments(z1, z2)
        moments = part if moments is None else moments.merge(part)
    table = torch.from_numpy(values(net, TOY))
    result = ritz_from_moments(moments, sign_rows=table)
    found = match(result(table).numpy(), TOY)
    check(found)
    assert found.distinct == 8
    np.testing.assert_allclose(result.eigenvalues.numpy(), TOY.eigenvalues[1:9], rtol=0.01)


def test_loss_reports_the_eigenvalues(nested: nn.Module) -> None:
    with torch.no_grad():
        z1, z2 = (nested(as_input(side)) for side in TOY.sample(np.random.default_rng(99), 200_000))
    np.testing.assert_allclose(E.nested_low_rank_loss(z1, z2).eigenvalues, TOY.eigenvalues[1:9], rtol=0.02)
    np.testing.assert_allclose(rayleigh_ritz(z1, z2).eigenvalues, TOY.eigenvalues[1:9], rtol=0.02)


def test_uncentred_outputs_spend_the_first_function_on_the_constant() -> None:
    outputs = values(train(TOY, partial(E.nested_low_rank_loss, center=False), outputs=4, **QUICK), TOY)
    assert outputs[:, 0].std() < 0.05 * np.abs(outputs[:, 0]).mean()
    cosines = match(outputs[:, 1:], TOY).cosines
    assert cosines.min() >= 0.99


# --- what fails, and where


def test_published_alpha_repeats_functions() -> None:
    """alpha = .1, as at k = 2048, is far below the separating 1.1 of this kernel: copies instead of new functions."""
    found = learned(TOY, partial(E.neural_eigenmap_loss, alpha=E.paper_alpha(2048)), **QUICK)
    assert found.distinct <= 5
    assert found.cosines.min() < 0.5


@pytest.mark.slow
def test_small_batches_are_enough_for_the_default() -> None:
    """B = 64, mean over three seeds: a biased penalty or a lost b != c would show here first."""
    settings = {"batch": 64, "steps": 4000, "rate": 5e-2}
    cosines = [learned(TOY, E.nested_low_rank_loss, seed=seed, **settings).cosines for seed in range(3)]
    assert np.mean(cosines) >= 0.995, cosines
    assert np.min(cosines) >= 0.97, cosines


# --- sixteen functions, minutes


@pytest.mark.slow
def test_sixteen_functions_of_a_finite_kernel() -> None:
    """Measured: .9986 on average, .992 at worst: the spectrum has gaps of two percent."""
    found = learned(RANDOM, E.nested_low_rank_loss, outputs=16, steps=20_000)
    check(found, cosine=0.985)
    assert found.cosines.mean() >= 0.995
    assert found.distinct == 16


@pytest.mark.slow
def test_sixteen_parities() -> None:
    kernel = kernels.hypercube_flips([0.05, 0.105, 0.166, 0.181, 0.19])
    found = learned(kernel, E.nested_low_rank_loss, outputs=16, steps=20_000, rate=1e-2)
    check(found)
    assert found.distinct == 16


@pytest.mark.slow
def test_sixteen_fourier_functions() -> None:
    """Measured: .997 on average, .983 at worst (the eighth frequency, eigenvalue .24), at two learning rates."""
    kernel = kernels.circle_shift(0.15, frequencies=20)
    found = learned(kernel, E.nested_low_rank_loss, outputs=16, steps=20_000, rate=1e-2, activation=nn.Tanh)
    check(found, cosine=0.975, value=0.04)
    assert found.cosines.mean() >= 0.995
