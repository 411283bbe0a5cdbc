"""p values of agreement against permutations, and groups of spaces against planted orders."""

import pytest
import torch
from torch import Tensor

from neigenmaps.functional.row_agreement import agreeing_groups, agreement_p_values
from oracles import similarity as oracle
from oracles.planted_alignment import normal, turned


def unbiased_cka(a: Tensor, b: Tensor) -> float:
    return oracle.cka(oracle.linear_kernel(a.numpy()), oracle.linear_kernel(b.numpy()), unbiased=True)


def everywhere(spaces: list[Tensor]) -> Tensor:
    return torch.ones(len(spaces[0]), len(spaces), dtype=torch.bool)


@pytest.mark.parametrize("width", [1, 5, 60])
def test_independent_rows_give_uniform_p_values(width: int) -> None:
    draws = [
        agreement_p_values(
            [normal(50, width, seed=2 * s), normal(50, width, seed=2 * s + 1)],
            everywhere([normal(50, 2, seed=0)]).expand(-1, 2),
        )[0, 1]
        for s in range(300)
    ]
    p_S = torch.stack(draws)
    assert 0.01 < (p_S < 0.05).double().mean() < 0.1
    assert (0.2 if width == 1 else 0.3) < (p_S < 0.5).double().mean() < 0.6  # a square of one normal leans to the left


def test_the_statistic_is_the_oracles_unbiased_cka() -> None:
    spaces = [x + 5 for x in turned(40, 4, "abc", noise=3.0).values()]
    p_MM = agreement_p_values(spaces, everywhere(spaces))
    for m in range(3):
        for n in range(3):
            if m != n:
                z = unbiased_cka(spaces[m], spaces[n]) * (40 * 37 / 2) ** 0.5
                expected = 1 - torch.special.ndtr(torch.tensor(z, dtype=torch.float64))
                assert p_MM[m, n].item() == pytest.approx(float(expected), abs=1e-9)


def test_a_permutation_test_says_the_same() -> None:
    a, b = turned(60, 3, "ab", noise=2.5).values()
    found = agreement_p_values([a, b], everywhere([a, b]))[0, 1]
    orders = [torch.randperm(60, generator=torch.Generator().manual_seed(s)) for s in range(300)]
    values = [unbiased_cka(a, b[order]) for order in orders]
    own = unbiased_cka(a, b)
    assert abs(found - sum(value >= own for value in values) / 300) < 0.058  # two standard errors of 300 draws


def test_only_rows_that_both_have_are_read() -> None:
    spaces = list(turned(80, 4, "abc", noise=0.3).values())
    present = torch.ones(80, 3, dtype=torch.bool)
    present[:40, 1] = False
    spoiled = [x.clone() for x in spaces]
    spoiled[1][:40] = 1e6
    found = agreement_p_values(spoiled, present)
    assert (found <= 1e-6).all()
    part = [x[40:] for x in spaces]
    assert torch.allclose(found[1], agreement_p_values(part, everywhere(part))[1], atol=1e-12)
    present[30:, 1] = False
    present[:30, 1] = True
    present[:10, 0] = False  # 20 rows in common tell nothing
    assert agreement_p_values([spaces[0], spaces[1].flip(0), spaces[2]], present)[0, 1] == 0


def test_few_rows_tell_nothing() -> None:
    few = [normal(29, 3, seed=m) for m in range(2)]
    assert (agreement_p_values(few, everywhere(few)) == 0).all()


def test_groups_are_joined_through_members_and_the_level_counts_tries() -> None:
    p_MM = torch.ones(5, 5, dtype=torch.float64)
    for m, n in ((0, 3), (3, 4), (1, 2)):
        p_MM[m, n] = p_MM[n, m] = 0.01
    assert agreeing_groups(p_MM, 0.05) == [[0, 3, 4], [1, 2]]
    assert agreeing_groups(p_MM, 0.03) == [[0], [1], [2], [3], [4]]
    assert agreeing_groups(p_MM, 1.0) == [[0, 1, 2, 3, 4]]
