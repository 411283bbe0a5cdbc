"""Maps from every space straight to every other: Procrustes and ridge. M spaces need M (M - 1) maps."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

from torch import Tensor

from neigenmaps.alignment.linear import AbstractMomentAligner, check_overlap
from neigenmaps.errors import InputError
from neigenmaps.functional.linear_maps import orthogonal_from_covariance, ridge_from_covariance


class PairMap(NamedTuple):
    """y = (x - mean_F) @ matrix_FG + mean_G."""

    mean_F: Tensor
    matrix_FG: Tensor
    mean_G: Tensor

    def __call__(self, x_NF: Tensor) -> Tensor:
        return (x_NF - self.mean_F.to(x_NF)) @ self.matrix_FG.to(x_NF) + self.mean_G.to(x_NF)


class AbstractPairwiseAligner(AbstractMomentAligner):
    """`translate` uses the pair's own map; the universe of `transform` is the first space as it is.

    Fitted: maps_, by (source, target).
    """

    translation: bool
    maps_: dict[tuple[str, str], PairMap]

    @abc.abstractmethod
    def _matrix(self, own_FF: Tensor, cross_FG: Tensor) -> Tensor:
        """The map (F, G) of one pair from the covariances of its source and of source with target."""

    def _solve(self, names: tuple[str, ...]) -> None:
        check_overlap(names, self.moments_)
        self.maps_ = {
            (source, target): self._pair_map(names, source, target)
            for source in names
            for target in names
            if source != target
        }
        self.n_components_ = self.moments_.widths[0]

    def _solve_last(self, names: tuple[str, ...]) -> None:
        check_overlap(names, self.moments_)
        *known, newcomer = names
        maps = dict(self.maps_)
        for name in known:
            maps[newcomer, name] = self._pair_map(names, newcomer, name)
            maps[name, newcomer] = self._pair_map(names, name, newcomer)
        self.maps_ = maps

    def _pair_map(self, names: tuple[str, ...], source: str, target: str) -> PairMap:
        first, second = names.index(source), names.index(target)
        if not self.moments_.weight_MM[first, second] > 0:
            raise InputError(
                f"expected rows that both {source!r} and {target!r} have, got none: pairwise maps need them for every "
                "pair, GPA does not"
            )
        pair = self.moments_.pair(first, second, center=self.translation)
        own = self.moments_.pair(first, first, center=self.translation)
        return PairMap(pair.mean_F, self._matrix(own.cross_FG, pair.cross_FG), pair.mean_G)

    def _to_universe(self, x_NF: Tensor, source: str) -> Tensor:
        return self._translate(x_NF, source, self.names_[0])

    def _from_universe(self, u_NK: Tensor, target: str) -> Tensor:
        return self._translate(u_NK, self.names_[0], target)

    def _translate(self, x_NF: Tensor, source: str, target: str) -> Tensor:
        return x_NF.clone() if source == target else self.maps_[source, target](x_NF)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = super()._state()
        for (source, target), pair in self.maps_.items():
            place = f"maps.{self.names_.index(source)}.{self.names_.index(target)}"
            tensors |= {f"{place}.{field}": value for field, value in pair._asdict().items()}
        return tensors, facts

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        super()._restore(tensors, facts)
        self.maps_ = {
            (source, target): PairMap(*(tensors[f"maps.{a}.{b}.{field}"] for field in PairMap._fields))
            for a, source in enumerate(self.names_)
            for b, target in enumerate(self.names_)
            if a != b
        }


class Procrustes(AbstractPairwiseAligner):
    """Every pair by its own orthogonal map: `functional.linear_maps.orthogonal_map`, semi-orthogonal if widths differ."""

    def __init__(self, *, scale: bool = False, translation: bool = True, random_state: int = 0) -> None:
        self.scale = scale
        self.translation = translation
        self.random_state = random_state

    def _matrix(self, own_FF: Tensor, cross_FG: Tensor) -> Tensor:
        return orthogonal_from_covariance(own_FF, cross_FG, scale=self.scale)


class LinearMap(AbstractPairwiseAligner):
    """Every pair by its own ridge regression: `functional.linear_maps.ridge_map`. There and back is not the identity."""

    def __init__(self, ridge: float = 1e-3, *, translation: bool = True, random_state: int = 0) -> None:
        self.ridge = ridge
        self.translation = translation
        self.random_state = random_state

    def _matrix(self, own_FF: Tensor, cross_FG: Tensor) -> Tensor:
        if not self.ridge >= 0:
            raise InputError(f"expected ridge >= 0, got {self.ridge}: it is a share of the mean variance of a column")
        return ridge_from_covariance(own_FF, cross_FG, self.ridge)
