"""What the functions are eigenfunctions of: a kernel over points, or the random walk on a graph.

Both say the same two things of a network: a loss on a random batch, and its exact moments for Rayleigh-Ritz.
Training draws, solving sums up: the draw only has to find a span, the sum orders it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.eigenmap import nested_low_rank_loss
from neigenmaps.functional.kernel_moments import kernel_moments, nested_low_rank_kernel_loss
from neigenmaps.functional.rayleigh_ritz import PairMoments, pair_moments
from neigenmaps.spectral import laplacian_eigenbasis

Rows: TypeAlias = Tensor | sp.csr_matrix
Block = Callable[[Tensor, Tensor], Any]
"""Kernel values (B, C) between points of given row numbers (B,) and (C,)."""

CHUNK = 2048  # rows of one pass without gradients
CHECKED_ROWS = 256
KEPT_NUMBERS = 1 << 27  # of all hidden layers at once; a larger graph is solved on a sample of pairs
SAMPLED_PAIRS = 1 << 18


def take(rows: Rows, index_B: Tensor) -> Tensor:
    """Dense rows by number."""
    if isinstance(rows, Tensor):
        return rows[index_B]
    return torch.from_numpy(rows[index_B.cpu().numpy()].toarray()).to(index_B.device)


def in_chunks(network: Callable[[Tensor], Tensor], rows: Rows, device: torch.device) -> Tensor:
    """The network at all rows, without gradients."""
    with torch.no_grad():
        parts = torch.arange(rows.shape[0], device=device).split(CHUNK)
        return torch.cat([network(take(rows, part)) for part in parts])


class Operator(ABC):
    """rows: what the network reads. constant_is_eigenfunction: then it is dropped, with its eigenvalue 1."""

    rows: Rows
    device: torch.device
    constant_is_eigenfunction: bool

    @abstractmethod
    def loss(self, network: Callable[[Tensor], Tensor], batch_size: int, generator: torch.Generator) -> Tensor:
        """Nested low-rank loss of the network's outputs on a random batch."""

    @abstractmethod
    def moments(self, network: Callable[[Tensor], Tensor], generator: torch.Generator) -> tuple[PairMoments, Tensor]:
        """Moments of any functions over the law of points, and their values at rows that fix signs."""


class KernelOperator(Operator):
    """(T f)(x) = mean_n k(x, x_n) f(x_n) over the given points.

    most_rows: beyond so many, a random part of the points stands for all when moments are summed (its square is the cost).
    """

    constant_is_eigenfunction = False

    def __init__(self, rows: Rows, block: Block, *, shift: float, most_rows: int, device: torch.device) -> None:
        self.rows, self.block, self.shift, self.most_rows, self.device = rows, block, shift, most_rows, device
        sample_B = torch.linspace(0, rows.shape[0] - 1, min(CHECKED_ROWS, rows.shape[0]), device=device).long()
        kernel_BB = self._checked(block(sample_B, sample_B), len(sample_B), len(sample_B))
        largest = float(kernel_BB.abs().max())
        if float((kernel_BB - kernel_BB.T).abs().max()) > 1e-4 * largest:
            raise InputError(
                "expected a symmetric kernel, k(x, y) = k(y, x), got one that is not: symmetrise it, (K + K.T) / 2"
            )
        if largest == 0:
            raise InputError("the kernel is 0 between all points looked at: nothing to find; widen it")
        self.scale = float(kernel_BB.diagonal().mean()) or largest  # so that eigenvalues, and outputs, are of order 1
        if self.scale < 0:
            self.scale = largest

    def loss(self, network: Callable[[Tensor], Tensor], batch_size: int, generator: torch.Generator) -> Tensor:
        n = self.rows.shape[0]
        # without replacement: the loss takes all b != c as different points
        index_B = torch.randperm(n, generator=generator)[:batch_size].to(self.device)
        kernel_BB = self._checked(self.block(index_B, index_B), len(index_B), len(index_B)).float() / self.scale
        outputs_BK = network(take(self.rows, index_B))
        return nested_low_rank_kernel_loss(outputs_BK, kernel_BB, shift=self.shift / self.scale).loss

    def moments(self, network: Callable[[Tensor], Tensor], generator: torch.Generator) -> tuple[PairMoments, Tensor]:
        n = self.rows.shape[0]
        chosen_M = torch.arange(n) if n <= self.most_rows else torch.randperm(n, generator=generator)[: self.most_rows]
        chosen_M = chosen_M.to(self.device)
        with torch.no_grad():
            values_MK = torch.cat([network(take(self.rows, part)) for part in chosen_M.split(CHUNK)])
        total = None
        for part, values_BK in zip(chosen_M.split(CHUNK), values_MK.split(CHUNK), strict=True):
            kernel_BM = self._checked(self.block(part, chosen_M), len(part), len(chosen_M))
            some = kernel_moments(values_BK, kernel_BM.double() @ values_MK.double() / len(chosen_M))
            total = some if total is None else total.merge(some)
        assert total is not None
        return total, values_MK

    def _checked(self, kernel_BC: Any, n_rows: int, n_columns: int) -> Tensor:
        kernel = _numbers(kernel_BC).to(self.device)
        if kernel.shape != (n_rows, n_columns):
            raise ShapeError(f"expected a kernel that returns ({n_rows}, {n_columns}), got {tuple(kernel.shape)}")
        if not torch.isfinite(kernel).all():
            raise NonFiniteError("the kernel gives NaN or infinity: look at its parameters, and for rows that are zero")
        return kernel


