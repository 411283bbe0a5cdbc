"""Colour operations on a batch, a different strength for every row. Values lie in [0, 1].

Formulas are those of torchvision's functional kernels. Names end in `_` where the images are changed in place: on a CPU
allocating megabytes costs as much as the arithmetic. A row is left as it is by the neutral strength named in each docstring.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, rounded as in torchvision
SMALLEST_CHROMA = 1e-12  # grey pixels have chroma 0 and any hue; this only keeps them from 0 / 0
SMALLEST_SIGMA = 1e-3  # its kernel is exactly (.., 0, 1, 0, ..) and has no 0 / 0


def brightness_(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """clamp(f x); neutral 1."""
    return images_NCHW.mul_(_spread(factor_N)).clamp_(0, 1)


def contrast_(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """clamp(f x + (1 - f) m) with m the mean of the gray image; neutral 1."""
    mean_NC = images_NCHW.mean((2, 3))
    mean_N = mean_NC[:, 0] if mean_NC.shape[1] == 1 else sum_weighted(mean_NC)
    shift_N = (1 - factor_N) * mean_N
    return images_NCHW.mul_(_spread(factor_N)).add_(_spread(shift_N)).clamp_(0, 1)


def saturation_(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """clamp(f x + (1 - f) gray(x)); neutral 1."""
    gray_N1HW = sum_weighted(images_NCHW).mul_((1 - factor_N)[:, None, None])[:, None]
    return images_NCHW.mul_(_spread(factor_N)).add_(gray_N1HW).clamp_(0, 1)


def grayscale_(images_NCHW: Tensor, is_gray_N: Tensor) -> Tensor:
    """gray(x) in all three channels where true."""
    gray_N1HW = sum_weighted(images_NCHW)[:, None]
    return images_NCHW.lerp_(gray_N1HW, _spread(is_gray_N.to(images_NCHW.dtype)))


def hue_(images_NCHW: Tensor, turn_N: Tensor) -> Tensor:
    """Hue turned by a share of the circle, value and chroma kept; neutral 0 (up to rounding).

    With low = min, c = max - low, and h the hue in sixths of a turn (0 red, 2 green, 4 blue),

        h     = ±((g + b - r - low) / c + 1),     with the sign of g - b,
        red   = low + c clamp(|h - 3| - 1, 0, 1),
        green = low + c clamp(2 - |h - 2|, 0, 1),
        blue  = low + c clamp(2 - |h - 4|, 0, 1).

    The same map as by way of HSV, without choosing between cases: on [0, 3] the hue rises first with g, then with falling
    r, then with b, so their sum tells it. A choice for every pixel costs a CPU more than all this arithmetic.
    """
    red, green, blue = images_NCHW.unbind(1)
    low_NHW = torch.minimum(red, green)
    high_NHW = torch.maximum(red, green)
    torch.minimum(low_NHW, blue, out=low_NHW)
    torch.maximum(high_NHW, blue, out=high_NHW)
    chroma_NHW = high_NHW.sub_(low_NHW)
    hue_NHW = (green + blue).sub_(red).sub_(low_NHW)
    scratch_NHW = chroma_NHW.clamp_min(SMALLEST_CHROMA)
    hue_NHW.div_(scratch_NHW).add_(1)
    hue_NHW.copysign_(torch.sub(green, blue, out=scratch_NHW)).add_(6 * turn_N[:, None, None])
    hue_NHW.sub_(torch.mul(hue_NHW, 1 / 6, out=scratch_NHW).floor_(), alpha=6)  # modulo 6; `remainder` is slower
    for channel, centre in ((red, 3), (green, 2), (blue, 4)):
        fade_NHW = torch.sub(hue_NHW, centre, out=scratch_NHW).abs_()
        fade_NHW = fade_NHW.sub_(1) if channel is red else fade_NHW.neg_().add_(2)
        torch.addcmul(low_NHW, chroma_NHW, fade_NHW.clamp_(0, 1), out=channel)
    return images_NCHW


def solarize_(images_NCHW: Tensor, threshold_N: Tensor) -> Tensor:
    """1 - x where x >= threshold; neutral: any threshold above 1."""
    # comparing in place gives 0. and 1. instead of bools, and lerp is exact at both: 7 times quicker than `where` on a CPU
    chosen_NCHW = images_NCHW.clone().ge_(_spread(threshold_N))
    return images_NCHW.lerp_(1 - images_NCHW, chosen_NCHW)


def blur(images_NCHW: Tensor, sigma_N: Tensor, radius: int) -> Tensor:
    """Gaussian blur with reflected borders; sigma in pixels, kernel of 2 radius + 1 samples; neutral 0.

    Two passes of a one-dimensional kernel, rows then columns. Kernels differ between rows, so every channel of every row is
    a group of its own in one convolution.
    """
    n, channels, height, width = images_NCHW.shape
    offset_K = torch.arange(-radius, radius + 1, device=images_NCHW.device, dtype=images_NCHW.dtype)
    kernel_NK = torch.softmax(-0.5 * (offset_K / sigma_N.clamp_min(SMALLEST_SIGMA)[:, None]).square(), dim=1)
    kernel_GK = kernel_NK.repeat_interleave(channels, dim=0, output_size=n * channels)
    x_1GHW = F.pad(images_NCHW, (radius, radius, radius, radius), mode="reflect").flatten(0, 1)[None]
    x_1GHW = F.conv2d(x_1GHW, kernel_GK[:, None, None, :], groups=n * channels)
    x_1GHW = F.conv2d(x_1GHW, kernel_GK[:, None, :, None], groups=n * channels)
    return x_1GHW.reshape(n, channels, height, width)


def sum_weighted(rgb_NC: Tensor) -> Tensor:
    """The gray value: channels (axis 1) weighted by luma and summed. Shape (N, 3, ...) to (N, ...)."""
    red, green, blue = rgb_NC.unbind(1)
    return (red * GRAY_WEIGHTS[0]).add_(green, alpha=GRAY_WEIGHTS[1]).add_(blue, alpha=GRAY_WEIGHTS[2])


def _spread(values_N: Tensor) -> Tensor:
    return values_N[:, None, None, None]
