"""How many dimensions a representation really uses, and whether its functions are different ones.

All results are plain floats and ints. `effective_rank`, `distinct_count`, `offdiagonal_rms` and `is_ordered` work on
eigenvalues and second moments that training has anyway; `rankme` and `alpha_req` need the features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError


def effective_rank(eigenvalues_K: Tensor) -> float:
    """exp(H(p)) with p = eigenvalues / their sum: K when all are equal, 1 when one stands alone, 0 when all are 0.

    Negative eigenvalues, which a finite sample gives to directions without signal, count as 0.
    Source: Roy & Vetterli, "The effective rank" (2007).
    """
    _check_vector(eigenvalues_K)
    kept_K = eigenvalues_K.double().clamp(min=0)
    total = kept_K.sum()
    if total == 0:
        return 0.0
    share_K = kept_K / total
    return torch.special.entr(share_K).sum().exp().item()


def rankme(features_NF: Tensor) -> float:
    """Effective rank of the singular values of the (uncentred) features.

    Source: Garrido et al., "RankMe" (ICML 2023), without their 1e-7, which only avoids log 0.
    """
    _check_matrix(features_NF)
    return effective_rank(torch.linalg.svdvals(features_NF.double()))


def alpha_req(features_NF: Tensor, *, first: int = 1, last: int | None = None) -> float:
    """Decay exponent a of the covariance spectrum, eigenvalue_i ~ i^(-a), for i from `first` to `last`.

    Least squares on log-log axes with weights 1 / i, which give every octave of i the same say. Eigenvalues that are
    zero to rounding are left out. The published studies skip the first ten or so, which rarely follow the power law.
    Source: Agrawal et al., "alpha-ReQ" (NeurIPS 2022); the fit is that of Stringer et al. (Nature 2019).

    Raises:
        InputError: fewer than two eigenvalues to fit.
    """
    _check_matrix(features_NF)
    centred_NF = features_NF.double() - features_NF.double().mean(dim=0)
    eigenvalues_K = torch.linalg.svdvals(centred_NF).square()
    floor = eigenvalues_K[0] * max(features_NF.shape) * torch.finfo(features_NF.dtype).eps ** 2
    index_K = torch.arange(1, len(eigenvalues_K) + 1, device=eigenvalues_K.device)
    kept_K = (eigenvalues_K > floor) & (index_K >= first) & (index_K <= (last or len(eigenvalues_K)))
    if kept_K.sum() < 2:
        raise InputError(f"expected two or more eigenvalues to fit, got {int(kept_K.sum())}: widen first..last")
    return -_slope(index_K[kept_K].double().log(), eigenvalues_K[kept_K].log(), 1 / index_K[kept_K].double())


def distinct_count(gram_KK: Tensor, *, threshold: float = 0.1) -> int:
    """Number of functions that are not copies of others, from their Gram matrix G = E[f f^T].

    Counts the eigenvalues above `threshold` of the normalised matrix C_ij = G_ij / sqrt(G_ii G_jj). A group of s
    copies, with any signs and scales, gives C one eigenvalue s and s - 1 zeros, so that copies of m orthogonal
    functions count m. Two functions with correlation c give 1 + c and 1 - c: they count as one from c >= 1 - threshold
    on. A linear combination of other functions is no new function either, and functions that are zero don't count.
    """
    _check_gram(gram_KK)
    correlation_KK = _normalise(gram_KK)
    return int((torch.linalg.eigvalsh(correlation_KK) > threshold).sum())


def offdiagonal_rms(gram_KK: Tensor) -> float:
    """Root mean square of G_ij / sqrt(G_ii G_jj) over i != j: 0 for orthogonal functions, 1 when all are copies.

    Functions that are zero count as orthogonal to all. A single function gives 0.
    """
    _check_gram(gram_KK)
    k = len(gram_KK)
    if k == 1:
        return 0.0
    correlation_KK = _normalise(gram_KK)
    off_diagonal_KK = correlation_KK - correlation_KK.diagonal().diag()
    return (off_diagonal_KK.square().sum() / (k * (k - 1))).sqrt().item()


def is_ordered(eigenvalues_K: Tensor, tol: float = 0.0) -> bool:
    """Whether no eigenvalue exceeds the one before it by more than `tol`."""
    _check_vector(eigenvalues_K)
    return bool((eigenvalues_K.diff() <= tol).all())


def _normalise(gram_KK: Tensor) -> Tensor:
    gram_KK = gram_KK.double()
    norm_K = gram_KK.diagonal().clamp(min=0).sqrt()
    # a function this small beside the largest is rounding, and dividing by its norm would make it look alive
    alive_K = norm_K > norm_K.max() * 1e-6
    scale_K = torch.where(alive_K, 1 / norm_K.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return scale_K[:, None] * gram_KK * scale_K


def _slope(x_K: Tensor, y_K: Tensor, weight_K: Tensor) -> float:
    weight_K = weight_K / weight_K.sum()
    x_K, y_K = x_K - weight_K @ x_K, y_K - weight_K @ y_K
    return ((weight_K * x_K) @ y_K / ((weight_K * x_K) @ x_K)).item()


def _check_vector(values_K: Tensor) -> None:
    if values_K.ndim != 1 or len(values_K) == 0:
        raise ShapeError(f"expected eigenvalues (K,) with K >= 1, got {tuple(values_K.shape)}: pass them as one row")
    _check_finite(values_K)


def _check_matrix(features_NF: Tensor) -> None:
    if features_NF.ndim != 2 or features_NF.numel() == 0:
        raise ShapeError(f"expected non-empty features (N, F), got {tuple(features_NF.shape)}: flatten them")
    if not features_NF.dtype.is_floating_point:
        raise InputError(f"expected floating features, got {features_NF.dtype}: convert them with .float()")
    _check_finite(features_NF)


def _check_gram(gram_KK: Tensor) -> None:
    if gram_KK.ndim != 2 or gram_KK.shape[0] != gram_KK.shape[1] or gram_KK.numel() == 0:
        raise ShapeError(f"expected a Gram matrix (K, K), got {tuple(gram_KK.shape)}: pass E[f f^T]")
    _check_finite(gram_KK)


def _check_finite(values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise NonFiniteError("expected finite numbers, got NaN or infinity: the representation has diverged")
