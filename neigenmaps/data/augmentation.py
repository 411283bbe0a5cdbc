"""All views of a batch in one call, the same code on CPU and GPU.

    views_VBCHW = BatchAugmentation(law)(images_BCHW, generator)

Two pure steps: `sample_parameters` draws, `apply_augmentation` computes. Shapes are static, no Python loop runs over samples
and nothing waits for the device. Mean and standard deviation are not removed here: the model does that.

Why each view draws its law for itself. The objective needs the two views of an image to be independent and identically
distributed given the image; then for every function f

    E[f(x) f(x+)] = E_image[ (E[f(view) | image])^2 ] >= 0,

so the augmentation kernel is positive semi-definite and its eigenvalues lie in [0, 1]. If view 0 always follows law A and
view 1 law B, or a coin only swaps the two, E[f(x) f(x+)] = E_image[ E_A[f | image] E_B[f | image] ], which is negative where
the two means have opposite signs: with A = nothing and B = mirror, every f odd under mirroring has eigenvalue -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neigenmaps.data import colour
from neigenmaps.data.geometry import warp
from neigenmaps.data.laws import ViewLaw
from neigenmaps.data.parameters import AugmentationParameters, LawAssignment, sample_parameters
from neigenmaps.errors import InputError, ShapeError

WHITE = 255  # of uint8 images


class BatchAugmentation:
    """Random views of images under one or several laws.

    `law_assignment` "independent": each view of each image draws its law uniformly and independently, which keeps the kernel
    positive semi-definite (see the module docstring). "by_view": view v follows law v, the convention of BYOL and Barlow
    Twins, whose kernel may have negative eigenvalues. `output_size` is the side of the square views (None: as the images).

    Raises InputError for no law, fewer than one view or pixel, an unknown assignment, or numbers of laws and views that
    "by_view" can't match.
    """

    def __init__(
        self,
        laws: ViewLaw | Sequence[ViewLaw],
        n_views: int = 2,
        output_size: int | None = None,
        law_assignment: LawAssignment = "independent",
    ) -> None:
        self.laws = (laws,) if isinstance(laws, ViewLaw) else tuple(laws)
        self.n_views = n_views
        self.output_size = output_size
        self.law_assignment: LawAssignment = law_assignment
        if not self.laws:
            raise InputError(
                "BatchAugmentation: expected at least one ViewLaw, got none. ViewLaw() leaves images as they are"
            )
        if n_views < 1 or (output_size is not None and output_size < 1):
            raise InputError(
                f"BatchAugmentation: expected n_views and output_size >= 1, got {n_views} and {output_size}"
            )
        if law_assignment not in ("independent", "by_view"):
            raise InputError(f"law_assignment: expected 'independent' or 'by_view', got {law_assignment!r}")
        if law_assignment == "by_view" and len(self.laws) not in (1, n_views):
            raise InputError(f"law_assignment 'by_view': expected 1 or {n_views} laws, got {len(self.laws)}")

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Views of shape (V, B, C, H', W'), float32 in [0, 1], from uint8 images or floating point ones in [0, 1].

        The range of floating point images isn't checked, as that would wait for the device. Raises ShapeError for wrong axes
        or channels, InputError for another dtype, a colour operation on grey images, or a generator of another device.
        """
        self._check(images_BCHW, generator)
        size = _output_size(images_BCHW, self.output_size)
        # one law is the same law for every view, whichever way it is assigned
        assignment = self.law_assignment if len(self.laws) > 1 else "independent"
        parameters = sample_parameters(
            self.laws,
            images_BCHW.shape,
            n_views=self.n_views,
            output_size=size,
            generator=generator,
            law_assignment=assignment,
        )
        return apply_augmentation(images_BCHW, parameters, self.output_size)

    def _check(self, images_BCHW: Tensor, generator: torch.Generator) -> None:
        _check_batch(images_BCHW)
        if images_BCHW.shape[1] == 1:
            for law in self.laws:
                if law.needs_colour:
                    raise InputError(
                        "grey images: expected saturation, hue and grayscale to be 0, got "
                        f"{law.saturation}, {law.hue} and {law.grayscale}. Set them to 0 or repeat the channel three times"
                    )
        if generator.device.type != images_BCHW.device.type:
            raise InputError(
                f"expected a generator on {images_BCHW.device}, got one on {generator.device}. "
                "Make it with torch.Generator(device=images.device)"
            )


