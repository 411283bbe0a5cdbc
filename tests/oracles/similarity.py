"""Similarity measures from their formulas in numpy, by the longest way round: loops, inverse roots, explicit sums."""

import math
from itertools import permutations

import numpy as np
import scipy.linalg
import scipy.stats


def linear_kernel(x: np.ndarray) -> np.ndarray:
    return x @ x.T


def rbf_kernel(x: np.ndarray, bandwidth: float = 1.0) -> np.ndarray:
    n = len(x)
    square = np.array([[sum((x[i] - x[j]) ** 2) for j in range(n)] for i in range(n)])
    between = sorted(square[i, j] for i in range(n) for j in range(i))
    return np.exp(-square / (2 * bandwidth**2 * between[(len(between) - 1) // 2]))


def hsic_biased(k: np.ndarray, m: np.ndarray) -> float:
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(k @ h @ m @ h)) / (n - 1) ** 2


def hsic_unbiased(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, equation 5."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    mixed = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return float(np.trace(k @ m) + mixed) / (n * (n - 3))


def hsic_u_statistic(k: np.ndarray, m: np.ndarray) -> float:
    """Mean over all 4-tuples of different rows: what HSIC_1 must equal."""
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(len(k)), 4)]
    return float(np.mean(terms))


def cka(k: np.ndarray, m: np.ndarray, *, unbiased: bool) -> float:
    hsic = hsic_unbiased if unbiased else hsic_biased
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def minibatch_cka(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Over kernels (k, m) of every batch."""
    cross = np.mean([hsic_unbiased(k, m) for k, m in pairs])
    own = np.mean([hsic_unbiased(k, k) for k, _ in pairs]) * np.mean([hsic_unbiased(m, m) for _, m in pairs])
    return float(cross / math.sqrt(own))


def canonical(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Canonical correlations by the whitened cross-covariance, and variates of x with unit norm as columns."""
    x, y = x - x.mean(0), y - y.mean(0)
    root_x = np.linalg.inv(scipy.linalg.sqrtm(x.T @ x).real)
    root_y = np.linalg.inv(scipy.linalg.sqrtm(y.T @ y).real)
    u, s, _ = np.linalg.svd(root_x @ x.T @ y @ root_y, full_matrices=False)
    return s, x @ root_x @ u


def pwcca(x: np.ndarray, y: np.ndarray) -> float:
    s, variates = canonical(x, y)
    centred = x - x.mean(0)
    weights = [sum(abs(variates[:, i] @ centred[:, f]) for f in range(x.shape[1])) for i in range(len(s))]
    return float(np.dot(weights, s) / sum(weights))


def svcca(x: np.ndarray, y: np.ndarray, explained: float) -> float:
    def reduced(z: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(np.cov(z.T))
        kept = next(r for r in range(1, len(values) + 1) if values[::-1][:r].sum() / values.sum() >= explained)
        return (z - z.mean(0)) @ vectors[:, ::-1][:, :kept]

    return float(canonical(reduced(x), reduced(y))[0].mean())


def procrustes_distance(x: np.ndarray, y: np.ndarray) -> float:
    """With scipy's rotation, in the width of the wider space."""
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(z - z.mean(0), ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(np.linalg.norm(x @ scipy.linalg.orthogonal_procrustes(x, y)[0] - y))


def rsa(x: np.ndarray, y: np.ndarray, correlation: str, distance: str) -> float:
    def between(z: np.ndarray) -> list[float]:
        if distance == "cosine":
            z = z / np.linalg.norm(z, axis=1, keepdims=True)
            return [1 - z[i] @ z[j] for i in range(len(z)) for j in range(i)]
        return [float(np.linalg.norm(z[i] - z[j])) for i in range(len(z)) for j in range(i)]

    function = scipy.stats.pearsonr if correlation == "pearson" else scipy.stats.spearmanr
    return float(function(between(x), between(y))[0])


def neighbours(x: np.ndarray, k: int, metric: str) -> list[set[int]]:
    def far(i: int, j: int) -> float:
        if metric == "cosine":
            return -float(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]))
        return float(np.linalg.norm(x[i] - x[j]))

    n = len(x)
    return [set(sorted((j for j in range(n) if j != i), key=lambda j: far(i, j))[:k]) for i in range(n)]


def mutual_knn(x: np.ndarray, y: np.ndarray, k: int, metric: str) -> float:
    pairs = zip(neighbours(x, k, metric), neighbours(y, k, metric), strict=True)
    return float(np.mean([len(a & b) / k for a, b in pairs]))


def cycle_knn(x: np.ndarray, y: np.ndarray, k: int, metric: str) -> float:
    first, second = neighbours(x, k, metric), neighbours(y, k, metric)
    return float(np.mean([any(i in second[j] for j in first[i]) for i in range(len(x))]))


def relative_similarity(x: np.ndarray, y: np.ndarray, anchors: list[int]) -> float:
    def cosine(u: np.ndarray, v: np.ndarray) -> float:
        return float(u @ v / math.sqrt(u @ u) / math.sqrt(v @ v))

    rows = [i for i in range(len(x)) if i not in anchors]
    relative = [[np.array([cosine(z[i], z[p]) for p in anchors]) for i in rows] for z in (x, y)]
    return float(np.mean([cosine(u, v) for u, v in zip(*relative, strict=True)]))
