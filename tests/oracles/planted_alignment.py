"""Spaces with a known truth: turned copies of shared rows, with noise of their own."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Aligner(Protocol):
    def transform(self, X: Tensor, *, source: str) -> Tensor: ...


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


def turned(n_rows: int, width: int, names: str, *, noise: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
    """One space in many bases: rows Z, then Z Q_m + noise, off centre."""
    shared = normal(n_rows, width, seed=seed)
    return {
        name: shared @ rotation(width, seed=100 * seed + m + 1)
        + noise * normal(n_rows, width, seed=900 + 7 * seed + m)
        + m
        for m, name in enumerate(names)
    }


def partly_shared(
    n_rows: int, width: int, shared: int, names: str, *, noise: float = 1.0, seed: int = 0
) -> dict[str, Tensor]:
    """`shared` common dimensions of falling variance, and noise of falling variance in a basis of each space's own."""
    scale = torch.arange(1, width + 1, dtype=torch.float64) ** -0.5
    common = torch.zeros(n_rows, width, dtype=torch.float64)
    common[:, :shared] = normal(n_rows, shared, seed=seed) * scale[:shared]
    return {
        name: (
            common
            + noise * (normal(n_rows, width, seed=seed + 10 * m + 1) * scale) @ rotation(width, seed + 10 * m + 2)
        )
        @ rotation(width, seed + 10 * m + 3)
        for m, name in enumerate(names)
    }


def rank1(aligner: Aligner, spaces: dict[str, Tensor]) -> Tensor:
    """Share of rows whose nearest row in the universe is their own, (M, M), NaN on the diagonal."""
    units = [F.normalize(aligner.transform(x, source=name), dim=1) for name, x in spaces.items()]
    table = torch.full((len(units), len(units)), torch.nan)
    for a, first in enumerate(units):
        for b, second in enumerate(units):
            if a != b:
                cosine = first @ second.T
                table[a, b] = (cosine.argmax(dim=1) == torch.arange(len(first))).float().mean()
    return table


def cosines(aligner: Aligner, spaces: dict[str, Tensor], *names: str) -> Tensor:
    """All cosines between the rows of two spaces in the universe."""
    first, second = (F.normalize(aligner.transform(spaces[name], source=name), dim=1) for name in names)
    return first @ second.T
