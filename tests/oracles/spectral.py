"""Graphs, spectra and descriptors from their definitions, dense, in numpy loops; the package is never imported."""

import math

import numpy as np


def unit_rows(x: np.ndarray) -> np.ndarray:
    return np.array([row / math.sqrt(sum(v * v for v in row)) for row in x])


def adjacency(distances: np.ndarray, index: np.ndarray, kernel: str) -> np.ndarray:
    """W from directed neighbours: `distances` and `index` (N, K), rising, the row itself left out."""
    n, k = index.shape
    reach = distances[:, -1]
    directed = np.zeros((n, n))
    for i in range(n):
        for position in range(k):
            j, d = index[i, position], distances[i, position]
            directed[i, j] = {
                "gaussian": math.exp(-4 * d**2 / reach[i] ** 2),
                "symmetric_gaussian": math.exp(-4 * d**2 / (reach[i] * reach[j])),
                "inverse_distance": 1 / d,
                "distance": d,
                "uniform": 1.0,
            }[kernel]
    return (directed + directed.T) / 2 if kernel == "gaussian" else np.maximum(directed, directed.T)


def normalized_laplacian(w: np.ndarray) -> np.ndarray:
    n = len(w)
    degrees = [sum(row) for row in w]
    laplacian = np.eye(n)
    for i in range(n):
        for j in range(n):
            if w[i, j]:
                laplacian[i, j] -= w[i, j] / math.sqrt(degrees[i] * degrees[j])
    return laplacian


def path(n: int) -> np.ndarray:
    return np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)


def cycle(n: int) -> np.ndarray:
    w = path(n)
    w[0, -1] = w[-1, 0] = 1
    return w


def shortest_paths(lengths: np.ndarray) -> np.ndarray:
    """Floyd-Warshall; 0 off the diagonal means no edge."""
    n = len(lengths)
    d = np.where(lengths > 0, lengths, np.inf)
    np.fill_diagonal(d, 0)
    for k in range(n):
        d = np.minimum(d, d[:, k : k + 1] + d[k : k + 1])
    return d


def heat_kernel_signature(eigenvalues: np.ndarray, vectors: np.ndarray, t: float) -> np.ndarray:
    weights = [math.exp(-t * value) for value in eigenvalues]
    return sum(w * vectors[:, j] ** 2 for j, w in enumerate(weights)) / sum(weights)


def wave_kernel_signature(eigenvalues: np.ndarray, vectors: np.ndarray, energy: float, sigma: float) -> np.ndarray:
    kept = [j for j, value in enumerate(eigenvalues) if value > 1e-9]
    weights = [math.exp(-((energy - math.log(eigenvalues[j])) ** 2) / (2 * sigma**2)) for j in kept]
    return sum(w * vectors[:, j] ** 2 for j, w in zip(kept, weights, strict=True)) / sum(weights)


def extended_value(
    w: np.ndarray, distances: np.ndarray, reach: np.ndarray, k: int, kernel: str, eigenvalue: float, phi: np.ndarray
) -> float:
    """Nystrom's sum for one new point. w: the graph's weights; distances (N,) to its nodes; reach (N,) of the nodes."""
    own = sorted(distances)[k - 1]
    weights = []
    for d, other in zip(distances, reach, strict=True):
        forward = {"gaussian": math.exp(-4 * d**2 / own**2), "inverse_distance": 1 / d}[kernel] if d <= own else 0.0
        backward = (
            {"gaussian": math.exp(-4 * d**2 / other**2), "inverse_distance": 1 / d}[kernel] if d <= other else 0.0
        )
        weights.append((forward + backward) / 2 if kernel == "gaussian" else max(forward, backward))
    total = sum(weights)
    terms = [v / math.sqrt(total * sum(w[i])) * phi[i] for i, v in enumerate(weights)]
    return sum(terms) / (1 - eigenvalue)
