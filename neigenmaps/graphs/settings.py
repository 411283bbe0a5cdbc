"""Numbers that estimators are given, checked before work starts: a name, what was expected, what came."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from neigenmaps.errors import InputError


def check_whole(least: int, **given: Any) -> None:
    """InputError unless every setting is a whole number (Python's or NumPy's, no bool) of at least `least`."""
    for name, value in given.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise InputError(f"expected {name} as a whole number of at least {least}, got {value!r}")


def check_real(least: float, below: float = math.inf, **given: Any) -> None:
    """InputError unless every setting is a real number of at least `least` and below `below`."""
    for name, value in given.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not least <= float(value) < below:
            limit = "finite" if below == math.inf else f"below {below:g}"
            raise InputError(f"expected {name} as a number of at least {least:g} and {limit}, got {value!r}")
