"""Draws the parameters of all views of a batch at once: one tensor per parameter, one entry per view of each image.

Rows are views of images in view-major order: row v B + b is view v of image b. Every row has a law (an index into the laws)
and every number is drawn independently for every row. Several laws cost one chain: the bounds of each row are looked up by
its law. What no law uses is None, so that its kernel is never launched. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from neigenmaps.data.geometry import AffineMotion
from neigenmaps.data.laws import ViewLaw
from neigenmaps.errors import InputError

LawAssignment = Literal["independent", "by_view"]

CROP_CANDIDATES = 10  # as in torchvision's RandomResizedCrop
BLUR_REACH = 3.0  # a Gaussian's mass beyond three standard deviations is 0.3 %
NEVER = 2.0  # a solarize threshold that no value in [0, 1] reaches


class AugmentationParameters(NamedTuple):
    """Parameters of N = V B views, each of shape (N,) unless the name says otherwise; None where no law uses them."""

    law_N: Tensor
    crop_N4: Tensor | None  # top, left, height, width in whole pixels
    flip_N: Tensor | None
    motion: AffineMotion | None
    brightness_N: Tensor | None
    contrast_N: Tensor | None
    saturation_N: Tensor | None
    hue_N: Tensor | None
    grayscale_N: Tensor | None
    blur_sigma_N: Tensor | None  # 0 where not blurred
    blur_radius: int
    solarize_threshold_N: Tensor | None  # NEVER where not solarized
    gain_N: Tensor | None
    noise_NCHW: Tensor | None  # what is added


def sample_parameters(
    laws: Sequence[ViewLaw],
    image_shape: Sequence[int],
    *,
    n_views: int,
    output_size: tuple[int, int],
    generator: torch.Generator,
    law_assignment: LawAssignment = "independent",
) -> AugmentationParameters:
    """Parameters for `n_views` views of a batch of shape (B, C, H, W), on the generator's device.

    "independent": each row draws its law uniformly. "by_view": view v follows law v; there must be one law for each view.
    """
    batch, channels, height, width = image_shape
    law_N = _assign_laws(len(laws), batch, n_views, generator, law_assignment)
    rows = _Rows(laws, law_N, generator)
    jittered_N = rows.coin(lambda law: law.jitter_prob)
    return AugmentationParameters(
        law_N=law_N,
        crop_N4=_draw_crops(rows, height, width),
        flip_N=rows.coin(lambda law: law.flip),
        motion=_draw_motion(rows, height, width),
        brightness_N=_draw_jitter(rows, jittered_N, lambda law: _factor_range(law.brightness), neutral=1.0),
        contrast_N=_draw_jitter(rows, jittered_N, lambda law: _factor_range(law.contrast), neutral=1.0),
        saturation_N=_draw_jitter(rows, jittered_N, lambda law: _factor_range(law.saturation), neutral=1.0),
        hue_N=_draw_jitter(rows, jittered_N, lambda law: (-law.hue, law.hue), neutral=0.0),
        grayscale_N=rows.coin(lambda law: law.grayscale),
        blur_sigma_N=_masked(rows.coin(lambda law: law.blur), rows.uniform(lambda law: law.blur_sigma), 0.0),
        blur_radius=_blur_radius(laws, output_size),
        solarize_threshold_N=_masked(
            rows.coin(lambda law: law.solarize), rows.bound(lambda law: law.solarize_threshold), NEVER
        ),
        gain_N=rows.uniform(lambda law: law.gain or (1.0, 1.0)) if any(law.gain for law in laws) else None,
        noise_NCHW=_draw_noise(rows, (channels, *output_size)),
    )


@dataclass(frozen=True)
class _Rows:
    """Draws for rows whose bounds depend on their law."""

    laws: Sequence[ViewLaw]
    law_N: Tensor
    generator: torch.Generator

    def bound(self, of: Callable[[ViewLaw], float]) -> Tensor:
        """`of` each row's law. Filled in by comparison: indexing a table would copy it from the host at each step."""
        value_N = torch.full(self.law_N.shape, of(self.laws[0]), dtype=torch.float32, device=self.law_N.device)
        for index, law in enumerate(self.laws[1:], start=1):
            value_N.masked_fill_(self.law_N == index, of(law))
        return value_N

    def uniform(self, of: Callable[[ViewLaw], tuple[float, float]], draws: int | None = None) -> Tensor:
        """Uniform in the range of each row's law, shape (N,) or (N, draws)."""
        low_N, high_N = self.bound(lambda law: of(law)[0]), self.bound(lambda law: of(law)[1])
        if draws is None:
            return torch.lerp(low_N, high_N, self.unit())
        return torch.lerp(low_N[:, None], high_N[:, None], self.unit(draws))

    def coin(self, of: Callable[[ViewLaw], float]) -> Tensor | None:
        """True with the probability of each row's law; None if it is 0 under all laws."""
        if not any(of(law) > 0 for law in self.laws):
            return None
        return self.unit() < self.bound(of)

    def unit(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), of shape (N, *shape)."""
        return torch.rand(len(self.law_N), *shape, generator=self.generator, device=self.law_N.device)


def _assign_laws(
    n_laws: int, batch: int, n_views: int, generator: torch.Generator, law_assignment: LawAssignment
) -> Tensor:
    device = generator.device
    if law_assignment == "independent":
        return torch.randint(0, n_laws, (n_views * batch,), generator=generator, device=device)
    if n_laws != n_views:
        raise InputError(
            f"law_assignment 'by_view': expected one law for each of {n_views} views, got {n_laws}. "
            "List as many laws as views, or use 'independent'"
        )
    return torch.arange(n_views, device=device)[:, None].expand(n_views, batch).flatten()


def _draw_crops(rows: _Rows, height: int, width: int) -> Tensor | None:
    """Boxes (N, 4): the first of ten candidates that fits into the image, else the largest centred box of legal ratio."""
    if all(law.crop_scale is None for law in rows.laws):
        return None
    area_NT = rows.uniform(lambda law: law.crop_scale or (1.0, 1.0), CROP_CANDIDATES) * (height * width)
    ratio_NT = rows.uniform(_log_ratio, CROP_CANDIDATES).exp_()
    width_NT = (area_NT * ratio_NT).sqrt_().round_()
    height_NT = (area_NT / ratio_NT).sqrt_().round_()
    fits_NT = (width_NT > 0) & (width_NT <= width) & (height_NT > 0) & (height_NT <= height)
    first_N1 = fits_NT.to(torch.uint8).argmax(1, keepdim=True)  # of several maxima, torch gives the first
    some_N = fits_NT.any(1)
    fallback_height_N, fallback_width_N = _largest_box(rows, height, width)
    height_N = torch.where(some_N, height_NT.gather(1, first_N1)[:, 0], fallback_height_N)
    width_N = torch.where(some_N, width_NT.gather(1, first_N1)[:, 0], fallback_width_N)
    free_height_N, free_width_N = height - height_N, width - width_N
    # a draw rounded up to 1.0 could give free + 1, hence the minimum
    top_N = torch.where(some_N, torch.minimum((rows.unit() * (free_height_N + 1)).floor_(), free_height_N), -1)
    left_N = torch.where(some_N, torch.minimum((rows.unit() * (free_width_N + 1)).floor_(), free_width_N), -1)
    top_N = torch.where(some_N, top_N, (free_height_N / 2).floor_())
    left_N = torch.where(some_N, left_N, (free_width_N / 2).floor_())
    box_N4 = torch.stack((top_N, left_N, height_N, width_N), dim=1)
    cropped_N = rows.bound(lambda law: float(law.crop_scale is not None)) > 0
    whole_4 = [torch.full_like(top_N, side) for side in (0, 0, height, width)]
    return torch.where(cropped_N[:, None], box_N4, torch.stack(whole_4, dim=1)).long()


def _log_ratio(law: ViewLaw) -> tuple[float, float]:
    return math.log(law.crop_ratio[0]), math.log(law.crop_ratio[1])


def _largest_box(rows: _Rows, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The whole image with one side shortened until width / height is within the range of the law."""

    def box(law: ViewLaw) -> tuple[int, int]:
        low, high = law.crop_ratio
        if width / height < low:
            return min(height, round(width / low)), width
        if width / height > high:
            return height, min(width, round(height * high))
        return height, width

    return rows.bound(lambda law: float(box(law)[0])), rows.bound(lambda law: float(box(law)[1]))


