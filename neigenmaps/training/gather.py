"""The global batch on every process, with the gradients one process would have."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def process() -> tuple[int, int]:
    """Rank of this process and how many there are; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _GatherRows(torch.autograd.Function):
    """Every process computes the same loss from the same gathered rows, so its own rows' gradient is at hand: nothing is sent
    back. DDP then averages over processes; the factor world_size makes that average the full gradient."""

    @staticmethod
    def forward(ctx: Any, rows_BK: Tensor) -> Tensor:
        parts = [torch.empty_like(rows_BK) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows_BK.contiguous())
        ctx.batch = rows_BK.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        start = dist.get_rank() * ctx.batch
        return grads[0][start : start + ctx.batch] * dist.get_world_size()


def gather_rows(rows_BK: Tensor) -> Tensor:
    """Rows of all processes in order of rank, (B, K) -> (world * B, K); the same tensor when there is one process.

    Every process must hold the same number of rows and compute the same loss from the result.
    """
    if process()[1] == 1:
        return rows_BK
    gathered: Tensor = _GatherRows.apply(rows_BK)
    return gathered


def share_buffers(module: nn.Module) -> None:
    """Every process takes the buffers of the first: after a step, running statistics differ between processes."""
    if process()[1] > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum of a tensor without gradient over all processes."""
    if process()[1] > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value
