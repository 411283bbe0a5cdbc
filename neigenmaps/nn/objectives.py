"""Objectives as modules: they hold hyper-parameters, and call one function of `functional.eigenmap` (or lightly, for rivals)."""

import abc
from collections.abc import Sequence
from functools import partial

import torch
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from torch import Tensor, nn

from neigenmaps.functional.eigenmap import (
    PAPER_TEMPERATURE,
    EigenmapResult,
    Nesting,
    Weighting,
    adaptive_floor,
    nested_low_rank_loss,
    neural_eigenmap_loss,
    paper_alpha,
    paper_neural_eigenmap_loss,
    rayleigh_quotients,
    separating_alpha,
    spectral_contrastive_loss,
)
from neigenmaps.functional.multi_view import centred, over_pairs
from neigenmaps.functional.nested_terms import Reduce


class Objective(nn.Module, abc.ABC):
    """Two paired batches (B, k) of the global batch -> `EigenmapResult`."""

    @abc.abstractmethod
    def forward(self, z1: Tensor, z2: Tensor) -> EigenmapResult: ...

    def over_pairs(self, views: Sequence[Tensor], groups: Sequence[int]) -> EigenmapResult:
        """`functional.multi_view.over_pairs` of this objective: V views (B, k), so many in each group."""
        return over_pairs(self, views, groups)

    def doubt(self, batch: int, width: int) -> str | None:
        """Why this objective may not tell all functions apart at this batch size and width, and what to do; or None."""
        if width > batch:
            return (
                f"{width} functions from a batch of {batch}: their moments have rank below {2 * batch}, so that the last "
                f"functions follow batch noise; use a batch of at least {width}, or a smaller width"
            )
        return None

    def doubt_spectrum(self, eigenvalues: Tensor) -> str | None:
        """The same, once eigenvalues (k,) have been measured on independent data."""
        return None


class NestedLowRank(Objective):
    """`nested_low_rank_loss`: ordered, nothing that must be tuned. scale, threshold: how short runs get further, as there."""

    def __init__(self, nesting: Nesting = "sequential", scale: float = 1.0, threshold: float = 0.0) -> None:
        super().__init__()
        self.nesting: Nesting = nesting
        self.scale = scale
        self.threshold = threshold

    def forward(self, z1: Tensor, z2: Tensor) -> EigenmapResult:
        return self.over_pairs((z1, z2), (2,))

    def _loss(self, z1: Tensor, z2: Tensor, *, center: bool = True, reduce: Reduce | None = None) -> EigenmapResult:
        return nested_low_rank_loss(
            z1, z2, nesting=self.nesting, scale=self.scale, threshold=self.threshold, center=center, reduce=reduce
        )

    def over_pairs(
        self, views: Sequence[Tensor], groups: Sequence[int], *, reduce: Reduce | None = None
    ) -> EigenmapResult:
        """Centred by the mean of all views, so that the constant goes and nothing else. reduce: as in the function."""
        if len(views) == 2:
            return self._loss(*views, reduce=reduce)
        loss = partial(self._loss, center=False, reduce=reduce)
        precise = [view.to(torch.promote_types(view.dtype, torch.float32)) for view in views]
        return over_pairs(loss, centred(precise, reduce=reduce), groups)