def _draw_motion(rows: _Rows, height: int, width: int) -> AffineMotion | None:
    if not any(law.has_affine for law in rows.laws):
        return None
    moved_N = rows.unit() < rows.bound(lambda law: law.affine_prob if law.has_affine else 0.0)
    shift_N2 = rows.uniform(lambda law: (-law.translate, law.translate), 2)
    return AffineMotion(
        angle_N=torch.where(moved_N, rows.uniform(lambda law: (-law.rotate, law.rotate)), 0.0),
        translate_x_N=torch.where(moved_N, shift_N2[:, 0] * width, 0.0),
        translate_y_N=torch.where(moved_N, shift_N2[:, 1] * height, 0.0),
        scale_N=torch.where(moved_N, rows.uniform(lambda law: law.scale), 1.0),
        shear_N=torch.where(moved_N, rows.uniform(lambda law: (-law.shear, law.shear)), 0.0),
    )


def _factor_range(strength: float) -> tuple[float, float]:
    return max(0.0, 1.0 - strength), 1.0 + strength


def _draw_jitter(
    rows: _Rows, jittered_N: Tensor | None, of: Callable[[ViewLaw], tuple[float, float]], *, neutral: float
) -> Tensor | None:
    active = any(law.jitter_prob > 0 and of(law) != (neutral, neutral) for law in rows.laws)
    return _masked(jittered_N, rows.uniform(of), neutral) if active else None


def _masked(chosen_N: Tensor | None, value_N: Tensor, neutral: float) -> Tensor | None:
    return None if chosen_N is None else torch.where(chosen_N, value_N, neutral)


def _blur_radius(laws: Sequence[ViewLaw], output_size: tuple[int, int]) -> int:
    """Static: from the largest sigma of all laws, cut where reflecting the border has no more pixels to give."""
    largest_sigma = max((law.blur_sigma[1] for law in laws if law.blur > 0), default=0.0)
    return min(math.ceil(BLUR_REACH * largest_sigma), min(output_size) - 1)


def _draw_noise(rows: _Rows, shape_CHW: tuple[int, int, int]) -> Tensor | None:
    if not any(law.noise > 0 and law.noise_prob > 0 for law in rows.laws):
        return None
    noisy_N = rows.unit() < rows.bound(lambda law: law.noise_prob)
    std_N = torch.where(noisy_N, rows.bound(lambda law: law.noise), 0.0)
    n, device = len(rows.law_N), rows.law_N.device
    return torch.randn(n, *shape_CHW, generator=rows.generator, device=device).mul_(std_N[:, None, None, None])
