"""Rivals of a learned code: principal components of the same length, and raw pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError


def principal_components(fit_NF: Tensor, *others: Tensor, n_components: int) -> tuple[Tensor, ...]:
    """Project `fit_NF`, and then every other set, on the leading principal axes of `fit_NF`.

    y = (x - mean) @ V, with the axes V (F, n_components) ordered by falling variance. The mean and axes come from
    `fit_NF` alone and are computed in float64. The sign of an axis is free; here its largest entry is positive. Each
    projection has the dtype of its input if that is floating, and float32 otherwise.

    Raises:
        ShapeError: sets that are not matrices, or of another width than `fit_NF`.
        NonFiniteError: NaN or infinity.
        InputError: n_components not between 1 and min(N, F).
    """
    for rows in (fit_NF, *others):
        _check_rows(rows, width=fit_NF.shape[-1])
    if not 1 <= n_components <= min(fit_NF.shape):
        raise InputError(
            f"expected 1 <= n_components <= {min(fit_NF.shape)}, the smaller side of the fitted set, got {n_components}"
            ": ask for fewer components or fit on more rows"
        )
    mean_F = fit_NF.double().mean(dim=0)
    axes_FK = _principal_axes(fit_NF.double() - mean_F)[:, :n_components]
    return tuple(((rows.double() - mean_F) @ axes_FK).to(_floating(rows)) for rows in (fit_NF, *others))


def flatten_images(images_NCHW: Tensor) -> Tensor:
    """Raw pixels as codes, shape (N, C * H * W); uint8 becomes float32 in [0, 1]."""
    if images_NCHW.ndim < 2:
        raise ShapeError(f"expected images (N, C, H, W), got {tuple(images_NCHW.shape)}: add an axis for the rows")
    pixels_NF = images_NCHW.flatten(start_dim=1)
    return pixels_NF.float() / 255 if images_NCHW.dtype == torch.uint8 else pixels_NF


def _principal_axes(centred_NF: Tensor) -> Tensor:
    n_rows, width = centred_NF.shape
    if width <= n_rows:  # eigh of (F, F) is many times faster than the SVD of a tall matrix
        axes_FK = torch.linalg.eigh(centred_NF.T @ centred_NF).eigenvectors.flip(1)
    else:
        axes_FK = torch.linalg.svd(centred_NF, full_matrices=False).Vh.T
    largest_K = axes_FK.gather(0, axes_FK.abs().argmax(dim=0, keepdim=True))
    return axes_FK * largest_K.sign()


def _floating(rows: Tensor) -> torch.dtype:
    return rows.dtype if rows.dtype.is_floating_point else torch.float32


def _check_rows(rows_NF: Tensor, width: int) -> None:
    if rows_NF.ndim != 2 or rows_NF.shape[1] != width:
        raise ShapeError(f"expected rows (N, {width}), got {tuple(rows_NF.shape)}: flatten all sets to one width")
    if not torch.isfinite(rows_NF).all():
        raise NonFiniteError("expected finite rows, got NaN or infinity: look at where they come from")
