"""Every operation, row by row, against torchvision's functional kernels with the same strength.

torchvision is the oracle; the parameters are written down here, not drawn by the code under test. Bounds are 1e-5 or less in
float32; where one is looser, the reason stands beside it.
"""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from neigenmaps.data.augmentation import apply_augmentation
from neigenmaps.data.geometry import AffineMotion
from neigenmaps.data.parameters import NEVER, AugmentationParameters

BATCH, VIEWS, SIZE = 6, 2, 16
ROWS = BATCH * VIEWS
NOTHING = AugmentationParameters(
    law_N=torch.zeros(ROWS, dtype=torch.long),
    crop_N4=None,
    flip_N=None,
    motion=None,
    brightness_N=None,
    contrast_N=None,
    saturation_N=None,
    hue_N=None,
    grayscale_N=None,
    blur_sigma_N=None,
    blur_radius=0,
    solarize_threshold_N=None,
    gain_N=None,
    noise_NCHW=None,
)


@pytest.fixture(params=["colour", "grey pixels", "extreme", "wide"])
def images(request: pytest.FixtureRequest) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    width = SIZE + 5 if request.param == "wide" else SIZE
    x = torch.rand(BATCH, 3, SIZE, width, generator=generator)
    if request.param == "grey pixels":  # hue is undefined, saturation 0
        x = x.mean(1, keepdim=True).repeat(1, 3, 1, 1)
    if request.param == "extreme":  # ties between channels, pure colours, black and white
        x = x.round()
    return x


def spread(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, ROWS)


def row_images(images: Tensor) -> list[Tensor]:
    return [*images, *images]  # view-major: row v B + b is image b


def assert_rows(views: Tensor, expected: list[Tensor], atol: float = 1e-5) -> None:
    assert views.shape[:2] == (VIEWS, BATCH)
    torch.testing.assert_close(views.flatten(0, 1), torch.stack(expected), rtol=0, atol=atol)


def test_nothing_changes_nothing(images: Tensor) -> None:
    assert torch.equal(apply_augmentation(images, NOTHING), images.expand(VIEWS, *images.shape))


@pytest.mark.parametrize(
    ("field", "kernel", "low", "high"),
    [
        ("brightness_N", tv.adjust_brightness, 0.0, 1.9),
        ("contrast_N", tv.adjust_contrast, 0.0, 1.9),
        ("saturation_N", tv.adjust_saturation, 0.0, 1.9),
        ("hue_N", tv.adjust_hue, -0.5, 0.5),
        ("gain_N", tv.adjust_brightness, 0.5, 1.5),
    ],
)
def test_colour(images: Tensor, field: str, kernel: object, low: float, high: float) -> None:
    factors = spread(low, high)
    views = apply_augmentation(images, NOTHING._replace(**{field: factors}))
    assert_rows(views, [kernel(x, float(f)) for x, f in zip(row_images(images), factors, strict=True)])  # type: ignore[operator]


