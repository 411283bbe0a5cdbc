"""The oracles themselves, against published golden values and against the operator they claim to diagonalise."""

import numpy as np
import pytest

from oracles import kernels

TOY_41 = [1, 0.994, 0.9728, 0.9349, 0.9029, 0.8406, 0.8063, 0.724, 0.5663, 0.349, 0.3413, 0.2639]
TOY_42 = [1, 0.981, 0.928, 0.784, 0.740, 0.533, 0.470, 0.300]
KERNELS = {
    "gaussian": kernels.gaussian_views([0.9], degree=4),
    "gaussian_3d": kernels.gaussian_views([0.8, 0.7, 0.5], degree=3),
    "circle": kernels.circle_shift(0.5, frequencies=4),
    "hypercube": kernels.hypercube_flips([0.05, 0.1, 0.15, 0.2, 0.25]),
    "toy_64": kernels.finite(kernels.interval_joint(64, 0.05)),
    "random": kernels.finite(kernels.random_joint(np.random.default_rng(0), states=12, concentration=0.1)),
    "ring": kernels.finite(kernels.ring_joint(24, width=1.0)),
}


@pytest.mark.parametrize(
    ("name", "golden", "digits"),
    [
        ("gaussian", [1, 0.81, 0.6561, 0.531441, 0.430467], 6),
        ("circle", [1, 0.778801, 0.778801, 0.367879, 0.367879, 0.105399, 0.105399, 0.018316, 0.018316], 6),
        ("hypercube", [1, 0.81, 0.64, 0.5184, 0.49, 0.3969, 0.36, 0.3136], 6),
        ("toy_64", TOY_42, 3),
    ],
)
def test_golden_eigenvalues(name: str, golden: list[float], digits: int) -> None:
    np.testing.assert_allclose(KERNELS[name].eigenvalues[: len(golden)], golden, atol=0.51 * 10**-digits)


def test_golden_eigenvalues_of_the_alpha_study() -> None:
    mu = kernels.finite(kernels.interval_joint(96, 0.03)).eigenvalues[:12]
    np.testing.assert_allclose(mu, TOY_41, atol=5.1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_functions_are_orthonormal_and_ordered_and_start_with_the_constant(name: str) -> None:
    kernel = KERNELS[name]
    gram = kernel.functions.T @ (kernel.weights[:, None] * kernel.functions)
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-9)
    np.testing.assert_allclose(np.abs(kernel.functions[:, 0]), 1, rtol=1e-9)
    assert np.all(np.diff(kernel.eigenvalues) <= 0)
    assert kernel.weights.sum() == pytest.approx(1)


def test_ring_is_degenerate() -> None:
    mu = KERNELS["ring"].eigenvalues
    np.testing.assert_allclose(mu[1:9:2], mu[2:10:2], rtol=1e-9)


def values_at(name: str, points: np.ndarray) -> np.ndarray:
    """The first five exact functions at sampled points, by other means than the quadrature table."""
    kernel = KERNELS[name]
    if name == "gaussian":
        return kernels.hermite(points[:, 0], 4)
    if name == "circle":
        angle = np.arctan2(points[:, 1], points[:, 0])
        pairs = [[np.cos(n * angle), np.sin(n * angle)] for n in (1, 2)]
        return np.stack([np.ones_like(angle), *np.sqrt(2) * np.concatenate(pairs)], axis=1)
    if name == "hypercube":
        state = ((points + 1) / 2) @ 2 ** np.arange(5)[::-1]
        return kernel.functions[state.astype(int), :5]
    return kernel.functions[points, :5]


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "gaussian_3d"])
def test_sampler_draws_from_the_law_that_the_functions_diagonalise(name: str) -> None:
    """E[phi_i phi_j+] over 400 000 pairs is diag(mu), within five standard errors of each entry."""
    kernel = KERNELS[name]
    first, second = (values_at(name, x) for x in kernel.sample(np.random.default_rng(7), 400_000))
    products = first[:, :, None] * second[:, None, :]
    error = products.std(0) / np.sqrt(len(first)) + 1e-12
    assert np.all(np.abs(products.mean(0) - np.diag(kernel.eigenvalues[:5])) < 5 * error)


def test_best_response_winners_of_the_note() -> None:
    mu = kernels.finite(kernels.interval_joint(96, 0.03)).eigenvalues
    assert kernels.best_response_winners(mu, 0.1, 12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 5, 4, 6]
    assert kernels.best_response_winners(mu, 0.05, 12) == [0, 1, 2, 0, 1, 3, 2, 4, 0, 1, 3, 2]


@pytest.mark.parametrize(
    ("alpha", "adaptive", "distinct"),
    [(0.025, False, 4), (0.05, False, 5), (0.1, False, 7), (0.3, False, 8), (0.683, False, 9), (0.7, False, 10),
     (1, False, 12), (2.2, False, 12), (10, False, 12), (0.25, True, 8), (0.5, True, 9), (0.9, True, 12),
     (1, True, 12), (2, True, 12)],
)  # fmt: skip
def test_distinct_functions_of_the_note(alpha: float, adaptive: bool, distinct: int) -> None:
    mu = kernels.finite(kernels.interval_joint(96, 0.03)).eigenvalues
    assert len(set(kernels.best_response_winners(mu, alpha, 12, adaptive=adaptive))) == distinct
