"""Which row of Y belongs to every row of X, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.functional.soft_matching import settled_matches, settled_sharpness
from neigenmaps.spectral.nearest import nearest_rows

DENSE_PAIRS = 3000**2  # scores that are held at once; beyond, only near rows compete
NEAR = 10


@dataclass(frozen=True, eq=False)
class Correspondences:
    """index: for every row of X its row of Y. score: share of the row's soft matches that this one has, in 0..1.

    mutual: whether that row of Y has the row of X as its best, too. All (N,).
    """

    index: Tensor
    score: Tensor
    mutual: Tensor


def correspondences_of(placed_NG: Tensor, y_MG: Tensor) -> Correspondences:
    """Best soft match of every row, from the cosines of X's rows in Y's coordinates with Y's rows.

    Sinkhorn over all pairs, or in large spaces over each row's ten nearest on the other side.
    """
    n_x, n_y = len(placed_NG), len(y_MG)
    placed_NG, y_MG = F.normalize(placed_NG, dim=1), F.normalize(y_MG, dim=1)
    if n_x * n_y <= DENSE_PAIRS:
        p_NM = settled_matches(placed_NG @ y_MG.T)
        score_N, index_N = (p_NM / p_NM.sum(dim=1, keepdim=True)).max(dim=1)
        own_N = torch.arange(n_x, device=index_N.device)
        return Correspondences(index_N, score_N, p_NM.argmax(dim=0)[index_N] == own_N)
    return _among_near_rows(placed_NG, y_MG)


def _among_near_rows(placed_NG: Tensor, y_MG: Tensor) -> Correspondences:
    n_x, n_y, k = len(placed_NG), len(y_MG), min(NEAR, len(placed_NG), len(y_MG))
    there_Nk = nearest_rows(placed_NG, y_MG, k, exact=False).index_Qk
    back_Mk = nearest_rows(y_MG, placed_NG, k, exact=False).index_Qk
    row_x = torch.cat([torch.arange(n_x, device=y_MG.device).repeat_interleave(k), back_Mk.flatten()])
    row_y = torch.cat([there_Nk.flatten(), torch.arange(n_y, device=y_MG.device).repeat_interleave(k)])
    edge_E = (row_x * n_y + row_y).unique()
    row_x, row_y = edge_E // n_y, edge_E % n_y
    parts = zip(row_x.split(1 << 16), row_y.split(1 << 16), strict=True)
    score_E = torch.cat([(placed_NG[x] * y_MG[y]).sum(dim=1) for x, y in parts])
    # a row's scores with random rows have this spread; among near rows it would be far too small
    spread = (placed_NG.square().mean(0) * y_MG.var(0)).sum().sqrt()
    first_N, first_M = there_Nk[:, 0], back_Mk[:, 0]
    x_P = torch.nonzero(first_M[first_N] == torch.arange(n_x, device=y_MG.device))[:, 0]
    sharpness = settled_sharpness((placed_NG[x_P] * y_MG[first_N[x_P]]).sum(dim=1), spread)
    highest_N = score_E.new_full((n_x,), -torch.inf).scatter_reduce_(0, row_x, score_E, "amax")
    kernel_E = ((score_E - highest_N[row_x]) * (sharpness / spread)).double().exp().clamp_min(1e-280)
    v_M = kernel_E.new_ones(n_y)
    u_N = kernel_E.new_ones(n_x)
    for _ in range(20):
        u_N = 1 / (n_x * kernel_E.new_zeros(n_x).index_add_(0, row_x, kernel_E * v_M[row_y]))
        v_M = 1 / (n_y * kernel_E.new_zeros(n_y).index_add_(0, row_y, kernel_E * u_N[row_x]))
    p_E = kernel_E * u_N[row_x] * v_M[row_y]
    total_N = p_E.new_zeros(n_x).index_add_(0, row_x, p_E)
    best_x, best_y = _best_edge(p_E, row_x, n_x), _best_edge(p_E, row_y, n_y)
    index_N = row_y[best_x]
    return Correspondences(index_N, (p_E[best_x] / total_N).to(placed_NG), best_y[index_N] == best_x)


def _best_edge(p_E: Tensor, row_E: Tensor, n_rows: int) -> Tensor:
    """Number of each row's largest edge."""
    order_E = p_E.argsort(stable=True)
    order_E = order_E[row_E[order_E].argsort(stable=True)]  # by row, then by size
    return order_E[row_E.bincount(minlength=n_rows).cumsum(0) - 1]
