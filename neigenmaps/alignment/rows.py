"""Rows of several named spaces, checked once: what every aligner's `fit` and `add` begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, RowMismatchError, ShapeError

Rows = Tensor | NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class MatchedRows:
    """Row n of every space is one thing. scale_NM: root of every row's weight, 0 where a space lacks it; None: all 1.

    Tensors are the caller's own, not copies, except where a missing row's content had to be blanked.
    """

    names: tuple[str, ...]
    spaces: tuple[Tensor, ...]
    scale_NM: Tensor | None

    def __len__(self) -> int:
        return len(self.spaces[0])

    def take(self, index: Tensor) -> MatchedRows:
        scale_NM = None if self.scale_NM is None else self.scale_NM[index]
        return MatchedRows(self.names, tuple(x_NF[index] for x_NF in self.spaces), scale_NM)

    def present(self, name: str) -> Tensor:
        """Whether `name` has each row, (N,) bool."""
        if self.scale_NM is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.spaces[0].device)
        return self.scale_NM[:, self.names.index(name)] > 0


def matched_rows(
    spaces: Mapping[str, Rows] | Sequence[Rows],
    weights: Rows | None = None,
    masks: Mapping[str, Tensor | NDArray[np.bool_]] | None = None,
) -> MatchedRows:
    """Named spaces ("0", "1", ... for a sequence) with one weight per row, and masks: True where a space has a row.

    Raises:
        ShapeError: a space that is not a matrix; weights or masks that do not match the rows.
        RowMismatchError: different numbers of rows. NonFiniteError: NaN or infinity in a row that is not masked.
        InputError: fewer than 2 spaces or rows; what isn't numbers, or integers; a space that does not vary; weights below
            0; devices that differ; a mask for no space, or without any row.
    """
    if not isinstance(spaces, Mapping | Sequence | Tensor | np.ndarray):
        raise InputError(f"expected a mapping from names to rows, or a sequence of rows, got {type(spaces).__name__}")
    named = dict(spaces) if isinstance(spaces, Mapping) else {str(m): x for m, x in enumerate(spaces)}
    if len(named) < 2:
        raise InputError(f"expected at least 2 spaces, got {len(named)}: alignment needs something to align with")
    if not all(isinstance(name, str) and name for name in named):
        raise InputError(f"expected names that are non-empty text, got {list(named)}: call every space by a name")
    tensors = {name: as_tensor(name, x) for name, x in named.items()}
    counts = {name: len(x_NF) for name, x_NF in tensors.items()}
    if len(set(counts.values())) > 1:
        raise RowMismatchError(f"expected the same rows in all spaces, got {counts}: row n of each must be one thing")
    if len({x_NF.device for x_NF in tensors.values()}) > 1:
        raise InputError("expected all spaces on one device: move them together first")
    n_rows = next(iter(counts.values()))
    if n_rows < 2:
        raise InputError(f"expected at least 2 rows, got {n_rows}: nothing varies over a single one")
    masks_N = _checked_masks({} if masks is None else masks, tensors)
    for name, x_NF in tensors.items():
        if name in masks_N:
            x_NF = x_NF.where(masks_N[name][:, None], 0.0)
            tensors[name] = x_NF
            check_varies(name, x_NF[masks_N[name]], why="too few under its mask, or a collapsed encoder")
        else:
            check_varies(name, x_NF)
    return MatchedRows(tuple(tensors), tuple(tensors.values()), _scale(tensors, weights, masks_N))


def as_tensor(name: str, x: Rows) -> Tensor:
    """A (N, F) floating-point tensor without gradient that shares the memory of `x`."""
    if not isinstance(x, Tensor):
        array = np.asarray(x)
        if array.dtype.kind not in "fiub":
            raise InputError(
                f"expected rows of numbers in {name!r}, got {type(x).__name__} of {array.dtype}: give (N, F)"
            )
        x = torch.as_tensor(array)
    tensor = x.detach()
    if tensor.ndim != 2 or tensor.numel() == 0:
        raise ShapeError(
            f"expected {name!r} of shape (N, F), got {tuple(tensor.shape)}: flatten the features of each row"
        )
    if not tensor.dtype.is_floating_point:
        raise InputError(f"expected floating-point features in {name!r}, got {tensor.dtype}: convert them to floats")
    return tensor


def check_finite(name: str, x_NF: Tensor) -> None:
    bad_N = ~torch.isfinite(x_NF).all(dim=1)
    if bad_N.any():
        raise NonFiniteError(
            f"expected finite features in {name!r}, got NaN or infinity in {int(bad_N.sum())} rows, first in row "
            f"{int(bad_N.to(torch.uint8).argmax())}: look at the encoder, or give `masks` if rows are missing"
        )


def check_varies(name: str, x_NF: Tensor, *, why: str = "has the encoder collapsed?") -> None:
    """Raise unless rows are finite and not all equal."""
    check_finite(name, x_NF)
    if len(x_NF) == 0 or (x_NF == x_NF[:1]).all():
        raise InputError(f"expected rows of {name!r} that vary, got {len(x_NF)} equal ones: {why}")


def _checked_masks(masks: Mapping[str, Tensor | NDArray[np.bool_]], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(masks, Mapping):
        raise InputError(
            f"expected a mapping from names of spaces to masks, got {type(masks).__name__}: name the space"
        )
    checked = {}
    for name, mask in masks.items():
        if mask is None:
            raise InputError(f"expected a mask for {name!r}, got None: leave out spaces that have all rows")
        if name not in tensors:
            raise InputError(f"got a mask for {name!r}, expected one of {', '.join(tensors)}: masks go by space")
        mask_N = torch.as_tensor(mask, device=tensors[name].device)
        if mask_N.shape != (len(tensors[name]),) or mask_N.dtype != torch.bool:
            raise ShapeError(
                f"expected a boolean mask ({len(tensors[name])},) for {name!r}, got {mask_N.dtype} "
                f"{tuple(mask_N.shape)}: True where the space has the row"
            )
        if mask_N.count_nonzero() < 2:
            raise InputError(
                f"expected a mask that leaves {name!r} at least 2 rows, got {int(mask_N.count_nonzero())}: leave the space out"
            )
        checked[name] = mask_N
    return checked


def _scale(tensors: dict[str, Tensor], weights: Rows | None, masks_N: dict[str, Tensor]) -> Tensor | None:
    if weights is None and not masks_N:
        return None
    first = next(iter(tensors.values()))
    scale_NM = torch.ones(len(first), len(tensors), dtype=torch.float64, device=first.device)
    for m, name in enumerate(tensors):
        if name in masks_N:
            scale_NM[:, m] = masks_N[name].to(scale_NM)
    if weights is None:
        return scale_NM
    weights_N = torch.as_tensor(weights, device=first.device).double()
    if weights_N.shape != (len(first),):
        raise ShapeError(f"expected weights ({len(first)},), got {tuple(weights_N.shape)}: give every row one weight")
    if not (torch.isfinite(weights_N).all() and (weights_N >= 0).all() and weights_N.any()):
        raise InputError("expected finite weights >= 0, not all 0: a weight says how much a row counts")
    return scale_NM * weights_N.sqrt()[:, None]
