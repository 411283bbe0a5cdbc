import itertools

import numpy as np
import pytest
import torch

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.map_refinement import (
    icp,
    map_from_rows,
    nearest_points,
    rows_from_map,
    zoomout,
    zoomout_sizes,
)
from oracles import functional_map as oracle


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shuffled_space(n: int = 120, k: int = 12, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Functions on X; the same, signs changed, on Y's shuffled rows; Y's rows in X; the map of X to Y."""
    phi_x = torch.linalg.qr(normal(n, k, seed=seed)).Q * n**0.5
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    signs = normal(k, seed=seed + 1).sign()
    return phi_x, phi_x[order] * signs, order, torch.diag(signs)


def test_nearest_points_in_chunks_equal_all_distances() -> None:
    queries, points = normal(30, 4), normal(50, 4, seed=1)
    expected = torch.cdist(queries, points).argmin(dim=1)
    assert torch.equal(nearest_points(queries, points), expected)
    assert torch.equal(nearest_points(queries, points, chunk=7), expected)


def test_rows_and_map_determine_each_other() -> None:
    """The map goes from X to Y and the rows from Y to X: with Y shuffled, a wrong direction finds nothing."""
    phi_x, phi_y, order, c = shuffled_space()
    assert torch.equal(rows_from_map(c, phi_x, phi_y), order)
    torch.testing.assert_close(map_from_rows(phi_x, phi_y, order), c, atol=1e-10, rtol=0)


def test_map_from_rows_is_least_squares_under_the_mass() -> None:
    phi_x, phi_y, rows, mass = normal(20, 4), normal(9, 3), torch.arange(9) * 2, torch.rand(9).double() + 0.1
    root = mass.sqrt()[:, None]
    expected = np.linalg.lstsq((root * phi_y).numpy(), (root * phi_x[rows]).numpy(), rcond=None)[0]
    np.testing.assert_allclose(map_from_rows(phi_x, phi_y, rows, mass_y_M=mass), expected, atol=1e-12)


def test_icp_repairs_a_map_with_noise_and_returns_an_orthogonal_one() -> None:
    phi_x, phi_y, order, c = shuffled_space()
    found = icp(c + 0.15 * normal(12, 12, seed=5), phi_x, phi_y)
    torch.testing.assert_close(found @ found.T, torch.eye(12, dtype=torch.float64), atol=1e-10, rtol=0)
    assert torch.equal(rows_from_map(found, phi_x, phi_y), order)


def test_zoomout_equals_its_loop() -> None:
    phi_x, phi_y, _, c = shuffled_space(40, 9)
    sizes = [3, 5, 6, 9]
    noisy = c + 0.3 * normal(9, 9, seed=2)
    expected = oracle.zoomout_rows(noisy.numpy(), phi_x.numpy(), phi_y.numpy(), sizes)
    grown = zoomout(noisy, phi_x, phi_y, [(k, k) for k in sizes], max_final_steps=0)
    c_last = map_from_rows(phi_x, phi_y, torch.from_numpy(expected))  # one more step than the sizes ask for
    assert grown.shape == c_last.shape == (9, 9)
    rows = rows_from_map(grown, phi_x, phi_y)
    assert np.array_equal(rows.numpy(), expected)


def test_zoomout_grows_six_functions_into_all_on_a_ring() -> None:
    """Fourier functions of a ring of 101 points; Y has its rows shuffled and its eigenspaces turned."""
    n, k = 101, 21
    angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n + 0.1 * torch.sin(
        torch.arange(n, dtype=torch.float64)
    )
    waves = [torch.ones(n, dtype=torch.float64)]
    for m in range(1, k // 2 + 1):
        waves += [2**0.5 * torch.cos(m * angle), 2**0.5 * torch.sin(m * angle)]
    phi_x = torch.stack(waves, dim=1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    turns = [torch.linalg.qr(normal(2, 2, seed=m)).Q for m in range(k // 2)]
    q = torch.block_diag(torch.eye(1).double(), *turns)
    start = q.T[:3, :3]
    values = torch.tensor([0.0, *[float(m * m) for m in range(1, k // 2 + 1) for _ in range(2)]])
    sizes = zoomout_sizes(values, values, 3)
    assert all(size % 2 == 1 for size, _ in sizes)  # no cut through a pair of equal eigenvalues
    grown = zoomout(start, phi_x, phi_x[order] @ q, sizes)
    assert torch.equal(rows_from_map(grown, phi_x, phi_x[order] @ q), order)
    torch.testing.assert_close(grown, q.T, atol=1e-9, rtol=0)


def test_sizes_end_at_all_functions_of_both_sides() -> None:
    x, y = torch.arange(12.0), torch.arange(9.0)
    sizes = zoomout_sizes(x, y, 4, step=2)
    assert sizes[0] == (4, 4)
    assert sizes[-1] == (12, 9)
    assert all(1 <= after[1] - before[1] <= 2 for before, after in itertools.pairwise(sizes))
    assert zoomout_sizes(x, y, 3, stop=7)[-1] == (7, 7)
    assert zoomout_sizes(x, y, 9) == [(12, 9)]


@pytest.mark.parametrize(("start", "step", "stop"), [(0, 1, None), (10, 1, None), (3, 0, None), (5, 1, 4), (3, 1, 10)])
def test_sizes_that_cannot_be_are_refused(start: int, step: int, stop: int | None) -> None:
    with pytest.raises(InputError, match="expected 1 <= start"):
        zoomout_sizes(torch.arange(12.0), torch.arange(9.0), start, step=step, stop=stop)


def test_maps_in_the_wrong_direction_are_refused() -> None:
    with pytest.raises(ShapeError, match="coefficients on X to coefficients on Y"):
        rows_from_map(torch.zeros(4, 3).double(), normal(9, 4), normal(8, 3))
    with pytest.raises(ShapeError, match="one row of X for each"):
        map_from_rows(normal(9, 4), normal(8, 3), torch.arange(9))
