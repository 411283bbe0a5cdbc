"""Corrections from their definitions, row by row in numpy, and planted sets whose directions agree in part.

The sets follow `multiway_alignment.md`, section 4: names -> (training rows, unseen rows).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def unit(rows: Array) -> Array:
    return np.array([row / np.linalg.norm(row) for row in rows])


def consensus_of_others(u: Array, weights: Array) -> Array:
    """(M, N, K): normalised weighted sum of the unit rows of all other spaces."""
    out = np.zeros_like(u)
    for m in range(len(u)):
        for i in range(u.shape[1]):
            total = sum(weights[n, i] * u[n, i] / np.linalg.norm(u[n, i]) for n in range(len(u)) if n != m)
            out[m, i] = total / np.linalg.norm(total)
    return out


def weighted_ridge(x: Array, y: Array, weights: Array, relative: float) -> Array:
    """Least squares with sqrt(penalty) I stacked below the rows."""
    width = x.shape[1]
    penalty = relative * (weights[:, None] * x * x).sum() / width
    root = np.sqrt(weights)[:, None]
    stacked = np.vstack([root * x, np.sqrt(penalty) * np.eye(width)])
    return np.asarray(np.linalg.lstsq(stacked, np.vstack([root * y, np.zeros((width, y.shape[1]))]), rcond=None)[0])


def agreement_map(y: Array, shrinkage: float) -> Array:
    """A A^T of the agreement map from codes y (M, N, K), by scipy-free generalised eigenvectors: B v = rho (T + s) v."""
    n_models, n_rows, width = y.shape
    within = sum(y[m].T @ y[m] for m in range(n_models)) / (n_models * n_rows)
    between = np.zeros((width, width))
    for m in range(n_models):
        for n in range(n_models):
            if m != n:
                between += y[m].T @ y[n] / (n_models * (n_models - 1) * n_rows)
    total = within + shrinkage * np.trace(within) / width * np.eye(width)
    rho, vectors = np.linalg.eig(np.linalg.solve(total, between))
    vectors = vectors.real / np.sqrt(np.einsum("kj,kl,lj->j", vectors.real, total, vectors.real))
    weighted = vectors * np.maximum(rho.real, 0)
    return np.asarray(weighted @ weighted.T)


def planted(
    kind: str, *, n_models: int = 5, n_rows: int = 600, n_unseen: int = 300, width: int = 32, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """iso: equal noise; lowrank: a quarter of the directions shared; gap: little noise there, much elsewhere;
    clusters: each model moves each cluster its own way; warp: each model bends its own way."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    total, shared = n_rows + n_unseen, width // 4
    spectrum = torch.arange(1, width + 1, dtype=torch.float64) ** -0.5
    content = normal(total, width) if kind == "iso" else normal(total, shared)
    if kind in ("lowrank", "gap"):
        content = content * spectrum[:shared]
    if kind == "clusters":
        cluster = torch.randint(60, (total,), generator=generator)
        content = normal(60, shared)[cluster] + 0.5 * content
    common = torch.nn.functional.pad(content, (0, width - content.shape[1]))
    spaces = {}
    for m in range(n_models):
        turn = torch.linalg.qr(normal(width, width)).Q
        if kind == "iso":
            rows = common + normal(total, width)
        elif kind == "lowrank":
            rows = common + 0.6 * (normal(total, width) * spectrum) @ torch.linalg.qr(normal(width, width)).Q
        elif kind == "gap":
            noise = torch.where(torch.arange(width) < shared, 0.15, 0.5)
            rows = common + noise * normal(total, width)
        elif kind == "clusters":
            moved = 0.6 * normal(60, shared)
            rows = common + torch.nn.functional.pad(moved[cluster], (0, width - shared)) + 0.3 * normal(total, width)
        else:
            rows = torch.tanh(content @ normal(shared, width) * 1.5 / shared**0.5) + 0.3 * normal(total, width)
        spaces[f"m{m}"] = rows @ turn
    return {name: x[:n_rows] for name, x in spaces.items()}, {name: x[n_rows:] for name, x in spaces.items()}
