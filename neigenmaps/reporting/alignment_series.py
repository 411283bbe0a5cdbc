"""Alignments as curves: a line with its interval for every reference or run, and the band of the null."""

from __future__ import annotations

from collections.abc import Sequence

from neigenmaps.evaluation.alignments import Alignment
from neigenmaps.reporting.report import Number, Series

NULL_COLOUR = 6  # grey
N_SD = 2  # of the null, on either side


def leading_layer(alignments: Sequence[Alignment]) -> str:
    """The layer that is drawn."""
    return next(iter(alignments[-1].values))


def references_of(alignments: Sequence[Alignment], layer: str) -> list[str]:
    """Without the run's own past."""
    return [name for name in alignments[-1].values[layer] if name != "previous"]


def measures_of(alignments: Sequence[Alignment], layer: str) -> list[str]:
    """Of the first reference, lfm first."""
    found = list(alignments[-1].values[layer][references_of(alignments, layer)[0]])
    return sorted(found, key=lambda measure: measure != "lfm")


def alignment_series(alignments: Sequence[Alignment], layer: str, reference: str, measure: str, name: str) -> Series:
    """Calibrated values by step, their intervals, and the level of the untrained network where a curve begins with it."""
    found = [one for one in alignments if measure in one.values.get(layer, {}).get(reference, {})]
    steps = [one.step for one in found]
    values = [one.values[layer][reference][measure]["calibrated"] for one in found]
    level = values[0] if steps and steps[0] == 0 and len(steps) > 1 else None
    low, high = interval_of(found, layer, f"{reference}/{measure}")
    return Series(name, steps, values, low, high, level=level)


def interval_of(
    alignments: Sequence[Alignment], layer: str, headline: str
) -> tuple[list[Number], list[Number]] | tuple[None, None]:
    """Lower and upper bounds by step; None where nobody measured any."""
    bounds = [one.intervals.get(layer, {}).get(headline) for one in alignments]
    if not any(bounds):
        return None, None
    return [None if one is None else one[0] for one in bounds], [None if one is None else one[1] for one in bounds]


def null_series(alignments: Sequence[Alignment], layer: str, references: Sequence[str], measure: str) -> Series:
    """What shuffled rows give: two standard deviations around 0, of the reference with the widest null, by step."""
    band = {one.step: 0.0 for one in sorted(alignments, key=lambda one: one.step)}
    for one in alignments:
        for reference in references:
            facts = one.values.get(layer, {}).get(reference, {}).get(measure, {})
            if facts.get("z"):  # calibrated / z is the null's standard deviation on the calibrated scale
                band[one.step] = max(band[one.step], N_SD * abs(facts["calibrated"] / facts["z"]))
    widest = list(band.values())
    lower = [-width for width in widest]
    return Series("shuffled rows", list(band), [0.0] * len(band), lower, widest, dashed=True, colour=NULL_COLOUR)
