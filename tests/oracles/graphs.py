"""Kernels, walks and their spectra from their definitions, in numpy; the package is never imported."""

import math

import numpy as np
from scipy.stats import norm


def gaussian_quantiles(n: int) -> np.ndarray:
    """N(0, 1) by its quantiles, (n, 1): means over them are integrals up to 1/n."""
    return norm.ppf((np.arange(n) + 0.5) / n)[:, None]


def even_grid(low: float, high: float, n: int) -> np.ndarray:
    return (low + (high - low) * (np.arange(n) + 0.5) / n)[:, None]


def gaussian_rbf_functions(x: np.ndarray, count: int) -> np.ndarray:
    """Kernel A, length scale 1 under N(0, 1): exp(-(c - a) x^2) H_n(sqrt(2c) x), not normalised, (n, count)."""
    a, b = 1 / 4, 1 / 2
    c = math.sqrt(a * a + 2 * a * b)
    x = x[:, 0]
    polynomials = [np.ones_like(x), 2 * math.sqrt(2 * c) * x]
    for n in range(1, count - 1):
        polynomials.append(2 * math.sqrt(2 * c) * x * polynomials[n] - 2 * n * polynomials[n - 1])
    return np.exp(-(c - a) * x**2)[:, None] * np.stack(polynomials[:count], axis=1)


GOLDEN_A = [0.618034, 0.236068, 0.090170, 0.034442, 0.013156, 0.005025]
GOLDEN_B = [0.521216, 0.302539, 0.125742, 0.038924, 0.009388, 0.001839]
GOLDEN_C = [6.944134, 5.239353, 0.923980, 0.117790, 0.005496]


def rbf(x: np.ndarray, y: np.ndarray, gamma: float) -> np.ndarray:
    return np.array([[math.exp(-gamma * sum((p - q) ** 2 for p, q in zip(a, b, strict=True))) for b in y] for a in x])


def arc_cosine_by_sampling(x: np.ndarray, y: np.ndarray, order: int, units: int) -> np.ndarray:
    """2 E[max(0, w.x)^n max(0, w.y)^n] over Gaussian weights, the definition."""
    w = np.random.default_rng(0).standard_normal((x.shape[1], units))

    def layer(rows: np.ndarray) -> np.ndarray:
        return (rows @ w > 0) * (rows @ w) ** order

    return 2 * layer(x) @ layer(y).T / units


def leading(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest eigenvalues of a symmetric matrix and their unit eigenvectors."""
    values, vectors = np.linalg.eigh(matrix)
    return values[::-1][:count], vectors[:, ::-1][:, :count]


def walk(adjacency: np.ndarray, count: int, steps: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(D^-1 W)^steps: largest eigenvalues, their right eigenvectors, and the degrees."""
    degrees = adjacency.sum(1)
    root = np.sqrt(degrees)
    values, vectors = np.linalg.eigh(adjacency / np.outer(root, root))
    order = np.argsort(-(values**steps), kind="stable")[:count]
    return values[order] ** steps, vectors[:, order] / root[:, None], degrees


def cosines(f: np.ndarray, g: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """|cos| of matching columns in the measure of `weights`."""
    w = np.ones(len(f)) if weights is None else weights
    return np.abs(w @ (f * g)) / np.sqrt((w @ f**2) * (w @ g**2))


def propagate(adjacency: np.ndarray, start: np.ndarray, alpha: float, rounds: int) -> np.ndarray:
    """y <- (1 - alpha) start + alpha D^-1/2 A D^-1/2 y."""
    root = np.sqrt(np.maximum(adjacency.sum(1), 1))
    step, y = adjacency / np.outer(root, root), start.copy()
    for _ in range(rounds):
        y = (1 - alpha) * start + alpha * step @ y
    return y


def node_kernel(adjacency: np.ndarray, x: np.ndarray, steps: int, own: float, rarity: float) -> np.ndarray:
    """own^2 <x_i, x_j> + <x of a walk from i, x of a walk from j>, centred, largest eigenvalue of its mean 1, (N, N)."""
    n = len(x)
    transition = np.zeros((n, n))
    for i in range(n):
        reached = [i, *np.flatnonzero(adjacency[i])]
        transition[i, reached] = 1 / len(reached)
    columns = [x[:, c] / np.abs(x[:, c]).mean() ** rarity for c in range(x.shape[1]) if x[:, c].any()]
    scaled = np.stack(columns, axis=1)
    walked = np.linalg.matrix_power(transition, steps) @ scaled
    kernel = own**2 * scaled @ scaled.T + walked @ walked.T
    centre = np.eye(n) - 1 / n
    centred = centre @ kernel @ centre
    return centred * n / np.linalg.eigvalsh(centred)[-1]
