"""Symmetries, the direction of the stop-gradient, finiteness and errors of the objectives."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional import eigenmap as E

Objective = Callable[..., E.EigenmapResult]
constant = partial(E.neural_eigenmap_loss, alpha=0.7)
adaptive = partial(E.neural_eigenmap_loss, alpha=1.0, weighting="adaptive")
ORDERED: dict[str, Objective] = {
    "sequential": E.nested_low_rank_loss,
    "constant": constant,
    "constant_cross_half": partial(constant, cross_half=True),
    "adaptive": adaptive,
    "adaptive_cross_half": partial(adaptive, cross_half=True),
    "paper": E.paper_neural_eigenmap_loss,
}
COUPLED: dict[str, Objective] = {
    "joint": partial(E.nested_low_rank_loss, nesting="joint"),
    "octave": partial(E.nested_low_rank_loss, nesting="octave"),
    "spectral_contrastive": E.spectral_contrastive_loss,
    "constant_no_stop": partial(constant, stop_gradient=False),
    "adaptive_no_stop": partial(adaptive, stop_gradient=False),
    "paper_no_stop": partial(E.paper_neural_eigenmap_loss, stop_gradient=False),
}
ALL = ORDERED | COUPLED
LOW_RANK = ["sequential", "joint", "octave", "spectral_contrastive"]
UNIT_VARIANCE = [name for name in ALL if name not in LOW_RANK]
CENTRED = [name for name in ALL if not name.startswith("paper")]


def outputs(batch: int = 32, width: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Views that agree less from column to column, with shared parts, so that every R_ij and G_ij is at work."""
    generator = torch.Generator().manual_seed(4)
    image, noise1, noise2 = torch.randn(3, batch, width, generator=generator, dtype=torch.float64)
    mix = torch.eye(width, dtype=torch.float64) + 0.3
    spread = torch.linspace(0.2, 1.0, width, dtype=torch.float64)
    return ((image + spread * noise1) @ mix + 0.2).to(dtype), ((image + spread * noise2) @ mix + 0.2).to(dtype)


