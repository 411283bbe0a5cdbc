"""How close a functional map between paired rows is to the identity up to rotation: one number each, from C alone.

    C = Phi_Y^T Phi_X, entries <phi_Y_l, phi_X_k>, for orthonormal functions on the same N rows

Needs no solver: where rows correspond, C is known. Its singular values are the cosines of the principal angles between
the two spans, and what depends on them alone does not see signs or rotations of either basis. The paper's ratio does,
and it cannot tell a small C from a large one: 0.01 I, any diagonal matrix and any rank-one e_k e_k^T score 1.

Every score is 1 for an orthogonal C, and takes a batch of maps (..., L, K), so that a permutation null is one call.
Latent Functional Maps: arXiv 2406.14183.

Letters: N rows, K functions on X, L functions on Y, S scores.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neigenmaps.errors import ShapeError


def paper_ratio(c_LK: Tensor, *, squared: bool = True) -> Tensor:
    """1 - |off(M)|^2 / |M|^2 with M = C^T C, as the paper has it; without the squares, as its code has it. 1 for C = 0.

    Not symmetric, not invariant to rotations, blind to the size of C. Row-shuffled data score higher than true pairs,
    since the shared first function is then all there is.
    """
    m_KK = c_LK.mT @ c_LK
    whole = m_KK.square().sum((-2, -1))
    off = (whole - m_KK.diagonal(dim1=-2, dim2=-1).square().sum(-1)).clamp_min(0)
    share = off / whole.clamp_min(torch.finfo(c_LK.dtype).tiny)
    return 1 - (share if squared else share.sqrt())


def overlap(c_LK: Tensor) -> Tensor:
    """|C|_F^2 / min(L, K): the mean squared cosine of the principal angles."""
    return c_LK.square().sum((-2, -1)) / min(c_LK.shape[-2:])


def nuclear_overlap(c_LK: Tensor) -> Tensor:
    """|C|_* / min(L, K): the mean cosine of the principal angles."""
    return torch.linalg.svdvals(c_LK).mean(-1)


def angle_score(c_LK: Tensor) -> Tensor:
    """1 - mean principal angle / 90 degrees."""
    return 1 - principal_angles(c_LK).mean(-1) / (math.pi / 2)


def orthogonality(c_LK: Tensor) -> Tensor:
    """1 - |C^T C - I|_F^2 / K: areas are kept where it is 1. Below 0 only for a C that is not made of unit functions."""
    eye_KK = torch.eye(c_LK.shape[-1], dtype=c_LK.dtype, device=c_LK.device)
    return 1 - (c_LK.mT @ c_LK - eye_KK).square().sum((-2, -1)) / c_LK.shape[-1]


def principal_angles(c_LK: Tensor) -> Tensor:
    """Angles between the two spans in radians, rising, (..., min(L, K)). Near 0 exact to the root of the precision only."""
    return torch.linalg.svdvals(c_LK).clamp(max=1.0).arccos()


def weighted_overlap(c_LK: Tensor, weights_K: Tensor, weights_L: Tensor) -> Tensor:
    """sum_lk v_l w_k C_lk^2 / (|v| |w|): the cosine of the operators Phi_X diag(w) Phi_X^T and Phi_Y diag(v) Phi_Y^T.

    weights_K: w, at least 0. Where equal eigenvalues weigh the same, rotations inside an eigenspace change nothing.
    Zero where either operator is.
    """
    norms = weights_K.norm() * weights_L.norm()
    joint = weights_L @ c_LK.square() @ weights_K
    return torch.where(norms > 0, joint / norms.clamp_min(torch.finfo(c_LK.dtype).tiny), 0.0)


def weighted_overlap_by_chance(phi_NK: Tensor, psi_NL: Tensor, weights_K: Tensor, weights_L: Tensor) -> Tensor:
    """The exact mean of `weighted_overlap` over all N! orders of the rows of X.

    For unit u, v and a random permutation P, E (v^T P u)^2 = a b + (1 - a) (1 - b) / (N - 1), where a and b are the
    shares of u and v along the constant function.
    """
    n = len(phi_NK)
    a_K, b_L = phi_NK.sum(0).square() / n, psi_NL.sum(0).square() / n
    along = (weights_K @ a_K) * (weights_L @ b_L)
    across = (weights_K @ (1 - a_K)) * (weights_L @ (1 - b_L)) / (n - 1)
    norms = weights_K.norm() * weights_L.norm()
    return torch.where(norms > 0, (along + across) / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)


def overlap_curve(c_LK: Tensor) -> Tensor:
    """`overlap` of the first m functions of either basis, m = 1..min(L, K)."""
    within = c_LK.square().cumsum(-2).cumsum(-1).diagonal(dim1=-2, dim2=-1)
    return within / torch.arange(1, within.shape[-1] + 1, dtype=c_LK.dtype, device=c_LK.device)


def row_distortion(c_LK: Tensor, phi_NK: Tensor) -> Tensor:
    """What the map loses of every row, (N,): 1 - |C phi_n|^2 / |phi_n|^2, phi_n the row of X in its functions.

    With C = U diag(s) V^T this is the energy of the row along the columns of V, each counted 1 - s^2: 0 where every
    function on X that tells the row from others is a function on Y, 1 where none is. Use C^T and psi_NL for rows of Y.
    Rows on which all functions vanish have lost all: 1.
    """
    if phi_NK.shape[-1] != c_LK.shape[-1]:
        raise ShapeError(
            f"expected a map from {phi_NK.shape[-1]} functions, got C of shape {tuple(c_LK.shape)}: C^T takes Y's to X's"
        )
    kept_N = (phi_NK @ c_LK.mT).square().sum(-1)
    return 1 - kept_N / phi_NK.square().sum(-1).clamp_min(torch.finfo(phi_NK.dtype).tiny)


def most_distorted_function(c_LK: Tensor, phi_NK: Tensor) -> Tensor:
    """|Phi v| for the last right singular vector v of C, (N,): the paper's map of where areas change. Use C^T for Y."""
    v_K = torch.linalg.svd(c_LK, full_matrices=False).Vh[..., -1, :]
    return (phi_NK @ v_K).abs()


def row_energy(phi_NK: Tensor) -> Tensor:
    """mean_n phi_n phi_n^T / |phi_n|^2, (K, K): 1 - tr(C^T C row_energy) is the mean of `row_distortion`."""
    unit_NK = torch.nn.functional.normalize(phi_NK, dim=-1, eps=torch.finfo(phi_NK.dtype).tiny ** 0.5)
    return unit_NK.mT @ unit_NK / len(phi_NK)


def row_score(c_LK: Tensor, energy_KK: Tensor, energy_LL: Tensor) -> Tensor:
    """Mean over rows, and over both directions, of 1 - `row_distortion`; energies from `row_energy`."""
    forth = (c_LK @ energy_KK * c_LK).sum((-2, -1))
    back = (energy_LL @ c_LK * c_LK).sum((-2, -1))
    return (forth + back) / 2
