"""The two terms of the nested low-rank loss in blocks of columns, with their gradient: no k x k matrix is ever whole.

With A = z1^T z1 and B = z2^T z2, sums over all images b, c of a product of two functions at two of them are products A_ij B_ij.
Terms with b = c are the square of an image with itself and come off again, which makes the rest unbiased. With p = f(x_b) f(x_b+):

    penalty = (sum_ij w_ij A_ij B_ij - S) / (n (n - 1)),      alignment = sum_j v_j (z1^T z2 - t (A + B) / 2)_jj / n

    sequential   v = 1, w = 1, S = sum_b sum_j p_j (p_j + 2 sum_{i<j} sg(p_i)); f_i is stopped in A_ij B_ij for i < j
    nested       v falls, w_ij = v_max(i,j), S = sum_b sum_l share_l (p_1 + ... + p_l)^2

Only i <= j is computed, and the gradient in the same sweep: 4 B k^2 operations when earlier functions are stopped, 6 B k^2 when
not, where one Gram product with its gradient takes 6 B k^2. In memory stand the batch, its gradient, and k x BLOCK numbers; what
single images contribute is swept in rows that a cache holds. The sums behind the Rayleigh quotients fall off on the way.

Rows may be a share of the batch: `reduce` sums a tensor over all shares (processes), and every share then gets the loss of the
whole and the gradient of its own rows. What is sent are the blocks of A and B, so that the k x k work is shared out, not repeated.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
BLOCK = 512  # columns at most; below it matrix products lose speed on a GPU, below SMALL_BLOCK on a CPU
SMALL_BLOCK = 128
ROWS = 512  # of the sweep over single images, at most; 2^16 numbers stay in a CPU's cache


class Rows(NamedTuple):
    """Two views of some rows, centred over all shares; mean_K is what was taken off, n rows in all."""

    z1: Tensor
    z2: Tensor
    mean_K: Tensor | None
    n: Tensor


class QuotientSums(NamedTuple):
    """Of centred rows over both views, (K,) each: what Rayleigh quotients divide, and the power before centring."""

    cross_K: Tensor
    power_K: Tensor
    raw_K: Tensor


class NestedTerms(torch.autograd.Function):
    """alignment, penalty, *QuotientSums = NestedTerms.apply(z1, z2, level_K, share_K, threshold, center, reduce).

    share_K is None for sequential; threshold is t. Only the first two have gradients; without `center` the sums are of the rows
    as they came.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z1: Tensor,
        z2: Tensor,
        level_K: Tensor,
        share_K: Tensor | None,
        threshold: float,
        center: bool,
        reduce: Reduce,
    ) -> tuple[Tensor, ...]:
        rows = _rows(z1, z2, center, reduce)
        gradient = _empty_gradient(rows) if any(ctx.needs_input_grad[:2]) else None
        all_pairs, power_K = _all_pairs(rows, level_K, share_K is not None, reduce, gradient)
        same_image, half_cross_K, slope_K = map(reduce, _same_image(rows, share_K, gradient))
        pairs = rows.n * (rows.n - 1)
        alignment = (level_K * (half_cross_K - threshold / 2 * power_K)).sum() / rows.n
        raw_K = power_K if rows.mean_K is None else power_K + 2 * rows.n * rows.mean_K.square()
        sums = QuotientSums(2 * half_cross_K, power_K, raw_K.clone())
        ctx.mark_non_differentiable(*sums)
        ctx.pairs, ctx.n, ctx.reduce, ctx.threshold, ctx.gradient = pairs, rows.n, reduce, threshold, gradient
        mean_K = slope_K / (2 * rows.n) if center else torch.zeros_like(slope_K)
        ctx.save_for_backward(rows.z1, rows.z2, level_K, share_K, mean_K)
        return alignment, (all_pairs - same_image) / pairs, *sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_alignment: Tensor, of_penalty: Tensor, *of_sums: Tensor) -> tuple[Tensor | None, ...]:
        """The mean that centring takes off is that of the penalty's gradient: the alignment's is zero over both views.

        Written over the gradient from forward, as fresh memory costs as much as the sums; found anew when asked for again.
        """
        z1, z2, level_K, share_K, mean_K = ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            rows = Rows(z1, z2, None, ctx.n)
            gradient = _empty_gradient(rows)
            _all_pairs(rows, level_K, share_K is not None, ctx.reduce, gradient)
            _same_image(rows, share_K, gradient)
        level_K = level_K * (of_alignment / ctx.n)
        scale = of_penalty / ctx.pairs
        shift_K = -scale * mean_K
        for slope, own, other in zip(gradient, (z1, z2), (z2, z1), strict=True):
            for part in _sweep(slope):
                torch.addcmul(shift_K, slope[part], scale, out=slope[part]).addcmul_(other[part], level_K)
                if ctx.threshold:
                    slope[part].addcmul_(own[part], level_K, value=-ctx.threshold)
        return *gradient, None, None, None, None, None