def loss_and_gradient(objective: Objective, z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z1, z2 = z1.detach().requires_grad_(), z2.detach().requires_grad_()
    loss = objective(z1, z2).loss
    return loss.detach(), *torch.autograd.grad(loss, (z1, z2))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


# --- direction of the stop-gradient


@pytest.mark.parametrize("column", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ORDERED)
def test_ordered_function_does_not_feel_later_ones(name: str, column: int) -> None:
    z1, z2 = outputs()
    moved1, moved2 = z1.clone(), z2.clone()
    moved1[:, column] += z1[:, 0] ** 2
    moved2[:, column] += z2[:, 0] ** 2
    _, before, before2 = loss_and_gradient(ORDERED[name], z1, z2)
    _, after, after2 = loss_and_gradient(ORDERED[name], moved1, moved2)
    close(after[:, :column], before[:, :column])
    close(after2[:, :column], before2[:, :column])
    # and every function from there on does
    changes = (after - before).abs().amax(0) + (after2 - before2).abs().amax(0)
    assert (changes[column:] > 1e-4 * before.abs().max()).all()


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_functions_all_feel_the_last_one(name: str) -> None:
    z1, z2 = outputs()
    moved1, moved2 = z1.clone(), z2.clone()
    moved1[:, -1] += z1[:, 0] ** 2
    moved2[:, -1] += z2[:, 0] ** 2
    _, before, _ = loss_and_gradient(COUPLED[name], z1, z2)
    _, after, _ = loss_and_gradient(COUPLED[name], moved1, moved2)
    assert ((after - before).abs().amax(0) > 1e-4 * before.abs().max()).all()


@pytest.mark.parametrize("cross_half", [True, False])
@pytest.mark.parametrize("weighting", ["constant", "adaptive"])
def test_stop_gradient_leaves_the_value_alone(weighting: E.Weighting, cross_half: bool) -> None:
    z1, z2 = outputs()
    ordered, coupled = (
        E.neural_eigenmap_loss(z1, z2, alpha=1.0, weighting=weighting, cross_half=cross_half, stop_gradient=stop).loss
        for stop in (True, False)
    )
    close(ordered, coupled)


def test_first_nested_function_learns_as_if_alone() -> None:
    z1, z2 = outputs()
    _, together, _ = loss_and_gradient(E.nested_low_rank_loss, z1, z2)
    _, alone, _ = loss_and_gradient(E.nested_low_rank_loss, z1[:, :1], z2[:, :1])
    close(together[:, :1], alone)


def test_one_function_has_no_order() -> None:
    z1, z2 = (z[:, :1] for z in outputs())
    sequential, *others = (loss_and_gradient(ALL[name], z1, z2) for name in LOW_RANK)
    for other in others:
        for got, want in zip(other, sequential, strict=True):
            close(got, want)


# --- gradients


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(
    "objective",
    [
        partial(E.nested_low_rank_loss, nesting="joint"),
        partial(E.nested_low_rank_loss, nesting="octave"),
        E.spectral_contrastive_loss,
        partial(constant, stop_gradient=False),
        partial(constant, stop_gradient=False, cross_half=True),
    ],
    ids=["joint", "octave", "spectral_contrastive", "constant", "constant_cross_half"],
)
def test_gradcheck_where_nothing_is_stopped(objective: Objective, center: bool) -> None:
    z1, z2 = (z.requires_grad_() for z in outputs(batch=6, width=3))
    assert torch.autograd.gradcheck(lambda a, b: objective(a, b, center=center).loss, (z1, z2))


def test_gradcheck_of_the_paper_loss_without_stop_gradient() -> None:
    z1, z2 = (z.requires_grad_() for z in outputs(batch=6, width=3))
    assert torch.autograd.gradcheck(lambda a, b: COUPLED["paper_no_stop"](a, b).loss, (z1, z2))


@pytest.mark.parametrize("name", ALL)
def test_a_loss_times_1000_has_a_gradient_times_1000(name: str) -> None:
    z1, z2 = (z.requires_grad_() for z in outputs())
    (plain,) = torch.autograd.grad(ALL[name](z1, z2).loss, z1)
    (scaled,) = torch.autograd.grad(1000 * ALL[name](z1, z2).loss, z1)
    close(scaled, 1000 * plain)


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_untouched_and_gradients_reach_both_views(name: str) -> None:
    z1, z2 = outputs()
    copies = z1.clone(), z2.clone()
    _, gradient1, gradient2 = loss_and_gradient(ALL[name], z1, z2)
    assert torch.equal(z1, copies[0])
    assert torch.equal(z2, copies[1])
    assert (gradient1.abs().amax(0) > 0).all()
    assert (gradient2.abs().amax(0) > 0).all()


# --- symmetries


@pytest.mark.parametrize("name", ALL)
def test_signs_of_functions_do_not_matter(name: str) -> None:
    z1, z2 = outputs()
    sign = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    loss, gradient, _ = loss_and_gradient(ALL[name], z1, z2)
    flipped_loss, flipped_gradient, _ = loss_and_gradient(ALL[name], sign * z1, sign * z2)
    close(flipped_loss, loss)
    close(flipped_gradient, sign * gradient)


@pytest.mark.parametrize("name", ALL)
def test_scale_of_a_function_matters_only_where_it_carries_the_eigenvalue(name: str) -> None:
    z1, z2 = outputs()
    scale = torch.tensor([1e-3, -2.0, 1.0, 50.0, -0.1], dtype=torch.float64)
    before, after = ALL[name](z1, z2), ALL[name](scale * z1, scale * z2)
    close(after.eigenvalues, before.eigenvalues)
    if name in UNIT_VARIANCE:
        close(after.loss, before.loss)
    else:
        assert not torch.isclose(after.loss, before.loss, rtol=1e-2)


@pytest.mark.parametrize("name", ALL)
def test_views_are_alike(name: str) -> None:
    z1, z2 = outputs()
    loss, gradient1, gradient2 = loss_and_gradient(ALL[name], z1, z2)
    swapped_loss, swapped1, swapped2 = loss_and_gradient(ALL[name], z2, z1)
    close(swapped_loss, loss)
    close(swapped1, gradient2)
    close(swapped2, gradient1)


@pytest.mark.parametrize("name", ALL)
def test_order_of_rows_does_not_matter(name: str) -> None:
    z1, z2 = outputs()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(32, generator=generator)
    if name.endswith("cross_half"):  # only inside each half, which is every other row
        rows = torch.stack([2 * torch.randperm(16, generator=generator) + half for half in (0, 1)], 1).flatten()
    loss, gradient, _ = loss_and_gradient(ALL[name], z1, z2)
    shuffled_loss, shuffled_gradient, _ = loss_and_gradient(ALL[name], z1[rows], z2[rows])
    close(shuffled_loss, loss)
    close(shuffled_gradient, gradient[rows])


@pytest.mark.parametrize("name", CENTRED)
def test_a_constant_changes_nothing_when_centred(name: str) -> None:
    z1, z2 = outputs()
    shift = torch.tensor([0.0, 3.0, -1.0, 0.5, 10.0], dtype=torch.float64)
    loss, gradient, _ = loss_and_gradient(ALL[name], z1, z2)
    shifted_loss, shifted_gradient, _ = loss_and_gradient(ALL[name], z1 + shift, z2 + shift)
    close(shifted_loss, loss)
    close(shifted_gradient, gradient)
    uncentred = partial(ALL[name], center=False)
    assert not torch.isclose(uncentred(z1 + shift, z2 + shift).loss, uncentred(z1, z2).loss, rtol=1e-2)


def test_paper_loss_is_not_centred() -> None:
    z1, z2 = outputs()
    shifted = E.paper_neural_eigenmap_loss(z1 + 3, z2 + 3).loss
    assert not torch.isclose(shifted, E.paper_neural_eigenmap_loss(z1, z2).loss, rtol=1e-2)


@pytest.mark.parametrize("name", ["joint", "octave", "spectral_contrastive"])
def test_plain_low_rank_loss_alone_is_blind_to_rotation(name: str) -> None:
    z1, z2 = outputs()
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    rotated, straight = ALL[name](z1 @ rotation, z2 @ rotation).loss, ALL[name](z1, z2).loss
    assert torch.isclose(rotated, straight, rtol=1e-10) == (name == "spectral_contrastive")


# --- precision and device


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_outputs_give_the_float32_loss(name: str, dtype: torch.dtype) -> None:
    z1, z2 = outputs(dtype=torch.float32)
    result = ALL[name](z1.to(dtype), z2.to(dtype))
    assert all(part.dtype == torch.float32 for part in result)
    assert torch.equal(result.loss, ALL[name](z1.to(dtype).float(), z2.to(dtype).float()).loss)
    # rounding an output to 8 bits moves it by .4 %
    torch.testing.assert_close(result.loss, ALL[name](z1, z2).loss, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_autocast_does_not_reach_the_moments(name: str, dtype: torch.dtype) -> None:
    z1, z2 = outputs(dtype=dtype)
    loss, gradient, _ = loss_and_gradient(ALL[name], z1, z2)
    z1.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ALL[name](z1, z2).loss
    assert inside.dtype == dtype
    assert torch.equal(inside, loss)
    assert torch.equal(torch.autograd.grad(inside, z1)[0], gradient)  # backward runs outside, as in Lightning


@pytest.mark.parametrize("name", ALL)
def test_float32_is_close_to_float64(name: str) -> None:
    z1, z2 = outputs(batch=256)
    # sums of 256 float32 products: a few rounding errors of 6e-8 each, relative to the terms rather than their sum
    torch.testing.assert_close(
        ALL[name](z1.float(), z2.float()).loss.double(), ALL[name](z1, z2).loss, rtol=0, atol=3e-4
    )


@pytest.mark.gpu
@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_device_follows_the_data_also_under_its_autocast(name: str, by_name: bool) -> None:
    z1, z2 = (z.cuda() for z in outputs())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        result = ALL[name](z1=z1, z2=z2) if by_name else ALL[name](z1, z2)
    assert all(part.device.type == "cuda" and part.dtype == torch.float64 for part in result)
    close(result.loss.cpu(), ALL[name](*outputs()).loss)


# --- degenerate outputs stay finite


def finite(objective: Objective, z1: Tensor, z2: Tensor) -> bool:
    z1, z2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    result = objective(z1, z2)
    parts = [*result, *torch.autograd.grad(result.loss, (z1, z2))]
    return all(bool(torch.isfinite(part).all()) for part in parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 5.0])
@pytest.mark.parametrize("name", ALL)
def test_constant_columns_stay_finite(name: str, value: float, dtype: torch.dtype) -> None:
    z1, z2 = outputs(dtype=dtype)
    for z in (z1, z2):
        z[:, 0] = value
        z[:, 3] = value
    assert finite(ALL[name], z1, z2)
    assert finite(ALL[name], torch.full_like(z1, value), torch.full_like(z2, value))


@pytest.mark.parametrize("cross_half", [True, False])
@pytest.mark.parametrize("agreement", [0.0, 1e-9, -1e-9, -1.0], ids=["zero", "tiny", "tiny_negative", "negative"])
def test_adaptive_weight_is_bounded_where_views_disagree(agreement: float, cross_half: bool) -> None:
    """Column 0 with R_00 / G_00 = agreement. The weight is at most 1 / floor, and the loss stays of order one."""
    z1, z2 = outputs()
    first, other = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(8), torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(8)
    z1[:, 0], z2[:, 0] = first, agreement * first + (1 - agreement**2) ** 0.5 * other
    objective = partial(adaptive, cross_half=cross_half)
    assert finite(objective, z1, z2)
    floor = 2 * (2 * 5 / 32) ** 0.5
    assert objective(z1, z2).orthogonality.abs() <= 10 / floor
    plain = constant(z1[:, :2], z2[:, :2], cross_half=cross_half).orthogonality
    torch.testing.assert_close(
        objective(z1[:, :2], z2[:, :2], floor=0.25).orthogonality, plain / 0.25, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("batch", [7, 100, 512])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 5.0, 1000.1])
