"""Generalised Procrustes analysis: one orthogonal map per space into a universe that all share."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.alignment.linear import (
    AbstractUniverseAligner,
    SpaceMap,
    Standardize,
    check_overlap,
    column_factors,
    simulated_rank,
)
from neigenmaps.alignment.rows import MatchedRows
from neigenmaps.errors import ConvergenceWarning, InputError, NotFittedError, UnknownNameError
from neigenmaps.functional.cross_moments import CrossMoments, block_slices, cross_moments
from neigenmaps.functional.generalized_procrustes import ProcrustesConsensus, generalized_procrustes, nuclear_bound
from neigenmaps.functional.linear_maps import polar_factor
from neigenmaps.functional.row_trust import consensus_trust

ROBUST_ROUNDS, ROBUST_SWEEPS, ROBUST_FOLDS = 20, 3, 4
FACTS = ("objective", "history", "converged")


def trusted_rows(rows: MatchedRows, random_state: int) -> Tensor:
    """Probability (N, M) that each row is matched rightly, by a robust `GPA` in the directions that spaces share."""
    enough = len(rows) > 2 * max(x_NF.shape[1] for x_NF in rows.spaces)
    gpa = GPA("simulation" if enough else None, robust=True, random_state=random_state)
    gpa._learn(rows)
    assert gpa.row_trust_ is not None
    return gpa.row_trust_


class GPA(AbstractUniverseAligner):
    """max sum_{m<n} a_m a_n tr(R_m^T C_mn R_n) over (semi-)orthogonal maps, C_mn cross-covariances: see
    `functional.generalized_procrustes`. Geometry is kept: maps turn, and at most scale by one number per space.

    n_components: width K of the universe; None is the largest width, where no space loses anything, narrow ones being
        embedded isometrically; "simulation" the number of directions that agree more than independent spaces would.
        Fewer than all is better for retrieval where spaces share few directions.
    standardize: "scale" (centre, one factor per space), "center", or "zscore" as the published code has it, which is not
        invariant to turning an input.
    model_weights: a_m by name, 1 when not named.
    robust: find rows that are matched wrongly, space by space, and count each by the probability that it is right, from
        its cosine with the mean of the other spaces against that of permuted rows, in maps learned without it. Needs
        `fit`, 16 rows, and 3 spaces at least to tell whose row is wrong.

    tolerance: gain of a sweep, as a share of the objective, that is too little to go on.

    Fitted: maps_ by name; objective_ (mean over rows), history_ by sweep, converged_; when robust row_trust_, probabilities
    (N, M), else None. Axes of the universe are those of the mean of all spaces, by falling variance.
    """

    objective_: float
    history_: tuple[float, ...]
    converged_: bool
    _bound: float | None
    _n_rows: int
    _n_spaces: int

    def __init__(
        self,
        n_components: int | Literal["simulation"] | None = None,
        *,
        standardize: Standardize = "scale",
        model_weights: Mapping[str, float] | None = None,
        robust: bool = False,
        max_sweeps: int = 500,
        tolerance: float = 2e-6,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.standardize = standardize
        self.model_weights = model_weights
        self.robust = robust
        self.max_sweeps = max_sweeps
        self.tolerance = tolerance
        self.random_state = random_state

    @property
    def bound_(self) -> float:
        """Nuclear norms of the cross-covariances: no maps reach more. Computed when asked for.

        Raises NotFittedError where rows were counted that the maps do not know.
        """
        self._check_fitted()
        if self.moments_.n_rows != self._n_rows:
            raise NotFittedError(
                "expected maps of all rows, got rows that were counted since (solve=False): call refit"
            )
        if self._bound is None:
            fitted = copy.copy(self)  # without newcomers, whom the objective does not know
            fitted.moments_ = self.moments_.first(self._n_spaces)
            self._bound = nuclear_bound(
                fitted._standardized()[0],
                fitted.moments_.widths,
                n_components=self.n_components_,
                model_weights_M=self._weights(self.names_[: self._n_spaces]),
            )
        return self._bound

    @property
    def gap_(self) -> float:
        """1 - objective_ / bound_: no better maps come nearer to 0 than this."""
        return 1 - self.objective_ / self.bound_

    def _learn(self, rows: MatchedRows) -> None:
        self.row_trust_ = None
        super()._learn(rows)
        if self.robust:
            self.row_trust_ = self._learn_trust(rows)
            self._adopt(rows.names, *self._consensus(rows.names, self.n_components_))

    def _learn_trust(self, rows: MatchedRows) -> Tensor:
        """Rounds of trust in every row, given maps, and of maps, given the trust; their number of dimensions stays.

        A row is judged by maps that have not seen it, each fold by those of all others: with few rows for the width, maps
        fit wrong rows as well as right ones.
        """
        generator = torch.Generator().manual_seed(self.random_state)
        folds = self._folds(rows, generator)
        order_N = torch.empty_like(torch.cat(folds))
        for part_N in folds:  # each has a universe of its own
            order_N[part_N] = part_N[torch.randperm(len(part_N), generator=generator).to(part_N.device)]
        scale_NM = rows.scale_NM
        if scale_NM is None:
            scale_NM = torch.ones(len(rows), len(rows.names), dtype=torch.float64, device=order_N.device)
        trust_NM = (scale_NM > 0).double()
        judges = [copy.copy(self) for _ in folds]
        for round_ in range(ROBUST_ROUNDS):
            self._count_without(judges, folds, rows, scale_NM * trust_NM)
            units = [
                torch.empty(len(rows), self.n_components_, dtype=torch.float64, device=order_N.device)
                for _ in rows.names
            ]
            for judge, part_N in zip(judges, folds, strict=True):
                judge._adopt(
                    rows.names, *judge._consensus(rows.names, self.n_components_, ROBUST_SWEEPS, anew=round_ == 0)
                )
                for unit_NK, name, x_NF in zip(units, rows.names, rows.spaces, strict=True):
                    unit_NK[part_N] = F.normalize(judge.maps_[name].encode(x_NF[part_N].double()), dim=1)
            before_NM, trust_NM = trust_NM, consensus_trust(units, trust_NM, order_N)
            if (trust_NM - before_NM).abs().mean() < 1e-3:
                break
        self.moments_ = cross_moments(rows.spaces, scale_NM=scale_NM * trust_NM)
        return trust_NM

    def _folds(self, rows: MatchedRows, generator: torch.Generator) -> list[Tensor]:
        if len(rows) < 4 * ROBUST_FOLDS:
            raise InputError(
                f"expected at least {4 * ROBUST_FOLDS} rows to tell wrong ones from right ones, got {len(rows)}: give more, "
                "or robust=False"
            )
        order_N = torch.randperm(len(rows), generator=generator).to(self.moments_.origin_D.device)
        return list(order_N.chunk(ROBUST_FOLDS))

    def _count_without(self, judges: list[GPA], folds: list[Tensor], rows: MatchedRows, scale_NM: Tensor) -> None:
        """Give every judge the moments of all folds but its own."""
        origin_D = self.moments_.origin_D
        parts = [
            cross_moments([x_NF[part_N] for x_NF in rows.spaces], scale_NM=scale_NM[part_N], origin_D=origin_D)
            for part_N in folds
        ]
        for judge, own in zip(judges, parts, strict=True):
            judge.moments_ = functools.reduce(CrossMoments.merge, (part for part in parts if part is not own))
            check_overlap(rows.names, judge.moments_)

    def _solve(self, names: tuple[str, ...]) -> None:
        self._check(names)
        rank = self.n_components
        if rank == "simulation":
            rank = min(simulated_rank(self.moments_, names, self.random_state), max(self.moments_.widths))
        self._adopt(names, *self._consensus(names, rank))

    def _consensus(
        self, names: tuple[str, ...], n_components: int | None, sweeps: int | None = None, *, anew: bool = True
    ) -> tuple[ProcrustesConsensus, Tensor, Tensor]:
        """The best maps for `moments_`, and the factors of columns forth and back that they come between.

        With fewer sweeps, what these make of the spectral start or, if not anew, of the present maps: a step of a longer
        way.
        """
        cross_DD, forth_D, back_D = self._standardized()
        start_DK = None
        if not anew:
            start_DK = back_D[:, None] * torch.cat([self.maps_[name].to_FK for name in names])
        result = generalized_procrustes(
            cross_DD,
            self.moments_.widths,
            n_components=n_components,
            model_weights_M=self._weights(names),
            start_DK=start_DK,
            max_sweeps=sweeps or self.max_sweeps,
            tolerance=self.tolerance,
        )
        if sweeps is None and not result.converged:
            warnings.warn(
                f"GPA still gains {result.history[-1] - result.history[-2]:.1e} a sweep after {self.max_sweeps}: raise "
                "max_sweeps, or lower n_components to the directions that spaces share",
                ConvergenceWarning,
                stacklevel=5,
            )
        return result, forth_D, back_D

    def _adopt(self, names: tuple[str, ...], result: ProcrustesConsensus, forth_D: Tensor, back_D: Tensor) -> None:
        self.objective_, self.history_, self.converged_ = result.objective, result.history, result.converged
        self._bound, self._n_rows, self._n_spaces = None, self.moments_.n_rows, len(names)
        mean_D = self.moments_.means()
        self.maps_ = {
            name: SpaceMap(mean_D[own], forth_D[own, None] * result.maps_DK[own], result.maps_DK[own].T * back_D[own])
            for name, own in zip(names, block_slices(self.moments_.widths), strict=True)
        }
        self.n_components_ = result.maps_DK.shape[1]

    def _solve_last(self, names: tuple[str, ...]) -> None:
        """The leave-one-out step for one space: the polar factor of its cross-covariance with the others' mean."""
        check_overlap(names, self.moments_)
        cross_DD, forth_D, back_D = self._standardized()
        *known, own = block_slices(self.moments_.widths)
        weights_M = self._weights(names)
        target_FK = sum(
            weight * cross_DD[own, columns] @ (back_D[columns, None] * self.maps_[name].to_FK)
            for weight, columns, name in zip(weights_M, known, names, strict=False)
        )
        turn_FK = polar_factor(target_FK)
        newcomer = SpaceMap(self.moments_.means()[own], forth_D[own, None] * turn_FK, turn_FK.T * back_D[own])
        self.maps_ = {**self.maps_, names[-1]: newcomer}

    def _weights(self, names: tuple[str, ...]) -> Tensor:
        weights = [float((self.model_weights or {}).get(name, 1.0)) for name in names]
        return torch.tensor(weights, dtype=torch.float64, device=self.moments_.origin_D.device)

    def _check(self, names: tuple[str, ...]) -> None:
        if self.standardize not in ("scale", "center", "zscore"):
            raise InputError(f"expected standardize 'scale', 'center' or 'zscore', got {self.standardize!r}: name one")
        if isinstance(self.n_components, str) and self.n_components != "simulation":
            raise UnknownNameError("rule for n_components", self.n_components, ["simulation"])
        for name, weight in (self.model_weights or {}).items():
            if name not in names:
                raise UnknownNameError("space", name, names)
            if not weight > 0:
                raise InputError(
                    f"expected model weights above 0, got {weight} for {name!r}: leave the space out instead"
                )
        check_overlap(names, self.moments_)

    def _standardized(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-covariances after standardisation, and the factors of every column forth and back."""
        cross_DD = self.moments_.centred()
        forth_D, back_D = column_factors(cross_DD, self.moments_, self.standardize)
        cross_DD *= torch.outer(forth_D, forth_D / self.moments_.weight_MM.diagonal().max())
        return cross_DD, forth_D, back_D

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = super()._state()
        return tensors, facts | {field: getattr(self, f"{field}_") for field in FACTS} | {"n_spaces": self._n_spaces}

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super()._restore(tensors, facts)
        self.objective_ = float(facts["objective"])
        self.history_, self.converged_ = tuple(facts["history"]), bool(facts["converged"])
        self._bound, self._n_rows, self._n_spaces = None, self.moments_.n_rows, int(facts["n_spaces"])
