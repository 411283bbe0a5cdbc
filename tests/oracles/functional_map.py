"""Functional maps from their formulas, in numpy loops over single entries; the package is never imported."""

import math

import numpy as np


def energy(c, a, b, mask, s, t, weights) -> float:
    data, laplacian, commutativity = weights
    total = data * sum((float(c[i] @ a[:, p]) - b[i, p]) ** 2 for i in range(len(c)) for p in range(a.shape[1]))
    total += laplacian * sum(mask[i, j] * c[i, j] ** 2 for i in range(c.shape[0]) for j in range(c.shape[1]))
    for s_p, t_p in zip(s, t, strict=True):
        total += commutativity * np.sum((c @ s_p - t_p @ c) ** 2)
    return total / 2


def minimum(a, b, mask, s, t, weights, first_column=None) -> np.ndarray:
    """C from stacked least squares: one equation for every squared number in the energy, no normal equations."""
    n_y, n_x = mask.shape
    rows, right = [], []

    def equation(entries, value) -> None:
        row = np.zeros((n_y, n_x))
        for (i, j), weight in entries:
            row[i, j] += weight
        rows.append(row.ravel())
        right.append(value)

    data, laplacian, commutativity = (math.sqrt(w) for w in weights)
    for i in range(n_y):
        for p in range(a.shape[1]):
            equation([((i, j), data * a[j, p]) for j in range(n_x)], data * b[i, p])
        for j in range(n_x):
            equation([((i, j), laplacian * math.sqrt(mask[i, j]))], 0.0)
    for s_p, t_p in zip(s, t, strict=True):
        for i in range(n_y):
            for j in range(n_x):
                forward = [((i, m), commutativity * s_p[m, j]) for m in range(n_x)]
                back = [((m, j), -commutativity * t_p[i, m]) for m in range(n_y)]
                equation(forward + back, 0.0)
    matrix, values = np.array(rows), np.array(right)
    if first_column is None:
        return np.linalg.lstsq(matrix, values, rcond=None)[0].reshape(n_y, n_x)
    free = (np.arange(n_y * n_x) % n_x) > 0
    fixed = matrix[:, ~free] @ first_column
    result = np.zeros(n_y * n_x)
    result[~free] = first_column
    result[free] = np.linalg.lstsq(matrix[:, free], values - fixed, rcond=None)[0]
    return result.reshape(n_y, n_x)


def resolvent_mask(values_x, values_y) -> np.ndarray:
    top = max(max(values_x), max(values_y))
    mask = np.zeros((len(values_y), len(values_x)))
    for i, y in enumerate(values_y):
        for j, x in enumerate(values_x):
            g_y, g_x = math.sqrt(y / top), math.sqrt(x / top)
            mask[i, j] = (g_x / (1 + g_x**2) - g_y / (1 + g_y**2)) ** 2 + (1 / (1 + g_x**2) - 1 / (1 + g_y**2)) ** 2
    return mask


def zoomout_rows(c, phi_x, phi_y, sizes) -> np.ndarray:
    """Rows of X by row of Y after ZoomOut; all distances, least squares, no shortcuts."""
    k = sizes[0]
    c = c[:k, :k]
    for after in [*sizes[1:], sizes[-1]]:
        k = len(c)
        rows = []
        for y in phi_y[:, :k]:
            rows.append(min(range(len(phi_x)), key=lambda n: np.sum((c @ phi_x[n, :k] - y) ** 2)))
        c = np.linalg.lstsq(phi_y[:, :after], phi_x[rows, :after], rcond=None)[0]
    return np.array(rows)
