"""Drawn parameters follow their laws, independently for every view of every image; the batch call is safe and repeatable."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import auto_cli
from scipy import stats
from torch import Tensor

from neigenmaps.data.augmentation import BatchAugmentation, apply_augmentation
from neigenmaps.data.laws import ViewLaw, byol_laws, digits_law, mnist_law, simclr_cifar_law
from neigenmaps.data.parameters import NEVER, AugmentationParameters, sample_parameters
from neigenmaps.errors import InputError, ShapeError

REJECT = 1e-3  # the seeds are fixed, so a test either always passes or never: this is no rate of false alarms
LARGE = 4096  # of an image whose crops are as good as continuous


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(
    *laws: ViewLaw, batch: int = 3000, size: int = 8, channels: int = 1, assignment: str = "independent", seed: int = 0
) -> AugmentationParameters:
    return sample_parameters(
        laws,
        (batch, channels, size, size),
        n_views=2,
        output_size=(min(size, 8),) * 2,
        generator=seeded(seed),
        law_assignment=assignment,  # type: ignore[arg-type]
    )


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    assert stats.kstest(values.double().numpy(), stats.uniform(low, high - low).cdf).pvalue > REJECT


def assert_rate(chosen: Tensor, rate: float) -> None:
    assert stats.binomtest(int(chosen.sum()), chosen.numel(), rate).pvalue > REJECT


def images(batch: int = 8, channels: int = 3, size: int = 12, seed: int = 5) -> Tensor:
    return torch.randint(0, 256, (batch, channels, size, size), generator=seeded(seed), dtype=torch.uint8)


def test_off_by_default() -> None:
    drawn = draw(ViewLaw())
    assert all(value is None for name, value in drawn._asdict().items() if name not in ("law_N", "blur_radius"))
    x = images()
    assert torch.equal(BatchAugmentation(ViewLaw())(x, seeded()), (x / 255).expand(2, *x.shape))


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_scale": (0.5, 1.0)},
        {"flip": 0.5},
        {"rotate": 10.0},
        {"scale": (0.9, 1.1)},
        {"hue": 0.1},
        {"grayscale": 0.5},
        {"blur": 0.5},
        {"solarize": 0.5},
        {"gain": (0.9, 1.1)},
        {"noise": 0.1},
    ],
)
def test_laws_that_change_images(changes: dict[str, Any]) -> None:
    assert ViewLaw(**changes).changes_images
    views = BatchAugmentation(ViewLaw(**changes))(images(), seeded())
    assert not torch.equal(views[0], views[1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rotate": 10.0, "affine_prob": 0.0},
        {"brightness": 0.5, "jitter_prob": 0.0},
        {"noise": 0.1, "noise_prob": 0.0},
        {"crop_scale": (1.0, 1.0)},
        {"gain": (1.0, 1.0)},
        {"crop_ratio": (0.5, 2.0), "blur_sigma": (1.0, 2.0)},
    ],
)
def test_laws_that_change_nothing(changes: dict[str, Any]) -> None:
    assert not ViewLaw(**changes).changes_images
    views = BatchAugmentation(ViewLaw(**changes))(images(), seeded())
    assert torch.equal(views[0], views[1])


def test_crop_area_is_uniform_and_ratio_log_uniform() -> None:
    # with these ranges every candidate fits, so that rejection doesn't bend the distributions
    boxes = draw(ViewLaw(crop_scale=(0.2, 0.6)), size=LARGE).crop_N4
    assert boxes is not None
    height, width = boxes[:, 2].double(), boxes[:, 3].double()
    assert_uniform(height * width / LARGE**2, 0.2, 0.6)
    assert_uniform((width / height).log(), math.log(3 / 4), math.log(4 / 3))
    assert_uniform((boxes[:, 0] + torch.rand(len(boxes), generator=seeded(9))) / (LARGE - height + 1), 0, 1)
    assert_uniform((boxes[:, 1] + torch.rand(len(boxes), generator=seeded(8))) / (LARGE - width + 1), 0, 1)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_crops_lie_within_the_image(size: int) -> None:
    boxes = draw(ViewLaw(crop_scale=(0.01, 1.0), crop_ratio=(0.2, 5.0)), size=size).crop_N4
    assert boxes is not None
    top, left, height, width = boxes.unbind(1)
    assert bool((top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all())
    assert bool((top + height <= size).all() and (left + width <= size).all())


def test_crop_falls_back_to_the_centre_when_no_candidate_fits() -> None:
    """Whole area at ratio 4 never fits a square: width / height 4 leaves the full width and a quarter of the height."""
    boxes = draw(ViewLaw(crop_scale=(1.0, 1.0), crop_ratio=(4.0, 4.0)), size=16, batch=4).crop_N4
    assert boxes is not None
    assert boxes.unique(dim=0).tolist() == [[6, 0, 4, 16]]
    tall = draw(ViewLaw(crop_scale=(1.0, 1.0), crop_ratio=(0.25, 0.25)), size=16, batch=4).crop_N4
    assert tall is not None
    assert tall.unique(dim=0).tolist() == [[0, 6, 16, 4]]


def test_probabilities() -> None:
    law = ViewLaw(flip=0.3, grayscale=0.2, blur=0.6, solarize=0.15, noise=0.1, noise_prob=0.4, jitter_prob=0.8, hue=0.1)
    drawn = draw(law, channels=3)
    assert drawn.flip_N is not None
    assert_rate(drawn.flip_N, 0.3)
    assert drawn.grayscale_N is not None
    assert_rate(drawn.grayscale_N, 0.2)
    assert drawn.blur_sigma_N is not None
    assert_rate(drawn.blur_sigma_N > 0, 0.6)
    assert drawn.solarize_threshold_N is not None
    assert_rate(drawn.solarize_threshold_N < NEVER, 0.15)
    assert drawn.noise_NCHW is not None
    assert_rate(drawn.noise_NCHW.flatten(1).any(1), 0.4)
    assert drawn.hue_N is not None
    assert_rate(drawn.hue_N != 0, 0.8)


def test_jitter_ranges() -> None:
    drawn = draw(ViewLaw(brightness=0.4, contrast=1.7, saturation=0.3, hue=0.1, gain=(0.5, 0.9)), channels=3)
    for values, low, high in [
        (drawn.brightness_N, 0.6, 1.4),
        (drawn.contrast_N, 0.0, 2.7),
        (drawn.saturation_N, 0.7, 1.3),
        (drawn.hue_N, -0.1, 0.1),
        (drawn.gain_N, 0.5, 0.9),
    ]:
        assert values is not None
        assert_uniform(values, low, high)


def test_jitter_is_all_or_nothing_for_a_row() -> None:
    drawn = draw(ViewLaw(brightness=0.4, contrast=0.4, jitter_prob=0.5))
    assert drawn.brightness_N is not None
    assert drawn.contrast_N is not None
    assert torch.equal(drawn.brightness_N == 1, drawn.contrast_N == 1)


def test_motion_ranges() -> None:
    motion = draw(ViewLaw(rotate=30, translate=0.25, scale=(0.8, 1.3), shear=10), size=20).motion
    assert motion is not None
    assert_uniform(motion.angle_N, -30, 30)
    assert_uniform(motion.translate_x_N, -5, 5)
    assert_uniform(motion.translate_y_N, -5, 5)
    assert_uniform(motion.scale_N, 0.8, 1.3)
    assert_uniform(motion.shear_N, -10, 10)
    rested = draw(ViewLaw(rotate=30, translate=0.1, affine_prob=0.25)).motion
    assert rested is not None
    assert_rate(rested.angle_N != 0, 0.25)
    assert torch.equal(rested.angle_N == 0, rested.translate_x_N == 0)


def test_blur_sigma_and_noise() -> None:
    drawn = draw(ViewLaw(blur=1.0, blur_sigma=(0.5, 1.5), noise=0.3))
    assert drawn.blur_sigma_N is not None
    assert_uniform(drawn.blur_sigma_N, 0.5, 1.5)
    assert drawn.blur_radius == 5  # ceil(3 * 1.5)
    assert draw(ViewLaw(blur=1.0, blur_sigma=(0.5, 9.0))).blur_radius == 7  # an 8 px image can reflect 7 pixels
    assert drawn.noise_NCHW is not None
    noise = drawn.noise_NCHW[:200].double().flatten().numpy()
    assert stats.kstest(noise, stats.norm(0, 0.3).cdf).pvalue > REJECT


@pytest.mark.parametrize("field", ["crop_N4", "hue_N", "brightness_N", "blur_sigma_N", "noise_NCHW"])
def test_rows_are_drawn_independently(field: str) -> None:
    """No correlation between the two views of an image, nor between neighbours in the batch."""
    law = ViewLaw(crop_scale=(0.2, 0.6), brightness=0.4, hue=0.1, blur=1.0, noise=0.1)
    values = getattr(draw(law, size=256, channels=3), field).double().reshape(6000, -1)
    first = values[:, 0]
    view_a, view_b = first.unflatten(0, (2, -1))
    for x, y in [(view_a, view_b), (view_a[1:], view_a[:-1])]:
        assert stats.pearsonr(x.numpy(), y.numpy()).pvalue > REJECT


def test_operations_are_drawn_independently() -> None:
    drawn = draw(ViewLaw(flip=0.5, grayscale=0.5), channels=3)
    assert drawn.flip_N is not None
    assert drawn.grayscale_N is not None
    assert_rate(drawn.flip_N & drawn.grayscale_N, 0.25)


def test_laws_are_assigned_uniformly_and_independently_to_views() -> None:
    drawn = draw(ViewLaw(), ViewLaw(flip=1.0), ViewLaw(flip=1.0, brightness=0.5))
    pairs = drawn.law_N.unflatten(0, (2, -1))
    counts = torch.bincount(pairs[0] * 3 + pairs[1], minlength=9)
    assert stats.chisquare(counts.numpy()).pvalue > REJECT
    assert drawn.flip_N is not None
    assert torch.equal(drawn.flip_N, drawn.law_N > 0)
    assert drawn.brightness_N is not None
    assert torch.equal(drawn.brightness_N != 1, drawn.law_N == 2)


def test_each_row_has_the_bounds_of_its_law() -> None:
    drawn = draw(
        ViewLaw(brightness=0.1, rotate=5.0, gain=(0.5, 0.6)),
        ViewLaw(brightness=0.4, crop_scale=(0.2, 0.6), blur=1.0),
        size=LARGE,
    )
    second = drawn.law_N == 1
    assert drawn.brightness_N is not None
    assert_uniform(drawn.brightness_N[~second], 0.9, 1.1)
    assert_uniform(drawn.brightness_N[second], 0.6, 1.4)
    assert drawn.crop_N4 is not None
    assert (drawn.crop_N4[~second] == torch.tensor([0, 0, LARGE, LARGE])).all()
    assert_uniform(drawn.crop_N4[second, 2:].double().prod(1) / LARGE**2, 0.2, 0.6)
    assert drawn.motion is not None
    assert_uniform(drawn.motion.angle_N[~second], -5, 5)
    assert (drawn.motion.angle_N[second] == 0).all()
    assert drawn.blur_sigma_N is not None
    assert torch.equal(drawn.blur_sigma_N > 0, second)
    assert drawn.gain_N is not None
    assert_uniform(drawn.gain_N[~second], 0.5, 0.6)
    assert (drawn.gain_N[second] == 1).all()


def test_by_view() -> None:
    drawn = draw(ViewLaw(), ViewLaw(flip=1.0), assignment="by_view", batch=5)
    assert drawn.law_N.tolist() == [0] * 5 + [1] * 5
    assert drawn.flip_N is not None
    assert drawn.flip_N.tolist() == [False] * 5 + [True] * 5


def odd_function(views_VBCHW: Tensor) -> Tensor:
    """f(mirrored x) = -f(x)."""
    return (views_VBCHW - views_VBCHW.flip(-1))[..., : views_VBCHW.shape[-1] // 2].sum((2, 3, 4))


def test_independent_assignment_keeps_the_kernel_positive() -> None:
    """Law A leaves images as they are, law B mirrors them. E[f f+] is E[(E[f | image])^2] = 0 for an odd f; fixing or
    swapping the laws makes the views mirror images of each other and gives -Var f."""
    x = images(batch=4000, channels=1, size=4)
    laws = [ViewLaw(), ViewLaw(flip=1.0)]
    f_a, f_b = odd_function(BatchAugmentation(laws)(x, seeded())).double()
    product = f_a * f_b
    standard_error = product.std() / math.sqrt(len(product))
    assert abs(product.mean()) < 4 * standard_error
    variance = f_a.square().mean()
    assert product.mean() / variance > -0.1
    g_a, g_b = odd_function(BatchAugmentation(laws, law_assignment="by_view")(x, seeded())).double()
    assert (g_a * g_b).mean() / g_a.square().mean() == pytest.approx(-1, abs=1e-5)


def test_conditional_second_moment_is_a_square() -> None:
    """For one image under two unlike laws, E[f f+ | image] equals (E[f | image])^2 up to sampling."""
    x = images(batch=1, size=4).repeat(20000, 1, 1, 1)
    laws = [ViewLaw(brightness=0.5), ViewLaw(flip=0.7, gain=(0.2, 0.6))]
    f_a, f_b = BatchAugmentation(laws)(x, seeded())[:, :, :, :, :2].double().mean((2, 3, 4))
    a, b = f_a - f_a.mean(), f_b - f_b.mean()
    assert abs((a * b).mean()) < 4 * (a * b).std() / math.sqrt(len(a))
    assert stats.ks_2samp(f_a.numpy(), f_b.numpy()).pvalue > REJECT


CHAINS = {"digits": digits_law(), "mnist": mnist_law(), "simclr": simclr_cifar_law(), "byol": byol_laws()}


@pytest.mark.parametrize("name", CHAINS)
def test_presets_are_repeatable_and_in_range(name: str) -> None:
    laws = CHAINS[name]
    x = images(channels=1 if name in ("digits", "mnist") else 3)
    before = x.clone()
    augment = BatchAugmentation(laws, n_views=3, output_size=10)
    views = augment(x, seeded(1))
    assert views.shape == (3, 8, x.shape[1], 10, 10)
    assert views.dtype == torch.float32
    assert views.is_contiguous()
    assert views.min() >= 0
    assert views.max() <= 1 + 1e-6  # interpolation and hue round
    assert torch.equal(views, augment(x, seeded(1)))
    assert not torch.equal(views, augment(x, seeded(2)))
    assert not torch.equal(views[0], views[1])
    assert torch.equal(x, before)


def test_float_images_are_left_untouched() -> None:
    x = images() / 255
    before = x.clone()
    views = BatchAugmentation(replace(simclr_cifar_law(), crop_scale=None, flip=0.0), n_views=1)(x, seeded())
    assert torch.equal(x, before)
    assert views.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_input_becomes_float32(dtype: torch.dtype) -> None:
    x = (images() / 255).to(dtype)
    views = BatchAugmentation(simclr_cifar_law())(x, seeded())
    assert views.dtype == torch.float32
    assert torch.equal(views, BatchAugmentation(simclr_cifar_law())(x.float(), seeded()))


def test_global_randomness_is_left_alone() -> None:
    state = torch.get_rng_state()
    BatchAugmentation(byol_laws())(images(), seeded())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.5)),
        ("crop_scale", (0.9, 0.5)),
        ("crop_ratio", (0.0, 1.0)),
        ("flip", 1.5),
        ("flip", float("nan")),
        ("affine_prob", -0.1),
        ("rotate", 200.0),
        ("translate", 2.0),
        ("scale", (0.0, 1.0)),
        ("shear", 90.0),
        ("jitter_prob", 2.0),
        ("brightness", -0.1),
        ("contrast", float("inf")),
        ("saturation", -1.0),
        ("hue", 0.6),
        ("grayscale", -1.0),
        ("blur", 1.01),
        ("blur_sigma", (0.0, 1.0)),
        ("solarize", 7.0),
        ("solarize_threshold", 1.2),
        ("gain", (-1.0, 1.0)),
        ("noise", -0.5),
        ("noise_prob", 1.1),
    ],
)
def test_values_outside_their_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"ViewLaw.{field}: expected"):
        ViewLaw(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"laws": []}, "at least one ViewLaw"),
        ({"laws": ViewLaw(), "n_views": 0}, "n_views"),
        ({"laws": ViewLaw(), "output_size": 0}, "output_size"),
        ({"laws": ViewLaw(), "law_assignment": "both"}, "'independent' or 'by_view'"),
        ({"laws": [ViewLaw()] * 3, "law_assignment": "by_view"}, "expected 1 or 2 laws, got 3"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchAugmentation(**arguments)


def test_by_view_needs_as_many_laws_as_views_when_sampling() -> None:
    with pytest.raises(InputError, match="one law for each of 2 views, got 3"):
        draw(ViewLaw(), ViewLaw(), ViewLaw(), assignment="by_view")


@pytest.mark.parametrize("law", [ViewLaw(grayscale=0.1), ViewLaw(saturation=0.1), ViewLaw(hue=0.1)])
def test_colour_of_grey_images_is_refused(law: ViewLaw) -> None:
    with pytest.raises(InputError, match="grey images: expected saturation, hue and grayscale to be 0"):
        BatchAugmentation(law)(images(channels=1), seeded())


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (images()[0], ShapeError),
        (images(channels=2), ShapeError),
        (images().int(), InputError),
    ],
)
def test_wrong_images(x: Tensor, error: type) -> None:
    with pytest.raises(error, match="expected"):
        BatchAugmentation(ViewLaw())(x, seeded())


def test_parameters_of_another_batch_are_refused() -> None:
    with pytest.raises(ShapeError, match="whole number of views"):
        apply_augmentation(images(batch=3), draw(ViewLaw(), batch=4))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_generator_of_another_device_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="Make it with torch"):
        BatchAugmentation(ViewLaw())(images().to(device), seeded())


def build(laws: ViewLaw | Sequence[ViewLaw], n_views: int = 2) -> BatchAugmentation:
    return BatchAugmentation(laws, n_views)


def test_a_law_can_be_stated_in_a_configuration() -> None:
    law = '{"crop_scale": [0.2, 1.0], "flip": 0.5, "gain": null}'
    expected = ViewLaw(crop_scale=(0.2, 1.0), flip=0.5)
    assert auto_cli(build, args=[f"--laws=[{law}, {{}}]"], as_positional=False).laws == (expected, ViewLaw())
    assert auto_cli(build, args=[f"--laws={law}"], as_positional=False).laws == (expected,)


@pytest.mark.parametrize(
    ("config", "law"), [("digits", digits_law()), ("mnist", mnist_law()), ("cifar10", simclr_cifar_law())]
)
def test_presets_are_what_the_configs_say(config: str, law: ViewLaw) -> None:
    path = Path(__file__).parents[2] / "configs" / f"{config}.yaml"
    (written,) = yaml.safe_load(path.read_text())["data"]["laws"]
    ranges = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
    assert ViewLaw(**ranges) == law
