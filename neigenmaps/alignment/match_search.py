"""The search for matched rows: several starts, each refined in three sets of coordinates, judged by pairs left out.

A `View` is both spaces in coordinates whose inner products mean the same on either side: the rows themselves, centred
and of unit length ("ambient"), the same with all strong directions of one variance ("whitened"), or the eigenfunctions,
each scaled by the root of its affinity 1 - lambda ("spectral"). An orthogonal map of one view is what the search fits; the
ambient view serves spaces that are turned copies of each other, the whitened one those that a linear map of any kind
joins, the spectral one those that share neighbours only.

Letters: N rows and F columns of X, M rows and G columns of Y, P pairs, S sampled rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.functional.linear_maps import polar_factor
from neigenmaps.functional.soft_matching import (
    Pairs,
    graduated_map,
    held_out_agreement,
    mutual_best,
    pinned_among,
    refined_pairs,
    soft_matches,
)
from neigenmaps.spectral.nearest import nearest_rows

DENSE_UP_TO = 1500  # rows of each side whose every pair is scored; of larger spaces as many are sampled
ENOUGH = 0.5  # of the rows confirmed by others; wrong matches of few rows, which fall into clusters, reach 0.3
CLEAR = 0.8  # confirmed: no other start will do better
MORE = 3  # starts, one in every view, beyond the first with ENOUGH, which may have matched some clusters and not all
LARGE_ROUNDS = 8


class View(NamedTuple):
    """Coordinates of both spaces, (N, F) and (M, G)."""

    name: str
    x_NF: Tensor
    y_MG: Tensor

    @property
    def is_small(self) -> bool:
        return max(len(self.x_NF), len(self.y_MG)) <= DENSE_UP_TO


class Match(NamedTuple):
    """Pairs found, the view they were found in, and how many of them others confirm."""

    pairs: Pairs
    view: View
    confidence: float


class Start(NamedTuple):
    """A guess of pairs; or of a cross-moment (F, G) of one view, to be hardened with `pinned` pairs."""

    view: View
    pairs: Pairs | None = None
    moment_FG: Tensor | None = None
    pinned: Pairs | None = None


def best_match(
    starts: Iterator[Start], views: tuple[View, ...], pinned: Pairs | None, generator: torch.Generator
) -> Match:
    """Refine start after start in every view that can take it; stop soon after one whose pairs others confirm."""
    best: Match | None = None
    left = MORE
    for start in starts:
        for view in views if start.pairs is not None else (start.view,):
            pairs = start.pairs if start.pairs is not None else _hardened(start, generator)
            match = _refined(view, pairs, pinned, generator)
            best = match if best is None or match.confidence > best.confidence else best
            if best.confidence >= CLEAR:
                return best
        if best is not None and best.confidence >= ENOUGH:
            if not left:
                break
            left -= 1
    assert best is not None
    return best


def _hardened(start: Start, generator: torch.Generator) -> Pairs:
    """Pairs of a graduated assignment; in large spaces between sampled rows, whose map then matches other rows."""
    view, pinned = start.view, start.pinned
    assert start.moment_FG is not None
    x_rows = sampled_rows(view.x_NF, None if pinned is None else pinned.x_P, generator)
    y_rows = sampled_rows(view.y_MG, None if pinned is None else pinned.y_P, generator)
    x_SF, y_SG = view.x_NF[x_rows], view.y_MG[y_rows]
    if pinned is not None:  # sampled first
        first_P = torch.arange(len(pinned.x_P), device=x_SF.device)
        pinned = Pairs(first_P, first_P)
    m_FG = graduated_map(x_SF, y_SG, start.moment_FG, pinned)
    found = mutual_best(soft_matches(x_SF @ m_FG @ y_SG.T))
    if not view.is_small:  # two samples share few rows: near ones were matched, and their map is what counts
        return _matched_sample(view, polar_factor(x_SF[found.x_P].T @ y_SG[found.y_P]), generator)
    return Pairs(x_rows[found.x_P], y_rows[found.y_P])


def sampled_rows(rows_NF: Tensor, first_P: Tensor | None, generator: torch.Generator) -> Tensor:
    """Row numbers: those in `first_P`, then others at random, up to DENSE_UP_TO."""
    order_N = torch.randperm(len(rows_NF), generator=generator).to(rows_NF.device)
    if first_P is not None:
        order_N = torch.cat([first_P, order_N[~torch.isin(order_N, first_P)]])
    return order_N[:DENSE_UP_TO]


def _refined(view: View, pairs: Pairs, pinned: Pairs | None, generator: torch.Generator) -> Match:
    if len(pairs.x_P) < 2:
        return Match(pairs, view, 0.0)
    if view.is_small:
        pairs = refined_pairs(view.x_NF, view.y_MG, pairs, pinned=pinned)
        return Match(pairs, view, held_out_agreement(view.x_NF, view.y_MG, pairs))
    share = 0.0
    for _ in range(LARGE_ROUNDS):
        found = _matched_sample(view, _orthogonal(view, pairs), generator)
        if len(found.x_P) < 4:
            return Match(pairs, view, 0.0)
        pairs = pinned_among(found, pinned)
        before, share = share, len(found.x_P) / min(DENSE_UP_TO, len(view.x_NF))
        if abs(share - before) <= 0.005:
            break
    halves = [Pairs(found.x_P[half::2], found.y_P[half::2]) for half in (0, 1)]
    return Match(pairs, view, _confirmed(view, halves[0], halves[1], generator))


def _orthogonal(view: View, pairs: Pairs) -> Tensor:
    return polar_factor(view.x_NF[pairs.x_P].T @ view.y_MG[pairs.y_P])


def _matched_sample(view: View, q_FG: Tensor, generator: torch.Generator, sample_S: Tensor | None = None) -> Pairs:
    """Sampled rows of X with the rows of Y that are their mutual nearest neighbours among all rows."""
    sample_S = sampled_rows(view.x_NF, None, generator) if sample_S is None else sample_S
    placed_NG, y_MG = F.normalize(view.x_NF @ q_FG, dim=1), F.normalize(view.y_MG, dim=1)
    found_S = nearest_rows(placed_NG[sample_S], y_MG, exact=False).index_Qk[:, 0]
    back_S = nearest_rows(y_MG[found_S], placed_NG, exact=False).index_Qk[:, 0]
    mutual_S = back_S == sample_S
    return Pairs(sample_S[mutual_S], found_S[mutual_S])


def _confirmed(view: View, one: Pairs, other: Pairs, generator: torch.Generator) -> float:
    """Share of new rows whose mutual nearest neighbour is the same under maps of two separate sets of pairs."""
    sample_S = sampled_rows(view.x_NF, None, generator)[: DENSE_UP_TO // 2]
    partner = []
    for pairs in (one, other):
        found = _matched_sample(view, _orthogonal(view, pairs), generator, sample_S)
        partner_N = torch.full((len(view.x_NF),), -1, device=sample_S.device)
        partner.append(partner_N.index_copy(0, found.x_P, found.y_P)[sample_S])
    agreed = ((partner[0] == partner[1]) & (partner[0] >= 0)).double().mean().item()
    return min(1.0, agreed * max(1.0, len(view.x_NF) / len(view.y_MG)))
