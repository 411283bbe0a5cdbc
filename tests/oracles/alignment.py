"""Alignment by scipy, numpy loops and dense normal equations; never imports the package."""

import numpy as np
import scipy.linalg


def centred(x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    return x - np.average(x, axis=0, weights=weights)


def procrustes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """scipy's rotation of centred spaces of equal width."""
    return scipy.linalg.orthogonal_procrustes(centred(x), centred(y))[0]


def ridge(x: np.ndarray, y: np.ndarray, relative: float) -> tuple[np.ndarray, np.ndarray]:
    """Map and offset by least squares on rows augmented with the root of the penalty."""
    width = x.shape[1]
    penalty = relative * np.trace(centred(x).T @ centred(x)) / width
    rows = np.vstack([centred(x), np.sqrt(penalty) * np.eye(width)])
    matrix = np.linalg.lstsq(rows, np.vstack([centred(y), np.zeros((width, y.shape[1]))]), rcond=None)[0]
    return matrix, y.mean(0) - x.mean(0) @ matrix


def agreement(maps: list[np.ndarray], spaces: list[np.ndarray]) -> float:
    """sum over pairs of <X_m R_m, X_n R_n>, row by row."""
    mapped = [x @ r for x, r in zip(spaces, maps, strict=True)]
    return float(sum(np.sum(mapped[m] * mapped[n]) for n in range(len(mapped)) for m in range(n)))


def alternating_procrustes(spaces: list[np.ndarray], starts: list[np.ndarray], sweeps: int) -> list[np.ndarray]:
    """On the rows themselves: each space turned to the sum of all others by scipy, over and over."""
    maps = [start.copy() for start in starts]
    for _ in range(sweeps):
        for m, x in enumerate(spaces):
            others = sum(y @ r for n, (y, r) in enumerate(zip(spaces, maps, strict=True)) if n != m)
            left, _, right = scipy.linalg.svd(x.T @ others, full_matrices=False)
            maps[m] = left @ right
    return maps


def best_planar_agreement(spaces: list[np.ndarray], steps: int) -> float:
    """Three spaces of width 2 by trying all turns and reflections of two of them against the first."""
    first, second, third = spaces
    angles = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    turns = [np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) for t in angles]
    turns = np.array(turns + [turn @ np.diag([1.0, -1.0]) for turn in turns])
    seconds, thirds = second @ turns, third @ turns
    to_first = np.einsum("nk,tnk->t", first, seconds)[:, None] + np.einsum("nk,tnk->t", first, thirds)[None, :]
    return float((to_first + np.einsum("snk,tnk->st", seconds, thirds)).max())


def canonical_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Singular values of the product of two orthonormal bases of the centred columns."""
    return scipy.linalg.svdvals(scipy.linalg.orth(centred(x)).T @ scipy.linalg.orth(centred(y)))


def stacked_bases(spaces: list[np.ndarray], n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading left singular vectors and squared singular values of all orthonormal bases side by side."""
    left, values, _ = scipy.linalg.svd(np.hstack([scipy.linalg.orth(centred(x)) for x in spaces]), full_matrices=False)
    return left[:, :n_components], values[:n_components] ** 2
