import numpy as np
import pytest
import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.rayleigh_ritz import PairMoments, RitzResult, pair_moments, rayleigh_ritz, ritz_from_moments
from oracles import kernels
from oracles import rayleigh_ritz as oracle

RTOL = 1e-10
TOY = kernels.interval_joint(64, 0.05)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(rows: int = 200, width: int = 6) -> tuple[Tensor, Tensor]:
    image, noise1, noise2 = normal(3, rows, width)
    spread = torch.linspace(0.2, 1.5, width, dtype=torch.float64)
    mix = normal(width, width, seed=1)
    return (image + spread * noise1) @ mix + 0.7, (image + spread * noise2) @ mix + 0.7


def second_moment(phi1: Tensor, phi2: Tensor) -> Tensor:
    return (phi1.T @ phi1 + phi2.T @ phi2) / (2 * len(phi1))


def cross_moment(phi1: Tensor, phi2: Tensor) -> Tensor:
    return (phi1.T @ phi2 + phi2.T @ phi1) / (2 * len(phi1))


def moments_of_joint(features_NK: Tensor, joint: np.ndarray, pairs: float = 1e6) -> PairMoments:
    """Exact moments of features on the states of a finite kernel, as if seen in so many pairs."""
    weights, joint_NN = torch.from_numpy(joint.sum(1)), torch.from_numpy(joint)
    return PairMoments(
        torch.tensor(pairs, dtype=torch.float64),
        pairs * (weights @ features_NK),
        pairs * (features_NK.T @ (weights[:, None] * features_NK)),
        pairs * (features_NK.T @ joint_NN @ features_NK),
    )


# --- truth and oracle


@pytest.mark.parametrize("drop_constant", [True, False])
def test_equals_the_generalised_eigenproblem(drop_constant: bool) -> None:
    f1, f2 = pairs()
    result = rayleigh_ritz(f1, f2, drop_constant=drop_constant)
    values, rotation = oracle.ritz(f1.numpy(), f2.numpy(), center=drop_constant)
    np.testing.assert_allclose(result.eigenvalues.numpy(), values, rtol=RTOL)
    assert result.rank == 6
    signs = np.sign((rotation * result.rotation.numpy()).sum(0))
    np.testing.assert_allclose(result.rotation.numpy(), signs * rotation, rtol=1e-8, atol=1e-10)


