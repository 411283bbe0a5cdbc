"""Aligners whose maps follow from cross-moments: one pass over the data, memory independent of N, streams, newcomers."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.alignment.aligner import AbstractAligner
from neigenmaps.alignment.rows import MatchedRows, Rows, matched_rows
from neigenmaps.errors import InputError, RowMismatchError
from neigenmaps.functional.canonical import null_values, shared_directions
from neigenmaps.functional.cross_moments import CrossMoments, block_slices, cross_moments

Standardize = Literal["scale", "center", "zscore"]
MOMENT_TENSORS = ("origin_D", "weight_MM", "sum_MD", "product_DD")
NULL_DRAWS = 19  # exceeding all of them has probability 1/20 by chance


class SpaceMap(NamedTuple):
    """u = (x - mean) @ to_FK, x = u @ from_KF + mean. The mean comes off first: large ones would eat float32's digits."""

    mean_F: Tensor
    to_FK: Tensor
    from_KF: Tensor

    def encode(self, x_NF: Tensor) -> Tensor:
        return (x_NF - self.mean_F.to(x_NF)) @ self.to_FK.to(x_NF)

    def decode(self, u_NK: Tensor) -> Tensor:
        return u_NK @ self.from_KF.to(u_NK) + self.mean_F.to(u_NK)


class AbstractMomentAligner(AbstractAligner):
    """Fitted: moments_, from which `refit` and `partial_fit` go on, and what `_solve` learns from them.

    robust: whether `fit` finds out which rows to trust; row_trust_ is then the probability (N, M) that each is matched
    rightly. `refit` keeps the trust and takes a newcomer's rows at the word of the others.
    """

    moments_: CrossMoments
    robust: bool = False
    row_trust_: Tensor | None = None

    def partial_fit(
        self,
        spaces: Mapping[str, Rows] | Sequence[Rows],
        *,
        weights: Rows | None = None,
        masks: Mapping[str, Tensor | NDArray[np.bool_]] | None = None,
        solve: bool = True,
    ) -> Self:
        """Add a batch of rows of the same spaces. solve=False only counts it; `refit` solves later.

        Batches give what one `fit` on all their rows gives. No rows are kept, so `add` will need `against`.
        Raises RowMismatchError for other spaces than before; further as in `fit`.
        """
        if self.robust:
            raise InputError(
                "expected robust=False for a stream: which rows are wrong shows only with all of them, in fit"
            )
        rows = matched_rows(spaces, weights, masks)
        if hasattr(self, "moments_"):
            rows = self._in_order(rows)
            batch = cross_moments(rows.spaces, scale_NM=rows.scale_NM, origin_D=self.moments_.origin_D)
            self.moments_ = self.moments_.merge(batch)
        else:
            self.moments_ = cross_moments(rows.spaces, scale_NM=rows.scale_NM)
        self._settle(rows.names, rows, keep_rows=False)
        if solve:
            self._solve(self.names_)
        return self

    @abc.abstractmethod
    def _solve(self, names: tuple[str, ...]) -> None:
        """Learn all maps from `moments_`."""

    @abc.abstractmethod
    def _solve_last(self, names: tuple[str, ...]) -> None:
        """Learn the maps of the last of `names` from `moments_`, binding anew, with all others as they are."""

    def _learn(self, rows: MatchedRows) -> None:
        self.moments_ = cross_moments(rows.spaces, scale_NM=rows.scale_NM)
        self._solve(rows.names)

    def _as_counted(self, rows: MatchedRows) -> MatchedRows:
        if self.row_trust_ is None:
            return rows
        scale_NM = self.row_trust_ if rows.scale_NM is None else rows.scale_NM * self.row_trust_
        return MatchedRows(rows.names, rows.spaces, scale_NM)

    def _learn_newcomer(self, rows: MatchedRows) -> None:
        known = [self.names_.index(name) for name in rows.names[:-1]]
        self.moments_ = self.moments_.extended(known, rows.spaces, rows.scale_NM)
        self._solve_last((*self.names_, rows.names[-1]))

    def _relearn(self) -> None:
        self._solve(self.names_)

    def _in_order(self, rows: MatchedRows) -> MatchedRows:
        if set(rows.names) != set(self.names_):
            raise RowMismatchError(
                f"expected the spaces {', '.join(self.names_)}, got {', '.join(rows.names)}: a batch has rows of all spaces, "
                "masked where one lacks them; a new space joins by add"
            )
        order = [rows.names.index(name) for name in self.names_]
        spaces = tuple(rows.spaces[m] for m in order)
        if tuple(x_NF.shape[1] for x_NF in spaces) != self.moments_.widths:
            found = {name: x_NF.shape[1] for name, x_NF in zip(self.names_, spaces, strict=True)}
            raise RowMismatchError(
                f"expected widths {self.widths_} as in earlier batches, got {found}: use the same encoders for all batches"
            )
        return MatchedRows(self.names_, spaces, None if rows.scale_NM is None else rows.scale_NM[:, order])

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"moments.{name}": getattr(self.moments_, name) for name in MOMENT_TENSORS}
        return tensors, {"n_rows": self.moments_.n_rows}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        fields = {name: tensors[f"moments.{name}"] for name in MOMENT_TENSORS}
        self.moments_ = CrossMoments(tuple(self.widths_.values()), int(facts["n_rows"]), **fields)


