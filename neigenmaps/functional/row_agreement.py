"""Whether the rows of several spaces are in one order: unbiased CKA against what shuffled rows give, without shuffling.

For independent rows sqrt(n (n - 3) / 2) times the unbiased CKA of n rows is nearly standard normal (Székely & Rizzo 2013,
The distance correlation t-test of independence in high dimension), so a p value costs a Gram matrix, no map and no draw.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.functional.similarity_kernels import u_centred

LEAST_ROWS = 30  # fewer may hide what noisy spaces share


def agreement_p_values(spaces: Sequence[Tensor], present_NM: Tensor) -> Tensor:
    """p value (M, M) of every pair of spaces, over the rows that both have; 0 where these are too few to tell.

    spaces: (N, F_m) each; what stands in rows that are not present must be finite, and isn't read.
    """
    grams = [_gram(x_NF, present_N) for x_NF, present_N in zip(spaces, present_NM.T, strict=True)]
    if present_NM.all():
        return _p_values(_unit(grams), len(present_NM))
    p_MM = torch.zeros(len(grams), len(grams), dtype=torch.float64)
    for m in range(len(grams)):
        for n in range(m):
            both_N = present_NM[:, m] & present_NM[:, n]
            units = _unit([grams[m][both_N][:, both_N], grams[n][both_N][:, both_N]])
            p_MM[m, n] = p_MM[n, m] = _p_values(units, int(both_N.sum()))[0, 1]
    return p_MM


def agreeing_groups(p_MM: Tensor, level: float) -> list[list[int]]:
    """Spaces that agree, each with some other of its group at `level` after counting its M - 1 tries; largest first."""
    agrees_MM = (p_MM * (len(p_MM) - 1)).clamp(max=1.0) <= level
    left, groups = list(range(len(p_MM))), []
    while left:
        group = [left.pop(0)]
        for member in group:
            found = [m for m in left if agrees_MM[member, m]]
            group += found
            left = [m for m in left if m not in found]
        groups.append(sorted(group))
    return sorted(groups, key=len, reverse=True)


def _unit(grams: list[Tensor]) -> Tensor:
    """U-centred and of length 1, (M, N * N): their products are unbiased CKA."""
    return F.normalize(torch.stack([u_centred(gram_NN).flatten() for gram_NN in grams]), dim=1)


def _p_values(units: Tensor, n_rows: int) -> Tensor:
    if n_rows < LEAST_ROWS:
        return torch.zeros(len(units), len(units), dtype=torch.float64)
    return 0.5 * torch.erfc((units @ units.T).cpu() * (n_rows * (n_rows - 3)) ** 0.5 / 2)


def _gram(x_NF: Tensor, present_N: Tensor) -> Tensor:
    """Of rows off their mean, at mean length 1: U-centring removes what is left of any offset."""
    x_NF = x_NF.double()
    x_NF = x_NF - x_NF[present_N].mean(dim=0)
    gram_NN = x_NF @ x_NF.T
    return gram_NN / gram_NN.diagonal()[present_N].mean().clamp_min(torch.finfo(gram_NN.dtype).tiny)
