"""What is known of two spaces before they are matched: rows, anchors, labels; checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.soft_matching import Pairs

if TYPE_CHECKING:
    Array = Tensor | NDArray[Any]


def checked_rows(name: str, rows: Array, width: int | None = None) -> Tensor:
    """Finite rows (N, F), of a given width, in float32 or float64. Raises ShapeError, InputError, NonFiniteError."""
    tensor = torch.as_tensor(rows).detach()
    if tensor.ndim != 2 or 0 in tensor.shape or (width is not None and tensor.shape[1] != width):
        expected = "(N, F)" if width is None else f"(N, {width})"
        raise ShapeError(f"expected {name} of shape {expected}, got {tuple(tensor.shape)}: one row for every sample")
    if not tensor.is_floating_point():
        raise InputError(f"expected floating-point features in {name}, got {tensor.dtype}: convert them with .float()")
    finite_N = torch.isfinite(tensor).all(dim=1)
    if not finite_N.all():
        raise NonFiniteError(
            f"expected finite {name}, got NaN or infinity in {int((~finite_N).sum())} rows, first in row "
            f"{int((~finite_N).to(torch.uint8).argmax())}: drop them, or look at the encoder that made them"
        )
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def anchor_pairs(
    anchors: tuple[Any, Any] | None, n_x: int, n_y: int, device: torch.device, *, repeated: bool = False
) -> Pairs | None:
    """Anchors as two lists of rows, of one length; a row may stand twice if `repeated`. Raises InputError."""
    if anchors is None:
        return None
    if not isinstance(anchors, tuple | list) or len(anchors) != 2:
        raise InputError(
            "expected anchors=(rows of X, rows of Y), got something else: give two lists of one length, for a table of pairs "
            "(table[:, 0], table[:, 1])"
        )
    if all(isinstance(side, tuple) and len(side) == 2 for side in anchors):
        raise InputError("expected anchors=(rows of X, rows of Y), got what reads like two pairs: give two lists")
    x_P, y_P = (torch.as_tensor(np.asarray(side)) for side in anchors)
    if x_P.ndim != 1 or x_P.shape != y_P.shape or len(x_P) == 0:
        raise InputError(
            f"expected as many rows of X as of Y, at least one, got {tuple(x_P.shape)} and {tuple(y_P.shape)}"
        )
    for name, rows_P, n in (("X", x_P, n_x), ("Y", y_P, n_y)):
        if rows_P.is_floating_point() or rows_P.dtype == torch.bool:
            raise InputError(f"expected anchors as row numbers of {name}, got {rows_P.dtype}: whole numbers are needed")
        if rows_P.min() < 0 or rows_P.max() >= n:
            raise InputError(f"expected anchors of {name} in 0..{n - 1}, got {int(rows_P.min())}..{int(rows_P.max())}")
        if not repeated and len(rows_P.unique()) != len(rows_P):
            raise InputError(
                f"expected every row of {name} once among the anchors, got a row twice: drop one of the two, or fit with "
                "robust=True, which finds the wrong one"
            )
    return Pairs(x_P.to(device), y_P.to(device))


def class_numbers(name: str, labels: Any, n: int) -> Tensor:
    """A whole number for each of n rows. Raises InputError for names, ShapeError."""
    if not isinstance(labels, Tensor):
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iuf":
            raise InputError(
                f"expected whole numbers as labels of {name}, -1 where unknown, got {labels.dtype}: number the classes, for "
                "instance with numpy.unique(names, return_inverse=True)"
            )
    class_N = torch.as_tensor(labels)
    if class_N.shape != (n,) or class_N.is_floating_point():
        raise ShapeError(f"expected a whole number for each of {n} rows of {name}, got {tuple(class_N.shape)}")
    return class_N


def labelled_rows(labels: tuple[Any, Any] | None, n_x: int, n_y: int) -> tuple[Tensor, Tensor] | None:
    """A class for every row of both sides. Raises ShapeError, and InputError when no class is common."""
    if labels is None:
        return None
    if not isinstance(labels, tuple | list) or len(labels) != 2:
        raise InputError("expected labels=(labels of X, labels of Y), got something else: give two lists")
    sides = class_numbers("X", labels[0], n_x), class_numbers("Y", labels[1], n_y)
    if not len(common_classes(*sides)):
        raise InputError("expected a class that both spaces have, got none: labels must mean the same on both sides")
    return sides[0], sides[1]


def common_classes(x_N: Tensor, y_M: Tensor) -> Tensor:
    """Classes of at least 0 that occur on both sides."""
    found = x_N.unique()
    return found[(found >= 0) & torch.isin(found, y_M)]