def test_rayleigh_quotient_of_a_constant_is_zero(value: float, batch: int) -> None:
    """Rounding leaves a constant of about 1e-8 after centring, whose quotient would be a perfect 1."""
    z1, z2 = outputs(batch=batch, dtype=torch.float32)
    z1[:, 1], z2[:, 1] = value, value
    quotients, kept = E.rayleigh_quotients(z1, z2), [0, 2, 3, 4]
    assert quotients[1] == 0
    torch.testing.assert_close(quotients[kept], E.rayleigh_quotients(z1[:, kept], z2[:, kept]))


def test_rayleigh_quotients_are_blind_to_offset_and_scale() -> None:
    z1, z2 = outputs()
    close(E.rayleigh_quotients(-3 * z1 + 7, -3 * z2 + 7), E.rayleigh_quotients(z1, z2))
    close(E.rayleigh_quotients(z1, z1), torch.ones(5, dtype=torch.float64))
    close(E.rayleigh_quotients(z1 - z1.mean(0), z1.mean(0) - z1), -torch.ones(5, dtype=torch.float64))


# --- errors

BAD_OUTPUTS = {
    "one_dimension": (torch.zeros(4), torch.zeros(4), ShapeError),
    "three_dimensions": (torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), ShapeError),
    "unlike_rows": (torch.zeros(4, 3), torch.zeros(5, 3), ShapeError),
    "unlike_widths": (torch.zeros(4, 3), torch.zeros(4, 2), ShapeError),
    "one_row": (torch.zeros(1, 3), torch.zeros(1, 3), ShapeError),
    "no_outputs": (torch.zeros(4, 0), torch.zeros(4, 0), ShapeError),
    "integers": (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3, dtype=torch.int64), InputError),
    "one_view_of_integers": (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64), InputError),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