def test_functions_are_orthonormal_and_diagonalise_the_cross_moment_on_the_fitted_pairs() -> None:
    f1, f2 = pairs()
    result = rayleigh_ritz(f1, f2)
    phi1, phi2 = result(f1), result(f2)
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(second_moment(phi1, phi2), eye, rtol=RTOL, atol=1e-10)
    torch.testing.assert_close(cross_moment(phi1, phi2), eye * result.eigenvalues, rtol=RTOL, atol=1e-10)
    torch.testing.assert_close((phi1 + phi2).mean(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-10)
    assert (result.eigenvalues.diff() <= 0).all()


@pytest.mark.parametrize("drop_constant", [True, False])
def test_mixed_features_of_a_finite_kernel_give_its_eigenfunctions(drop_constant: bool) -> None:
    """Planted: the eight leading functions and the constant, hidden by a random mixing matrix."""
    truth = kernels.finite(TOY)
    features = torch.from_numpy(truth.functions[:, :9].copy()) @ normal(9, 9)
    result = ritz_from_moments(moments_of_joint(features, TOY), sign_rows=features, drop_constant=drop_constant)
    expected = slice(1, 9) if drop_constant else slice(0, 9)
    np.testing.assert_allclose(result.eigenvalues.numpy(), truth.eigenvalues[expected], rtol=1e-8)
    cosines = truth.functions[:, expected].T @ (truth.weights[:, None] * result(features).numpy())
    np.testing.assert_allclose(np.abs(cosines), np.eye(len(cosines)), atol=1e-8)


def test_all_states_give_the_whole_spectrum_and_the_constant_first() -> None:
    joint = kernels.random_joint(np.random.default_rng(0), states=12, concentration=0.3)
    one_hot = torch.eye(12, dtype=torch.float64)
    result = ritz_from_moments(moments_of_joint(one_hot, joint), sign_rows=one_hot, drop_constant=False)
    np.testing.assert_allclose(result.eigenvalues.numpy(), kernels.finite(joint).eigenvalues, atol=1e-10)
    torch.testing.assert_close(result(one_hot)[:, 0], torch.ones(12, dtype=torch.float64), rtol=0, atol=1e-10)


def test_a_column_of_ones_is_the_first_function_only_when_the_constant_is_kept() -> None:
    f1, f2 = pairs()
    ones = torch.ones(len(f1), 1, dtype=torch.float64)
    f1, f2 = torch.cat([f1, ones], 1), torch.cat([f2, ones], 1)
    kept, dropped = rayleigh_ritz(f1, f2, drop_constant=False), rayleigh_ritz(f1, f2)
    assert (kept.rank, dropped.rank) == (7, 6)
    assert kept.eigenvalues[0].item() == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close(kept(f1)[:, 0], ones[:, 0], rtol=0, atol=1e-9)
    assert (kept.mean == 0).all()
    # the other functions are those of the centred problem
    torch.testing.assert_close(kept.eigenvalues[1:], dropped.eigenvalues, rtol=RTOL, atol=1e-10)
    assert dropped.eigenvalues[0] < 0.99


@pytest.mark.parametrize("indefinite", [False, True])
def test_eigenvalues_lie_between_minus_one_and_one(indefinite: bool) -> None:
    f1, f2 = pairs(rows=30)
    if indefinite:
        f2 = f2 * torch.tensor([1, -1, 1, -1, 1, 1.0])
    eigenvalues = rayleigh_ritz(f1, f2).eigenvalues
    assert (eigenvalues.abs() <= 1).all()
    assert (eigenvalues.min() < 0) == indefinite


def test_few_rows_make_eigenvalues_too_large_by_the_documented_amount() -> None:
    """Independent views, lambda = 0: the eigenvalues of noise spread, their sum of squares is about K (K + 1) / 2N."""
    rows, width = 2000, 40
    result = rayleigh_ritz(normal(rows, width), normal(rows, width, seed=1))
    expected = width * (width + 1) / (2 * rows)
    assert result.eigenvalues.square().sum().item() == pytest.approx(expected, rel=0.15)


# --- symmetries


@pytest.mark.parametrize("drop_constant", [True, False])
def test_result_is_blind_to_the_basis_of_the_span(drop_constant: bool) -> None:
    f1, f2 = pairs()
    mix = normal(6, 6, seed=3) * torch.logspace(-3, 3, 6, dtype=torch.float64)
    straight = rayleigh_ritz(f1, f2, drop_constant=drop_constant)
    mixed = rayleigh_ritz(f1 @ mix, f2 @ mix, drop_constant=drop_constant)
    torch.testing.assert_close(mixed.eigenvalues, straight.eigenvalues, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixed(f1 @ mix), straight(f1), rtol=1e-8, atol=1e-8)


def test_result_is_blind_to_an_offset_when_the_constant_is_dropped() -> None:
    f1, f2 = pairs()
    shift = torch.linspace(-5, 5, 6, dtype=torch.float64)
    straight, shifted = rayleigh_ritz(f1, f2), rayleigh_ritz(f1 + shift, f2 + shift)
    torch.testing.assert_close(shifted(f1 + shift), straight(f1), rtol=1e-8, atol=1e-8)


def test_applying_it_twice_changes_nothing() -> None:
    f1, f2 = pairs()
    once = rayleigh_ritz(f1, f2)
    twice = rayleigh_ritz(once(f1), once(f2))
    torch.testing.assert_close(twice.eigenvalues, once.eigenvalues, rtol=RTOL, atol=1e-10)
    torch.testing.assert_close(twice(once(f1)), once(f1), rtol=1e-8, atol=1e-8)


def test_the_span_is_kept() -> None:
    f1, f2 = pairs()
    result = rayleigh_ritz(f1, f2)
    centred = f1 - result.mean
    solution = torch.linalg.lstsq(result(f1), centred).solution
    torch.testing.assert_close(result(f1) @ solution, centred, rtol=1e-8, atol=1e-8)


def test_views_and_rows_are_alike() -> None:
    f1, f2 = pairs()
    rows = torch.randperm(len(f1), generator=torch.Generator().manual_seed(0))
    straight = rayleigh_ritz(f1, f2)
    shuffled, swapped = rayleigh_ritz(f1[rows], f2[rows]), rayleigh_ritz(f2, f1)
    torch.testing.assert_close(shuffled.rotation, straight.rotation, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(swapped.eigenvalues, straight.eigenvalues, rtol=RTOL, atol=1e-10)


@pytest.mark.parametrize("drop_constant", [True, False])
def test_largest_value_of_each_function_is_positive(drop_constant: bool) -> None:
    f1, f2 = pairs()
    flip = torch.tensor([1, -1, 1, -1, -1, 1.0], dtype=torch.float64)
    for a, b in ((f1, f2), (flip * f1, flip * f2)):
        phi = rayleigh_ritz(a, b, drop_constant=drop_constant)(a)
        assert (phi.amax(0) == phi.abs().amax(0)).all()


@pytest.mark.parametrize("sizes", [[200], [1, 199], [64, 64, 72]])
def test_moments_add_up_over_batches(sizes: list[int]) -> None:
    f1, f2 = pairs()
    parts = [pair_moments(a, b) for a, b in zip(f1.split(sizes), f2.split(sizes), strict=True)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    for got, want in zip(total, pair_moments(f1, f2), strict=True):
        torch.testing.assert_close(got, want, rtol=RTOL, atol=1e-10)
    merged, whole = ritz_from_moments(total, sign_rows=f1), rayleigh_ritz(f1, f2)
    torch.testing.assert_close(merged.rotation, whole.rotation, rtol=1e-8, atol=1e-8)


def test_moments_are_sums_over_both_views() -> None:
    f1, f2 = pairs(rows=5)
    moments = pair_moments(f1, f2)
    stacked, swapped = torch.cat([f1, f2]), torch.cat([f2, f1])
    assert moments.pairs == 5
    torch.testing.assert_close(moments.sum_K, stacked.sum(0) / 2, rtol=RTOL, atol=1e-12)
    torch.testing.assert_close(moments.second_KK, stacked.T @ stacked / 2, rtol=RTOL, atol=1e-12)
    torch.testing.assert_close(moments.cross_KK, stacked.T @ swapped / 2, rtol=RTOL, atol=1e-12)


# --- rank


def with_extra_column(kind: str) -> tuple[Tensor, Tensor]:
    f1, f2 = pairs()
    noise1, noise2 = 3e-6 * normal(2, len(f1), 1, seed=5)
    extra = {
        "duplicated": (f1[:, :1], f2[:, :1]),
        "combined": (f1 @ torch.ones(6, 1).double(), f2 @ torch.ones(6, 1).double()),
        "zero": (0 * f1[:, :1], 0 * f2[:, :1]),
        "constant": (0 * f1[:, :1] + 0.1, 0 * f2[:, :1] + 0.1),
        "nearly_copied": (f1[:, :1] + noise1, f2[:, :1] + noise2),
    }[kind]
    return torch.cat([f1, extra[0]], 1), torch.cat([f2, extra[1]], 1)


@pytest.mark.parametrize("kind", ["duplicated", "combined", "zero", "constant", "nearly_copied"])
def test_columns_that_add_nothing_lower_the_rank_and_change_nothing_else(kind: str) -> None:
    result, clean = rayleigh_ritz(*with_extra_column(kind)), rayleigh_ritz(*pairs())
    assert result.rank == clean.rank == 6
    assert result.rotation.shape == (7, 6)
    # a nearly copied column still turns the span by its own size
    tolerance = 1e-5 if kind == "nearly_copied" else 1e-8
    torch.testing.assert_close(result.eigenvalues, clean.eigenvalues, rtol=0, atol=tolerance)
    torch.testing.assert_close(result(with_extra_column(kind)[0]), clean(pairs()[0]), rtol=0, atol=20 * tolerance)


def test_rank_tolerance_decides_what_is_absent() -> None:
    f1, f2 = with_extra_column("nearly_copied")
    assert ritz_from_moments(pair_moments(f1, f2), sign_rows=f1, rank_tolerance=1e-14).rank == 7
    assert ritz_from_moments(pair_moments(f1, f2), sign_rows=f1, rank_tolerance=1e-2).rank < 6


def test_more_columns_than_rows_give_at_most_the_rank_of_the_rows() -> None:
    f1 = normal(4, 20)
    assert rayleigh_ritz(f1, f1).rank == 3  # one is lost to the mean


# --- ridge


def test_ridge_lowers_every_eigenvalue_and_weak_directions_most() -> None:
    f1, f2 = pairs()
    weak1, weak2 = f1.clone(), f2.clone()
    weak1[:, 5] = f1[:, 0] + 1e-3 * f1[:, 5]
    weak2[:, 5] = f2[:, 0] + 1e-3 * f2[:, 5]
    plain, damped = rayleigh_ritz(weak1, weak2), rayleigh_ritz(weak1, weak2, ridge=1e-2)
    assert (damped.eigenvalues <= plain.eigenvalues + 1e-12).all()
    strength = damped(weak1).square().mean(0)
    assert strength.min() < 0.01
    assert (strength <= 1.1).all()


def test_ridge_is_relative_to_unit_columns() -> None:
    """R / (G + r) for a single function: G is 1 after normalisation, whatever its scale."""
    f1, f2 = (f[:, :1] for f in pairs())
    plain, damped, scaled = (
        rayleigh_ritz(scale * f1, scale * f2, ridge=ridge).eigenvalues.item()
        for scale, ridge in ((1, 0.0), (1, 0.25), (1e4, 0.25))
    )
    assert damped == pytest.approx(plain / 1.25, rel=RTOL)
    assert scaled == pytest.approx(damped, rel=RTOL)


# --- precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_features_are_summed_in_float64_and_come_back_in_theirs(dtype: torch.dtype) -> None:
    f1, f2 = (f.to(dtype) for f in pairs())
    result, same = rayleigh_ritz(f1, f2), rayleigh_ritz(f1.double(), f2.double())
    assert result.rotation.dtype == result.eigenvalues.dtype == torch.float64
    torch.testing.assert_close(result.eigenvalues, same.eigenvalues, rtol=0, atol=1e-12)
    assert result(f1).dtype == dtype


# --- errors


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["f", "f_positive"])
def test_non_finite_features_are_refused_by_name(which: str, bad: float) -> None:
    features = dict(zip(("f", "f_positive"), pairs(), strict=True))
    features[which][3, 2] = bad
    with pytest.raises(NonFiniteError, match=f"infinity in {which}:"):
        rayleigh_ritz(**features)


@pytest.mark.parametrize(("first", "second"), [((4, 2), (5, 2)), ((4, 2), (4, 3)), ((4,), (4,)), ((2, 4, 3),) * 2])
def test_unpaired_features_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="paired features"):
        rayleigh_ritz(torch.zeros(first), torch.zeros(second))


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_pairs_are_refused(rows: int) -> None:
    with pytest.raises(InputError, match="at least 2 pairs"):
        rayleigh_ritz(torch.ones(rows, 3), torch.ones(rows, 3))


@pytest.mark.parametrize("ridge", [-1e-9, 1.0, float("nan")])
def test_ridge_out_of_range_is_refused(ridge: float) -> None:
    with pytest.raises(InputError, match="ridge"):
        rayleigh_ritz(*pairs(), ridge=ridge)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1])
def test_collapsed_features_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="collapsed"):
        rayleigh_ritz(torch.full((50, 3), value), torch.full((50, 3), value))


def test_result_is_one_type_whatever_the_flags() -> None:
    for drop_constant in (True, False):
        assert isinstance(rayleigh_ritz(*pairs(), drop_constant=drop_constant, ridge=0.1), RitzResult)


def test_it_prints_in_one_line() -> None:
    shown = repr(rayleigh_ritz(*with_extra_column("duplicated")))
    assert len(shown) < 100
    assert shown.startswith("RitzResult(rank 6 of 7 columns, eigenvalues ")
