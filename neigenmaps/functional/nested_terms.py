"""The two terms of the nested low-rank loss in blocks of columns, with their gradient: no k x k matrix is ever whole.

With A = z1^T z1 and B = z2^T z2, sums over all images b, c of a product of two functions at two of them are products A_ij B_ij.
Terms with b = c are the square of an image with itself and come off again, which makes the rest unbiased. With p = f(x_b) f(x_b+):

    penalty = (sum_ij w_ij A_ij B_ij - S) / (n (n - 1)),      alignment = sum_j v_j (z1^T z2)_jj / n

    sequential   v = 1, w = 1, S = sum_b sum_j p_j (p_j + 2 sum_{i<j} sg(p_i)); f_i is stopped in A_ij B_ij for i < j
    nested       v falls, w_ij = v_max(i,j), S = sum_b sum_l share_l (p_1 + ... + p_l)^2

Only i <= j is computed, and the gradient in the same sweep: 4 B k^2 operations when earlier functions are stopped, 6 B k^2 when
not, where one Gram product with its gradient takes 6 B k^2. In memory stand the batch, its gradient, and k x BLOCK numbers.

Rows may be a share of the batch: `reduce` sums a tensor over all shares (processes), and every share then gets the loss of the
whole and the gradient of its own rows. What is sent are the blocks of A and B, so that the k x k work is shared out, not repeated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
BLOCK = 512  # columns; below it matrix products lose speed
ROWS = 512  # of the sweep over single images


class Rows(NamedTuple):
    """Two views of some rows, centred over all shares; n rows in all."""

    z1: Tensor
    z2: Tensor
    n: Tensor


class NestedTerms(torch.autograd.Function):
    """alignment, penalty = NestedTerms.apply(z1, z2, level_K, share_K, center, reduce); share_K is None for sequential."""

    @staticmethod
    def forward(
        ctx: Any, z1: Tensor, z2: Tensor, level_K: Tensor, share_K: Tensor | None, center: bool, reduce: Reduce
    ) -> tuple[Tensor, Tensor]:
        rows = _rows(z1, z2, center, reduce)
        wanted = any(ctx.needs_input_grad[:2])
        gradient = (torch.zeros_like(rows.z1), torch.zeros_like(rows.z2)) if wanted else None
        all_pairs = _all_pairs(rows, level_K, share_K is not None, reduce, gradient)
        same_image = reduce(_same_image(rows, share_K, gradient))
        pairs = rows.n * (rows.n - 1)
        alignment = (level_K * reduce(torch.linalg.vecdot(rows.z1, rows.z2, dim=0))).sum() / rows.n
        ctx.center, ctx.reduce, ctx.pairs, ctx.n = center, reduce, pairs, rows.n
        ctx.save_for_backward(rows.z1, rows.z2, level_K, *(gradient or ()))
        return alignment, (all_pairs - same_image) / pairs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_alignment: Tensor, of_penalty: Tensor) -> tuple[Tensor | None, ...]:
        z1, z2, level_K, gradient1, gradient2 = ctx.saved_tensors
        level_K = level_K * (of_alignment / ctx.n)
        scale = of_penalty / ctx.pairs
        gradients = [torch.addcmul(gradient1 * scale, z2, level_K), torch.addcmul(gradient2 * scale, z1, level_K)]
        if ctx.center:
            mean_K = ctx.reduce(gradients[0].sum(0) + gradients[1].sum(0)) / (2 * ctx.n)
            gradients = [gradient.sub_(mean_K) for gradient in gradients]
        return *gradients, None, None, None, None


def _rows(z1: Tensor, z2: Tensor, center: bool, reduce: Reduce) -> Rows:
    n = reduce(torch.full((), len(z1), dtype=z1.dtype, device=z1.device))
    if not center:
        return Rows(z1, z2, n)
    mean_K = reduce(z1.sum(0) + z2.sum(0)) / (2 * n)
    return Rows(z1 - mean_K, z2 - mean_K, n)


def _all_pairs(
    rows: Rows, level_K: Tensor, symmetric: bool, reduce: Reduce, gradient: tuple[Tensor, Tensor] | None
) -> Tensor:
    """sum_ij w_ij A_ij B_ij; adds its gradient. Columns `start` to `end` meet all columns before `end`."""
    z1, z2, _ = rows
    total = z1.new_zeros(())
    for start in range(0, z1.shape[1], BLOCK):
        end = min(start + BLOCK, z1.shape[1])
        moments = reduce(torch.stack([z[:, :end].T @ z[:, start:end] for z in (z1, z2)]))
        moments[:, start:].triu_()
        first, second = moments
        level = level_K[start:end]
        products = 2 * torch.linalg.vecdot(first, second, dim=0) - first[start:].diagonal() * second[start:].diagonal()
        total += (level * products).sum()
        if gradient is None:
            continue
        moments *= 2 * level
        for z, into, weight in ((z1, gradient[0], second), (z2, gradient[1], first)):
            into[:, start:end].addmm_(z[:, :end], weight)
            if symmetric:
                weight[start:].triu_(1)
                into[:, :end].addmm_(z[:, start:end], weight.T)
    return total


def _same_image(rows: Rows, share_K: Tensor | None, gradient: tuple[Tensor, Tensor] | None) -> Tensor:
    """S over this share's rows; takes off its gradient."""
    total = rows.z1.new_zeros(())
    for start in range(0, len(rows.z1), ROWS):
        z1, z2 = rows.z1[start : start + ROWS], rows.z2[start : start + ROWS]
        product = z1 * z2
        running = product.cumsum(1)
        if share_K is None:
            slope = running.mul_(2).sub_(product)  # p_j + 2 sum_{i<j} p_i
            total += torch.linalg.vecdot(product, slope).sum()
            slope = slope.add_(product)
        else:
            total += (share_K * running.square()).sum()
            slope = running.mul_(2 * share_K).flip(1).cumsum(1).flip(1)
        if gradient is not None:
            gradient[0][start : start + ROWS].addcmul_(slope, z2, value=-1)
            gradient[1][start : start + ROWS].addcmul_(slope, z1, value=-1)
    return total
