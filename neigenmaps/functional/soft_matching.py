"""Matching two sets of rows of which little or nothing is known: soft assignments that harden slowly.

Three pieces, all on the scores s_nm of a row n of X with a row m of Y:

    soft_matches     Sinkhorn: exp(b s) scaled until every row of X and every row of Y gives away as much as any other.
                     A row that is near to everything (a hub) can't win them all, as it does among nearest neighbours.
    graduated_map    s = x M y^T, M = sum_nm p_nm x_n^T y_m, p = soft_matches(s): alternated while b grows. This is
                     Gromov-Wasserstein with inner products and an entropy that is taken away (Gold & Rangarajan 1996,
                     "graduated assignment"): p is N x N, but M, as large as the widths, is all that is remembered.
    refined_pairs    s = cos(x Q, y), Q the orthogonal map of the pairs found: mutual best of p, until they settle.

Unlike Procrustes, M weighs every direction by how much of it the pairs agree on: with two anchors it has rank two, where
the polar factor would turn all other directions at random, at full strength.

Letters: N rows and F features of X, M rows and G features of Y, P pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.linear_maps import polar_factor

SHARPNESS = 4.0  # least of settled matches: exp(4 z), z the score in standard deviations
SLOWEST, SHARPEST, N_SHARPENINGS = 0.5, 32.0, 20  # schedule of `graduated_map`, from nearly uniform to nearly hard
SHARPEST_SETTLED = 64.0
N_SOFT_ROUNDS = 8  # of `refined_pairs`, from sharpness 1 to SHARPNESS


class Pairs(NamedTuple):
    """Rows of X and the rows of Y they go with, both (P,)."""

    x_P: Tensor
    y_P: Tensor


def soft_matches(scores_NM: Tensor, sharpness: float = SHARPNESS, n_steps: int = 20) -> Tensor:
    """p, (N, M): diag(u) exp(sharpness s / std(s)) diag(v), with column sums 1/M and row sums near 1/N (Sinkhorn 1967)."""
    if scores_NM.ndim != 2 or scores_NM.numel() == 0:
        raise ShapeError(f"expected scores (N, M), got {tuple(scores_NM.shape)}")
    if not sharpness > 0:
        raise InputError(f"expected sharpness > 0, got {sharpness}")
    scaled_NM = scores_NM * (sharpness / scores_NM.std().clamp_min(torch.finfo(scores_NM.dtype).tiny))
    kernel_NM = (scaled_NM - scaled_NM.amax(dim=1, keepdim=True)).exp_()
    n_x, n_y = kernel_NM.shape
    least = torch.finfo(kernel_NM.dtype).tiny ** 0.5
    v_M = kernel_NM.new_ones(n_y)
    u_N = kernel_NM.new_ones(n_x)
    for _ in range(n_steps):
        u_N = 1 / (n_x * (kernel_NM @ v_M).clamp_min(least))
        v_M = 1 / (n_y * (u_N @ kernel_NM).clamp_min(least))
    return kernel_NM.mul_(u_N[:, None]).mul_(v_M)


def settled_matches(cosines_NM: Tensor) -> Tensor:
    """`soft_matches` of an almost right map, as sharp as the noise allows.

    Unit rows whose right partners have cosine c differ by 2 (1 - c) in all, spread over about 1 / var(s) directions;
    the logarithm of a Gaussian of that width is s / (2 (1 - c) var(s)). c is the median over mutual best rows.
    """
    return soft_matches(cosines_NM, settled_sharpness(cosines_NM[mutual_best(cosines_NM)], cosines_NM.std()))


def settled_sharpness(matched_P: Tensor, deviation: Tensor) -> float:
    """1 / (2 (1 - median) std), in 4..64: from cosines of mutual best rows and the deviation of all cosines."""
    if not len(matched_P):
        return SHARPNESS
    width = 2 * (1 - matched_P.median()) * deviation
    return float((1 / width.clamp_min(1e-6)).clamp(SHARPNESS, SHARPEST_SETTLED))


def mutual_best(scores_NM: Tensor) -> Pairs:
    """Rows that are each other's best."""
    best_N, best_M = scores_NM.argmax(dim=1), scores_NM.argmax(dim=0)
    x_P = torch.nonzero(best_M[best_N] == torch.arange(len(best_N), device=best_N.device))[:, 0]
    return Pairs(x_P, best_N[x_P])


