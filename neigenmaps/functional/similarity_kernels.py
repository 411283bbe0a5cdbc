"""CKA in its forms, and RSA: cosines between N x N matrices of pairwise relations.

Biased CKA is large by chance (about d / (N + d) for independent Gaussians of width d); the unbiased form has mean 0.
Kornblith et al. 2019 (1905.00414); HSIC_1: Song et al. 2012; mini-batches: Nguyen et al. 2021 (2010.15327).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.functional.similarity_measure import AbstractMeasure, centred, positive_norm

Kernel = Literal["linear", "rbf"]
_VARIATION = "pairwise relations that vary over the pairs of rows"


class LinearSpace(NamedTuple):
    """Centred features scaled to unit HSIC with themselves: as features when N > F, else as their Gram matrix."""

    matrix: Tensor  # (N, F), or (N, N)
    is_gram: bool
    diagonal_N: Tensor  # squared norms of the rows


@dataclasses.dataclass(frozen=True)
class LinearCKA(AbstractMeasure):
    """||X_a^T X_b||_F^2 / (||X_a^T X_a||_F ||X_b^T X_b||_F) on centred columns; unbiased: HSIC_1 in each place.

    With centred features the row sums of the Gram matrix K vanish, and those without its diagonal k are -k, so that
    N (N - 3) HSIC_1 = ||X_a^T X_b||_F^2 - N / (N - 2) k_a . k_b + sum(k_a) sum(k_b) / ((N - 1) (N - 2)):
    no N x N matrix is needed when F < N.
    """

    unbiased: bool = False
    min_rows: ClassVar[int] = 4

    def prepare(self, x_NF: Tensor, *, second: bool) -> LinearSpace:
        x_NF = centred(x_NF)
        x_NF = x_NF / torch.linalg.matrix_norm(x_NF.detach())  # keeps fourth powers within float32
        is_gram = x_NF.shape[0] <= x_NF.shape[1]
        space = LinearSpace(x_NF @ x_NF.T if is_gram else x_NF, is_gram, x_NF.square().sum(dim=1))
        norm = positive_norm(self.compare(space, space), self._cross(space, space).detach(), _VARIATION)
        return LinearSpace(space.matrix / (norm if is_gram else norm.sqrt()), is_gram, space.diagonal_N / norm)

    def permute(self, prepared: LinearSpace, order_N: Tensor) -> LinearSpace:
        return LinearSpace(
            reordered(prepared.matrix, order_N) if prepared.is_gram else prepared.matrix[order_N],
            prepared.is_gram,
            prepared.diagonal_N[order_N],
        )

    def compare(self, a: LinearSpace, b: LinearSpace) -> Tensor:
        cross = self._cross(a, b)
        if not self.unbiased:
            return cross
        n = len(a.diagonal_N)
        traces = a.diagonal_N.sum() * b.diagonal_N.sum()
        return cross - n / (n - 2) * (a.diagonal_N @ b.diagonal_N) + traces / ((n - 1) * (n - 2))

    @staticmethod
    def _cross(a: LinearSpace, b: LinearSpace) -> Tensor:
        if a.is_gram and b.is_gram:
            return (a.matrix * b.matrix).sum()
        if not a.is_gram and not b.is_gram:
            return (a.matrix.T @ b.matrix).square().sum()
        gram, features = (a, b) if a.is_gram else (b, a)
        return (features.matrix * (gram.matrix @ features.matrix)).sum()


class UnitMatrixMeasure(AbstractMeasure):
    """Inner product of N x N matrices of unit norm."""

    def permute(self, prepared: Tensor, order_N: Tensor) -> Tensor:
        return reordered(prepared, order_N)

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum()


@dataclasses.dataclass(frozen=True)
class RBFCKA(UnitMatrixMeasure):
    """CKA with K_ij = exp(-||x_i - x_j||^2 / (2 s^2)), s = bandwidth x the median distance. Memory N^2."""

    bandwidth: float = 1.0
    unbiased: bool = False
    min_rows: ClassVar[int] = 4

    def prepare(self, x_NF: Tensor, *, second: bool) -> Tensor:
        k_NN = rbf_kernel(x_NF, self.bandwidth)
        matrix_NN = u_centred(k_NN) if self.unbiased else double_centred(k_NN)
        return matrix_NN / positive_norm(matrix_NN.square().sum(), _entry_rounding(k_NN), _VARIATION)


@dataclasses.dataclass(frozen=True)
class MinibatchCKA(AbstractMeasure):
    """mean_b HSIC_1(K_b, L_b) / sqrt(mean_b HSIC_1(K_b, K_b) mean_b HSIC_1(L_b, L_b)) over batches of rows.

    Batches are runs of consecutive rows whose sizes differ by at most one and do not exceed batch_size: shuffle rows
    that are sorted by class. Memory N x batch_size. The null permutes rows within their batches, which is exact too.
    """

    batch_size: int = 256
    kernel: Kernel = "linear"
    bandwidth: float = 1.0
    min_rows: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if self.batch_size < 8:  # so that batches of nearly equal size have 4 rows
            raise InputError(f"expected batch_size >= 8, got {self.batch_size}: unbiased HSIC needs 4 rows in each")
        if self.kernel not in ("linear", "rbf"):
            raise InputError(f"expected kernel 'linear' or 'rbf', got {self.kernel!r}: name one of them")

    def prepare(self, x_NF: Tensor, *, second: bool) -> list[Tensor]:
        kernels = [self._kernel(x_BF) for x_BF in x_NF.tensor_split(-(-len(x_NF) // self.batch_size))]
        batches = [u_centred(k_BB) / (len(k_BB) * (len(k_BB) - 3)) ** 0.5 for k_BB in kernels]
        square = torch.stack([k_BB.square().sum() for k_BB in batches]).sum()
        rounding = torch.stack([_entry_rounding(k_BB) / len(k_BB) ** 2 for k_BB in kernels]).sum()
        norm = positive_norm(square, rounding, _VARIATION)
        return [k_BB / norm for k_BB in batches]

    def _kernel(self, x_BF: Tensor) -> Tensor:
        x_BF = centred(x_BF)
        return x_BF @ x_BF.T if self.kernel == "linear" else rbf_kernel(x_BF, self.bandwidth)

    def permute(self, prepared: list[Tensor], order_N: Tensor) -> list[Tensor]:
        orders = order_N.split([len(k_BB) for k_BB in prepared])  # the order of a part of a random order is random
        return [reordered(k_BB, part.argsort()) for k_BB, part in zip(prepared, orders, strict=True)]

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(k_BB * l_BB).sum() for k_BB, l_BB in zip(a, b, strict=True)]).sum()


@dataclasses.dataclass(frozen=True)
class RSA(UnitMatrixMeasure):
    """Correlation, over pairs of rows i < j, of the distances in one space with those in the other. Memory N^2.

    Spearman's ranks give ties their mean rank.
    """

    correlation: Literal["pearson", "spearman"] = "pearson"
    distance: Literal["euclidean", "cosine"] = "euclidean"

    def __post_init__(self) -> None:
        if self.correlation not in ("pearson", "spearman"):
            raise InputError(f"expected correlation 'pearson' or 'spearman', got {self.correlation!r}: name one")
        if self.distance not in ("euclidean", "cosine"):
            raise InputError(f"expected distance 'euclidean' or 'cosine', got {self.distance!r}: name one of them")

    def prepare(self, x_NF: Tensor, *, second: bool) -> Tensor:
        n = len(x_NF)
        row, column = torch.triu_indices(n, n, offset=1, device=x_NF.device)
        if self.distance == "cosine":
            unit_NF = torch.nn.functional.normalize(x_NF, dim=1)
            pairs_P = (1 - unit_NF @ unit_NF.T)[row, column]
        else:
            pairs_P = torch.nn.functional.pdist(x_NF)
        scale = _entry_rounding(pairs_P)
        pairs_P = mean_ranks(pairs_P) if self.correlation == "spearman" else pairs_P
        pairs_P = pairs_P - pairs_P.mean()
        matrix_NN = pairs_P.new_zeros(n, n).index_put((row, column), pairs_P)
        matrix_NN = matrix_NN + matrix_NN.T
        return matrix_NN / positive_norm(matrix_NN.square().sum(), scale, _VARIATION)


def rbf_kernel(x_NF: Tensor, bandwidth: float) -> Tensor:
    """exp(-d^2 / (2 (bandwidth x median distance)^2)); the median is over pairs of different rows."""
    if not bandwidth > 0:
        raise InputError(f"expected bandwidth > 0, got {bandwidth}: it multiplies the median distance")
    x_NF = centred(x_NF)
    square_N = x_NF.square().sum(dim=1)
    square_NN = (square_N[:, None] + square_N - 2 * x_NF @ x_NF.T).clamp_min(0)
    n = len(x_NF)
    row, column = torch.triu_indices(n, n, offset=1, device=x_NF.device)
    median = square_NN[row, column].median()
    if not median > 16 * torch.finfo(x_NF.dtype).eps * square_N.max():
        raise InputError("expected a positive median distance, got 0: most rows are copies; drop the duplicates")
    return (-square_NN / (2 * bandwidth**2 * median)).exp()


def double_centred(k_NN: Tensor) -> Tensor:
    """H K H with H = I - 1 1^T / N."""
    return k_NN - k_NN.mean(dim=0) - k_NN.mean(dim=1)[:, None] + k_NN.mean()


def u_centred(k_NN: Tensor) -> Tensor:
    """Off-diagonal K without row and column effects, zero diagonal: HSIC_1 = <U(K), U(L)> / (N (N - 3))."""
    n = len(k_NN)
    k_NN = k_NN - torch.diag(k_NN.diagonal())
    sums_N = k_NN.sum(dim=0)
    u_NN = k_NN - (sums_N + sums_N[:, None]) / (n - 2) + sums_N.sum() / ((n - 1) * (n - 2))
    return u_NN - torch.diag(u_NN.diagonal())


def mean_ranks(values_P: Tensor) -> Tensor:
    """Ranks from 1 in rising order; equal values share the mean of their ranks."""
    _, group_P, counts_G = values_P.unique(return_inverse=True, return_counts=True)
    last_G = counts_G.cumsum(dim=0).to(values_P.dtype)
    return (last_G - (counts_G - 1).to(values_P.dtype) / 2)[group_P]


def reordered(matrix_NN: Tensor, order_N: Tensor) -> Tensor:
    """Rows and columns in a new order."""
    return matrix_NN[order_N][:, order_N]


def _entry_rounding(entries: Tensor) -> Tensor:
    """Scale for `positive_norm` of a sum of squares whose terms, not their sum, were rounded."""
    return 16 * torch.finfo(entries.dtype).eps * entries.detach().square().sum()
