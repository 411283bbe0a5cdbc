import pytest
import torch

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.soft_matching import (
    Pairs,
    graduated_map,
    held_out_agreement,
    mutual_best,
    pinned_among,
    refined_pairs,
    settled_matches,
    settled_sharpness,
    soft_matches,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned_copy(n: int = 100) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit rows with uneven axes; the same in eight dimensions, rows shuffled; Y's row for every row of X."""
    x = torch.nn.functional.normalize(normal(n, 5) * torch.tensor([3.0, 2.4, 1.9, 1.4, 1.0]), dim=1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    return x, (x @ torch.linalg.qr(normal(8, 5, seed=2)).Q.T)[order], order.argsort()


def test_soft_matches_share_out_rows_and_columns_evenly() -> None:
    p = soft_matches(normal(30, 20), 1.0, n_steps=200)
    torch.testing.assert_close(p.sum(dim=1), torch.full((30,), 1 / 30).double())
    torch.testing.assert_close(p.sum(dim=0), torch.full((20,), 1 / 20).double())


def test_soft_matches_are_a_scaled_exponential_and_blind_to_scale_and_offsets() -> None:
    scores = normal(9, 7)
    p = soft_matches(scores, 2.0, n_steps=500)
    rest = p.log() - 2 * scores / scores.std()
    torch.testing.assert_close(
        rest - rest[:1] - rest[:, :1] + rest[0, 0], torch.zeros(9, 7).double(), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(soft_matches(10 * scores + 3, 2.0, n_steps=500), p)


def test_a_hub_wins_one_row_only() -> None:
    """Column 0 is the nearest of every row by a little; evenly shared out, every row gets its own."""
    scores = torch.eye(6, dtype=torch.float64)
    scores[:, 0] += 1.1
    assert (scores.argmax(dim=1) == 0).all()
    assert torch.equal(soft_matches(scores).argmax(dim=1), torch.arange(6))
    assert len(mutual_best(scores).x_P) == 1


def test_mutual_best_are_each_others_best() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0], [4.0, 2.0, 1.0]])
    found = mutual_best(scores)
    assert found.x_P.tolist() == [1]
    assert found.y_P.tolist() == [0]


def test_sharpness_follows_the_noise_within_bounds() -> None:
    """cosine 0.9, deviation 0.5: 1 / (2 x 0.1 x 0.5) = 10."""
    deviation = torch.tensor(0.5)
    assert settled_sharpness(torch.full((5,), 0.9), deviation) == pytest.approx(10, rel=1e-5)
    assert settled_sharpness(torch.full((5,), 1.0), deviation) == 64
    assert settled_sharpness(torch.full((5,), 0.1), deviation) == settled_sharpness(torch.zeros(0), deviation) == 4


def test_graduated_map_finds_a_shuffled_copy_from_two_anchors() -> None:
    x, y, there = turned_copy()
    ix = torch.tensor([0, 1])
    anchors = Pairs(ix, there[ix])
    m = graduated_map(x, y, x[ix].T @ y[there[ix]], anchors)
    assert m.shape == (5, 8)
    found = refined_pairs(x, y, mutual_best(soft_matches(x @ m @ y.T)), pinned=anchors)
    assert torch.equal(there[found.x_P], found.y_P)
    assert len(found.x_P) == 100
    assert held_out_agreement(x, y, found) == 1


def test_graduated_map_does_not_care_for_the_order_of_rows() -> None:
    x, y, _ = turned_copy()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(5))
    start = normal(5, 8, seed=6)
    torch.testing.assert_close(graduated_map(x[order], y, start), graduated_map(x, y, start), atol=1e-9, rtol=0)


def test_held_out_agreement_of_wrong_pairs_is_near_zero() -> None:
    x, y, there = turned_copy()
    wrong = Pairs(torch.arange(100), there.roll(1))
    assert held_out_agreement(x, y, wrong) < 0.05
    assert held_out_agreement(x, y, Pairs(torch.arange(1), there[:1])) == 0


def test_pinned_pairs_displace_those_that_contradict_them() -> None:
    found = Pairs(torch.tensor([0, 1, 2, 3]), torch.tensor([5, 6, 7, 8]))
    both = pinned_among(found, Pairs(torch.tensor([1, 9]), torch.tensor([4, 8])))
    assert set(zip(both.x_P.tolist(), both.y_P.tolist(), strict=True)) == {(0, 5), (1, 4), (2, 7), (9, 8)}
    assert pinned_among(found, None) is found


def test_settled_matches_of_a_right_map_are_right() -> None:
    x, y, there = turned_copy()
    turn = torch.linalg.lstsq(x, y[there]).solution
    assert torch.equal(settled_matches(x @ turn @ y.T).argmax(dim=1), there)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ShapeError, match="expected scores"):
        soft_matches(torch.zeros(3))
    with pytest.raises(InputError, match="sharpness > 0"):
        soft_matches(normal(3, 3), 0.0)
    with pytest.raises(ShapeError, match="expected a start"):
        graduated_map(normal(9, 3), normal(8, 4), normal(4, 3))