def _numbers(values: Any) -> Tensor:
    """What a kernel returned, as a tensor of real numbers."""
    if not isinstance(values, Tensor) and hasattr(values, "shape") and getattr(values, "dtype", None) is not None:
        array = np.asarray(values)
        values = torch.from_numpy(array) if array.dtype.kind in "fiub" else values
    if not isinstance(values, Tensor) or values.is_complex() or values.layout != torch.strided:
        kind = f"{type(values).__name__} {getattr(values, 'dtype', '')}".strip()
        raise InputError(f"expected a kernel that returns a dense tensor or array of real numbers (N, M), got {kind}")
    values = values.detach()  # not what is learned
    return values if values.dtype in (torch.float32, torch.float64) else values.double()


class WalkOperator(Operator):
    """(T f)(i) = E[f(j)], j a random walk of `steps` steps from i; nodes in proportion to their degrees.

    Steps are drawn edge by edge from the compressed rows of the adjacency, so that an epoch needs no memory beyond it.
    shift: a share shift / (1 + shift) of the pairs are a node with itself, which learns T + shift I.
    """

    constant_is_eigenfunction = True

    def __init__(self, rows: Rows, adjacency: sp.csr_matrix, *, steps: int, shift: float, device: torch.device) -> None:
        if adjacency.shape[0] != rows.shape[0]:
            raise ShapeError(
                f"expected one row of X for every node, got {rows.shape[0]} rows and {adjacency.shape[0]} nodes"
            )
        if steps < 1:
            raise InputError(f"expected a walk of at least 1 step, got {steps}")
        self.rows, self.steps, self.shift, self.device = rows, steps, shift, device
        self.adjacency = adjacency
        self.start_N = torch.from_numpy(adjacency.indptr.astype(np.int64))
        self.end_E = torch.from_numpy(adjacency.indices)
        weights = adjacency.data
        self.reached_E = None  # unequal weights: their running sum, to be searched
        if len(weights) and weights.min() < weights.max():
            self.reached_E = torch.from_numpy(np.cumsum(weights, dtype=np.float64))

    def pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Independent draws of the two ends of a walk, (count,) each."""
        first_B, edge_B = self._starts(count, generator)
        last_B = self.end_E[edge_B].long()
        for _ in range(self.steps - 1):
            last_B = self.end_E[self._edges(self.start_N[last_B], self.start_N[last_B + 1], generator)].long()
        return first_B.to(self.device), last_B.to(self.device)

    def loss(self, network: Callable[[Tensor], Tensor], batch_size: int, generator: torch.Generator) -> Tensor:
        first_B, last_B = self.pairs(batch_size, generator)
        stays_B = torch.rand(batch_size, generator=generator).to(self.device) < self.shift / (1 + self.shift)
        last_B = torch.where(stays_B, first_B, last_B)
        rows_BF = take(self.rows, torch.cat([first_B, last_B]))
        return nested_low_rank_loss(*network(rows_BF).chunk(2)).loss

    def moments(self, network: Callable[[Tensor], Tensor], generator: torch.Generator) -> tuple[PairMoments, Tensor]:
        width = network(take(self.rows, torch.zeros(2, dtype=torch.int64, device=self.device))).shape[1]
        if self.rows.shape[0] * width > KEPT_NUMBERS:
            return self._sampled_moments(network, generator)
        values_NK = in_chunks(network, self.rows, self.device)
        degree_N = self.adjacency @ np.ones(len(values_NK))
        inverse = sp.diags(1 / np.where(degree_N > 0, degree_N, 1))
        walked = values_NK.double().cpu().numpy()
        for _ in range(self.steps):
            walked = inverse @ (self.adjacency @ walked)
        weight_N = torch.from_numpy(degree_N / degree_N.mean())
        return kernel_moments(values_NK, torch.from_numpy(walked).to(values_NK.device), weight_N), values_NK

    def _sampled_moments(
        self, network: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> tuple[PairMoments, Tensor]:
        total, values_BK = None, torch.empty(0)
        with torch.no_grad():
            for _ in range(SAMPLED_PAIRS // CHUNK):
                first_B, last_B = self.pairs(CHUNK, generator)
                values_BK = network(take(self.rows, first_B))
                some = pair_moments(values_BK, network(take(self.rows, last_B)))
                total = some if total is None else total.merge(some)
        assert total is not None
        return total, values_BK

    def _starts(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Nodes in proportion to their degrees, and an edge of each."""
        none_B = torch.zeros(count, dtype=torch.int64)
        edge_B = self._edges(none_B, none_B + len(self.end_E), generator)
        return torch.searchsorted(self.start_N, edge_B, right=True) - 1, edge_B

    def _edges(self, start_B: Tensor, stop_B: Tensor, generator: torch.Generator) -> Tensor:
        """Entries of the compressed rows from start to stop, each by its weight."""
        uniform_B = torch.rand(len(start_B), generator=generator, dtype=torch.float64)
        if self.reached_E is None:
            return start_B + (uniform_B * (stop_B - start_B)).long()
        low_B = torch.where(start_B > 0, self.reached_E[(start_B - 1).clamp_min(0)], 0.0)
        drawn_B = low_B + uniform_B * (self.reached_E[stop_B - 1] - low_B)
        found_B = torch.searchsorted(self.reached_E, drawn_B, right=True)
        return torch.minimum(found_B, stop_B - 1)  # rounding may reach the next row


