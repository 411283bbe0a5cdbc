"""What every similarity measure is made of: prepare one space, permute its rows, compare two prepared spaces.

A permutation null re-uses what `prepare` found (kernels, bases, neighbours) and only reorders it; a table over layers
prepares every layer once. Letters: N rows, F feature width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError


class AbstractMeasure(Protocol):
    """A similarity of two spaces with matched rows. Prepared spaces are opaque: only the measure reads them."""

    min_rows: ClassVar[int] = 3
    best: ClassVar[float] = 1.0  # value of a space with its equal
    falling: ClassVar[bool] = False  # True for distances: small means alike

    def prepare(self, x_NF: Tensor, *, second: bool) -> Any:
        """What `compare` needs of one space, checked. second: whether it is the second argument of `compare`."""
        ...

    def permute(self, prepared: Any, order_N: Tensor) -> Any:
        """The prepared form of `x_NF[order_N]`."""
        ...

    def compare(self, a: Any, b: Any) -> Tensor:
        """The value, shape ()."""
        ...


def checked_space(name: str, x_NF: Tensor, min_rows: int) -> Tensor:
    """`x_NF` in float32 at least, or an error: not a matrix, too few rows, not finite, or all rows equal."""
    if x_NF.ndim != 2 or x_NF.shape[1] == 0:
        raise ShapeError(f"expected {name} of shape (N, F), got {tuple(x_NF.shape)}: flatten the features of each row")
    if not x_NF.dtype.is_floating_point:
        raise InputError(f"expected floating-point features in {name}, got {x_NF.dtype}: convert them with .float()")
    if x_NF.shape[0] < min_rows:
        raise InputError(f"expected at least {min_rows} rows in {name}, got {x_NF.shape[0]}: this measure needs more")
    if not torch.isfinite(x_NF).all():
        raise NonFiniteError(f"expected finite features in {name}, got NaN or infinity: look at the encoder")
    if (x_NF == x_NF[:1]).all():
        raise InputError(f"expected features that vary over the rows of {name}, got equal rows: has it collapsed?")
    return x_NF if x_NF.dtype == torch.float64 else x_NF.float()


def centred(x_NF: Tensor) -> Tensor:
    """Columns without their mean."""
    return x_NF - x_NF.mean(dim=0)


def positive_norm(square: Tensor, scale: Tensor, what: str) -> Tensor:
    """The root of `square`, or InputError where it is zero up to the rounding of numbers as large as `scale`."""
    if not square > 16 * torch.finfo(square.dtype).eps * scale:
        raise InputError(f"expected {what}, got none: the measure is 0/0 on these features")
    return square.sqrt()
