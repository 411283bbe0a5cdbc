"""The global batch on every process, with the gradients one process would have."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from neigenmaps.errors import ShapeError
from neigenmaps.functional.eigenmap import EigenmapResult
from neigenmaps.nn import NestedLowRank, Objective

MULTIPLICATIONS_PER_NUMBER = 1000


def process() -> tuple[int, int]:
    """Rank of this process and how many there are; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextlib.contextmanager
def said_once(*kinds: type[Warning]) -> Iterator[None]:
    """Of what all processes do alike, the first one's warnings do."""
    with warnings.catch_warnings():
        for kind in kinds if rank_zero_only.rank else ():  # type: ignore[attr-defined]  # known before there is a process group
            warnings.simplefilter("ignore", kind)
        yield


def global_loss(objective: Objective, *views: Tensor, groups: Sequence[int] | None = None) -> EigenmapResult:
    """The objective on the rows of all processes; DDP's mean over processes of its gradients is that of one process.

    views: two, or more in `groups` (all in one when None), as in `Objective.over_pairs`. By moments (k x k sums are sent, each
    process works on its own rows) where the objective can and `exchange` finds it cheaper; else by gathering (rows are sent, each
    process does all the work). Every process must hold the same number of rows.
    """
    world = process()[1]
    groups = (len(views),) if groups is None else groups
    batch, width = world * len(views[0]), views[0].shape[1]
    if world == 1:
        return objective.over_pairs(views, groups)
    if isinstance(objective, NestedLowRank) and exchange(width, batch, world) == "moments":
        scaled = [_TimesWorld.apply(z) for z in views]
        return objective.over_pairs(scaled, groups, reduce=sum_over_processes)
    return objective.over_pairs([gather_rows(z) for z in views], groups)


def exchange(width: int, batch: int, world: int) -> Literal["moments", "gather"]:
    """Which way costs less time for k functions of a global batch of B rows on so many processes, counted in multiplications:

        moments   2 k^2 numbers through the wires, 4 B k^2 / world multiplications
        gather    2 B k numbers, 4 B k^2 multiplications

    A number sent costs about as much as 1,000 multiplications (50 Tflop/s beside 100 GB/s; gloo beside a CPU core: some hundreds).
    So moments win unless k is several times B on few processes.
    """
    moments = 2 * width**2 * MULTIPLICATIONS_PER_NUMBER + 4 * batch * width**2 / world
    gather = 2 * batch * width * MULTIPLICATIONS_PER_NUMBER + 4 * batch * width**2
    return "moments" if moments <= gather else "gather"


class _TimesWorld(torch.autograd.Function):
    """The identity, with its gradient times the number of processes, by which DDP divides."""

    @staticmethod
    def forward(ctx: Any, rows_BK: Tensor) -> Tensor:
        return rows_BK.view_as(rows_BK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * dist.get_world_size()


class _GatherRows(torch.autograd.Function):
    """Every process computes the same loss from the same gathered rows, so its own rows' gradient is at hand: nothing is sent
    back. DDP then averages over processes; the factor world_size makes that average the full gradient."""

    @staticmethod
    def forward(ctx: Any, rows_BK: Tensor, counts: Sequence[int]) -> Tensor:
        longest = max(counts)
        padded = torch.cat([rows_BK, rows_BK.new_zeros(longest - len(rows_BK), *rows_BK.shape[1:])])
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        ctx.start, ctx.end = sum(counts[: dist.get_rank()]), sum(counts[: dist.get_rank() + 1])
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.start : ctx.end] * dist.get_world_size(), None


def gather_rows(rows_BK: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Rows of all processes in order of rank, (B, K) -> (sum of counts, K); the same tensor when there is one process.

    counts: rows on each process; None: on all as many as here, which spares asking. Every process must compute the same loss from
    the result. Errors: ShapeError when the rows here are not as many as the counts say.
    """
    rank, world = process()
    counts = [len(rows_BK)] * world if counts is None else list(counts)
    if len(counts) != world or counts[rank] != len(rows_BK):
        raise ShapeError(
            f"expected {world} count(s) with {len(rows_BK)} at place {rank}, the rows here, got {counts}: "
            "pass what every process holds"
        )
    if world == 1:
        return rows_BK
    gathered: Tensor = _GatherRows.apply(rows_BK, counts)
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
