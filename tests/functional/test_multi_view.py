"""V views: weights of pairs against a mixture's kernel, losses against loops over pairs, shares against the whole."""

import itertools

import pytest
import torch
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.functional.eigenmap import nested_low_rank_loss, spectral_contrastive_loss
from neigenmaps.functional.multi_view import centred, over_pairs, pair_weights
from neigenmaps.nn import (
    BarlowTwins,
    NestedLowRank,
    NeuralEigenmap,
    Objective,
    SimCLR,
    SpectralContrastive,
    VICReg,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("groups", [(2,), (5,), (2, 2), (2, 4), (3, 2, 4)])
def test_weighted_pairs_are_the_kernel_of_the_mixture(groups: tuple[int, ...]) -> None:
    """With f_v = E[f | image] the same for a group, the mean over pairs is the square of the mixture's mean."""
    weights = pair_weights(groups)
    n_views = sum(groups)
    means_G = draw(len(groups), 3)
    means_V = means_G[torch.arange(len(groups)).repeat_interleave(torch.tensor(groups))]
    mixture = sum(n / n_views * mean for n, mean in zip(groups, means_G, strict=True))
    pairs = torch.einsum("vw,vi,wj->ij", weights, means_V, means_V)
    torch.testing.assert_close(pairs, torch.outer(mixture, mixture), rtol=1e-12, atol=1e-14)
    assert torch.equal(weights, weights.T)
    assert weights.diagonal().eq(0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)


def test_equal_weights_across_groups_would_not_be_positive() -> None:
    """What the weights are for: a function that tells large from small views, with opposite signs."""
    means_V = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    equal = (1 - torch.eye(4, dtype=torch.float64)) / 12
    assert means_V @ equal @ means_V < -0.3
    assert abs(means_V @ pair_weights((2, 2)) @ means_V) < 1e-12


OBJECTIVES = [
    NestedLowRank("sequential"), NestedLowRank("octave"), NeuralEigenmap(), NeuralEigenmap(cross_half=True),
    SpectralContrastive(), BarlowTwins(), VICReg(), SimCLR(),
]  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: type(one).__name__)
def test_every_objective_treats_two_views_alike(objective: Objective) -> None:
    """So that unordered pairs stand for ordered ones."""
    z1, z2 = draw(8, 3), draw(8, 3, seed=1)
    torch.testing.assert_close(objective(z1, z2).loss, objective(z2, z1).loss, rtol=1e-10, atol=0)


@pytest.mark.parametrize("groups", [(3,), (2, 3)])
def test_spectral_loss_over_all_ordered_pairs(groups: tuple[int, ...]) -> None:
    views, weights = draw(sum(groups), 6, 3), pair_weights(groups)
    found = over_pairs(spectral_contrastive_loss, list(views), groups)
    expected = sum(
        weights[a, b] * spectral_contrastive_loss(views[a], views[b]).loss
        for a, b in itertools.permutations(range(len(views)), 2)
    )
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    assert found.eigenvalues.shape == (3,)


@pytest.mark.parametrize("groups", [(4,), (2, 2), (2,)])
@pytest.mark.parametrize(("scale", "threshold"), [(1.0, 0.0), (2.0, 0.3)])
def test_nested_loss_of_moments_written_down(groups: tuple[int, ...], scale: float, threshold: float) -> None:
    """-2 sum_j R_jj + sum_ij G_ij G_ij' with the mixture's centring, squares over different images and views."""
    views, weights = draw(sum(groups), 5, 3), pair_weights(groups)
    f = (views - views.mean((0, 1))) / scale
    n = f.shape[1]
    products = torch.einsum("vbi,vbj->vbij", f, f)
    expected = -2 * torch.einsum("vw,vbi,wbi->", weights, f, f) / n
    expected = expected + 2 * threshold * torch.einsum("vw,vbi,vbi->", weights, f, f) / n
    for b, c in itertools.permutations(range(n), 2):
        expected = expected + torch.einsum("vw,vij,wij->", weights, products[:, b], products[:, c]) / (n * (n - 1))
    found = NestedLowRank("sequential", scale, threshold).over_pairs(list(views), groups)
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=0)


def test_two_views_are_the_objective_itself() -> None:
    views = [draw(6, 3).requires_grad_() for _ in range(2)]
    for objective in OBJECTIVES:
        assert torch.equal(objective.over_pairs(views, (2,)).loss, objective(*views).loss)


def test_gradient() -> None:
    views = [draw(5, 3, seed=seed).requires_grad_() for seed in range(4)]

    def loss(*views: Tensor) -> Tensor:
        return NestedLowRank("octave").over_pairs(views, (2, 2)).loss

    assert torch.autograd.gradcheck(loss, views)


def test_shares_of_rows_give_the_mean_and_gradient_of_the_whole() -> None:
    views = draw(3, 7, 2)
    out = draw(3, 7, 2, seed=5)
    whole = [view.clone().requires_grad_() for view in views]
    torch.stack(centred(whole)).backward(out)
    parts = [slice(0, 3), slice(3, 7)]
    for part in parts:
        other = parts[1 - parts.index(part)]
        waiting = [views[:, other].sum((0, 1)), torch.tensor(12.0 if part.start == 0 else 9.0)]
        waiting += [out[:, other].sum((0, 1)), waiting[1]]

        def reduce(value: Tensor, waiting: list[Tensor] = waiting) -> Tensor:
            return value + waiting.pop(0).to(value)

        leaves = [view[part].clone().requires_grad_() for view in views]
        torch.stack(centred(leaves, reduce=reduce)).backward(out[:, part])
        for leaf, expected in zip(leaves, whole, strict=True):
            assert leaf.grad is not None
            assert expected.grad is not None
            torch.testing.assert_close(leaf.grad, expected.grad[part], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("groups", [(), (1,), (2, 1)])
def test_a_view_without_a_pair(groups: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least 2 views in each group"):
        pair_weights(groups)


def test_views_that_are_not_in_the_groups() -> None:
    with pytest.raises(InputError, match=r"expected 4 views in groups of \[2, 2\], got 3"):
        over_pairs(nested_low_rank_loss, list(draw(3, 4, 2)), (2, 2))