@pytest.mark.parametrize("name", [*ALL, "rayleigh_quotients"])
def test_unusable_outputs_are_refused(name: str, case: str) -> None:
    z1, z2, error = BAD_OUTPUTS[case]
    with pytest.raises(error, match="expected"):
        (E.rayleigh_quotients if name == "rayleigh_quotients" else ALL[name])(z1, z2)


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        E.neural_eigenmap_loss(*outputs(), alpha=alpha)
    with pytest.raises(InputError, match="alpha"):
        E.paper_neural_eigenmap_loss(*outputs(), alpha=alpha)


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan")])
def test_floor_that_divides_by_zero_is_refused(floor: float) -> None:
    with pytest.raises(InputError, match="floor must be positive"):
        E.neural_eigenmap_loss(*outputs(), alpha=1.0, weighting="adaptive", floor=floor)


@pytest.mark.parametrize("batch", [2, 3])
def test_cross_half_needs_four_rows(batch: int) -> None:
    with pytest.raises(ShapeError, match="at least 4 rows"):
        E.neural_eigenmap_loss(*outputs(batch=batch), alpha=1.0, cross_half=True)
    assert torch.isfinite(E.neural_eigenmap_loss(*outputs(batch=4), alpha=1.0, cross_half=True).loss)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"scale": 0.0}, "scale must be above 0 and finite, got 0.0"), ({"scale": float("inf")}, "got inf"),
     ({"scale": float("nan")}, "got nan"), ({"threshold": 1.0}, r"threshold must be in \[0, 1\).*got 1.0"),
     ({"threshold": -0.1}, "got -0.1")],
)  # fmt: skip
def test_a_scale_or_threshold_without_a_minimiser_is_refused(given: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        E.nested_low_rank_loss(*outputs(), **given)  # type: ignore[arg-type]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"'sequential', 'joint' or 'octave'.*'triangular'"):
        E.nested_low_rank_loss(*outputs(), nesting="triangular")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'constant' or 'adaptive'.*'exact'"):
        E.neural_eigenmap_loss(*outputs(), alpha=1.0, weighting="exact")  # type: ignore[arg-type]
