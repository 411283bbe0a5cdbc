"""What two nodes have in common: the features of their own, and those that a walk from either of them meets.

    k(i, j) = <x_i, x_j> own^2 + <(P^t x)_i, (P^t x)_j>        P: a step along a random edge, or none (loops added)

Edges alone say which nodes are near, and nothing of what they are; features alone the reverse. The kernel is used as all
pairs of a batch at once: drawn as single pairs (two walkers that read the same word) it holds so little signal that
training does not find it. The graph is asked while learning; the network reads a node's own features, in and out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.kernel_moments import kernel_moments, nested_low_rank_kernel_loss
from neigenmaps.functional.rayleigh_ritz import PairMoments
from neigenmaps.graphs.graph import as_graph
from neigenmaps.graphs.operators import Operator, Rows, in_chunks, take
from neigenmaps.graphs.settings import check_real, check_whole

POWER_BLOCK, POWER_ROUNDS = 8, 20
WHOLE_NODES = 8192  # up to so many, all values are kept (256 MB) instead of summed over features in every batch


@dataclass(frozen=True, eq=False)
class NodeKernel:
    """The kernel above over the nodes of `graph` (whatever `as_graph` takes); largest eigenvalue 1, the constant taken off.

    steps: t, of the walk. own: weight of a node's own features beside those around it; 0 leaves them out. rarity: features
    are divided by their mean absolute value to this power, so that rare words count for more.
    Raises InputError for a graph given as a bare array, steps that are not a whole number of at least 0, own or rarity below 0.
    """

    graph: Any
    steps: int = 2
    own: float = 0.6
    rarity: float = 0.25

    def __post_init__(self) -> None:
        if isinstance(self.graph, np.ndarray | Tensor | list | tuple):
            raise InputError(
                f"expected a graph, got {type(self.graph).__name__}: give graph_from_edges(edges, n_nodes), or "
                "graph_from_adjacency(matrix)"
            )
        check_whole(0, steps=self.steps)
        check_real(0, own=self.own, rarity=self.rarity)

    def factor(self, rows: Rows) -> Tensor:
        """s (N, 2F) with k(i, j) = <s_i, s_j>, float32 on the CPU, out of the nodes' features (N, F).

        Raises ShapeError where rows and nodes do not match, InputError where all nodes have the same features.
        """
        graph = as_graph(self.graph)
        if len(graph) != rows.shape[0]:
            raise ShapeError(f"expected one row of X for every node, got {rows.shape[0]} rows and {len(graph)} nodes")
        size_F = np.asarray(abs(rows).mean(axis=0)).ravel() if sp.issparse(rows) else rows.abs().mean(0).cpu().numpy()
        present = np.flatnonzero(size_F > 0)
        scale = sp.diags(size_F[present].astype(np.float32) ** -self.rarity)
        values: Any = rows.detach().cpu().float().numpy() if isinstance(rows, Tensor) else rows.toarray()
        own_NF = np.asarray(values[:, present] @ scale, dtype=np.float32)
        looped = (graph.adjacency + sp.eye(len(graph), dtype=np.float32)).tocsr()
        step = sp.diags((1 / np.asarray(looped.sum(axis=1)).ravel()).astype(np.float32)) @ looped
        around_NF = own_NF
        for _ in range(self.steps):
            around_NF = step @ around_NF
        parts = [np.float32(self.own) * own_NF, around_NF] if self.own else [around_NF]
        factor_ND = torch.from_numpy(np.concatenate(parts, axis=1))
        power = float(factor_ND.square().sum(1).mean())
        factor_ND -= factor_ND.mean(dim=0)
        largest = _largest_eigenvalue(factor_ND)
        if largest <= 1e-10 * power:
            raise InputError("expected nodes with different features, got the same for all: nothing tells them apart")
        return factor_ND / largest**0.5


class NodeOperator(Operator):
    """(T f)(i) = mean_j k(i, j) f(j), all nodes alike. shift: learns T + shift I."""

    constant_is_eigenfunction = True  # of the kernel centred it is, with eigenvalue 0; moments() makes that 1

    def __init__(self, rows: Rows, kernel: NodeKernel, *, shift: float, device: torch.device) -> None:
        self.rows, self.shift, self.device = rows, shift, device
        self.factor_ND = kernel.factor(rows).to(device)
        self.kernel_NN = self.factor_ND @ self.factor_ND.T if len(self.factor_ND) <= WHOLE_NODES else None

    def block(self, index_B: Tensor) -> Tensor:
        """Kernel values between nodes, (B,) -> (B, B)."""
        if self.kernel_NN is not None:
            return self.kernel_NN[index_B][:, index_B]
        factor_BD = self.factor_ND[index_B]
        return factor_BD @ factor_BD.T

    def loss(self, network: Callable[[Tensor], Tensor], batch_size: int, generator: torch.Generator) -> Tensor:
        # without replacement: the loss takes all b != c as different nodes
        index_B = torch.randperm(len(self.factor_ND), generator=generator)[:batch_size].to(self.device)
        outputs_BK = network(take(self.rows, index_B))
        return nested_low_rank_kernel_loss(outputs_BK, self.block(index_B), shift=self.shift).loss

    def moments(self, network: Callable[[Tensor], Tensor], generator: torch.Generator) -> tuple[PairMoments, Tensor]:
        values_NK = in_chunks(network, self.rows, self.device)
        factor_ND = self.factor_ND.to(values_NK.device)
        read_DK = factor_ND.T @ values_NK.to(factor_ND) / len(values_NK)
        # T + 1 1^T, whose constant has eigenvalue 1: what dropping the constant takes off again
        operated_NK = (factor_ND @ read_DK).double() + values_NK.double().mean(0)
        return kernel_moments(values_NK, operated_NK), values_NK


def _largest_eigenvalue(factor_ND: Tensor) -> float:
    """Of the mean of s s^T over nodes, by power iteration of a block, for which eigenvalues near each other are no harm."""
    width = min(POWER_BLOCK, *factor_ND.shape)
    block_DW = torch.randn(factor_ND.shape[1], width, generator=torch.Generator().manual_seed(0))
    for _ in range(POWER_ROUNDS):
        block_DW = torch.linalg.qr(factor_ND.T @ (factor_ND @ block_DW)).Q
    values_NW = factor_ND @ block_DW
    return float(torch.linalg.eigvalsh(values_NW.T @ values_NW)[-1]) / len(factor_ND)
