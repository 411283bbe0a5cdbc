"""Rayleigh-Ritz as one generalised eigenproblem, by scipy."""

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[np.float64]


def ritz(f1: Array, f2: Array, *, center: bool = True) -> tuple[Array, Array]:
    """Falling eigenvalues of R w = lambda G w and the rotation W with W^T G W = I, from (N, K) paired features."""
    mean = np.concatenate([f1, f2]).mean(0) if center else np.zeros(f1.shape[1])
    both, swapped = np.concatenate([f1, f2]) - mean, np.concatenate([f2, f1]) - mean
    values, rotation = scipy.linalg.eigh(both.T @ swapped / len(both), both.T @ both / len(both))
    return values[::-1], rotation[:, ::-1]
