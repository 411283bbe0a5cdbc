"""Nearest rows of one set to the rows of another, by blocks of a matrix product, on the device of the data.

It compares by |x|^2 + |y|^2 - 2xy in float32, which loses the digits of near neighbours. So the rows are centred, a few
more candidates than asked for are fetched, and their distances are computed again from differences; where candidates
lie too close together for float32 to have kept the right ones, more are fetched.

Letters: Q queries, N rows, F feature width, k neighbours, M candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.spectral.neighbors import CACHE_ELEMENTS, CHUNK_ELEMENTS, SLACK, best_by_blocks

WIDEST = 16 * SLACK  # candidates beyond k; where these are not enough, all rows are


class NearestRows(NamedTuple):
    """index_Qk: by rising distance, equal distances by rising index. distance_Qk: Euclidean, in the queries' dtype."""

    index_Qk: Tensor
    distance_Qk: Tensor


def nearest_rows(query_QF: Tensor, rows_NF: Tensor, k: int = 1, *, exact: bool = True) -> NearestRows:
    """The k rows nearest to every query, all pairs compared, on the device of the data.

    exact: False keeps the float32 order of the first search, where near ties may fall either way, and saves the second.
    Raises ShapeError unless (Q, F) and (N, F), NonFiniteError, InputError unless 1 <= k <= N and both share a device.
    """
    _check(query_QF, rows_NF, k)
    dtype = torch.promote_types(torch.promote_types(query_QF.dtype, rows_NF.dtype), torch.float32)
    query_QF, rows_NF, given = query_QF.detach().to(dtype), rows_NF.detach().to(dtype), query_QF.dtype
    center_F = rows_NF.mean(0)
    query_QF, rows_NF = query_QF - center_F, rows_NF - center_F
    scale = rows_NF.abs().max()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # squares neither overflow nor vanish
    query_QF, rows_NF = query_QF / scale, rows_NF / scale
    if exact:
        index_Qk, distance_Qk = _exact(query_QF, rows_NF, k, SLACK)
    else:
        index_Qk = best_by_blocks(query_QF.float(), rows_NF.float(), k)
        distance_Qk = _distances(query_QF, rows_NF, index_Qk)
    return NearestRows(index_Qk, (distance_Qk * scale).to(given))


def _exact(query_QF: Tensor, rows_NF: Tensor, k: int, slack: int) -> tuple[Tensor, Tensor]:
    """Ordered by distance, then index; queries whose surroundings float32 cannot tell apart are searched more widely."""
    n_candidates = min(len(rows_NF), k + slack)
    if slack > WIDEST:
        return _all_pairs(query_QF, rows_NF, k)
    index_QM = best_by_blocks(query_QF.float(), rows_NF.float(), n_candidates).sort(1).values
    distance_QM, order_QM = _distances(query_QF, rows_NF, index_QM).sort(dim=1, stable=True)
    index_Qk, distance_Qk = index_QM.gather(1, order_QM)[:, :k], distance_QM[:, :k]
    if n_candidates < len(rows_NF):
        last_Q = distance_QM[:, -1]
        rounding_Q = 1e-6 * (2 * query_QF.norm(dim=1) + last_Q).square()  # of a squared distance in float32
        crowded = torch.nonzero(last_Q.square() - distance_QM[:, k - 1].square() <= rounding_Q)[:, 0]
        if len(crowded):
            index_Qk[crowded], distance_Qk[crowded] = _exact(query_QF[crowded], rows_NF, k, 16 * slack)
    return index_Qk, distance_Qk


def _distances(query_QF: Tensor, rows_NF: Tensor, index_QM: Tensor) -> Tensor:
    step = max(1, CACHE_ELEMENTS // (index_QM.shape[1] * rows_NF.shape[1]))
    parts = zip(query_QF.split(step), index_QM.split(step), strict=True)
    return torch.cat([(rows_NF[index_BM] - part_BF[:, None]).norm(dim=2) for part_BF, index_BM in parts])


def _all_pairs(query_QF: Tensor, rows_NF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    index, distance = [], []
    for part_BF in query_QF.split(max(1, CHUNK_ELEMENTS // len(rows_NF))):
        distance_BN = torch.cdist(part_BF, rows_NF, compute_mode="donot_use_mm_for_euclid_dist")
        near = distance_BN.sort(dim=1, stable=True)
        index.append(near.indices[:, :k])
        distance.append(near.values[:, :k])
    return torch.cat(index), torch.cat(distance)


def _check(query_QF: Tensor, rows_NF: Tensor, k: int) -> None:
    if query_QF.ndim != 2 or rows_NF.ndim != 2 or query_QF.shape[1] != rows_NF.shape[1] or 0 in query_QF.shape:
        raise ShapeError(
            f"expected queries (Q, F) and rows (N, F), got {tuple(query_QF.shape)} and {tuple(rows_NF.shape)}: "
            "both need the same columns"
        )
    if query_QF.device != rows_NF.device:
        raise InputError(f"expected one device, got {query_QF.device} and {rows_NF.device}: move one of them")
    if not 1 <= k <= len(rows_NF):
        raise InputError(f"expected 1 <= k <= {len(rows_NF)} (the number of rows), got {k}")
    if not (torch.isfinite(query_QF).all() and torch.isfinite(rows_NF).all()):
        raise NonFiniteError("expected finite queries and rows, got NaN or infinity: look at what made them")
