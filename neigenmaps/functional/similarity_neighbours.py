"""Mutual kNN, cycle kNN and relative representations: agreement on what is near to what.

Mutual and cycle kNN: Huh et al. 2024 (2405.07987). By chance mutual kNN is k / (N - 1). Relative representations:
Moschella et al. 2023 (2209.15430).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.similarity_measure import AbstractMeasure


class NeighbourMeasure(AbstractMeasure):
    """Measures that see only the indices (N, k) of each row's nearest other rows."""

    k: int
    metric: Literal["cosine", "euclidean"]
    chunk: int

    def __post_init__(self) -> None:
        if self.metric not in ("cosine", "euclidean"):
            raise InputError(f"expected metric 'cosine' or 'euclidean', got {self.metric!r}: name one of them")
        if self.chunk < 1:
            raise InputError(f"expected chunk >= 1, got {self.chunk}: it is the number of rows searched at a time")

    def prepare(self, x_NF: Tensor, *, second: bool) -> Tensor:
        if not 1 <= self.k < len(x_NF):
            raise InputError(f"expected 1 <= k < {len(x_NF)} rows, got k={self.k}: a row is not its own neighbour")
        # Ties fall by position. Another order of rows in the second space keeps copies of rows from agreeing by it.
        shuffle = torch.Generator().manual_seed(int(second))
        order_N = torch.randperm(len(x_NF), generator=shuffle).to(x_NF.device)
        nearest_Nk = nearest_rows(x_NF[order_N], self.k, self.metric, self.chunk)
        return torch.empty_like(nearest_Nk).index_copy(0, order_N, order_N[nearest_Nk])

    def permute(self, prepared: Tensor, order_N: Tensor) -> Tensor:
        return order_N.argsort()[prepared[order_N]]


@dataclasses.dataclass(frozen=True)
class MutualKNN(NeighbourMeasure):
    """mean_i |N_a(i) & N_b(i)| / k, N(i) the k nearest other rows of row i."""

    k: int = 10
    metric: Literal["cosine", "euclidean"] = "cosine"
    chunk: int = 1024

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        both_N2k = torch.cat([a, b], dim=1).sort(dim=1).values
        shared = (both_N2k[:, 1:] == both_N2k[:, :-1]).sum()
        return shared.double() / a.numel() if a.device.type != "mps" else shared.float() / a.numel()


@dataclasses.dataclass(frozen=True)
class CycleKNN(NeighbourMeasure):
    """Share of rows that come home: from i to a neighbour j in the first space, whose neighbours in the second hold i.

    Not symmetric, and below 1 for equal spaces when a row is nobody's neighbour.
    """

    k: int = 10
    metric: Literal["cosine", "euclidean"] = "cosine"
    chunk: int = 1024

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        rows_N11 = torch.arange(len(a), device=a.device)[:, None, None]
        parts = zip(a.split(self.chunk), rows_N11.split(self.chunk), strict=True)
        home = torch.stack(
            [(b[step_Bk] == start_B11).any(dim=2).any(dim=1).sum() for step_Bk, start_B11 in parts]
        ).sum()
        return home.double() / len(a) if a.device.type != "mps" else home.float() / len(a)


@dataclasses.dataclass(frozen=True)
class RelativeSimilarity(AbstractMeasure):
    """Mean cosine, over the rows that are no anchors, of relative representations on the same anchor rows.

    anchors: row numbers. High by chance when all features share a mean direction: read it with `null=`.
    """

    anchors: tuple[int, ...]

    def prepare(self, x_NF: Tensor, *, second: bool) -> tuple[Tensor, Tensor]:
        n = len(x_NF)
        if not self.anchors or len(set(self.anchors)) != len(self.anchors) or not all(0 <= i < n for i in self.anchors):
            raise InputError(
                f"expected different anchor rows from 0 to {n - 1}, got {self.anchors}: name each row once"
            )
        if len(self.anchors) == n:
            raise InputError(f"expected rows besides the anchors, got {n} anchors of {n} rows: name fewer anchors")
        return self._relative(F.normalize(x_NF, dim=1))

    def _relative(self, unit_NF: Tensor) -> tuple[Tensor, Tensor]:
        anchors_P = torch.tensor(self.anchors, device=unit_NF.device)
        scored_N = torch.ones(len(unit_NF), dtype=torch.bool, device=unit_NF.device).index_fill(0, anchors_P, False)
        return unit_NF, F.normalize(unit_NF[scored_N] @ unit_NF[anchors_P].T, dim=1)

    def permute(self, prepared: tuple[Tensor, Tensor], order_N: Tensor) -> tuple[Tensor, Tensor]:
        return self._relative(prepared[0][order_N])

    def compare(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        return (a[1] * b[1]).sum(dim=1).mean()


def nearest_rows(x_NF: Tensor, k: int, metric: Literal["cosine", "euclidean"], chunk: int) -> Tensor:
    """Indices (N, k) of the k nearest other rows; at most chunk x N scores exist at a time."""
    x_NF = x_NF.detach()
    x_NF = F.normalize(x_NF, dim=1) if metric == "cosine" else x_NF - x_NF.mean(dim=0)
    half_square_N = x_NF.square().sum(dim=1) / 2
    found = []
    for start in range(0, len(x_NF), chunk):
        scores_BN = x_NF[start : start + chunk] @ x_NF.T
        if metric == "euclidean":
            scores_BN -= half_square_N  # the row's own norm does not change the order of its neighbours
        own_B = torch.arange(len(scores_BN), device=x_NF.device)
        scores_BN[own_B, own_B + start] = -torch.inf
        found.append(scores_BN.topk(k, dim=1).indices)
    return torch.cat(found)


def relative_representation(x_NF: Tensor, anchors_PF: Tensor) -> Tensor:
    """Cosines of every row with every anchor, (N, P): unchanged by rotations and by the scale of single rows."""
    if x_NF.ndim != 2 or anchors_PF.ndim != 2 or x_NF.shape[1] != anchors_PF.shape[1] or len(anchors_PF) == 0:
        raise ShapeError(
            f"expected rows (N, F) and anchors (P, F) with P >= 1, got {tuple(x_NF.shape)} and "
            f"{tuple(anchors_PF.shape)}: take the anchors from the same space"
        )
    if not (torch.isfinite(x_NF).all() and torch.isfinite(anchors_PF).all()):
        raise NonFiniteError("expected finite rows and anchors, got NaN or infinity: look at the encoder")
    return F.normalize(x_NF, dim=1) @ F.normalize(anchors_PF, dim=1).T
