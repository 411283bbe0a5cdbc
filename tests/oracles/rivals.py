"""Rival losses from their papers' formulas, in numpy, one pair of features at a time."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def barlow_twins(a: Array, b: Array, off_diagonal: float, eps: float = 1e-5) -> float:
    """sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2, C the cross-correlation over the batch (eps: of batch norm)."""
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + eps) for z in (a, b))
    total = 0.0
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            c = float(np.mean(a[:, i] * b[:, j]))
            total += (1 - c) ** 2 if i == j else off_diagonal * c**2
    return total


def vicreg(a: Array, b: Array, invariance: float, variance: float, covariance: float, eps: float = 1e-4) -> float:
    """lambda s + mu v + nu c with the factors of the authors' code: s and v are means over features, v over views too."""
    rows, width = a.shape
    apart = sum(float(np.sum((x - y) ** 2)) for x, y in zip(a, b, strict=True)) / (rows * width)
    hinge = float(np.mean([np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + eps)).mean() for z in (a, b)]))
    tangled = 0.0
    for z in (a, b):
        centred = z - z.mean(0)
        for i in range(width):
            for j in range(width):
                if i != j:
                    tangled += float(np.sum(centred[:, i] * centred[:, j]) / (rows - 1)) ** 2 / width
    return invariance * apart + variance * hinge + covariance * tangled


def simclr(a: Array, b: Array, temperature: float) -> float:
    """Mean over all 2N views of -log(exp(s_ij / t) / sum_{k != i} exp(s_ik / t)), s the cosine."""
    z = np.concatenate([a, b])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    rows, losses = len(z), []
    for i in range(rows):
        scores = [float(z[i] @ z[k]) / temperature for k in range(rows) if k != i]
        positive = float(z[i] @ z[(i + len(a)) % rows]) / temperature
        losses.append(np.log(np.sum(np.exp(scores))) - positive)
    return float(np.mean(losses))
