"""The corrector of 2602.06205: one gated residual network that turns all spaces' directions toward their mean.

    h = GELU(LayerNorm(u^) W1 + b1)      T(u) = normalise(u^ + sigmoid(u^_LN Wg + bg) * (h W2 + b2))
    loss = mean(1 - cos(T(u), c)) + penalty mean(relu(1 - cos(T(u), u^) - tolerance))

c is the mean of all spaces' unit rows, each row's own space included, as published. W2, b2, Wg, bg start at 0, so T is
the identity on directions. AdamW, one random space per step. Hyper-parameters are those of the published code (width 2K,
10,000 steps, 10 % of the rows for early stopping, which have shaped the alignment before). Not invertible.

Letters: M spaces, N rows, K width of the universe, H hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.functional.geometry_correction import directions

LARGEST_BATCH = 4096
VALIDATION_SHARE = 0.1
VALIDATION_DRAWS = 50


class MLPCorrection(NamedTuple):
    """T, float32. Called with rows (N, K): direction T(u), length of u."""

    norm_K: Tensor
    shift_K: Tensor
    first_KH: Tensor
    first_H: Tensor
    second_HK: Tensor
    second_K: Tensor
    gate_KK: Tensor
    gate_K: Tensor

    def __call__(self, u_NK: Tensor) -> Tensor:
        weights = MLPCorrection(*(weight.to(u_NK) for weight in self))
        return weights.turned(F.normalize(u_NK, dim=1)) * u_NK.norm(dim=1, keepdim=True)

    def turned(self, unit_NK: Tensor) -> Tensor:
        """Unit rows to unit rows."""
        x_NK = F.layer_norm(unit_NK, self.norm_K.shape, self.norm_K, self.shift_K)
        step_NK = F.gelu(x_NK @ self.first_KH + self.first_H) @ self.second_HK + self.second_K
        gate_NK = torch.sigmoid(x_NK @ self.gate_KK + self.gate_K)
        return F.normalize(unit_NK + gate_NK * step_NK, dim=1)


class MLPFit(NamedTuple):
    """The best weights by validation loss, the loss by check, and the steps made."""

    correction: MLPCorrection
    history: tuple[float, ...]
    n_steps: int


def fit_mlp_correction(
    u_MNK: Tensor,
    weights_MN: Tensor | None = None,
    *,
    generator: torch.Generator,
    tolerance: float = 0.08,
    penalty: float = 0.7,
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-4,
    max_steps: int = 10_000,
) -> MLPFit:
    """Train T on aligned rows of M spaces, float32, on their device. All draws come from `generator`, a CPU generator.

    Raises InputError for fewer than 10 rows that two spaces share, or max_steps < 1; further as in `directions`.
    """
    if max_steps < 1:
        raise InputError(f"expected max_steps >= 1, got {max_steps}: the published number is 10,000")
    unit_MNK, _, weights_MN = directions(u_MNK, weights_MN)
    mean_NK = F.normalize((weights_MN[:, :, None] * unit_MNK).sum(dim=0), dim=1)
    shared_N = (weights_MN > 0).any(dim=0).nonzero()[:, 0]
    if len(shared_N) < 10:
        raise InputError(f"expected at least 10 rows that two spaces share, got {len(shared_N)}: match more rows")
    data = _Rows(unit_MNK.float(), mean_NK.float(), weights_MN.float())
    order_N = shared_N[torch.randperm(len(shared_N), generator=generator).to(shared_N.device)]
    n_held = max(1, int(VALIDATION_SHARE * len(order_N)))
    held_N, train_N = order_N[:n_held], order_N[n_held:]
    every, patience = (40, 100) if n_held >= LARGEST_BATCH else (20, 50)

    parameters = _start(unit_MNK.shape[2], generator, unit_MNK.device)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    best, best_loss, since, history = _copy(parameters), float("inf"), 0, []
    for step in range(1, max_steps + 1):
        with torch.enable_grad():
            optimizer.zero_grad()
            _loss(parameters, data.draw(train_N, generator), tolerance, penalty).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % every == 0 or step == max_steps:
            with torch.no_grad():
                draws = (data.draw(held_N, generator) for _ in range(VALIDATION_DRAWS))
                loss = sum(float(_loss(parameters, batch, tolerance, penalty)) for batch in draws) / VALIDATION_DRAWS
            history.append(loss)
            best, best_loss, since = (_copy(parameters), loss, 0) if loss < best_loss else (best, best_loss, since + 1)
            if since >= patience:
                break
    return MLPFit(best, tuple(history), step)


class _Batch(NamedTuple):
    unit_BK: Tensor
    mean_BK: Tensor
    weights_B: Tensor


class _Rows(NamedTuple):
    unit_MNK: Tensor
    mean_NK: Tensor
    weights_MN: Tensor

    def draw(self, among_N: Tensor, generator: torch.Generator) -> _Batch:
        """Rows with replacement, of one space."""
        space = int(torch.randint(len(self.unit_MNK), (), generator=generator))
        picked_B = torch.randint(len(among_N), (min(LARGEST_BATCH, len(among_N)),), generator=generator)
        rows_B = among_N[picked_B.to(among_N.device)]
        return _Batch(self.unit_MNK[space, rows_B], self.mean_NK[rows_B], self.weights_MN[space, rows_B])


def _loss(parameters: MLPCorrection, batch: _Batch, tolerance: float, penalty: float) -> Tensor:
    turned_BK = parameters.turned(batch.unit_BK)
    away_B = 1 - (turned_BK * batch.mean_BK).sum(dim=1)
    moved_B = 1 - (turned_BK * batch.unit_BK).sum(dim=1)
    value_B = away_B + penalty * F.relu(moved_B - tolerance)
    return (batch.weights_B * value_B).sum() / batch.weights_B.sum().clamp_min(1e-12)


def _start(width: int, generator: torch.Generator, device: torch.device) -> MLPCorrection:
    """Hidden layer as torch's Linear starts; the rest so that T is the identity."""
    hidden = 2 * width
    bound = width**-0.5
    tensors = MLPCorrection(
        norm_K=torch.ones(width),
        shift_K=torch.zeros(width),
        first_KH=(2 * torch.rand(width, hidden, generator=generator) - 1) * bound,
        first_H=(2 * torch.rand(hidden, generator=generator) - 1) * bound,
        second_HK=torch.zeros(hidden, width),
        second_K=torch.zeros(width),
        gate_KK=torch.zeros(width, width),
        gate_K=torch.zeros(width),
    )
    return MLPCorrection(*(tensor.to(device).requires_grad_() for tensor in tensors))


def _copy(parameters: MLPCorrection) -> MLPCorrection:
    return MLPCorrection(*(parameter.detach().clone() for parameter in parameters))
