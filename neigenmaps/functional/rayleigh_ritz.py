"""Rayleigh-Ritz: the best ordered eigenfunctions and eigenvalues that a span of functions holds.

Any features f (ours, or a rival's) span functions w^T f. Among them the kernel's eigenfunctions are the stationary
points of E[w^T f(x) f(x+)^T w] / E[(w^T f)^2], i.e. of the pencil

    R w = lambda G w        G = E[f f^T], R = E[f f+^T], both centred and symmetrised over the views

which needs positive pairs only. The result does not depend on which basis of the span was given.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.linalg import column_signs, sorted_eigh


class PairMoments(NamedTuple):
    """Sums over pairs of views, in float64, that add up over batches, passes and processes."""

    pairs: Tensor  # (), how many
    sum_K: Tensor  # sum of (f + f+) / 2
    second_KK: Tensor  # sum of (f f^T + f+ f+^T) / 2
    cross_KK: Tensor  # sum of (f f+^T + f+ f^T) / 2

    def merge(self, other: "PairMoments") -> "PairMoments":
        return PairMoments(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def expectations(self, *, center: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (K,) that was taken off (zeros when not centred), G (K, K) and R (K, K)."""
        mean_K = self.sum_K / self.pairs if center else torch.zeros_like(self.sum_K)
        outer_KK = mean_K[:, None] * mean_K[None, :]
        return mean_K, self.second_KK / self.pairs - outer_KK, self.cross_KK / self.pairs - outer_KK


class RitzResult(NamedTuple):
    """Ordered eigenfunctions of a span: phi(x) = (f(x) - mean) @ rotation, with E[phi phi^T] = I on the fitted pairs.

    eigenvalues: (rank,), falling. rotation: (K, rank). mean: (K,), zeros when the constant is kept.
    rank: dimension of the span; K minus rank directions carried no variance and were dropped.
    """

    eigenvalues: Tensor
    rotation: Tensor
    mean: Tensor
    rank: int

    def __call__(self, f_NK: Tensor) -> Tensor:
        """Unit-variance eigenfunctions at new rows, (N, K) -> (N, rank), in the features' precision."""
        return (f_NK - self.mean.to(f_NK)) @ self.rotation.to(f_NK)

    def __repr__(self) -> str:
        first, last = self.eigenvalues[0].item(), self.eigenvalues[-1].item()
        width = self.rotation.shape[0]
        return f"RitzResult(rank {self.rank} of {width} columns, eigenvalues {first:.4g} to {last:.4g})"


def pair_moments(f: Tensor, f_positive: Tensor) -> PairMoments:
    """Moments of paired rows, (N, K) twice, N >= 1."""
    if f.ndim != 2 or f.shape != f_positive.shape:
        raise ShapeError(
            f"expected paired features of shape (N, K), got {tuple(f.shape)} and {tuple(f_positive.shape)}"
        )
    a, b = f.double(), f_positive.double()
    cross = a.T @ b
    return PairMoments(
        torch.tensor(float(f.shape[0]), dtype=torch.float64, device=f.device),
        (a.sum(0) + b.sum(0)) / 2,
        (a.T @ a + b.T @ b) / 2,
        (cross + cross.T) / 2,
    )


def rayleigh_ritz(f: Tensor, f_positive: Tensor, *, drop_constant: bool = True, ridge: float = 0.0) -> RitzResult:
    """Ordered eigenfunctions and eigenvalues out of the span of any features, from positive pairs.

    Signs: the largest value of each eigenfunction among the given rows is positive, whatever the basis of the span.
    Shapes: f, f_positive (N, K), row n of both from one image; N > K, or the eigenvalues are those of noise. With K
    columns and N rows they come out too large by about (1 - lambda^2) K / N: fit on many more rows than columns.
    Arguments and errors as in `ritz_from_moments`. NonFiniteError for NaN or infinity.
    """
    for name, value in (("f", f), ("f_positive", f_positive)):
        if not torch.isfinite(value).all():
            raise NonFiniteError(
                f"expected finite features, got NaN or infinity in {name}: check the images and the encoder"
            )
    moments = pair_moments(f, f_positive)
    return ritz_from_moments(moments, sign_rows=f, drop_constant=drop_constant, ridge=ridge)


def ritz_from_moments(
    moments: PairMoments,
    *,
    sign_rows: Tensor,
    drop_constant: bool = True,
    ridge: float = 0.0,
    rank_tolerance: float = 1e-10,
) -> RitzResult:
    """`rayleigh_ritz` from moments that were summed over many batches.

    sign_rows: (M, K) features at which signs are fixed (the largest value of each eigenfunction is positive).
    drop_constant: centre, which takes out the constant function and its eigenvalue 1.
    ridge: added to the column-normalised G (mean eigenvalue 1): damps directions known from few rows, at the price of
        exact invariance to the basis.
    rank_tolerance: share of the largest eigenvalue of the column-normalised G below which a direction is absent.
    Errors: InputError when no direction of the span varies, or fewer than 2 pairs were seen.
    """
    if moments.pairs < 2:
        raise InputError(f"expected at least 2 pairs, got {int(moments.pairs)}")
    if not 0 <= ridge < 1:
        raise InputError(f"ridge must be at least 0 and below 1, got {ridge}")
    mean_K, second_KK, cross_KK = moments.expectations(center=drop_constant)
    scale_K = second_KK.diagonal().clamp_min(0).sqrt()
    largest = moments.second_KK.diagonal().max() / moments.pairs
    inverse_scale_K = torch.where(scale_K.square() > 1e-14 * largest, 1 / scale_K, 0.0)
    normalise_KK = inverse_scale_K[:, None] * inverse_scale_K[None, :]
    power_K, basis_KK = sorted_eigh(second_KK * normalise_KK)
    rank = int((power_K > rank_tolerance * power_K[0]).sum()) if power_K[0] > 0 else 0
    if rank == 0:
        raise InputError("the features do not vary over the given rows: nothing to order; has the encoder collapsed?")
    whiten_KR = basis_KK[:, :rank] / (power_K[:rank] + ridge).sqrt()
    eigenvalues, rotation_RR = sorted_eigh(whiten_KR.T @ (cross_KK * normalise_KK) @ whiten_KR)
    rotation_KR = inverse_scale_K[:, None] * (whiten_KR @ rotation_RR)
    signs = column_signs((sign_rows.to(rotation_KR) - mean_K) @ rotation_KR)
    return RitzResult(eigenvalues, rotation_KR * signs, mean_K, rank)
