"""CCA, SVCCA, PWCCA and the Procrustes distance: what an invertible, or orthogonal, map cannot hide.

Canonical correlations are 1 by chance once the ranks of both spaces add up to N - 1 or more, and large well before:
read them with `null=`. SVCCA: Raghu et al. 2017 (1706.05806). PWCCA: Morcos et al. 2018 (1806.05759). Procrustes:
Ding et al. 2021 (2108.01661).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.functional.similarity_measure import AbstractMeasure, centred


@dataclasses.dataclass(frozen=True)
class CCA(AbstractMeasure):
    """Mean of the min(rank_a, rank_b) canonical correlations. explained < 1 makes it SVCCA.

    explained: share of the variance that the kept leading singular directions of each space must hold.
    """

    explained: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.explained <= 1:
            raise InputError(f"expected 0 < explained <= 1, got {self.explained}: it is a share of the variance")

    def prepare(self, x_NF: Tensor, *, second: bool) -> Tensor:
        return orthonormal_basis(centred(x_NF), self.explained)

    def permute(self, prepared: Tensor, order_N: Tensor) -> Tensor:
        return prepared[order_N]

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.svdvals(a.T @ b).mean()


@dataclasses.dataclass(frozen=True)
class PWCCA(AbstractMeasure):
    """sum_i w_i rho_i / sum_i w_i, w_i = sum_f |<h_i, x_f>|: h_i canonical variates, x_f columns of the FIRST space.

    Not symmetric: it asks how much of the first space the second one holds.
    """

    def prepare(self, x_NF: Tensor, *, second: bool) -> tuple[Tensor, Tensor]:
        x_NF = centred(x_NF)
        basis_NR = orthonormal_basis(x_NF, 1.0)
        return basis_NR, basis_NR.T @ x_NF

    def permute(self, prepared: tuple[Tensor, Tensor], order_N: Tensor) -> tuple[Tensor, Tensor]:
        return prepared[0][order_N], prepared[1]

    def compare(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        directions_RK, correlations_K, _ = torch.linalg.svd(a[0].T @ b[0], full_matrices=False)
        weights_K = (directions_RK.T @ a[1]).abs().sum(dim=1)
        return (weights_K * correlations_K).sum() / weights_K.sum()


@dataclasses.dataclass(frozen=True)
class ProcrustesDistance(AbstractMeasure):
    """min over orthogonal Q of ||X_a Q - X_b||_F for centred spaces of unit norm: sqrt(2 - 2 ||X_a^T X_b||_*).

    Between 0 and sqrt(2), a metric, small for alike spaces; the narrower space is padded with zeros. Near 0 it is
    exact to the root of the precision only.
    """

    best: ClassVar[float] = 0.0
    falling: ClassVar[bool] = True

    def prepare(self, x_NF: Tensor, *, second: bool) -> Tensor:
        x_NF = centred(x_NF)
        x_NF = x_NF / torch.linalg.matrix_norm(x_NF)
        if x_NF.shape[1] > x_NF.shape[0]:  # the same space in N columns: X V = U S
            left_NN, values_N, _ = torch.linalg.svd(x_NF, full_matrices=False)
            x_NF = left_NN * values_N
        return x_NF

    def permute(self, prepared: Tensor, order_N: Tensor) -> Tensor:
        return prepared[order_N]

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        return (2 - 2 * torch.linalg.svdvals(a.T @ b).sum()).clamp_min(0).sqrt()


def orthonormal_basis(x_NF: Tensor, explained: float) -> Tensor:
    """Leading left singular vectors (N, R): the fewest that hold `explained` of the variance, at most the rank."""
    left_NR, values_R, _ = torch.linalg.svd(x_NF, full_matrices=False)
    with torch.no_grad():
        rank = int((values_R > max(x_NF.shape) * torch.finfo(x_NF.dtype).eps * values_R[0]).sum())
        share_R = values_R.square().cumsum(dim=0) / values_R.square().sum()
        kept = rank if explained == 1 else min(rank, int((share_R < explained).sum()) + 1)
    return left_NR[:, :kept]
