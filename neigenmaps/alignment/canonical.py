"""CCA and GCCA: maps that bend each space until what it shares with the others lies along common axes."""

from __future__ import annotations

import abc
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from neigenmaps.alignment.gpa import trusted_rows
from neigenmaps.alignment.linear import (
    NULL_DRAWS,
    AbstractUniverseAligner,
    SpaceMap,
    check_overlap,
    covariance,
    simulated_rank,
)
from neigenmaps.alignment.rows import MatchedRows
from neigenmaps.errors import InputError, UnknownNameError
from neigenmaps.functional.canonical import (
    CanonicalSpaces,
    cca,
    generalized_cca,
    whitening,
)
from neigenmaps.functional.cross_moments import CrossMoments, block_slices, cross_moments

Weighting = Literal["correlation", "none"]
RankRule = Literal["simulation", "permutation", "heldout"]


class AbstractCanonicalAligner(AbstractUniverseAligner):
    """Fitted: maps_; values_K_ and correlations_K_ of the components, falling; weights_K_ they are multiplied by."""

    shrinkage: float
    weighting: Weighting
    values_K_: Tensor
    correlations_K_: Tensor
    weights_K_: Tensor

    @abc.abstractmethod
    def _components(self, covariance_DD: Tensor, names: tuple[str, ...]) -> CanonicalSpaces: ...

    def _solve(self, names: tuple[str, ...]) -> None:
        if self.weighting not in ("correlation", "none"):
            raise InputError(f"expected weighting 'correlation' or 'none', got {self.weighting!r}: name one of them")
        check_overlap(names, self.moments_)
        covariance_DD = covariance(self.moments_)
        if self.shrinkage == 0:
            self._check_rows(covariance_DD, names)
        found = self._components(covariance_DD, names)
        weights_K = found.correlations_K.clamp_min(0) if self.weighting == "correlation" else None
        self.values_K_, self.correlations_K_ = found.values_K, found.correlations_K
        self.weights_K_ = torch.ones_like(found.values_K) if weights_K is None else weights_K
        mean_D = self.moments_.means()
        self.maps_ = {
            name: self._map(covariance_DD[own, own], mean_D[own], found.projections_DK[own])
            for name, own in zip(names, block_slices(self.moments_.widths), strict=True)
        }
        self.n_components_ = len(found.values_K)

    def _map(self, covariance_FF: Tensor, mean_F: Tensor, projection_FK: Tensor) -> SpaceMap:
        """Back by the least-squares reconstruction of the space from its own components."""
        both_FK = covariance_FF @ projection_FK
        back_KF = torch.linalg.pinv(projection_FK.T @ both_FK, hermitian=True) @ both_FK.T
        unweighted_K1 = torch.where(self.weights_K_ > 0, 1 / self.weights_K_, 0.0)[:, None]
        return SpaceMap(mean_F, projection_FK * self.weights_K_, unweighted_K1 * back_KF)

    def _check_rows(self, covariance_DD: Tensor, names: tuple[str, ...]) -> None:
        """One space that spans all rows correlates perfectly with anything."""
        for name, own in zip(names, block_slices(self.moments_.widths), strict=True):
            rank = whitening(covariance_DD[own, own], 0.0).shape[1]
            if self.moments_.n_rows - 1 <= rank:
                raise InputError(
                    f"expected more than {rank + 1} rows for {name!r} of rank {rank}, got {self.moments_.n_rows}: "
                    "without shrinkage all correlations would be 1; raise shrinkage above 0 or give more rows"
                )

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = super()._state()
        return tensors | {field: getattr(self, f"{field}_") for field in FIELDS}, facts

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super()._restore(tensors, facts)
        self.values_K_, self.correlations_K_, self.weights_K_ = (tensors[field] for field in FIELDS)


FIELDS = ("values_K", "correlations_K", "weights_K")