class SolvedWalkOperator(WalkOperator):
    """The same walk, its smoothest functions solved first: the network is fitted to them instead of to pairs.

    A sparse eigensolver on the whole graph, then least squares without the noise of sampled pairs. Costs memory for
    n_functions numbers a node.
    """

    def __init__(
        self,
        rows: Rows,
        adjacency: sp.csr_matrix,
        *,
        n_functions: int,
        steps: int,
        shift: float,
        device: torch.device,
    ) -> None:
        super().__init__(rows, adjacency, steps=steps, shift=shift, device=device)
        self.target_NK = smoothest_functions(adjacency, n_functions, device)

    def loss(self, network: Callable[[Tensor], Tensor], batch_size: int, generator: torch.Generator) -> Tensor:
        index_B = self._starts(batch_size, generator)[0].to(self.device)
        return (network(take(self.rows, index_B)) - self.target_NK[index_B]).square().mean()


def smoothest_functions(adjacency: sp.csr_matrix, count: int, device: torch.device) -> Tensor:
    """Leading eigenfunctions of the walk but the constant, (N, count), float32, of variance 1 in the law of degrees.

    Zero at nodes without an edge, which no walk visits, and in columns for which the graph has no function.
    """
    joined = np.flatnonzero(np.diff(adjacency.indptr) > 0)
    part = adjacency if len(joined) == adjacency.shape[0] else adjacency[joined][:, joined]
    found = min(count + 1, len(joined))
    basis = laplacian_eigenbasis(part, found, "random_walk", dtype=torch.float32, device=device)
    # of a graph in pieces the first functions are indicators, which hold the constant as a sum
    constant_K = basis.mass_N @ basis.eigenvectors_NK
    others_KK = torch.linalg.qr(constant_K[:, None], mode="complete").Q[:, 1:]
    functions_NK = torch.zeros(adjacency.shape[0], count, device=device)
    functions_NK[torch.from_numpy(joined).to(device), : found - 1] = (
        basis.eigenvectors_NK @ others_KK * basis.mass_N.sum().sqrt()
    )
    return functions_NK
