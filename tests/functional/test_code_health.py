"""The numbers of a batch that tell a collapse, against loops and on planted codes."""

import pytest
import torch
from torch import Tensor

from neigenmaps.errors import ShapeError
from neigenmaps.functional.code_health import LEADING, code_health
from oracles.code_health import code_health as oracle


def draw(rows: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted() -> dict[str, Tensor]:
    z = draw(200, 12)
    constant = z.clone()
    constant[:, 3:] = 1e-5 * z[:, 3:] + 2
    return {
        "independent": z,
        "copies": z[:, [0, 1, 0, 0, 1, 2, 2, 2, 3, 3, 3, 3]] * torch.linspace(-3, 2.6, 12, dtype=torch.float64),
        "two directions": draw(200, 2) @ draw(2, 12, 1),
        "constants": constant,
        "nothing": torch.full((200, 12), 0.3, dtype=torch.float64),
        "one": draw(200, 1),
        "fewer rows": draw(6, 12),
    }


@pytest.mark.parametrize("name", planted())
def test_oracle(name: str) -> None:
    codes = planted()[name]
    found = code_health(codes)
    for key, value in oracle(codes.numpy()).items():
        assert getattr(found, key).item() == pytest.approx(value, rel=1e-9, abs=1e-12), key


def test_planted_collapses() -> None:
    found = {name: code_health(codes) for name, codes in planted().items()}
    assert found["independent"].rank_share > 0.9
    assert found["independent"].copies == 0
    assert found["copies"].copies == pytest.approx(8 / 12)
    assert found["two directions"].rank <= 2 + 1e-9
    assert found["constants"].alive == pytest.approx(3 / 12)
    assert found["nothing"].rank == found["nothing"].alive == 0


def test_independent_functions_have_a_share_of_one() -> None:
    """Also with fewer rows than functions, where the rank itself is limited by the rows."""
    for rows, k in ((1000, 50), (40, 200)):
        shares = torch.stack([code_health(draw(rows, k, seed)).rank_share for seed in range(20)])
        assert shares.mean().item() == pytest.approx(1, abs=0.05)


def test_scale_shift_sign_and_order_do_not_matter() -> None:
    z = planted()["copies"]
    scaled = (z * torch.linspace(-2, 3.7, 12, dtype=torch.float64) + 5)[torch.randperm(200)]
    for key in ("rank", "rank_share", "copies", "alive"):
        torch.testing.assert_close(getattr(code_health(scaled), key), getattr(code_health(z), key))


def test_of_many_functions_the_leading_ones() -> None:
    z = draw(8, LEADING + 5)
    assert code_health(z).variance == code_health(z[:, :LEADING]).variance


def test_half_precision_is_measured_in_full() -> None:
    z = planted()["independent"]
    assert code_health(z.bfloat16()).rank.dtype == torch.float32
    torch.testing.assert_close(code_health(z.bfloat16()).rank.double(), code_health(z).rank, rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [(3,), (1, 4), (4, 0), (2, 3, 4)])
def test_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected codes \(B, k\)"):
        code_health(torch.zeros(shape))