def graduated_map(
    x_NF: Tensor, y_MG: Tensor, start_FG: Tensor, anchors: Pairs | None = None, *, n_sharpenings: int = N_SHARPENINGS
) -> Tensor:
    """The cross-moment M, (F, G), of the soft matches that a start hardens into; x M y^T scores all pairs.

    start_FG: a guess of M, at any scale; the sum of x_a^T y_a over anchors, with or without noise. Noise alone serves,
        tried often enough. anchors: pairs that stay matched throughout. Rows should be centred, of unit length.
    """
    if start_FG.shape != (x_NF.shape[1], y_MG.shape[1]):
        raise ShapeError(f"expected a start {(x_NF.shape[1], y_MG.shape[1])}, got {tuple(start_FG.shape)}")
    pinned_FG = torch.zeros_like(start_FG)
    free_x, free_y = (torch.ones(len(rows), dtype=torch.bool, device=rows.device) for rows in (x_NF, y_MG))
    if anchors is not None:
        pinned_FG = x_NF[anchors.x_P].T @ y_MG[anchors.y_P] / min(len(x_NF), len(y_MG))
        free_x[anchors.x_P] = free_y[anchors.y_P] = False
    x_NF, y_MG = x_NF[free_x], y_MG[free_y]
    m_FG = start_FG
    for sharpness in torch.logspace(0, 1, n_sharpenings, base=SHARPEST / SLOWEST).tolist():
        p_NM = soft_matches(x_NF @ m_FG @ y_MG.T, SLOWEST * sharpness, n_steps=8)
        m_FG = pinned_FG + x_NF.T @ (p_NM @ y_MG)
    return m_FG


def refined_pairs(
    x_NF: Tensor, y_MG: Tensor, pairs: Pairs, *, pinned: Pairs | None = None, n_rounds: int = 10
) -> Pairs:
    """Orthogonal map of the pairs, matches under it, again; until at most one pair in a thousand is new.

    The first rounds match softly and take every match by its share, which frees pairs that agree in a few clusters only;
    the rest take the mutual best. pinned: pairs that are always among them.
    """
    known = torch.full((len(x_NF),), -1, device=x_NF.device)
    moment_FG = x_NF[pairs.x_P].T @ y_MG[pairs.y_P]
    for sharpness in torch.logspace(0, 1, N_SOFT_ROUNDS, base=SHARPNESS).tolist():
        p_NM = soft_matches(cosines(x_NF @ polar_factor(moment_FG), y_MG), sharpness, n_steps=8)
        moment_FG = x_NF.T @ (p_NM @ y_MG)
        if pinned is not None:
            moment_FG = moment_FG + x_NF[pinned.x_P].T @ y_MG[pinned.y_P] / len(x_NF)
    pairs = mutual_best(settled_matches(cosines(x_NF @ polar_factor(moment_FG), y_MG)))
    for _ in range(n_rounds):
        placed_NG = x_NF @ polar_factor(x_NF[pairs.x_P].T @ y_MG[pairs.y_P])
        found = mutual_best(settled_matches(cosines(placed_NG, y_MG)))
        pairs = pinned_among(found, pinned)
        before, known = known, torch.full_like(known, -1).index_copy(0, pairs.x_P, pairs.y_P)
        if (before != known).double().mean() <= 1e-3:
            break
    return pairs


def cosines(x_NG: Tensor, y_MG: Tensor) -> Tensor:
    """Cosine of every row of one set with every row of the other, (N, M)."""
    return F.normalize(x_NG, dim=1) @ F.normalize(y_MG, dim=1).T


def pinned_among(found: Pairs, pinned: Pairs | None) -> Pairs:
    """`found` without the pairs that contradict `pinned`, and `pinned`."""
    if pinned is None:
        return found
    free_P = ~(torch.isin(found.x_P, pinned.x_P) | torch.isin(found.y_P, pinned.y_P))
    return Pairs(torch.cat([pinned.x_P, found.x_P[free_P]]), torch.cat([pinned.y_P, found.y_P[free_P]]))


def held_out_agreement(x_NF: Tensor, y_MG: Tensor, pairs: Pairs) -> float:
    """Share of min(N, M) rows whose pair is a mutual nearest neighbour under an orthogonal map of the other pairs.

    The pairs are split in two halves, each judged by the map of the other: a map is not asked about pairs that made
    it, whose number of parameters may be as large as theirs. Wrong matches come out near 0, however consistent.
    """
    count = 0
    for half in range(2):
        own = torch.arange(len(pairs.x_P), device=x_NF.device) % 2 == half
        fitted = Pairs(pairs.x_P[~own], pairs.y_P[~own])
        if not len(fitted.x_P) or not own.any():
            continue
        placed_NG = x_NF @ polar_factor(x_NF[fitted.x_P].T @ y_MG[fitted.y_P])
        best = mutual_best(cosines(placed_NG, y_MG))
        partner_N = torch.full((len(x_NF),), -1, device=x_NF.device).index_copy(0, best.x_P, best.y_P)
        count += int((partner_N[pairs.x_P[own]] == pairs.y_P[own]).sum())
    return count / min(len(x_NF), len(y_MG))
