"""Alignments as curves: intervals where there are any, the untrained level, the widest null."""

import pytest

from neigenmaps.evaluation.alignments import Alignment, Interval
from neigenmaps.reporting.alignment_series import alignment_series, interval_of, null_series


def alignment(step: int, value: float, interval: Interval | None, z: float = 10.0) -> Alignment:
    values = {"backbone": {"a": {"lfm": {"calibrated": value, "z": z}}, "b": {"lfm": {"calibrated": value, "z": 4.0}}}}
    return Alignment(values, {}, {}, step, intervals={"backbone": {"a/lfm": interval}} if interval else {})


def test_a_curve_has_its_interval_and_the_level_it_began_at() -> None:
    curve = alignment_series(
        [alignment(0, 0.2, (0.1, 0.3)), alignment(5, 0.6, (0.5, 0.7))], "backbone", "a", "lfm", "n"
    )
    assert (curve.name, curve.x, curve.y, curve.level) == ("n", [0, 5], [0.2, 0.6], 0.2)
    assert (curve.low, curve.high) == ([0.1, 0.5], [0.3, 0.7])
    later = alignment_series([alignment(3, 0.2, None), alignment(5, 0.6, None)], "backbone", "a", "lfm", "n")
    assert (later.level, later.low, later.high) == (None, None, None)


def test_checkpoints_measured_before_there_were_intervals() -> None:
    both = [alignment(0, 0.2, None), alignment(5, 0.6, (0.5, 0.7))]
    assert interval_of(both, "backbone", "a/lfm") == ([None, 0.5], [None, 0.7])


def test_the_band_of_the_null_is_the_widest_one_of_all_runs_by_step() -> None:
    runs = [alignment(5, 0.6, None), alignment(0, 0.2, None), alignment(5, 0.2, None), alignment(9, 0.0, None, z=0.0)]
    band = null_series(runs, "backbone", ["a", "b"], "lfm")
    assert band.x == [0, 5, 9]
    assert band.high == pytest.approx([2 * 0.2 / 4, 2 * 0.6 / 4, 0.0])
    assert band.low == pytest.approx([-value for value in band.high])
    assert null_series(runs, "backbone", ["a"], "lfm").high == pytest.approx([2 * 0.2 / 10, 2 * 0.6 / 10, 0.0])
