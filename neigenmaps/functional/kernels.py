"""Kernels on rows: (N, F) and (M, F) -> (N, M). Symmetric and positive semi-definite for the arguments allowed here."""

import math

import torch
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError


def rbf_kernel(a_NF: Tensor, b_MF: Tensor, *, gamma: float) -> Tensor:
    """exp(-gamma |a - b|^2)."""
    _check_rows(a_NF, b_MF)
    if not gamma > 0:
        raise InputError(f"expected gamma above 0, got {gamma}")
    # by |a|^2 + |b|^2 - 2ab: rounding can leave a small negative square
    squares_NM = a_NF.square().sum(1)[:, None] + b_MF.square().sum(1) - 2 * (a_NF @ b_MF.T)
    return torch.exp(-gamma * squares_NM.clamp_min(0))


def polynomial_kernel(a_NF: Tensor, b_MF: Tensor, *, degree: int = 3, gamma: float = 1.0, coef0: float = 1.0) -> Tensor:
    """(gamma a.b + coef0)^degree: finite rank, binomial(F + degree, degree) for coef0 above 0."""
    _check_rows(a_NF, b_MF)
    if degree < 1 or degree != int(degree) or not gamma > 0 or not coef0 >= 0:
        raise InputError(
            f"expected a whole degree of at least 1, gamma above 0 and coef0 of at least 0 (else the kernel is not "
            f"positive), got degree={degree}, gamma={gamma}, coef0={coef0}"
        )
    return (gamma * (a_NF @ b_MF.T) + coef0) ** degree


def arc_cosine_kernel(a_NF: Tensor, b_MF: Tensor, *, order: int = 1) -> Tensor:
    r"""What an infinitely wide layer of random units max(0, w.x)^order sees: |a|^n |b|^n J_n(theta) / pi.

    J_0 = pi - t, J_1 = sin t + (pi - t) cos t, J_2 = 3 sin t cos t + (pi - t)(1 + 2 cos^2 t), t the angle between a and b.
    Source: Cho and Saul, NeurIPS 2009.
    """
    _check_rows(a_NF, b_MF)
    if order not in (0, 1, 2):
        raise InputError(f"expected order 0, 1 or 2, got {order}")
    lengths_NM = a_NF.norm(dim=1)[:, None] * b_MF.norm(dim=1)
    cosine_NM = ((a_NF @ b_MF.T) / lengths_NM.clamp_min(torch.finfo(a_NF.dtype).tiny)).clamp(-1, 1)
    angle_NM, sine_NM = torch.arccos(cosine_NM), (1 - cosine_NM.square()).clamp_min(0).sqrt()
    if order == 0:
        shape_NM = math.pi - angle_NM
    elif order == 1:
        shape_NM = sine_NM + (math.pi - angle_NM) * cosine_NM
    else:
        shape_NM = 3 * sine_NM * cosine_NM + (math.pi - angle_NM) * (1 + 2 * cosine_NM.square())
    return lengths_NM**order * shape_NM / math.pi


def _check_rows(a_NF: Tensor, b_MF: Tensor) -> None:
    if a_NF.ndim != 2 or b_MF.ndim != 2 or a_NF.shape[1] != b_MF.shape[1]:
        raise ShapeError(f"expected rows (N, F) and (M, F), got {tuple(a_NF.shape)} and {tuple(b_MF.shape)}")
