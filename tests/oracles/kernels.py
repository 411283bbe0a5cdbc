"""Augmentation kernels whose eigenfunctions are known: quadrature nodes, exact functions and values, a pair sampler."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.polynomial.hermite_e import hermegauss, hermevander
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Kernel(NamedTuple):
    """Exact spectrum of one kernel, most persistent function first; column 0 is the constant, eigenvalue 1.

    points: what a network reads, (N, d), or the state numbers (N,) of a finite kernel. weights: (N,) with sum 1, a
    quadrature rule that integrates products of these functions exactly. functions: (N, M), E[phi phi^T] = I.
    sample(rng, B): two (B, ...) arrays of paired points.
    """

    points: NDArray
    weights: Array
    functions: Array
    eigenvalues: Array
    sample: Callable[[np.random.Generator, int], tuple[NDArray, NDArray]]


def hermite(x: Array, degree: int) -> Array:
    """He_n / sqrt(n!) for n = 0..degree: orthonormal under N(0, 1)."""
    return hermevander(x, degree) / np.sqrt([math.factorial(n) for n in range(degree + 1)])


def gaussian_views(correlations: Sequence[float], degree: int) -> Kernel:
    """Kernel D: x = rho xbar + sqrt(1 - rho^2) e in each coordinate, with its own rho. Eigenvalues prod rho_i^(2 n_i).

    Functions are products of Hermite polynomials of degree at most `degree` in each coordinate.
    """
    rho = np.array(correlations)
    nodes, node_weights = hermegauss(degree + 2)  # exact for polynomials up to degree 2 degree + 3
    points = _grid(nodes, len(rho))
    weights = _grid(node_weights / node_weights.sum(), len(rho)).prod(1)
    orders = np.array(list(itertools.product(range(degree + 1), repeat=len(rho))))
    per_coordinate = hermite(points, degree)  # (N, d, degree + 1)
    functions = np.stack([per_coordinate[:, np.arange(len(rho)), order].prod(1) for order in orders], axis=1)

    def sample(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        image, noise1, noise2 = rng.standard_normal((3, batch, len(rho)))
        return rho * image + np.sqrt(1 - rho**2) * noise1, rho * image + np.sqrt(1 - rho**2) * noise2

    return _ordered(points, weights, functions, (rho ** (2 * orders)).prod(1), sample)


def circle_shift(noise: float, frequencies: int) -> Kernel:
    """Kernel E: an angle plus N(0, noise^2), read as (cos, sin). Eigenvalues exp(-n^2 noise^2), each twice."""
    angles = 2 * np.pi * np.arange(4 * frequencies + 4) / (4 * frequencies + 4)
    functions, values = [np.ones_like(angles)], [1.0]
    for n in range(1, frequencies + 1):
        functions += [math.sqrt(2) * np.cos(n * angles), math.sqrt(2) * np.sin(n * angles)]
        values += [math.exp(-(n**2) * noise**2)] * 2

    def on_circle(theta: Array) -> Array:
        return np.stack([np.cos(theta), np.sin(theta)], axis=1)

    def sample(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        image = 2 * np.pi * rng.random(batch)
        noise1, noise2 = noise * rng.standard_normal((2, batch))
        return on_circle(image + noise1), on_circle(image + noise2)

    weights = np.full(len(angles), 1 / len(angles))
    return _ordered(on_circle(angles), weights, np.stack(functions, axis=1), np.array(values), sample)


def hypercube_flips(rates: Sequence[float]) -> Kernel:
    """Kernel F: +-1 bits, each flipped in each view at its own rate e. Parities over S, prod_{i in S} (1 - 2 e_i)^2."""
    rate = np.array(rates)
    points = _grid(np.array([-1.0, 1.0]), len(rate))
    subsets = np.array(list(itertools.product([0, 1], repeat=len(rate))))
    functions = np.stack([(points**subset).prod(1) for subset in subsets], axis=1)

    def sample(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        image = rng.choice([-1.0, 1.0], (batch, len(rate)))
        flips = np.where(rng.random((2, batch, len(rate))) < rate, -1.0, 1.0)
        return image * flips[0], image * flips[1]

    weights = np.full(len(points), 1 / len(points))
    return _ordered(points, weights, functions, ((1 - 2 * rate) ** (2 * subsets)).prod(1), sample)


def finite(joint: Array) -> Kernel:
    """Kernel G: any symmetric joint law of two states, by the eigenvectors of D^-1/2 P D^-1/2."""
    states = len(joint)
    weights = joint.sum(1)
    values, vectors = np.linalg.eigh(joint / np.sqrt(np.outer(weights, weights)))
    cumulative = joint.ravel().cumsum()

    def sample(rng: np.random.Generator, batch: int) -> tuple[NDArray, NDArray]:
        cell = np.searchsorted(cumulative, rng.random(batch) * cumulative[-1], side="right")
        return cell // states, cell % states

    return _ordered(np.arange(states), weights, vectors / np.sqrt(weights)[:, None], values, sample)


def interval_joint(states: int, width: float) -> Array:
    """The toy kernels of sections 4.1 (96, .03) and 4.2 (64, .05): Gaussian steps between sorted uniform positions."""
    position = np.sort(np.random.default_rng(1).random(states))
    step = np.exp(-((position[:, None] - position) ** 2) / (2 * width**2))
    return joint_of(step / step.sum(1, keepdims=True))


def random_joint(rng: np.random.Generator, states: int, concentration: float) -> Array:
    """Every image has its own random law over states; a small concentration makes the views of an image agree."""
    return joint_of(rng.dirichlet(np.full(states, concentration), size=states))


def ring_joint(states: int, width: float) -> Array:
    """Steps around a ring: every eigenvalue but the first (and for even `states` the last) comes twice."""
    distance = np.abs(np.arange(states)[:, None] - np.arange(states))
    distance = np.minimum(distance, states - distance)
    step = np.exp(-(distance**2) / (2 * width**2))
    return joint_of(step / step.sum(1, keepdims=True))


def joint_of(views: Array) -> Array:
    """P(x, x+) from the laws of the views of equally likely images, (images, states): positive semi-definite."""
    return views.T @ views / len(views)


def best_response_winners(eigenvalues: Array, alpha: float, count: int, *, adaptive: bool = False) -> list[int]:
    """The sequential game of section 6.3: which true function each output takes when all before it have chosen."""
    deflated, winners = np.diag(eigenvalues), []
    for _ in range(count):
        choice = np.linalg.eigh(deflated)[1][:, -1]
        winners.append(int(np.abs(choice).argmax()))
        pushed = eigenvalues * choice
        deflated = deflated - alpha / (choice @ pushed if adaptive else 1.0) * np.outer(pushed, pushed)
    return winners


def _grid(values: Array, dimensions: int) -> Array:
    return np.array(list(itertools.product(values, repeat=dimensions)))


def _ordered(points: NDArray, weights: Array, functions: Array, values: Array, sample: Callable) -> Kernel:
    order = np.argsort(-values, kind="stable")
    return Kernel(points, weights, functions[:, order], values[order], sample)