def test_jitter_follows_the_documented_order(images: Tensor) -> None:
    b, c, s, h = spread(0.6, 1.4), spread(1.4, 0.6), spread(0.5, 1.3), spread(-0.1, 0.1)
    views = apply_augmentation(images, NOTHING._replace(brightness_N=b, contrast_N=c, saturation_N=s, hue_N=h))
    expected = [
        tv.adjust_hue(
            tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(x, float(b[i])), float(c[i])), float(s[i])),
            float(h[i]),
        )
        for i, x in enumerate(row_images(images))
    ]
    assert_rows(views, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_of_grey_images(channels: int) -> None:
    x = torch.rand(BATCH, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    views = apply_augmentation(x, NOTHING._replace(contrast_N=spread(0.2, 1.8)))
    assert_rows(views, [tv.adjust_contrast(y, float(f)) for y, f in zip(row_images(x), spread(0.2, 1.8), strict=True)])


def test_grayscale(images: Tensor) -> None:
    gray = torch.arange(ROWS) % 2 == 0
    views = apply_augmentation(images, NOTHING._replace(grayscale_N=gray))
    assert_rows(views, [tv.rgb_to_grayscale(x, 3) if g else x for x, g in zip(row_images(images), gray, strict=True)])


def test_solarize(images: Tensor) -> None:
    thresholds = torch.where(torch.arange(ROWS) % 3 == 0, NEVER, spread(0, 1))
    views = apply_augmentation(images, NOTHING._replace(solarize_threshold_N=thresholds))
    expected = [
        x if t == NEVER else tv.solarize(x, float(t)) for x, t in zip(row_images(images), thresholds, strict=True)
    ]
    assert_rows(views, expected)


@pytest.mark.parametrize("radius", [1, 3, 6])
def test_blur(images: Tensor, radius: int) -> None:
    sigma = torch.where(torch.arange(ROWS) % 3 == 0, 0.0, spread(0.1, 2.0))
    views = apply_augmentation(images, NOTHING._replace(blur_sigma_N=sigma, blur_radius=radius))
    taps = 2 * radius + 1
    expected = [
        x if s == 0 else tv.gaussian_blur(x, [taps, taps], [float(s)] * 2)
        for x, s in zip(row_images(images), sigma, strict=True)
    ]
    assert_rows(views, expected)
    unblurred = sigma == 0
    assert torch.equal(views.flatten(0, 1)[unblurred], torch.stack(row_images(images))[unblurred])


def test_flip(images: Tensor) -> None:
    flipped = torch.arange(ROWS) % 2 == 0
    views = apply_augmentation(images, NOTHING._replace(flip_N=flipped))
    expected = [tv.horizontal_flip(x) if f else x for x, f in zip(row_images(images), flipped, strict=True)]
    assert_rows(views, expected)


BOXES = torch.tensor(
    [[0, 0, 16, 16], [3, 2, 7, 11], [15, 15, 1, 1], [0, 5, 16, 4], [8, 0, 8, 8], [1, 1, 14, 15]]
).repeat(2, 1)


@pytest.mark.parametrize("output_size", [16, 8, 23])
def test_crop_resize(images: Tensor, output_size: int) -> None:
    views = apply_augmentation(images, NOTHING._replace(crop_N4=BOXES), output_size)
    expected = [
        tv.resized_crop(x, *box.tolist(), [output_size, output_size], InterpolationMode.BILINEAR, antialias=False)
        for x, box in zip(row_images(images), BOXES, strict=True)
    ]
    assert_rows(views, expected)


def test_crop_then_flip(images: Tensor) -> None:
    flipped = torch.arange(ROWS) % 2 == 0
    views = apply_augmentation(images, NOTHING._replace(crop_N4=BOXES, flip_N=flipped), 12)
    expected = []
    for x, box, flip in zip(row_images(images), BOXES, flipped, strict=True):
        crop = tv.resized_crop(x, *box.tolist(), [12, 12], InterpolationMode.BILINEAR, antialias=False)
        expected.append(tv.horizontal_flip(crop) if flip else crop)
    assert_rows(views, expected)


def motions() -> AffineMotion:
    return AffineMotion(spread(-170, 180), spread(-3.3, 3.7), spread(2.5, -2.5), spread(0.5, 1.6), spread(30, -40))


def torchvision_affine(x: Tensor, motion: AffineMotion, row: int) -> Tensor:
    angle, right, down, scale, shear = (float(values[row]) for values in motion)
    return tv.affine(x, angle, [right, down], scale, [shear, 0.0], InterpolationMode.BILINEAR)


def test_affine(images: Tensor) -> None:
    views = apply_augmentation(images, NOTHING._replace(motion=motions()))
    expected = [torchvision_affine(x, motions(), row) for row, x in enumerate(row_images(images))]
    # two float32 routes to a position differ by some 1e-6 pixel, which the slope between neighbours (up to 1) carries over
    assert_rows(views, expected, atol=2e-5)


def test_whole_pixel_crop_of_a_moved_image_is_cut_after_the_motion(images: Tensor) -> None:
    """A crop that isn't resized samples pixel centres of the moved image, so one interpolation equals two."""
    box = torch.tensor([[4, 3, 9, 9]]).repeat(ROWS, 1)
    flipped = torch.arange(ROWS) % 2 == 0
    views = apply_augmentation(images, NOTHING._replace(motion=motions(), crop_N4=box, flip_N=flipped), 9)
    expected = []
    for row, x in enumerate(row_images(images)):
        crop = tv.crop(torchvision_affine(x, motions(), row), 4, 3, 9, 9)
        expected.append(tv.horizontal_flip(crop) if flipped[row] else crop)
    assert_rows(views, expected, atol=2e-5)  # as in test_affine


def test_noise_is_added_last_and_clamped(images: Tensor) -> None:
    noise = torch.randn(ROWS, *images.shape[1:], generator=torch.Generator().manual_seed(1))
    views = apply_augmentation(images, NOTHING._replace(noise_NCHW=noise, gain_N=spread(0.5, 1.5)))
    expected = [
        (tv.adjust_brightness(x, float(gain)) + n).clamp(0, 1)
        for x, gain, n in zip(row_images(images), spread(0.5, 1.5), noise, strict=True)
    ]
    assert_rows(views, expected)


def test_uint8_is_scaled_as_torchvision_does() -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(BATCH, 3, 1, 1)
    expected = tv.to_dtype(x, torch.float32, scale=True)
    # torchvision multiplies by the rounded 1 / 255, which is off by one unit in the last place
    torch.testing.assert_close(apply_augmentation(x, NOTHING)[0], expected, rtol=0, atol=1e-7)
