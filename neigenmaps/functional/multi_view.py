"""Objectives on more than two views of each image: exact means over pairs of different views.

Views come in groups, such as large crops and small ones; within a group they are independent draws of one law given the image. A
view of the whole law is then one of group g with probability p_g = (views in g) / V, and two independent such views are of groups
g and h with probability p_g p_h. So pairs within a group of n views weigh p_g^2 / (n (n - 1)) each, pairs across p_g p_h / (n m):
with f_g = E[f(view of g) | image], the mean over pairs is

    R = sum_gh p_g p_h E[f_g f_h^T] = E[(sum_g p_g f_g) (sum_g p_g f_g)^T],

which is positive semi-definite, as the kernel of two views is. Equal weights for all pairs would not be: one large and one small
view alone give E[f_large f_small^T]. A view is never paired with itself, hence a group has at least two.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.functional.eigenmap import EigenmapResult
from neigenmaps.functional.nested_terms import Reduce


def pair_weights(groups: Sequence[int]) -> Tensor:
    """Weights (V, V) of all ordered pairs of views, of sum 1 with an empty diagonal, for so many views in each group.

    (2,) weighs the only pair; (V,) all pairs alike. InputError for a group of fewer than two.
    """
    if not groups or min(groups) < 2:
        raise InputError(
            f"expected at least 2 views in each group, got {list(groups)}: a single view of a kind has no pair of its own, and "
            "the kernel would not be positive"
        )
    group_V = torch.arange(len(groups)).repeat_interleave(torch.tensor(list(groups)))
    same_VV = (group_V[:, None] == group_V).double()
    size_V = torch.tensor(list(groups), dtype=torch.float64)[group_V]
    weights_VV = 1 - same_VV + same_VV * (size_V / (size_V - 1))[:, None]
    return weights_VV.fill_diagonal_(0) / len(group_V) ** 2


def over_pairs(
    loss: Callable[[Tensor, Tensor], EigenmapResult], views: Sequence[Tensor], groups: Sequence[int]
) -> EigenmapResult:
    """The mean of a loss of two views, which treats both alike, over pairs of V >= 2 views of shape (B, k).

    All parts of the result are means. InputError as `pair_weights`, or when the views are not as many as the groups say.
    """
    weights_VV = pair_weights(groups)
    if len(views) != len(weights_VV):
        raise InputError(f"expected {len(weights_VV)} views in groups of {list(groups)}, got {len(views)}")
    if len(views) == 2:
        return loss(*views)
    pairs = [(a, b) for a in range(len(views)) for b in range(a)]
    results = [loss(views[b], views[a]) for a, b in pairs]
    weights = [2 * weights_VV[pair].item() for pair in pairs]
    means = (
        torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum(0)
        for parts in zip(*results, strict=True)
    )
    return EigenmapResult(*means)


def centred(views: Sequence[Tensor], *, reduce: Reduce | None = None) -> list[Tensor]:
    """Views less the mean over all of them and all rows, which is what the constant function contributes to each.

    reduce: as in `nested_low_rank_loss`; values and gradients are those of all rows together.
    """
    return list(_Centred.apply(torch.stack(list(views)), _itself if reduce is None else reduce))


class _Centred(torch.autograd.Function):
    """A symmetric projection, hence its own gradient; both ask the other shares for their sums."""

    @staticmethod
    def forward(ctx: Any, views_VBK: Tensor, reduce: Reduce) -> Tensor:
        ctx.reduce = reduce
        return _less_mean(views_VBK, reduce)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _less_mean(grads[0], ctx.reduce), None


def _less_mean(views_VBK: Tensor, reduce: Reduce) -> Tensor:
    rows = torch.full((), views_VBK.shape[:2].numel(), dtype=views_VBK.dtype, device=views_VBK.device)
    return views_VBK - reduce(views_VBK.sum((0, 1))) / reduce(rows)


def _itself(tensor: Tensor) -> Tensor:
    return tensor
