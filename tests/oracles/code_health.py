"""Collapse of codes by loops and eigenvalues."""

import numpy as np


def code_health(codes: np.ndarray) -> dict[str, float]:
    n, k = codes.shape
    centred = codes - codes.mean(0)
    alive = [j for j in range(k) if centred[:, j].var() > 1e-6 * (codes[:, j] ** 2).mean()]
    copies = 0
    for j in alive:
        copies += any(abs(np.corrcoef(codes[:, i], codes[:, j])[0, 1]) > 0.95 for i in alive if i < j)
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.corrcoef(codes[:, alive].T))) if alive else np.zeros(1)
    m = len(alive)
    squares = max((eigenvalues**2).sum(), 1)
    return {
        "rank": m**2 / squares,
        "rank_share": (m + m * (m - 1) / n) / squares,
        "copies": copies / k,
        "alive": m / k,
        "variance": centred.var(0).sum(),
    }
