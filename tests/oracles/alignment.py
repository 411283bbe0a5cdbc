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
