"""Mean and spread of a measure over seeds, at every code length: what tables print and figures draw."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from neigenmaps.errors import InputError
from neigenmaps.evaluation.truncation import TruncationCurve

Measure = Literal["knn_accuracy", "retrieval_map", "linear_probe"]
Curves = Mapping[str, TruncationCurve | Sequence[TruncationCurve]]
"""By method: one curve, or one for every seed."""

TITLES: dict[Measure, str] = {
    "knn_accuracy": "kNN accuracy, %",
    "retrieval_map": "retrieval mAP, %",
    "linear_probe": "linear probe, %",
}


class Spread(NamedTuple):
    """Mean over n seeds and their standard deviation (n - 1 in the denominator); None for a single seed."""

    mean: float
    std: float | None
    n: int

    def percent(self) -> str:
        """Text such as "93.1" or "93.1 ± 0.4"."""
        return f"{100 * self.mean:.1f}" + ("" if self.std is None else f" ± {100 * self.std:.1f}")


def spreads(curves: Curves, measure: Measure) -> dict[str, dict[int, Spread]]:
    """By method and code length; lengths a method was not measured at are absent, and so are methods never measured by it.

    Raises InputError when there are no methods, or a method without curves.
    """
    _check_methods(curves)
    by_method = {method: _by_length(_as_list(given), measure) for method, given in curves.items()}
    return {method: by_length for method, by_length in by_method.items() if by_length}


def measures_of(curves: Curves) -> list[Measure]:
    """Those that any curve has. Errors as `spreads`."""
    _check_methods(curves)
    given = [curve for one in curves.values() for curve in _as_list(one)]
    return [measure for measure in TITLES if any(getattr(curve, measure) is not None for curve in given)]


def lengths_of(table: Mapping[str, Mapping[int, Spread]]) -> list[int]:
    """All code lengths that any method was measured at, rising."""
    return sorted({d for by_length in table.values() for d in by_length})


def _check_methods(curves: Curves) -> None:
    if not curves:
        raise InputError("expected one method or more, got none: give curves by method name")
    for method, given in curves.items():
        if not _as_list(given):
            raise InputError(f"expected one curve or more for {method!r}, got none: leave the method out")


def _by_length(curves: Sequence[TruncationCurve], measure: Measure) -> dict[int, Spread]:
    values: dict[int, list[float]] = {}
    for curve in curves:
        if getattr(curve, measure) is None:
            continue
        for d, value in zip(curve.dims, getattr(curve, measure), strict=True):
            values.setdefault(d, []).append(value)
    return {d: _spread(values[d]) for d in sorted(values)}


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def _as_list(given: TruncationCurve | Sequence[TruncationCurve]) -> Sequence[TruncationCurve]:
    return [given] if isinstance(given, TruncationCurve) else given
