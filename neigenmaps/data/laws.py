"""The law of a view: which random transformations turn an image into one of its views, and how strong they are.

A `ViewLaw` is plain numbers, so that a YAML file can state it. Everything is off by default. Order of application is fixed:

    affine -> crop and resize -> flip -> brightness -> contrast -> saturation -> hue -> grayscale -> blur -> solarize
    -> gain -> noise

torchvision's ColorJitter shuffles the four colour steps for each image; libraries that work on batches fix their order, and
so do we.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from neigenmaps.errors import InputError

HUE_MAX = 0.5  # half a turn of the colour circle: beyond it hues repeat


@dataclass(frozen=True)
class ViewLaw:
    """Strengths and probabilities, off by default. Raises InputError for a value outside its range.

    Geometry. `crop_scale` is the range of the share of the area that a crop keeps (None: no crop), uniform; `crop_ratio` the
    range of width / height, log-uniform; `flip` the probability of a horizontal flip. With probability `affine_prob`:
    `rotate` and `shear` draw degrees from ±value, `translate` a share of the side from ±value, `scale` from its range.

    Colour. With probability `jitter_prob`: brightness, contrast and saturation factors from [max(0, 1 - s), 1 + s], and a
    turn of the hue circle from ±hue (at most 0.5). `grayscale`, `blur` and `solarize` are probabilities; `blur_sigma` is a
    range in pixels; solarizing inverts values at or above `solarize_threshold`.

    Sensor. `gain` is the range of one factor for the whole image; `noise` the standard deviation of independent Gaussian
    noise in units where white is 1, added with probability `noise_prob`.
    """

    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    affine_prob: float = 1.0
    rotate: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    jitter_prob: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: float = 0.5
    gain: tuple[float, float] | None = None
    noise: float = 0.0
    noise_prob: float = 1.0

    def __post_init__(self) -> None:
        bounds = {
            **dict.fromkeys(
                ("flip", "affine_prob", "jitter_prob", "grayscale", "blur", "solarize", "noise_prob"), (0, 1)
            ),
            **dict.fromkeys(("brightness", "contrast", "saturation", "noise"), (0, math.inf)),
            "hue": (0, HUE_MAX),
            "rotate": (0, 180),
            "shear": (0, 89),  # at 90 degrees the image is sheared to infinity
            "translate": (0, 1),
            "solarize_threshold": (0, 1),
            "crop_scale": (1e-6, 1),
            "crop_ratio": (1e-6, math.inf),
            "scale": (1e-6, math.inf),
            "blur_sigma": (1e-6, math.inf),
            "gain": (0, math.inf),
        }
        for field in fields(self):
            _check_range(field.name, getattr(self, field.name), *bounds[field.name])

    @property
    def has_affine(self) -> bool:
        moves = self.rotate > 0 or self.translate > 0 or self.shear > 0 or self.scale != (1.0, 1.0)
        return self.affine_prob > 0 and moves

    @property
    def changes_images(self) -> bool:
        """Whether a view can differ from its square image; False for `ViewLaw()`."""
        jitters = self.jitter_prob > 0 and max(self.brightness, self.contrast, self.saturation, self.hue) > 0
        crops = self.crop_scale is not None and self.crop_scale != (
            1,
            1,
        )  # no other ratio fits into the whole of a square
        gains = self.gain is not None and self.gain != (1, 1)
        noisy = self.noise > 0 and self.noise_prob > 0
        chances = max(self.flip, self.grayscale, self.blur, self.solarize)
        return self.has_affine or jitters or crops or gains or noisy or chances > 0

    @property
    def needs_colour(self) -> bool:
        """Whether a grey image can't be a view under this law."""
        return self.grayscale > 0 or (self.jitter_prob > 0 and (self.saturation > 0 or self.hue > 0))


@dataclass(frozen=True)
class SmallViews:
    """Further views of each image, smaller in pixels and hence cheap, such as crops of a small share of the area.

    count: how many, at least 2. size: their side in pixels. laws: as `BatchAugmentation` takes them. Raises InputError for fewer
    views or pixels, or no law.
    """

    laws: tuple[ViewLaw, ...]
    size: int
    count: int = 4

    def __post_init__(self) -> None:
        if self.count < 2 or self.size < 1 or not self.laws:
            raise InputError(
                f"SmallViews: expected at least 2 views (a single one has no pair of its own), a size >= 1 and a law, got "
                f"{self.count}, {self.size} and {len(self.laws)} law(s)"
            )


def _check_range(name: str, value: float | tuple[float, float] | None, low: float, high: float) -> None:
    if value is None:
        return
    ends = value if isinstance(value, tuple) else (value, value)
    # written so that NaN fails
    if not (len(ends) == 2 and low <= ends[0] <= ends[1] <= high and math.isfinite(ends[1])):
        kind = "a range (min, max)" if isinstance(value, tuple) else "a number"
        raise InputError(f"ViewLaw.{name}: expected {kind} within {low} .. {high}, got {value}")


def digits_law() -> ViewLaw:
    """For 8 x 8 handwritten digits: small motions, ink strength, sensor noise. A digit mirrored is another sign: no flip."""
    return ViewLaw(rotate=15.0, translate=0.1, scale=(0.9, 1.1), shear=10.0, gain=(0.7, 1.3), noise=0.08)


def mnist_law() -> ViewLaw:
    """For 28 x 28 handwritten digits: as `digits_law`, with less noise, as there are more pixels to average over."""
    return replace(digits_law(), noise=0.05)


def simclr_cifar_law() -> ViewLaw:
    """SimCLR's recipe for 32 x 32 colour images: no blur, jitter at half strength (Chen et al. 2020, appendix B.9)."""
    return ViewLaw(
        crop_scale=(0.2, 1.0),
        flip=0.5,
        jitter_prob=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grayscale=0.2,
    )


def byol_laws() -> tuple[ViewLaw, ViewLaw]:
    """The two laws of BYOL (Grill et al. 2020, table 6), which Barlow Twins took over; blur sigma is for 224 pixels."""
    always_blurred = ViewLaw(
        crop_scale=(0.08, 1.0),
        flip=0.5,
        jitter_prob=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grayscale=0.2,
        blur=1.0,
    )
    return always_blurred, replace(always_blurred, blur=0.1, solarize=0.2)
