"""Linear probe: how well a linear classifier on frozen features does.

Multinomial logistic regression on standardised features, mean cross-entropy + l2 / 2 * ||W||^2, full batch L-BFGS in
float64. The ridge l2 is chosen on a held-out part of the bank, never on the queries; then the whole bank is fitted. Fits go
from the largest ridge to the smallest, each from where the last one ended: the problem is convex, so that only time depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.evaluation.threads import few_threads
from neigenmaps.functional.ranking import check_labelled_codes, check_same_width

L2_GRID = (1e-4, 1e-3, 1e-2, 1e-1)


class LinearProbe(NamedTuple):
    """A fitted classifier: the class of x is the largest entry of ((x - mean) / scale) @ weight + bias."""

    mean_F: Tensor
    scale_F: Tensor
    weight_FC: Tensor
    bias_C: Tensor
    classes_C: Tensor

    def predict(self, features_NF: Tensor) -> Tensor:
        """Labels, shape (N,)."""
        standardised_NF = (features_NF.double() - self.mean_F) / self.scale_F
        return self.classes_C[(standardised_NF @ self.weight_FC + self.bias_C).argmax(dim=1)]


def linear_probe_accuracy(
    bank_NF: Tensor,
    bank_labels_N: Tensor,
    queries_QF: Tensor,
    query_labels_Q: Tensor,
    *,
    l2_grid: Sequence[float] = L2_GRID,
    held_out: float = 0.2,
    seed: int = 0,
    max_iter: int = 200,
    proportions: bool = False,
) -> float:
    """Share of labelled queries that a probe fitted on the bank classifies correctly.

    The ridge is the largest of those in `l2_grid` that do best on a random `held_out` share of the bank, drawn by
    `seed`. Negative labels are unlabelled and left out on either side. proportions: divide all columns by one number instead
    of each by its own, where their sizes say how much they count: codes scaled by their eigenvalue, with few labels.

    Raises:
        ShapeError, NonFiniteError: as for kNN.
        InputError: no labelled rows, an empty or negative grid, or a share that leaves either part empty.
    """
    check_labelled_codes("bank", bank_NF, bank_labels_N)
    check_labelled_codes("query", queries_QF, query_labels_Q)
    check_same_width(queries_QF, bank_NF)
    _check_grid(l2_grid)
    bank_NF, bank_labels_N = _labelled("bank", bank_NF, bank_labels_N)
    queries_QF, query_labels_Q = _labelled("query", queries_QF, query_labels_Q)
    l2, start = l2_grid[0], None
    if len(l2_grid) > 1:
        l2, start = _choose_l2(bank_NF, bank_labels_N, l2_grid, held_out, seed, max_iter, proportions)
    probe = fit_linear_probe(bank_NF, bank_labels_N, l2=l2, max_iter=max_iter, start=start, proportions=proportions)
    return _accuracy(probe, queries_QF, query_labels_Q)


def fit_linear_probe(
    features_NF: Tensor,
    labels_N: Tensor,
    *,
    l2: float,
    max_iter: int = 200,
    start: LinearProbe | None = None,
    proportions: bool = False,
) -> LinearProbe:
    """Minimise mean cross-entropy + l2 / 2 * ||W||^2 over weights and an unpenalised bias.

    start: a probe to begin from, such as that of another ridge; one of other classes or features is left out.
    proportions: as in `linear_probe_accuracy`.
    Works where the caller has switched gradients off, inference mode included.
    """
    check_labelled_codes("bank", features_NF, labels_N)
    with torch.inference_mode(False), torch.no_grad(), few_threads(features_NF.numel()):
        return _fit(features_NF, labels_N, l2, max_iter, start, proportions)


def _fit(
    features_NF: Tensor, labels_N: Tensor, l2: float, max_iter: int, start: LinearProbe | None, proportions: bool
) -> LinearProbe:
    classes_C, class_N = labels_N.unique(return_inverse=True)
    x_NF = features_NF.detach().double()
    mean_F, spread_F = x_NF.mean(dim=0), x_NF.std(dim=0, correction=0)
    if proportions:
        spread_F = spread_F.square().mean().sqrt().expand_as(spread_F)
    scale_F = torch.where(spread_F > 0, spread_F, 1.0)  # a constant column stays 0 instead of becoming NaN
    x_NF = (x_NF - mean_F) / scale_F
    weight_FC, bias_C = x_NF.new_zeros(x_NF.shape[1], len(classes_C)), x_NF.new_zeros(len(classes_C))
    if start is not None and start.weight_FC.shape == weight_FC.shape and torch.equal(start.classes_C, classes_C):
        weight_FC, bias_C = start.weight_FC.clone(), start.bias_C.clone()
    x_FN, is_class_CN = x_NF.T.contiguous(), F.one_hot(class_N, len(classes_C)).T.to(x_NF)
    # 1e-6 on the gradient is far below what moves a prediction; max_iter bounds separable data with a tiny ridge
    optimiser = torch.optim.LBFGS(
        [weight_FC, bias_C], max_iter=max_iter, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        log_likely_CN = torch.log_softmax(weight_FC.T @ x_FN + bias_C[:, None], dim=0)  # a third of the time of (N, C)
        residual_NC = ((log_likely_CN.exp() - is_class_CN) / len(x_NF)).T  # written out: half of the time of autograd
        weight_FC.grad = x_FN @ residual_NC + l2 * weight_FC
        bias_C.grad = residual_NC.sum(dim=0)
        return l2 / 2 * weight_FC.square().sum() - (log_likely_CN * is_class_CN).sum() / len(x_NF)

    optimiser.step(loss)
    return LinearProbe(mean_F, scale_F, weight_FC, bias_C, classes_C)


def _choose_l2(
    bank_NF: Tensor,
    labels_N: Tensor,
    l2_grid: Sequence[float],
    held_out: float,
    seed: int,
    max_iter: int,
    proportions: bool,
) -> tuple[float, LinearProbe]:
    """The best ridge, and the probe that it was judged by."""
    n_held_out = round(held_out * len(bank_NF))
    if not 0 < n_held_out < len(bank_NF):
        raise InputError(
            f"expected a held-out share that splits {len(bank_NF)} bank rows in two parts, got {held_out}: "
            "change it, or give a single ridge"
        )
    # drawn on the CPU, so that the split is the same on every device
    order_N = torch.randperm(len(bank_NF), generator=torch.Generator().manual_seed(seed)).to(bank_NF.device)
    test, train = order_N[:n_held_out], order_N[n_held_out:]
    probes: dict[float, LinearProbe] = {}
    for l2 in sorted(l2_grid, reverse=True):
        last = next(reversed(probes.values()), None)
        probes[l2] = fit_linear_probe(
            bank_NF[train], labels_N[train], l2=l2, max_iter=max_iter, start=last, proportions=proportions
        )
    best = max(
        probes, key=lambda l2: _accuracy(probes[l2], bank_NF[test], labels_N[test])
    )  # of equals the larger ridge
    return best, probes[best]


def _accuracy(probe: LinearProbe, features_NF: Tensor, labels_N: Tensor) -> float:
    return (probe.predict(features_NF) == labels_N).double().mean().item()


def _labelled(name: str, codes_NF: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    labelled_N = labels_N >= 0
    if not labelled_N.any():
        raise InputError(f"expected labelled {name} rows, got none: the probe needs labels of 0 or more")
    return codes_NF[labelled_N], labels_N[labelled_N]


def _check_grid(l2_grid: Sequence[float]) -> None:
    if not l2_grid or min(l2_grid) < 0:
        raise InputError(f"expected one or more ridges of 0 or more, got {list(l2_grid)}: change l2_grid")
