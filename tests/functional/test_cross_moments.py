"""Cross-moments are plain sums over rows, however they come in."""

import pytest
import torch
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.functional import cross_moments as module
from neigenmaps.functional.cross_moments import CrossMoments, block_slices, cross_moments


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spaces(n_rows: int = 50) -> list[Tensor]:
    return [normal(n_rows, 3, seed=0) + 10, normal(n_rows, 5, seed=1) - 4, normal(n_rows, 2, seed=2)]


def scale(n_rows: int = 50) -> Tensor:
    weights = torch.rand(n_rows, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return weights.where(weights > 0.3, 0.0)


def by_hand(xs: list[Tensor], scale_NM: Tensor) -> Tensor:
    """Each block about each space's own weighted mean."""
    off = []
    for m, x in enumerate(xs):
        share = scale_NM[:, m] ** 2 / (scale_NM[:, m] ** 2).sum()
        off.append((x - share @ x) * scale_NM[:, m : m + 1])
    joined = torch.cat(off, dim=1)
    return joined.T @ joined


def assert_equal(a: CrossMoments, b: CrossMoments) -> None:
    assert a.widths == b.widths
    for first, second in ((a.means(), b.means()), (a.centred(), b.centred()), (a.weight_MM, b.weight_MM)):
        assert torch.allclose(first, second, atol=1e-10)


@pytest.mark.parametrize("chunk", [7, 4096])
def test_centred_products_are_those_by_hand(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", chunk)
    for scale_NM in (torch.ones(50, 3, dtype=torch.float64), scale()):
        found = cross_moments(spaces(), scale_NM=scale_NM)
        assert torch.allclose(found.centred(), by_hand(spaces(), scale_NM), atol=1e-10)
        assert torch.allclose(found.weight_MM, scale_NM.T @ scale_NM)
    assert torch.equal(cross_moments(spaces()).means(), cross_moments(spaces(), scale_NM=torch.ones(50, 3)).means())


def test_large_means_cost_no_digits() -> None:
    far = [x + 1e8 for x in spaces()]
    exact = by_hand([x - 1e8 for x in far], torch.ones(50, 3, dtype=torch.float64))
    assert torch.allclose(cross_moments(far).centred(), exact, atol=1e-6)


def test_batches_add_up() -> None:
    whole = cross_moments(spaces(), scale_NM=scale())
    parts = [(slice(0, 20), None), (slice(20, 50), None)]
    first = cross_moments([x[parts[0][0]] for x in spaces()], scale_NM=scale()[parts[0][0]])
    second = cross_moments([x[parts[1][0]] for x in spaces()], scale_NM=scale()[parts[1][0]], origin_D=first.origin_D)
    assert_equal(first.merge(second), whole)
    assert first.merge(second).n_rows == 50
    with pytest.raises(InputError, match="one origin"):
        first.merge(whole)


def test_a_space_added_later_is_as_if_there_from_the_start() -> None:
    whole = cross_moments(spaces(), scale_NM=scale())
    early = cross_moments(spaces()[:2], scale_NM=scale()[:, :2])
    assert_equal(early.extended([0, 1], spaces(), scale()), whole)
    against_one = early.extended([1], spaces()[1:], scale()[:, 1:])
    columns = block_slices(whole.widths)
    assert against_one.weight_MM[0, 2] == 0
    assert torch.allclose(against_one.centred()[columns[1], columns[2]], whole.centred()[columns[1], columns[2]])
    assert torch.equal(against_one.product_DD[:8, :8], early.product_DD)


@pytest.mark.parametrize("center", [True, False])
def test_pairs_use_the_rows_both_have(center: bool) -> None:
    mask = (scale() > 0).double()
    both = (mask[:, 0] * mask[:, 1]).bool()
    x, y = spaces()[0][both], spaces()[1][both]
    pair = cross_moments(spaces(), scale_NM=mask).pair(0, 1, center=center)
    mean_x, mean_y = (x.mean(0), y.mean(0)) if center else (torch.zeros(3), torch.zeros(5))
    assert torch.allclose(pair.mean_F, mean_x.double())
    assert torch.allclose(pair.mean_G, mean_y.double())
    assert torch.allclose(pair.cross_FG, (x - mean_x).T @ (y - mean_y) / both.sum())
