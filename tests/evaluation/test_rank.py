"""Rank measures on spectra and copies whose answer is known."""

import math

import pytest
import torch

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.evaluation import alpha_req, distinct_count, effective_rank, is_ordered, offdiagonal_rms, rankme


def orthonormal(n_rows: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n_rows, width, generator=generator, dtype=torch.float64)).Q


def gram(functions_NK: torch.Tensor) -> torch.Tensor:
    return functions_NK.T @ functions_NK / len(functions_NK)


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(torch.full((7,), 0.3)) == pytest.approx(7)
    assert effective_rank(torch.tensor([2.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.tensor([1.0, 1.0, -0.2])) == pytest.approx(2)
    assert effective_rank(torch.zeros(3)) == 0
    share = [0.5, 0.3, 0.2]
    expected = math.exp(-sum(p * math.log(p) for p in share))
    assert effective_rank(10 * torch.tensor(share, dtype=torch.float64)) == pytest.approx(expected, rel=1e-12)


def test_rankme_is_invariant_to_rotation_and_scale() -> None:
    features = orthonormal(50, 6) @ torch.diag(torch.tensor([5.0, 3, 2, 1, 1, 0.1], dtype=torch.float64))
    expected = effective_rank(torch.tensor([5.0, 3, 2, 1, 1, 0.1], dtype=torch.float64))
    assert rankme(features) == pytest.approx(expected, rel=1e-10)
    assert rankme(3 * features @ orthonormal(6, 6)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_finds_the_planted_exponent(alpha: float) -> None:
    directions = orthonormal(101, 100)
    directions = torch.linalg.qr(directions - directions.mean(dim=0)).Q  # centring must not mix the spectrum
    scales = torch.arange(1, 101, dtype=torch.float64) ** (-alpha / 2)
    features = torch.cat([directions * scales, torch.zeros(101, 3)], dim=1)  # null columns are left out of the fit
    assert alpha_req(features) == pytest.approx(alpha, rel=1e-6)
    assert alpha_req(features, first=11, last=50) == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize(("m", "copies"), [(1, 5), (3, 4), (6, 1)])
def test_copies_count_once_whatever_their_sign_and_scale(m: int, copies: int) -> None:
    generator = torch.Generator().manual_seed(1)
    functions = orthonormal(64, m).repeat(1, copies)
    functions = functions * (torch.randn(m * copies, generator=generator, dtype=torch.float64) * 3)
    order = torch.randperm(m * copies, generator=generator)
    assert distinct_count(gram(functions[:, order])) == m


def test_the_threshold_is_the_correlation_at_which_two_become_one() -> None:
    for correlation, expected in [(0.85, 2), (-0.85, 2), (0.95, 1), (-0.95, 1)]:
        assert distinct_count(torch.tensor([[1.0, correlation], [correlation, 1.0]])) == expected
    assert distinct_count(torch.tensor([[1.0, 0.85], [0.85, 1.0]]), threshold=0.2) == 1


def test_combinations_and_dead_functions_are_not_new() -> None:
    f = orthonormal(64, 2)
    assert distinct_count(gram(torch.cat([f, f.sum(dim=1, keepdim=True)], dim=1))) == 2
    assert distinct_count(gram(torch.cat([f, 1e-9 * torch.ones(64, 1)], dim=1))) == 2
    assert distinct_count(torch.zeros(3, 3)) == 0


def test_offdiagonal_rms() -> None:
    assert offdiagonal_rms(gram(orthonormal(64, 5))) == pytest.approx(0, abs=1e-12)
    assert offdiagonal_rms(gram(orthonormal(64, 1).repeat(1, 4) * torch.tensor([1, -2, 3, 4]))) == pytest.approx(1)
    assert offdiagonal_rms(torch.tensor([[4.0, 1.0], [1.0, 1.0]])) == pytest.approx(0.5)
    assert offdiagonal_rms(torch.ones(1, 1)) == 0


def test_is_ordered() -> None:
    assert is_ordered(torch.tensor([3.0, 2.0, 2.0]))
    assert not is_ordered(torch.tensor([3.0, 2.0, 2.1]))
    assert is_ordered(torch.tensor([3.0, 2.0, 2.1]), tol=0.2)
    assert is_ordered(torch.tensor([1.0]))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ShapeError, match="eigenvalues"):
        effective_rank(torch.ones(2, 2))
    with pytest.raises(NonFiniteError, match="diverged"):
        is_ordered(torch.tensor([torch.nan]))
    for measure in (distinct_count, offdiagonal_rms):
        with pytest.raises(ShapeError, match="Gram"):
            measure(torch.ones(2, 3))
    for measure in (rankme, alpha_req):
        with pytest.raises(ShapeError, match="features"):
            measure(torch.ones(3))
        with pytest.raises(InputError, match="floating"):
            measure(torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(InputError, match="two or more"):
        alpha_req(torch.ones(10, 3))
