"""What can go wrong, by name.

NeigenmapsError
├── InputError (ValueError)       a tensor or argument is not what the function needs
│   ├── ShapeError                wrong number of dimensions, or sizes that do not match
│   ├── NonFiniteError            NaN or infinity where numbers are needed
│   ├── RowMismatchError          two feature sets do not describe the same rows
│   └── UnknownNameError          no such backbone, data set, ...: suggests the nearest name
├── DataError (ValueError)        a data set, folder or image file cannot be used
├── CheckpointError (ValueError)  a checkpoint or model folder is corrupt or does not fit
├── NotFittedError (RuntimeError) the object has not learned what was asked of it
└── CollapseError (RuntimeError)  training gives no usable representation any more

IdentifiabilityWarning            the objective cannot tell all k functions apart; says what to do
ConvergenceWarning                an iteration stopped at its limit; says what to do
AlignmentWarning                  an alignment that may not mean what it seems to; says why
GraphWarning                      a graph as given holds what is left out or merged; says how much of it
CollapseWarning                   training was kept from collapse by leaving out steps, or by going back
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NeigenmapsError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(NeigenmapsError, ValueError):
    """An argument is not what the function needs."""


class ShapeError(InputError):
    """A tensor has the wrong number of dimensions, or sizes that do not match."""


class NonFiniteError(InputError):
    """NaN or infinity where numbers are needed."""


class RowMismatchError(InputError):
    """Two feature sets that should describe the same rows, in the same order, do not."""


class UnknownNameError(InputError):
    """A name that is not in a list of known names. listing: how to see them, where they are too many for a message.

    >>> str(UnknownNameError("backbone", "resnet81", ["resnet18", "resnet50"]))
    "unknown backbone 'resnet81': did you mean 'resnet18'?"
    """

    def __init__(self, kind: str, name: object, known: Iterable[str], *, listing: str | None = None) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else listing or f"expected one of {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class DataError(NeigenmapsError, ValueError):
    """A data set, folder or image file cannot be used."""


class CheckpointError(NeigenmapsError, ValueError):
    """A checkpoint or model folder is corrupt or does not fit."""


class NotFittedError(NeigenmapsError, RuntimeError):
    """The object has not learned what was asked of it."""


class CollapseError(NeigenmapsError, RuntimeError):
    """Training gives no usable representation any more, and going back did not help."""


class IdentifiabilityWarning(UserWarning):
    """The objective cannot tell all k functions apart."""


class ConvergenceWarning(UserWarning):
    """An iteration stopped at its limit before it converged."""


class AlignmentWarning(UserWarning):
    """An alignment that may not mean what it seems to."""


class GraphWarning(UserWarning):
    """A graph as given holds self-loops, repeated edges or nodes without edges."""


class CollapseWarning(UserWarning):
    """Training was kept from collapse by leaving out steps, or by going back."""
