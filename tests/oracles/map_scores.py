"""Scores of functional maps from their definitions in numpy: loops, N x N operators, all N! orders of the rows."""

from itertools import permutations

import numpy as np
import scipy.linalg


def paper_ratio(c: np.ndarray, *, squared: bool) -> float:
    k = c.shape[1]
    m = [[sum(c[r, i] * c[r, j] for r in range(len(c))) for j in range(k)] for i in range(k)]
    off = sum(m[i][j] ** 2 for i in range(k) for j in range(k) if i != j)
    whole = sum(m[i][j] ** 2 for i in range(k) for j in range(k))
    return 1 - (off / whole if squared else (off / whole) ** 0.5)


def angles(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """Between the column spans, rising, by scipy (arcsine where small)."""
    return np.sort(scipy.linalg.subspace_angles(phi, psi))


def nuclear(c: np.ndarray) -> float:
    return float(np.trace(scipy.linalg.sqrtm(c.T @ c).real)) / min(c.shape)


def orthogonality(c: np.ndarray) -> float:
    k = c.shape[1]
    return 1 - sum((float(c[:, i] @ c[:, j]) - (i == j)) ** 2 for i in range(k) for j in range(k)) / k


def operator_cosine(phi: np.ndarray, psi: np.ndarray, w: np.ndarray, v: np.ndarray) -> float:
    """Cosine of two N x N filters, entry by entry."""
    a = sum(w[k] * np.outer(phi[:, k], phi[:, k]) for k in range(len(w)))
    b = sum(v[k] * np.outer(psi[:, k], psi[:, k]) for k in range(len(v)))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def mean_over_orders(phi: np.ndarray, psi: np.ndarray, w: np.ndarray, v: np.ndarray) -> float:
    return float(np.mean([operator_cosine(phi[list(order)], psi, w, v) for order in permutations(range(len(phi)))]))


def row_distortion(phi: np.ndarray, psi: np.ndarray) -> list[float]:
    """1 - share of each row's delta function, once projected on span(phi), that span(psi) holds too."""
    lost = []
    for n in range(len(phi)):
        delta = phi @ phi[n]
        kept = psi @ (psi.T @ delta)
        lost.append(1 - float(kept @ kept) / float(delta @ delta))
    return lost
