"""Which rows of a space are matched rightly: a mixture of what chance gives and what matched rows give."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 50
LEAST = 1e-6  # keeps a distrusted row apart from a missing one


class RowTrust(NamedTuple):
    """Probability (N,) that a row is matched rightly, and the share of rows that are."""

    probability_N: Tensor
    share: float


def consensus_trust(units: Sequence[Tensor], trust_NM: Tensor, order_N: Tensor) -> Tensor:
    """Trust (N, M) in every row of M spaces, (N, K) unit rows each in one universe, from what was trusted before.

    A row is compared with the sum of the same row in all other spaces, each times its trust. order_N: a permutation, for
    the null. Rows of trust 0 are missing and stay so.
    """
    weighted = [trust_N[:, None] * unit_NK for trust_N, unit_NK in zip(trust_NM.T, units, strict=True)]
    total_NK = torch.stack(weighted).sum(dim=0)
    renewed_NM = torch.zeros_like(trust_NM)
    for m, unit_NK in enumerate(units):
        others_NK = F.normalize(total_NK - weighted[m], dim=1)
        there_N = trust_NM[:, m] > 0
        cosine_N = (unit_NK * others_NK).sum(dim=1)[there_N]
        null_N = (unit_NK * others_NK[order_N]).sum(dim=1)[there_N]
        renewed_NM[there_N, m] = row_trust(cosine_N, null_N).probability_N.clamp_min(LEAST)
    return renewed_NM


def row_trust(cosine_N: Tensor, null_N: Tensor) -> RowTrust:
    """Expectation-maximisation for share * N(mu, s^2) + (1 - share) * N(null mean, null variance).

    cosine_N: of each row with the consensus of the other spaces. null_N: the same for permuted rows, so that a wrong match
    needs no threshold. mu stays above the null's mean, s at or above half of the null's deviation, and a row nearer the
    consensus than mu is as right as one at mu: the two bells cross twice, and only the lower crossing means anything.
    """
    null_mean, null_std = null_N.mean(), null_N.std().clamp_min(1e-6)
    beyond_N = cosine_N[cosine_N > null_mean + 2 * null_std]  # chance leaves a fortieth there
    mean, std, share = (beyond_N.mean() if len(beyond_N) else null_mean + 2 * null_std), null_std, 0.5
    probability_N = torch.ones_like(cosine_N)
    for _ in range(ROUNDS):
        shown_N = torch.minimum(cosine_N, mean)
        right_N = share * _bell(shown_N, mean, std)
        wrong_N = (1 - share) * _bell(shown_N, null_mean, null_std)
        probability_N = right_N / (right_N + wrong_N).clamp_min(torch.finfo(right_N.dtype).tiny)
        total = probability_N.sum().clamp_min(1.0)
        mean = torch.maximum(probability_N @ cosine_N / total, null_mean + null_std)
        std = ((probability_N @ (cosine_N - mean).square()) / total).sqrt().clamp_min(0.5 * null_std)
        share = float(probability_N.mean().clamp(0.01, 0.999))
    return RowTrust(probability_N, share)


def _bell(values_N: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return torch.exp(-0.5 * ((values_N - mean) / std).square()) / std
