"""Affine motion, crop, resize and flip of a batch: one bilinear `grid_sample`, a different motion for every row.

Every output pixel walks back to where it came from. Read against the order of application:

    output pixel -> undo flip -> place in the crop box (clamped to it) -> undo affine -> sample the image

Hence the affine motion comes first, about the image's centre, and the crop is cut out of the moved image. Two interpolations
become one, which is sharper than moving and then resizing. Positions outside the image are black when there is a motion. A
crop alone never leaves its box: pixel positions are clamped to the box's outermost pixel centres, which is what torchvision's
`resized_crop(antialias=False)` does. Positions are in pixels, x to the right and y down.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class AffineMotion(NamedTuple):
    """p -> T R(angle) S(scale) Shear(shear) p about the centre, as in torchvision's `affine` with shear along x."""

    angle_N: Tensor  # degrees, clockwise on screen
    translate_x_N: Tensor  # pixels
    translate_y_N: Tensor  # pixels
    scale_N: Tensor
    shear_N: Tensor  # degrees


def warp(
    images_NCHW: Tensor,
    output_size: tuple[int, int],
    crop_N4: Tensor | None = None,
    flip_N: Tensor | None = None,
    motion: AffineMotion | None = None,
) -> Tensor:
    """Views of shape (N, C, *output_size). `crop_N4` holds top, left, height, width in whole pixels; None skips a step."""
    height, width = images_NCHW.shape[-2:]
    top_N, left_N, crop_height_N, crop_width_N = _full_box(images_NCHW) if crop_N4 is None else crop_N4.unbind(1)
    y_NH = _crop_positions(top_N, crop_height_N, output_size[0])
    x_NW = _crop_positions(left_N, crop_width_N, output_size[1])
    if flip_N is not None:
        x_NW = torch.where(flip_N[:, None], x_NW.flip(1), x_NW)
    x_NHW = (x_NW - (width - 1) / 2)[:, None, :]  # from here on relative to the centre
    y_NHW = (y_NH - (height - 1) / 2)[:, :, None]
    if motion is not None:
        x_NHW, y_NHW = _undo(motion, x_NHW, y_NHW)
    grid_NHW2 = torch.empty(len(images_NCHW), *output_size, 2, device=images_NCHW.device)
    grid_NHW2[..., 0] = x_NHW * (2 / width)  # grid_sample counts from -1 to 1 between the outer pixel edges
    grid_NHW2[..., 1] = y_NHW * (2 / height)
    # "border" where nothing may leave the image, so that rounding at the last pixel can't mix in black
    padding = "border" if motion is None else "zeros"
    return F.grid_sample(images_NCHW, grid_NHW2, mode="bilinear", padding_mode=padding, align_corners=False)


def _full_box(images_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    zero_N = images_NCHW.new_zeros(len(images_NCHW))
    return zero_N, zero_N, zero_N + images_NCHW.shape[-2], zero_N + images_NCHW.shape[-1]


def _crop_positions(start_N: Tensor, length_N: Tensor, size: int) -> Tensor:
    """start + clamp((i + 1/2) length / size - 1/2, 0, length - 1) for i = 0 .. size - 1; shape (N, size)."""
    centre_S = torch.arange(size, device=start_N.device, dtype=torch.float32) + 0.5
    inside_NS = centre_S * (length_N / size)[:, None] - 0.5
    inside_NS = torch.minimum(inside_NS.clamp_min_(0), (length_N - 1)[:, None])
    return inside_NS + start_N[:, None]


def _undo(motion: AffineMotion, x_NHW: Tensor, y_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse motion. Forward: [x, y] = scale R(angle) [[1, -tan(shear)], [0, 1]] [x0, y0] + translation."""
    angle_N, shear_N = motion.angle_N * (math.pi / 180), motion.shear_N * (math.pi / 180)
    cos, sin = _spread(angle_N.cos() / motion.scale_N), _spread(angle_N.sin() / motion.scale_N)
    x = x_NHW - _spread(motion.translate_x_N)
    y = y_NHW - _spread(motion.translate_y_N)
    y0_NHW = y * cos - x * sin
    x0_NHW = x * cos + y * sin + _spread(shear_N.tan()) * y0_NHW
    return x0_NHW, y0_NHW


def _spread(values_N: Tensor) -> Tensor:
    return values_N[:, None, None]
