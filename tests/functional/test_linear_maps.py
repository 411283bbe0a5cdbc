"""Orthogonal and ridge maps against scipy, numpy and planted truth."""

import numpy as np
import pytest
import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, RowMismatchError, ShapeError
from neigenmaps.functional.linear_maps import AffineMap, nearest_orthogonal, orthogonal_map, polar_factor, ridge_map
from oracles import alignment as oracle


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int, seed: int = 9) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


def test_orthogonal_map_is_scipys() -> None:
    x, y = normal(60, 7, seed=0) + 3, normal(60, 7, seed=1) - 2
    found = orthogonal_map(x, y)
    expected = oracle.procrustes(x.numpy(), y.numpy())
    assert np.abs(found.matrix_FG.numpy() - expected).max() < 1e-12
    assert torch.allclose(found(x).mean(0), y.mean(0), atol=1e-12)


def test_without_translation_nothing_is_centred() -> None:
    x, y = normal(60, 5, seed=0) + 3, normal(60, 5, seed=1) - 2
    expected = polar_factor(x.T @ y)
    found = orthogonal_map(x, y, translation=False)
    assert torch.allclose(found.matrix_FG, expected, atol=1e-12)
    assert not found.offset_G.any()


@pytest.mark.parametrize("width", [4, 9])
def test_planted_similarity_is_recovered(width: int) -> None:
    """y = 2.5 x Q + t exactly, into a space as wide or wider; and back."""
    x = normal(50, 4, seed=0)
    turn, shift = rotation(width)[:4], normal(width, seed=3)
    found = orthogonal_map(x, 2.5 * x @ turn + shift, scale=True)
    assert torch.allclose(found.matrix_FG, 2.5 * turn, atol=1e-12)
    assert torch.allclose(found.offset_G, shift, atol=1e-12)
    assert torch.allclose(found.inverse()(found(x)), x, atol=1e-12)


def test_scale_is_the_best_for_its_rotation() -> None:
    x, y = normal(40, 6, seed=0), normal(40, 3, seed=1)
    found = orthogonal_map(x, y, scale=True)

    def error(factor: float) -> float:
        return float(((x - x.mean(0)) @ found.matrix_FG * factor - (y - y.mean(0))).square().sum())

    assert error(1) < min(error(0.99), error(1.01))


@pytest.mark.parametrize(("wide", "narrow"), [(6, 3), (3, 6)])
def test_factors_of_unequal_widths_are_semi_orthogonal_and_best(wide: int, narrow: int) -> None:
    x, y = normal(40, wide, seed=0), normal(40, narrow, seed=1)
    matrix = orthogonal_map(x, y).matrix_FG
    small = matrix @ matrix.T if wide < narrow else matrix.T @ matrix
    assert torch.allclose(small, torch.eye(3, dtype=torch.float64), atol=1e-12)
    cross = (x - x.mean(0)).T @ (y - y.mean(0))
    inner = (matrix * cross).sum()
    assert torch.allclose(inner, torch.linalg.svdvals(cross).sum())
    for seed in range(5):
        other = polar_factor(matrix + 0.1 * normal(wide, narrow, seed=seed))
        assert (other * cross).sum() < inner


def test_weights_count_like_repeated_rows() -> None:
    x, y = normal(20, 4, seed=0), normal(20, 5, seed=1)
    times = torch.tensor([3, 0] * 10)
    for fit in (orthogonal_map, ridge_map):
        weighted = fit(x, y, weights_N=times.double())
        repeated = fit(x.repeat_interleave(times, dim=0), y.repeat_interleave(times, dim=0))
        assert torch.allclose(weighted.matrix_FG, repeated.matrix_FG, atol=1e-12)
        assert torch.allclose(weighted.offset_G, repeated.offset_G, atol=1e-12)


@pytest.mark.parametrize("n_rows", [50, 5])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_ridge_is_numpys(n_rows: int, ridge: float) -> None:
    x, y = normal(n_rows, 8, seed=0) + 3, normal(n_rows, 3, seed=1) - 2
    found = ridge_map(x, y, ridge=ridge)
    matrix, offset = oracle.ridge(x.numpy(), y.numpy(), ridge)
    assert np.abs(found.matrix_FG.numpy() - matrix).max() < 1e-12
    assert np.abs(found.offset_G.numpy() - offset).max() < 1e-12


def test_ridge_means_the_same_at_every_scale_and_number_of_rows() -> None:
    x, y = normal(30, 4, seed=0), normal(30, 3, seed=1)
    once = ridge_map(x, y, ridge=0.3).matrix_FG
    assert torch.allclose(ridge_map(100 * x, 100 * y, ridge=0.3).matrix_FG, once)
    assert torch.allclose(ridge_map(x.repeat(7, 1), y.repeat(7, 1), ridge=0.3).matrix_FG, once)


