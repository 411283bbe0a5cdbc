"""Trust in rows against planted mixtures."""

import pytest
import torch
from torch import Tensor

from neigenmaps.functional.row_trust import consensus_trust, row_trust


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.95])
def test_planted_mixture_is_found(share: float) -> None:
    n = 2000
    right_N = torch.arange(n) < share * n
    cosine_N = torch.where(right_N, 0.6 + 0.1 * normal(n, seed=0), 0.12 * normal(n, seed=1))
    found = row_trust(cosine_N, 0.12 * normal(n, seed=2))
    assert found.share == pytest.approx(share, abs=0.02)
    assert ((found.probability_N > 0.5) == right_N).double().mean() > 0.99
    assert found.probability_N.mean() == pytest.approx(share, abs=0.02)


def test_nothing_wrong_and_nothing_right() -> None:
    null_N = 0.1 * normal(1000, seed=0)
    assert row_trust(0.7 + 0.1 * normal(1000, seed=1), null_N).probability_N.min() > 0.9
    assert row_trust(0.1 * normal(1000, seed=2), null_N).probability_N.mean() < 0.35


def test_better_agreement_is_never_trusted_less() -> None:
    """Rows far above the mean of the right ones are nearer the flat tail of chance than their own bell's."""
    cosine_N = torch.cat([0.3 * normal(300, seed=0), 0.45 + 0.05 * normal(300, seed=1), torch.full((3,), 0.99)])
    cosine_N = cosine_N.clamp(-0.8, 1).sort().values
    trust_N = row_trust(cosine_N, 0.3 * normal(600, seed=2)).probability_N
    assert (trust_N[cosine_N > 0].diff() >= -1e-12).all()


def test_a_space_that_matches_nothing_does_not_vouch_for_itself() -> None:
    shared = normal(400, 24, seed=0)
    units = [torch.nn.functional.normalize(shared + 0.5 * normal(400, 24, seed=m + 1), dim=1) for m in range(3)]
    units[1] = units[1].roll(1, dims=0)
    order_N = torch.randperm(400, generator=torch.Generator().manual_seed(9))
    trust_NM = consensus_trust(units, torch.ones(400, 3, dtype=torch.float64), order_N)
    assert trust_NM[:, 1].mean() < 0.35
    assert trust_NM[:, [0, 2]].mean() > 0.9


def test_the_space_with_the_wrong_rows_is_the_one_distrusted() -> None:
    shared = normal(400, 24, seed=0)
    units = [torch.nn.functional.normalize(shared + 0.5 * normal(400, 24, seed=m + 1), dim=1) for m in range(4)]
    wrong_N = torch.arange(400) < 100
    units[2][wrong_N] = units[2][wrong_N].roll(1, dims=0)
    order_N = torch.randperm(400, generator=torch.Generator().manual_seed(9))
    trust_NM = torch.ones(400, 4, dtype=torch.float64)
    trust_NM[:10, 1] = 0
    for _ in range(5):
        trust_NM = consensus_trust(units, trust_NM, order_N)
    assert not trust_NM[:10, 1].any()
    assert trust_NM[wrong_N, 2].mean() < 0.1
    assert trust_NM[~wrong_N, 2].mean() > 0.9
    assert trust_NM[10:, [0, 1, 3]].mean() > 0.95