class AbstractUniverseAligner(AbstractMomentAligner):
    """One `SpaceMap` per space. Fitted: maps_, by name."""

    maps_: dict[str, SpaceMap]

    def _to_universe(self, x_NF: Tensor, source: str) -> Tensor:
        return self.maps_[source].encode(x_NF)

    def _from_universe(self, u_NK: Tensor, target: str) -> Tensor:
        return self.maps_[target].decode(u_NK)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = super()._state()
        for m, name in enumerate(self.names_):
            tensors |= {f"maps.{m}.{field}": value for field, value in self.maps_[name]._asdict().items()}
        return tensors, facts

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super()._restore(tensors, facts)
        self.maps_ = {
            name: SpaceMap(*(tensors[f"maps.{m}.{field}"] for field in SpaceMap._fields))
            for m, name in enumerate(self.names_)
        }


def check_overlap(names: tuple[str, ...], moments: CrossMoments) -> None:
    """Raise InputError unless every space varies over its rows and shares some with another."""
    for m, name in enumerate(names):
        if not moments.pair(m, m).cross_FG.diagonal().sum() > 0:
            fewer = bool(moments.weight_MM[m, m] < moments.weight_MM.max())
            why = "too few under its mask, give it more or leave it out" if fewer else "has the encoder collapsed?"
            raise InputError(f"expected rows of {name!r} that vary, got equal ones: {why}")
        if moments.weight_MM[m].count_nonzero() < 2:
            raise InputError(f"expected rows of {name!r} that another space has too, got none: look at the masks")


def column_factors(covariance_DD: Tensor, moments: CrossMoments, standardize: Standardize) -> tuple[Tensor, Tensor]:
    """What each column is multiplied by before alignment and after, (D,) twice; 0 for a constant column's z-score.

    "scale": one number per space, so that its mean squared row is 1: all spaces count alike, and turning an input
    changes nothing. "zscore": every column's own deviation, which depends on the basis a space happens to have.
    """
    if standardize == "center":
        ones_D = torch.ones_like(moments.origin_D)
        return ones_D, ones_D
    spread = []
    for m, own in enumerate(block_slices(moments.widths)):
        variance_F = covariance_DD[own, own].diagonal() / moments.weight_MM[m, m]
        spread.append(variance_F if standardize == "zscore" else variance_F.sum().expand_as(variance_F))
    spread_D = torch.cat(spread).clamp_min(0).sqrt()
    return torch.where(spread_D > 0, 1 / spread_D, 0.0), spread_D


def covariance(moments: CrossMoments) -> Tensor:
    """(D, D), positive semi-definite: pairs that share few of their rows count as agreeing less, being known less."""
    columns = torch.tensor(moments.widths, device=moments.origin_D.device)
    root_D = moments.weight_MM.diagonal().sqrt().repeat_interleave(columns)
    return moments.centred() / torch.outer(root_D, root_D)


def simulated_rank(moments: CrossMoments, names: tuple[str, ...], seed: int) -> int:
    """Directions that are shared beyond what independent Gaussian spaces of these widths and rows show."""
    if moments.n_rows - 1 < 2 * max(moments.widths):
        raise InputError(
            f"expected at least {2 * max(moments.widths) + 1} rows to tell shared directions from chance, got "
            f"{moments.n_rows} for {', '.join(names)}: name n_components, or give more rows"
        )
    generator = torch.Generator().manual_seed(seed)
    null_P = null_values(
        moments.widths, moments.n_rows, draws=NULL_DRAWS, generator=generator, device=moments.origin_D.device
    )
    return shared_directions(covariance(moments), moments.widths, null_P)