def test_turning_the_inputs_turns_the_map() -> None:
    x, y = normal(30, 4, seed=0), normal(30, 5, seed=1)
    turn_x, turn_y = rotation(4), rotation(5, seed=8)
    for fit in (orthogonal_map, ridge_map):
        turned = fit(x @ turn_x, y @ turn_y).matrix_FG
        assert torch.allclose(turned, turn_x.T @ fit(x, y).matrix_FG @ turn_y, atol=1e-12)


def test_constant_and_duplicate_columns_get_no_weight_of_their_own() -> None:
    x = normal(30, 3, seed=0)
    wide = torch.cat([x, x[:, :1], torch.full((30, 1), 1 / 3, dtype=torch.float64)], dim=1)
    matrix = ridge_map(wide, x, ridge=0).matrix_FG
    assert torch.allclose(matrix[0], matrix[3], atol=1e-12)
    assert matrix[0, 0] == pytest.approx(0.5)
    assert not matrix[4].any()


def test_maps_are_float64_and_answer_in_the_rows_precision() -> None:
    x, y = normal(30, 4, seed=0).float(), normal(30, 4, seed=1).half()
    for fit in (orthogonal_map, ridge_map):
        found = fit(x, y)
        assert found.matrix_FG.dtype == torch.float64
        assert found(x).dtype == torch.float32
        assert found(x.double()).dtype == torch.float64


def test_each_bad_input_is_named() -> None:
    x = normal(6, 3, seed=0)
    bad = x.clone()
    bad[2, 1] = torch.nan
    equal = torch.ones(6, 3, dtype=torch.float64) / 3
    cases = [
        (ShapeError, "shape", {"x_NF": x[0]}),
        (ShapeError, "shape", {"y_NG": x[:0]}),
        (InputError, "floating-point", {"x_NF": x.long()}),
        (NonFiniteError, "NaN", {"y_NG": bad}),
        (RowMismatchError, "6 and 5", {"y_NG": x[:5]}),
        (ShapeError, "weights", {"weights_N": torch.ones(5)}),
        (InputError, "weights", {"weights_N": torch.zeros(6)}),
        (InputError, "weights", {"weights_N": torch.tensor([1.0, 1, 1, 1, 1, -1])}),
        (InputError, "weights", {"weights_N": torch.full((6,), torch.nan)}),
    ]
    for fit in (orthogonal_map, ridge_map):
        for error, message, change in cases:
            with pytest.raises(error, match=message):
                fit(**{"x_NF": x, "y_NG": x, **change})
    with pytest.raises(InputError, match="rows of y that vary"):
        orthogonal_map(x, equal)
    with pytest.raises(InputError, match="ridge >= 0"):
        ridge_map(x, x, ridge=-0.1)
    with pytest.raises(InputError, match="ridge >= 0"):
        ridge_map(x, x, ridge=float("nan"))
    with pytest.raises(ShapeError, match="wrong space"):
        AffineMap(x.T, x[:, 0])(x.T)


@pytest.mark.parametrize("shape", [(9, 9), (12, 5), (5, 12), (1, 4), (4, 1)])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5, 1e9, float("inf")])
def test_a_quick_polar_factor_is_as_near_as_was_asked(shape: tuple[int, int], condition: float) -> None:
    rank = min(shape)
    left, right = (torch.linalg.qr(normal(n, rank, seed=n)).Q for n in shape)
    values = torch.ones(rank, dtype=torch.float64)
    if rank > 1:
        values[-1] = 1 / condition
    matrix = left * values @ right.T
    for error in (1e-3, 1e-9):
        found = polar_factor(matrix, error=error)
        small = found @ found.T if shape[0] < shape[1] else found.T @ found
        assert torch.allclose(small, torch.eye(rank, dtype=torch.float64), atol=error)
        if condition < 1e9:
            assert torch.allclose(found, left @ right.T, atol=error)
        gain = (found * matrix).sum()
        assert gain == pytest.approx(values.sum().item(), rel=error**2 + 1e-12)
    assert polar_factor(torch.zeros(shape, dtype=torch.float64), error=1e-3).isfinite().all()


def test_the_quick_way_is_taken_where_it_is_good_enough() -> None:
    well, ill = normal(40, 8, seed=0), normal(40, 8, seed=1) * 10.0 ** -torch.arange(0, 16, 2).double()
    assert not torch.equal(polar_factor(well, error=1e-3), polar_factor(well))
    assert torch.allclose(polar_factor(well, error=1e-3), polar_factor(well), atol=1e-13)
    assert torch.equal(polar_factor(ill, error=1e-3), polar_factor(ill))


@pytest.mark.parametrize("shape", [(7, 7), (9, 4), (4, 9)])
def test_the_nearest_orthogonal_map_is_the_polar_factor(shape: tuple[int, int]) -> None:
    near = polar_factor(normal(*shape, seed=0)) + 1e-2 * normal(*shape, seed=1)
    assert torch.allclose(nearest_orthogonal(near), polar_factor(near), atol=1e-13)
    exact = polar_factor(near)
    assert torch.allclose(nearest_orthogonal(exact), exact, atol=1e-14)
