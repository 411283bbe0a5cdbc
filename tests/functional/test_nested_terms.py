"""Blocks of columns and of rows change nothing, and no k x k matrix is kept: against plain autograd over whole matrices."""

import pytest
import torch
from torch import Tensor

from neigenmaps.functional import eigenmap, nested_terms


def plain(z1: Tensor, z2: Tensor, nesting: str, threshold: float) -> Tensor:
    """The formula of the docstring, one whole matrix after the other."""
    batch, width = z1.shape
    mean = (z1.mean(0) + z2.mean(0)) / 2
    z1, z2 = z1 - mean, z2 - mean
    level = torch.ones(width, dtype=z1.dtype)
    share = None
    if nesting != "sequential":
        share = (
            torch.ones(width, dtype=z1.dtype) if nesting == "joint" else 1 / torch.arange(1, width + 1, dtype=z1.dtype)
        )
        share = share / share.sum()
        level = torch.stack([share[j:].sum() for j in range(width)])
    p = z1 * z2
    if share is None:
        stopped = (z1.detach().T @ z1) * (z2.detach().T @ z2)
        pairs = 2 * stopped.triu(1).sum() + (z1.square().sum(0) * z2.square().sum(0)).sum()
        before = torch.stack([p[:, :j].detach().sum(1) for j in range(width)], 1)
        same = (p * (p + 2 * before)).sum()
    else:
        pairs = (torch.minimum(level[:, None], level) * (z1.T @ z1) * (z2.T @ z2)).sum()
        same = sum((share[m] * p[:, : m + 1].sum(1).square().sum() for m in range(width)), torch.zeros(()))
    return (pairs - same) / (batch * (batch - 1)) - 2 * (level * (p - threshold / 2 * (z1**2 + z2**2)).mean(0)).sum()


@pytest.mark.parametrize("nesting", ["sequential", "joint", "octave"])
@pytest.mark.parametrize(("block", "rows"), [(3, 4), (1, 1), (11, 23), (4, 512)])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_blocks_change_nothing(
    monkeypatch: pytest.MonkeyPatch, nesting: eigenmap.Nesting, block: int, rows: int, threshold: float
) -> None:
    monkeypatch.setattr(nested_terms, "BLOCK", block)
    monkeypatch.setattr(nested_terms, "ROWS", rows)
    ours, theirs = ([z.requires_grad_() for z in make(23, 11)] for _ in range(2))
    loss = eigenmap.nested_low_rank_loss(*ours, nesting=nesting, threshold=threshold).loss
    wanted = plain(*theirs, nesting, threshold)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    (3 * loss).backward()  # the gradient that comes in counts
    (3 * wanted).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("nesting", ["sequential", "joint", "octave"])
@pytest.mark.parametrize("center", [True, False])
def test_a_gradient_that_is_asked_for_again(nesting: eigenmap.Nesting, center: bool) -> None:
    """The first one was written over what forward had kept."""
    views = [z.requires_grad_() for z in make(13, 7)]
    result = eigenmap.nested_low_rank_loss(*views, nesting=nesting, center=center)
    once, again = (torch.autograd.grad(result.loss, views, retain_graph=True) for _ in range(2))
    parts = [torch.autograd.grad(part, views, retain_graph=True) for part in (result.alignment, result.orthogonality)]
    for number in (0, 1):
        torch.testing.assert_close(again[number], once[number], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(parts[1][number] - 2 * parts[0][number], once[number], rtol=1e-12, atol=1e-15)


def make(rows: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("nesting", ["sequential", "octave"])
def test_no_matrix_of_all_pairs_is_kept(monkeypatch: pytest.MonkeyPatch, nesting: eigenmap.Nesting) -> None:
    """What is kept for backward: two centred views, two gradients of the size of the batch, and vectors."""
    monkeypatch.setattr(nested_terms, "BLOCK", 16)
    saved: list[int] = []
    z1, z2 = (z.requires_grad_() for z in make(8, 128))

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = eigenmap.nested_low_rank_loss(z1, z2, nesting=nesting)
    assert sum(saved) <= 2 * z1.numel() + 3 * 128
    assert [part.shape for part in result.alignment.grad_fn.gradient] == [z1.shape, z2.shape]  # type: ignore[union-attr]


def test_without_a_gradient_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda self, *given: calls.append(self.shape))
    eigenmap.nested_low_rank_loss(*make(8, 4))
    assert calls == []


@pytest.mark.parametrize("nesting", ["sequential", "octave"])
@pytest.mark.parametrize("center", [True, False])
def test_quotients_fall_off_on_the_way(nesting: eigenmap.Nesting, center: bool) -> None:
    """Those of a pass of their own, also for a constant and for one far from zero."""
    z1, z2 = make(40, 300)  # several blocks
    z2 = z1 + 0.5 * z2
    for z in (z1, z2):
        z[:, 3], z[:, 200] = 7.0, z[:, 200] + 1e3
    found = eigenmap.nested_low_rank_loss(z1.requires_grad_(), z2, nesting=nesting, center=center).eigenvalues
    torch.testing.assert_close(found, eigenmap.rayleigh_quotients(z1, z2), rtol=1e-12, atol=0)
    assert found[3] == 0
    assert not found.requires_grad


def test_a_second_backward_gives_the_same() -> None:
    z1, z2 = (z.requires_grad_() for z in make(9, 5))
    loss = eigenmap.nested_low_rank_loss(z1, z2).loss
    first, second = (torch.autograd.grad(loss, [z1, z2], retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
