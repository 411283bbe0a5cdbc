"""Nearest rows of another set: scikit-learn's answer, ties, scale, devices, refusals."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.spectral import nearest_rows


def cloud(n: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 7, 200])
def test_equal_to_scikit_learn(k: int) -> None:
    query, rows = cloud(90, seed=1), cloud(200)
    distances, index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors(query)
    got = nearest_rows(query, rows, k)
    np.testing.assert_array_equal(got.index_Qk, index)
    np.testing.assert_allclose(got.distance_Qk, distances, rtol=1e-12)
    assert got.distance_Qk.dtype == torch.float64


@pytest.mark.parametrize("copies", [2, 40])
def test_ties_go_to_the_lower_index(copies: int) -> None:
    rows = cloud(50).repeat(copies, 1)
    got = nearest_rows(cloud(50), rows, 2)
    torch.testing.assert_close(got.index_Qk, torch.arange(50)[:, None] + torch.tensor([0, 50]))
    assert (got.distance_Qk == 0).all()


def test_near_neighbours_far_from_the_origin_and_other_scales() -> None:
    plain = nearest_rows(cloud(60, seed=1), cloud(300), 3)
    for scale, shift in ((1.0, 1e6), (1e-200, 0.0), (1e200, 0.0)):
        moved = nearest_rows(cloud(60, seed=1) * scale + shift, cloud(300) * scale + shift, 3)
        torch.testing.assert_close(moved.index_Qk, plain.index_Qk)
        torch.testing.assert_close(moved.distance_Qk / scale, plain.distance_Qk, rtol=1e-8, atol=1e-8)


def test_neighbours_closer_than_float32_sees() -> None:
    """Rows 1e-5 apart at distance 1 from the centre differ by 1e-10 in |x|^2, under the rounding of float32."""
    rows = torch.eye(3, dtype=torch.float64).repeat_interleave(4, 0) + 1e-5 * cloud(12, 3)
    got = nearest_rows(rows + 1e-8 * cloud(12, 3, seed=2), rows)
    torch.testing.assert_close(got.index_Qk[:, 0], torch.arange(12))


def test_rows_too_crowded_for_float32_are_searched_more_widely() -> None:
    """A few hundred rows lie within one rounding error of float32: its first candidates are any of them."""
    crowd = 1 + 1e-13 * torch.arange(300, dtype=torch.float64)[:, None]
    line = torch.cat([-torch.ones(1, 1, dtype=torch.float64), crowd])
    torch.testing.assert_close(nearest_rows(line + 1e-14, line).index_Qk[:, 0], torch.arange(301))


def test_dtypes_and_the_quick_order() -> None:
    query, rows = cloud(80, seed=1).float(), cloud(400).float()
    exact, quick = nearest_rows(query, rows), nearest_rows(query, rows, exact=False)
    torch.testing.assert_close(quick.index_Qk, exact.index_Qk)
    torch.testing.assert_close(quick.distance_Qk, exact.distance_Qk)
    assert exact.distance_Qk.dtype == torch.float32
    assert nearest_rows(query.half(), rows).distance_Qk.dtype == torch.float16
    assert nearest_rows(query[:1], rows[:1].expand(3, -1)).index_Qk.item() == 0  # rows all equal


@pytest.mark.gpu
def test_the_device_of_the_data() -> None:
    query, rows = cloud(500, 40, seed=1).float(), cloud(3000, 40).float()
    there, here = nearest_rows(query.cuda(), rows.cuda(), 4), nearest_rows(query, rows, 4)
    assert there.index_Qk.is_cuda
    torch.testing.assert_close(there.index_Qk.cpu(), here.index_Qk)
    torch.testing.assert_close(there.distance_Qk.cpu(), here.distance_Qk)


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="same columns"):
        nearest_rows(cloud(3, 2), cloud(3, 4))
    with pytest.raises(ShapeError, match="queries"):
        nearest_rows(cloud(3)[0], cloud(3))
    for k in (0, 4):
        with pytest.raises(InputError, match="1 <= k <= 3"):
            nearest_rows(cloud(3), cloud(3), k)
    with pytest.raises(NonFiniteError, match="finite"):
        nearest_rows(cloud(3) / 0, cloud(3))
    with pytest.raises(InputError, match="one device"):
        nearest_rows(cloud(3), torch.empty(3, 6, device="meta"))