def apply_augmentation(
    images_BCHW: Tensor, parameters: AugmentationParameters, output_size: int | None = None
) -> Tensor:
    """Views (V, B, C, H', W') in [0, 1] from the parameters of N = V B rows. Deterministic; the images stay untouched."""
    _check_batch(images_BCHW)
    batch = len(images_BCHW)
    n_rows = len(parameters.law_N)
    if batch == 0 or n_rows % batch:
        raise ShapeError(f"expected parameters for a whole number of views of {batch} images, got {n_rows} rows")
    views_NCHW = _as_unit_float(images_BCHW.repeat(n_rows // batch, 1, 1, 1))
    views_NCHW = _move(views_NCHW, parameters, _output_size(images_BCHW, output_size))
    views_NCHW = _recolour(views_NCHW, parameters)
    return views_NCHW.unflatten(0, (n_rows // batch, batch))


def _move(x_NCHW: Tensor, p: AugmentationParameters, size: tuple[int, int]) -> Tensor:
    if p.crop_N4 is None and p.flip_N is None and p.motion is None and size == tuple(x_NCHW.shape[-2:]):
        return x_NCHW
    return warp(x_NCHW, size, p.crop_N4, p.flip_N, p.motion)


def _recolour(x_NCHW: Tensor, p: AugmentationParameters) -> Tensor:
    """Changes its argument in place where it can."""
    if p.brightness_N is not None:
        x_NCHW = colour.brightness_(x_NCHW, p.brightness_N)
    if p.contrast_N is not None:
        x_NCHW = colour.contrast_(x_NCHW, p.contrast_N)
    if p.saturation_N is not None:
        x_NCHW = colour.saturation_(x_NCHW, p.saturation_N)
    if p.hue_N is not None:
        x_NCHW = colour.hue_(x_NCHW, p.hue_N)
    if p.grayscale_N is not None:
        x_NCHW = colour.grayscale_(x_NCHW, p.grayscale_N)
    if p.blur_sigma_N is not None:
        x_NCHW = colour.blur(x_NCHW, p.blur_sigma_N, p.blur_radius)
    if p.solarize_threshold_N is not None:
        x_NCHW = colour.solarize_(x_NCHW, p.solarize_threshold_N)
    if p.gain_N is not None:
        x_NCHW = colour.brightness_(x_NCHW, p.gain_N)
    if p.noise_NCHW is not None:
        x_NCHW = x_NCHW.add_(p.noise_NCHW).clamp_(0, 1)
    return x_NCHW


def _as_unit_float(images_NCHW: Tensor) -> Tensor:
    if images_NCHW.dtype == torch.uint8:
        return images_NCHW.to(torch.float32).div_(WHITE)
    return images_NCHW.to(torch.float32)


def _output_size(images_BCHW: Tensor, output_size: int | None) -> tuple[int, int]:
    height, width = images_BCHW.shape[-2:]
    return (height, width) if output_size is None else (output_size, output_size)


def _check_batch(images_BCHW: Tensor) -> None:
    if images_BCHW.ndim != 4 or images_BCHW.shape[1] not in (1, 3):
        raise ShapeError(f"expected images of shape (B, C, H, W) with C 1 or 3, got {tuple(images_BCHW.shape)}")
    if images_BCHW.dtype != torch.uint8 and not images_BCHW.is_floating_point():
        raise InputError(f"expected uint8 images, or floating point ones in [0, 1], got {images_BCHW.dtype}")