def _empty_gradient(rows: Rows) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows.z1), torch.empty_like(rows.z2)


def _rows(z1: Tensor, z2: Tensor, center: bool, reduce: Reduce) -> Rows:
    n = reduce(torch.full((), len(z1), dtype=z1.dtype, device=z1.device))
    if not center:
        return Rows(z1, z2, None, n)
    mean_K = reduce(z1.sum(0) + z2.sum(0)) / (2 * n)
    return Rows(z1 - mean_K, z2 - mean_K, mean_K, n)


def _sweep(z: Tensor) -> Iterator[slice]:
    """Rows in portions."""
    rows = min(ROWS, len(z) if z.is_cuda else max(1, 2**16 // z.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(z), rows))


def _all_pairs(
    rows: Rows, level_K: Tensor, symmetric: bool, reduce: Reduce, gradient: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """sum_ij w_ij A_ij B_ij, and the diagonal of A + B; writes the gradient of the first. Columns `start` to `end` meet all
    columns before `end`."""
    z1, z2 = rows.z1, rows.z2
    width = z1.shape[1]
    block = BLOCK if z1.is_cuda else min(BLOCK, max(SMALL_BLOCK, width // 8))
    total, power_K = z1.new_zeros(()), torch.empty_like(level_K)
    for start in range(0, width, block):
        end = min(start + block, width)
        moments = reduce(torch.stack([z[:, :end].T @ z[:, start:end] for z in (z1, z2)]))
        moments[:, start:].triu_()
        first, second = moments
        diagonals = first[start:].diagonal(), second[start:].diagonal()
        power_K[start:end] = diagonals[0] + diagonals[1]
        level = level_K[start:end]
        products = 2 * torch.linalg.vecdot(first, second, dim=0) - diagonals[0] * diagonals[1]
        total += (level * products).sum()
        if gradient is None:
            continue
        moments *= 2 * level
        for z, into, weight in ((z1, gradient[0], second), (z2, gradient[1], first)):
            if symmetric:
                weight[start:] += weight[start:].triu(1).T
                into[:, :start].addmm_(z[:, start:end], weight[:start].T)
            into[:, start:end].addmm_(z[:, :end], weight, beta=0)
    return total, power_K


def _same_image(
    rows: Rows, share_K: Tensor | None, gradient: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Over this share's rows: S, the columns' products of both views, and the columns' sums of the gradient, from which it
    takes off that of S."""
    total, cross_K, slope_K = (rows.z1.new_zeros(shape) for shape in ((), rows.z1.shape[1], rows.z1.shape[1]))
    for part in _sweep(rows.z1):
        z1, z2 = rows.z1[part], rows.z2[part]
        product = z1 * z2
        cross_K += product.sum(0)
        running = product.cumsum(1)
        if share_K is None:
            total += running[:, -1].square().sum()  # p_j (p_j + 2 sum_{i<j} p_i) telescopes
            slope = running
        else:
            slope = running.mul_(share_K).flip(1).cumsum_(1).flip(1)
            total += torch.tensordot(product, slope)
        if gradient is not None:
            slope_K += gradient[0][part].addcmul_(slope, z2, value=-2).sum(0)
            slope_K += gradient[1][part].addcmul_(slope, z1, value=-2).sum(0)
    return total, cross_K, slope_K
