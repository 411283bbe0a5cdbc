"""Every objective keeps one contract; rivals agree with their papers; doubts are spoken when they are due."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from neigenmaps.functional.eigenmap import EigenmapResult
from neigenmaps.nn import (
    BarlowTwins,
    NestedLowRank,
    NeuralEigenmap,
    Objective,
    PaperNeuralEigenmap,
    SimCLR,
    SpectralContrastive,
    VICReg,
)
from oracles import rivals

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "sequential": lambda: NestedLowRank("sequential"),
    "joint": lambda: NestedLowRank("joint"),
    "octave": lambda: NestedLowRank("octave"),
    "constant": lambda: NeuralEigenmap(alpha=0.7),
    "adaptive": lambda: NeuralEigenmap(weighting="adaptive"),
    "cross_half": lambda: NeuralEigenmap(cross_half=True),
    "coupled": lambda: NeuralEigenmap(stop_gradient=False),
    "paper": PaperNeuralEigenmap,
    "spectral": SpectralContrastive,
    "barlow": BarlowTwins,
    "vicreg": VICReg,
    "simclr": SimCLR,
}
every_objective = pytest.mark.parametrize("objective", [make() for make in OBJECTIVES.values()], ids=list(OBJECTIVES))


def make_views(rows: int = 24, width: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Correlated views with a mean and unequal scales, so that nothing holds by symmetry."""
    generator = torch.Generator().manual_seed(3)
    shared, first, second = torch.randn(3, rows, width, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.4, 1.6, width, dtype=torch.float64)
    return tuple(((shared + 0.5 * own) * scale + 0.3).to(dtype) for own in (first, second))  # type: ignore[return-value]


def gradients(objective: Objective, z1: Tensor, z2: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    z1, z2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    (objective(z1, z2).loss * factor).backward()
    assert z1.grad is not None
    assert z2.grad is not None
    return z1.grad, z2.grad


@every_objective
def test_result_and_gradients(objective: Objective) -> None:
    z1, z2 = make_views()
    result = objective(z1.requires_grad_(), z2.requires_grad_())
    assert isinstance(result, EigenmapResult)
    assert result.loss.shape == result.alignment.shape == result.orthogonality.shape == ()
    assert result.eigenvalues.shape == (5,)
    assert not result.eigenvalues.requires_grad
    assert all(torch.isfinite(part).all() for part in result)
    assert all(torch.isfinite(grad).all() and grad.abs().sum() > 0 for grad in gradients(objective, *make_views()))


@every_objective
def test_a_scaled_loss_scales_the_gradient(objective: Objective) -> None:
    once, thousandfold = gradients(objective, *make_views()), gradients(objective, *make_views(), factor=1000.0)
    for a, b in zip(once, thousandfold, strict=True):
        torch.testing.assert_close(b, 1000 * a, rtol=1e-10, atol=1e-10)


@every_objective
def test_order_of_rows_and_of_views_is_free(objective: Objective, request: pytest.FixtureRequest) -> None:
    z1, z2 = make_views()
    loss = objective(z1, z2).loss
    torch.testing.assert_close(objective(z2, z1).loss, loss, rtol=1e-10, atol=1e-10)
    order = torch.randperm(len(z1), generator=torch.Generator().manual_seed(0))
    if getattr(objective, "cross_half", False):  # its halves are the even and the odd rows
        order = torch.cat([order[order % 2 == 0], order[order % 2 == 1]]).view(2, -1).T.flatten()
    torch.testing.assert_close(objective(z1[order], z2[order]).loss, loss, rtol=1e-10, atol=1e-10)


@every_objective
def test_half_precision_and_autocast_sum_in_float32(objective: Objective) -> None:
    z1, z2 = make_views(dtype=torch.bfloat16)
    exact = objective(z1.float(), z2.float()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective(z1, z2).loss
    for loss in (objective(z1, z2).loss, inside):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, rtol=1e-6, atol=1e-6)
    assert all(torch.isfinite(grad).all() for grad in gradients(objective, z1, z2))


@every_objective
def test_inputs_stay_untouched(objective: Objective) -> None:
    z1, z2 = make_views()
    before = z1.clone(), z2.clone()
    objective(z1, z2)
    assert torch.equal(z1, before[0])
    assert torch.equal(z2, before[1])


def test_rivals_against_their_papers() -> None:
    z1, z2 = make_views()
    a, b = z1.numpy(), z2.numpy()
    expected = {
        BarlowTwins(0.02): rivals.barlow_twins(a, b, 0.02),
        VICReg(25, 10, 2): rivals.vicreg(a, b, 25, 10, 2),
        SimCLR(0.2): rivals.simclr(a, b, 0.2),
    }
    for objective, loss in expected.items():
        np.testing.assert_allclose(objective(z1, z2).loss.item(), loss, rtol=1e-10, err_msg=type(objective).__name__)


def test_terms_of_a_rival_are_measured() -> None:
    z1, z2 = make_views()
    result = SimCLR()(z1, z2)
    correlation = np.corrcoef(np.concatenate([z1.numpy(), z2.numpy()]).T)
    np.testing.assert_allclose(result.orthogonality.item(), (np.triu(correlation, 1) ** 2).sum(), rtol=1e-10)
    assert result.alignment.item() == pytest.approx(result.eigenvalues.sum().item())


@every_objective
def test_more_functions_than_rows_are_doubted(objective: Objective) -> None:
    doubt = objective.doubt(64, 65)
    assert doubt is not None
    assert "batch" in doubt
    assert objective.doubt(1024, 64) is None


def test_adaptive_weighting_doubts_small_batches() -> None:
    objective = NeuralEigenmap(weighting="adaptive")
    doubt = objective.doubt(512, 128)
    assert doubt is not None
    assert "above 1024" in doubt
    assert objective.doubt(1025, 128) is None
    assert NeuralEigenmap(weighting="adaptive", floor=0.5).doubt(512, 128) is None


def test_constant_weighting_doubts_eigenvalues_it_cannot_separate() -> None:
    spectrum = torch.tensor([0.9, 0.5, 0.2])  # needs (0.9 - 0.2) / 0.9^2 = 0.86 and (0.5 - 0.2) / 0.5^2 = 1.2
    doubt = NeuralEigenmap(alpha=1.1).doubt_spectrum(spectrum)
    assert doubt is not None
    assert "1.2" in doubt
    assert NeuralEigenmap(alpha=1.3).doubt_spectrum(spectrum) is None
    assert NeuralEigenmap(alpha=0.1, weighting="adaptive").doubt_spectrum(spectrum) is None


def test_the_paper_counts_the_constant_function() -> None:
    spectrum = torch.full((512,), 0.5)  # alone they need no penalty; beside the constant (1 - 0.5) / 1
    doubt = PaperNeuralEigenmap().doubt_spectrum(spectrum)  # 204.8 / 512 = 0.4 in unit-variance form
    assert doubt is not None
    assert "0.4 " in doubt
    assert PaperNeuralEigenmap(alpha=0.051).doubt_spectrum(spectrum) is None


@pytest.mark.parametrize("nesting", ["sequential", "joint"])
def test_the_recommended_objective_never_doubts_a_spectrum(nesting: str) -> None:
    objective = NestedLowRank(nesting)  # type: ignore[arg-type]
    assert objective.doubt_spectrum(torch.linspace(1, 0, 100)) is None
    assert objective.doubt(256, 128) is None