class NeuralEigenmap(Objective):
    """`neural_eigenmap_loss`: the paper's objective, centred, with alpha in unit-variance form."""

    def __init__(
        self,
        alpha: float = 1.0,
        weighting: Weighting = "constant",
        stop_gradient: bool = True,
        cross_half: bool = False,
        floor: float | None = None,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.weighting: Weighting = weighting
        self.stop_gradient = stop_gradient
        self.cross_half = cross_half
        self.floor = floor

    def forward(self, z1: Tensor, z2: Tensor) -> EigenmapResult:
        return neural_eigenmap_loss(
            z1,
            z2,
            alpha=self.alpha,
            weighting=self.weighting,
            stop_gradient=self.stop_gradient,
            cross_half=self.cross_half,
            floor=self.floor,
        )

    def doubt(self, batch: int, width: int) -> str | None:
        floor = adaptive_floor(batch, width) if self.floor is None else self.floor
        if self.weighting == "adaptive" and floor >= 1:
            return (
                f"adaptive weighting divides by eigenvalues known to 1/sqrt(B): at batch {batch} and width {width} its floor "
                f"is {floor:.2f}, so that it is a constant weight of {self.alpha / floor:.2f}; use a batch above {8 * width}, or "
                "the nested low-rank objective"
            )
        return super().doubt(batch, width)

    def doubt_spectrum(self, eigenvalues: Tensor) -> str | None:
        needed = float(separating_alpha(eigenvalues.clamp_min(1e-3)))
        if self.weighting == "constant" and self.stop_gradient and self.alpha < needed:
            return duplicates_expected(self.alpha, needed)
        return None


class PaperNeuralEigenmap(Objective):
    """`paper_neural_eigenmap_loss`: the published code's numbers, alpha as its command line takes it (None: 20.48 / k)."""

    def __init__(self, alpha: float | None = None, stop_gradient: bool = True) -> None:
        super().__init__()
        self.alpha = alpha
        self.stop_gradient = stop_gradient

    def forward(self, z1: Tensor, z2: Tensor) -> EigenmapResult:
        return paper_neural_eigenmap_loss(z1, z2, alpha=self.alpha, stop_gradient=self.stop_gradient)

    def doubt_spectrum(self, eigenvalues: Tensor) -> str | None:
        width = eigenvalues.shape[0]
        alpha = paper_alpha(width) if self.alpha is None else self.alpha * PAPER_TEMPERATURE
        with_constant = torch.cat([eigenvalues.new_ones(1), eigenvalues.clamp_min(1e-3)])
        needed = float(separating_alpha(with_constant))
        return duplicates_expected(alpha, needed) if self.stop_gradient and alpha < needed else None


class SpectralContrastive(Objective):
    """`spectral_contrastive_loss`: the span without an order."""

    def forward(self, z1: Tensor, z2: Tensor) -> EigenmapResult:
        return spectral_contrastive_loss(z1, z2)


class Rival(Objective):
    """A loss of the lightly library; its terms are measured on the outputs, not optimised."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, z1: Tensor, z2: Tensor) -> EigenmapResult:
        with torch.autocast(z1.device.type, enabled=False):
            z1, z2 = (z.to(torch.promote_types(z.dtype, torch.float32)) for z in (z1, z2))
            loss = self.loss(z1, z2)
        quotients = rayleigh_quotients(z1, z2)
        with torch.no_grad():
            correlation = torch.corrcoef(torch.cat([z1, z2]).T).nan_to_num()
        return EigenmapResult(loss, quotients.sum(), correlation.triu(1).square().sum(), quotients)


class BarlowTwins(Rival):
    """Zbontar et al., arXiv 2103.03230, through lightly."""

    def __init__(self, lambda_param: float = 0.005) -> None:
        super().__init__(BarlowTwinsLoss(lambda_param=lambda_param))


class VICReg(Rival):
    """Bardes et al., arXiv 2105.04906, through lightly."""

    def __init__(self, lambda_param: float = 25.0, mu_param: float = 25.0, nu_param: float = 1.0) -> None:
        super().__init__(VICRegLoss(lambda_param=lambda_param, mu_param=mu_param, nu_param=nu_param))


class SimCLR(Rival):
    """Chen et al., arXiv 2002.05709 (NT-Xent), through lightly."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__(NTXentLoss(temperature=temperature))


def duplicates_expected(alpha: float, needed: float) -> str:
    return (
        f"a penalty weight of {alpha:.3g} (unit-variance form) cannot separate these eigenfunctions: a second copy of an "
        f"earlier function pays more than a new one below {needed:.3g}; raise alpha above it, or use the nested low-rank "
        "objective"
    )