class CCA(AbstractCanonicalAligner):
    """Two spaces: canonical correlation at shrinkage 0, Procrustes at 1, a continuum (canonical ridge) between.

    weighting: "none" leaves components with unit variance; "correlation" weighs each by what it is worth.
    n_components: None is all directions of positive correlation. Fitted: see `AbstractCanonicalAligner`.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        shrinkage: float = 0.01,
        weighting: Weighting = "none",
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.shrinkage = shrinkage
        self.weighting = weighting
        self.random_state = random_state

    def _components(self, covariance_DD: Tensor, names: tuple[str, ...]) -> CanonicalSpaces:
        if len(names) != 2:
            raise InputError(f"expected 2 spaces for CCA, got {len(names)}: use GCCA")
        return cca(covariance_DD, self.moments_.widths, n_components=self.n_components, shrinkage=self.shrinkage)

    def _solve_last(self, names: tuple[str, ...]) -> None:
        raise InputError(f"expected 2 spaces for CCA, got {names[-1]!r} as the third: use GCCA")


class GCCA(AbstractCanonicalAligner):
    """Any number of spaces, each weighing its directions so that all agree most: see `functional.canonical`.

    n_components: "simulation" keeps directions that agree more than independent Gaussian spaces show, from moments alone,
        and wants two rows a column; "permutation" those above 19 permutations of the rows, "heldout" those that correlate
        on a fifth of the rows held out, both with rows at hand (`fit`, not `partial_fit`); None all of positive
        correlation, however slight; or a number.
    shrinkage: 0 whitens every space wholly, which needs many more rows than columns; 1 not at all.
    weighting: "correlation" multiplies component j by w_j = (sigma_j^2 - 1) / (M - 1), its mean correlation, so that what
        is not shared does not count in cosines. "none" is the textbook.
    robust: count each row by the probability that it is matched rightly, as a robust `GPA` finds it.

    Geometry is not kept: retrieval, not stitching. The way back is each space's least-squares reconstruction. Spaces that
    lack rows get shorter vectors: compare by cosine.
    """

    def __init__(
        self,
        n_components: int | RankRule | None = "simulation",
        *,
        shrinkage: float = 0.01,
        weighting: Weighting = "correlation",
        robust: bool = False,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.shrinkage = shrinkage
        self.weighting = weighting
        self.robust = robust
        self.random_state = random_state

    def _components(self, covariance_DD: Tensor, names: tuple[str, ...]) -> CanonicalSpaces:
        rank = self.n_components
        if isinstance(rank, str):
            rank = self._rank(rank, names)
        return generalized_cca(covariance_DD, self.moments_.widths, n_components=rank, shrinkage=self.shrinkage)

    def _rank(self, rule: str, names: tuple[str, ...]) -> int:
        if rule not in get_args(RankRule):
            raise UnknownNameError("rule for n_components", rule, get_args(RankRule))
        if rule == "simulation" and self.row_trust_ is None:
            return simulated_rank(self.moments_, names, self.random_state)
        if not hasattr(self, "n_components_"):
            raise InputError(f"n_components={rule!r} needs the rows: use fit, or 'simulation' for a stream")
        return self.n_components_  # `_learn` found it

    def _learn(self, rows: MatchedRows) -> None:
        self.row_trust_ = None
        self.moments_ = cross_moments(rows.spaces, scale_NM=rows.scale_NM)
        if self.n_components == "permutation":
            self.n_components_ = self._permuted_rank(rows)
        elif self.n_components == "heldout":
            self.n_components_ = self._heldout_rank(rows)
        if self.robust:
            check_overlap(rows.names, self.moments_)
            if self.n_components == "simulation":  # before rows are weighed: the null knows of equal weights only
                self.n_components_ = simulated_rank(self.moments_, rows.names, self.random_state)
            self.row_trust_ = trusted_rows(rows, self.random_state)
            self.moments_ = cross_moments(rows.spaces, scale_NM=self._as_counted(rows).scale_NM)
        self._solve(rows.names)

    def _solve_last(self, names: tuple[str, ...]) -> None:
        """The regression of the shared components on the newcomer, which is what every space's map is at the optimum."""
        check_overlap(names, self.moments_)
        sums_DD, weight_M = self.moments_.centred(), self.moments_.weight_MM[-1]
        *known, own = block_slices(self.moments_.widths)
        shared_FK = sum(
            (
                sums_DD[own, columns] / weight @ self._projection(name)
                for columns, weight, name in zip(known, weight_M, names, strict=False)
                if weight > 0
            ),
            start=sums_DD.new_zeros(self.moments_.widths[-1], self.n_components_),
        )
        own_FF = sums_DD[own, own] / weight_M[-1]
        whitener_FR = whitening(own_FF, self.shrinkage)
        projection_FK = whitener_FR @ (whitener_FR.T @ shared_FK) / self.values_K_
        newcomer = self._map(own_FF, self.moments_.means()[own], projection_FK)
        self.maps_ = {**self.maps_, names[-1]: newcomer}

    def _projection(self, name: str) -> Tensor:
        return self.maps_[name].to_FK * torch.where(self.weights_K_ > 0, 1 / self.weights_K_, 0.0)

    def _permuted_rank(self, rows: MatchedRows) -> int:
        """Components above the first of every null: rows of all spaces but one permuted."""
        generator = torch.Generator().manual_seed(self.random_state)
        device = rows.spaces[0].device
        largest = torch.tensor(0.0)
        for _ in range(NULL_DRAWS):
            orders = [torch.randperm(len(rows), generator=generator).to(device) for _ in rows.names]
            spaces = [x_NF[order_N] for x_NF, order_N in zip(rows.spaces, orders, strict=True)]
            scale_NM = rows.scale_NM
            if scale_NM is not None:
                scale_NM = torch.stack([scale_NM[order_N, m] for m, order_N in enumerate(orders)], dim=1)
            null = self._all_components(cross_moments(spaces, scale_NM=scale_NM))
            largest = torch.maximum(largest, null.correlations_K.max().cpu())
        found = self._all_components(cross_moments(rows.spaces, scale_NM=rows.scale_NM))
        return max(1, int((found.correlations_K.cpu() > largest).cumprod(dim=0).sum()))

    def _heldout_rank(self, rows: MatchedRows) -> int:
        """Components whose projections correlate on the rows held out by 2 / sqrt(their number) or more."""
        generator = torch.Generator().manual_seed(self.random_state)
        order_N = torch.randperm(len(rows), generator=generator).to(rows.spaces[0].device)
        held, train = rows.take(order_N[: len(rows) // 5]), rows.take(order_N[len(rows) // 5 :])
        if len(held) < 4:
            raise InputError(f"expected at least 20 rows for n_components='heldout', got {len(rows)}: name a number")
        found = self._all_components(cross_moments(train.spaces, scale_NM=train.scale_NM))
        tested_DD = covariance(cross_moments(held.spaces, scale_NM=held.scale_NM))
        total_K = (found.projections_DK * (tested_DD @ found.projections_DK)).sum(dim=0)
        own_K = torch.zeros_like(total_K)
        for own in block_slices([x_NF.shape[1] for x_NF in rows.spaces]):
            own_K += (found.projections_DK[own] * (tested_DD[own, own] @ found.projections_DK[own])).sum(dim=0)
        correlations_K = (total_K / own_K - 1) / (len(rows.names) - 1)
        return max(1, int((correlations_K > 2 / len(held) ** 0.5).sum()))

    def _all_components(self, moments: CrossMoments) -> CanonicalSpaces:
        return generalized_cca(covariance(moments), moments.widths, shrinkage=self.shrinkage)
