"""The moments of `eigenmap` when the kernel is known: as a function of two points, or as the weights of a graph.

A kernel k and a law p of points make the operator (T f)(x) = E_{x'}[k(x, x') f(x')]. Its quadratic form

    R = E_{x, x'}[k(x, x') f(x) f(x')^T]        G = E[f(x) f(x)^T]

replaces the moment of view pairs; nothing else changes. A graph with weights w is a law of pairs, p(i, j) = w_ij / sum w:
its operator is the random walk D^-1 W, in the measure of the degrees. No constant is removed here unless it is asked
for: it is an eigenfunction of a walk, but of few kernels.
"""

import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.eigenmap import EigenmapResult, nested_low_rank_loss
from neigenmaps.functional.rayleigh_ritz import PairMoments


def nested_low_rank_kernel_loss(f_BK: Tensor, kernel_BB: Tensor, *, shift: float = 0.0) -> EigenmapResult:
    r"""Sequential nested low-rank loss for a kernel matrix over one batch of points.

        -2 sum_j R_jj + sum_j G_jj^2 + 2 sum_{i<j} E[sg(f_i) f_j]^2

    R and the squares of G are means over pairs b != c of different points, hence without bias. Minimiser:
    f_j = sqrt(mu_j) phi_j for mu_j > 0, else f_j = 0.

    shift: learns T + shift I, whose eigenfunctions are those of T; with shift above -mu_k also functions of eigenvalue
    below zero are found. The eigenvalues returned are those of T.

    Shapes: f (B, K), kernel (B, B), symmetric, entry (b, c) = k(x_b, x_c), B >= 2. Source: Ryu et al., arXiv 2402.03655.
    """
    if kernel_BB.shape != (len(f_BK), len(f_BK)):
        raise ShapeError(f"expected a kernel of shape ({len(f_BK)}, {len(f_BK)}), got {tuple(kernel_BB.shape)}")
    if not torch.isfinite(kernel_BB).all():
        raise NonFiniteError(
            "the kernel gives NaN or infinity: look at its parameters and at rows that are zero or huge"
        )
    if not 0 <= shift < float("inf"):
        raise InputError(f"expected a shift of at least 0, got {shift}")
    norms = nested_low_rank_loss(f_BK, f_BK, center=False)
    f_BK = f_BK.to(torch.promote_types(f_BK.dtype, torch.float32))
    power_K = f_BK.square().mean(0)
    apart_BB = kernel_BB.to(f_BK).clone().fill_diagonal_(0)
    quadratic_K = (f_BK * (apart_BB @ f_BK)).sum(0) / (len(f_BK) * (len(f_BK) - 1))
    alignment = (quadratic_K + shift * power_K).sum()
    return EigenmapResult(
        norms.orthogonality - 2 * alignment,
        alignment,
        norms.orthogonality,
        (quadratic_K / power_K.clamp_min(1e-30)).detach(),
    )


def kernel_moments(f_NK: Tensor, operated_NK: Tensor, weight_N: Tensor | None = None) -> PairMoments:
    """Moments for `ritz_from_moments`, out of f and T f at the same points; blocks of points add up.

    T f is mean_m k(x, x_m) f(x_m) for a kernel, sum_j w_ij f(j) / d_i for a graph. weight_N: share of every point in the
    law, to any common factor: a node's degree for a graph; all alike when None.
    """
    if f_NK.ndim != 2 or f_NK.shape != operated_NK.shape:
        raise ShapeError(f"expected f and T f of one shape (N, K), got {tuple(f_NK.shape)}, {tuple(operated_NK.shape)}")
    f, tf = f_NK.double(), operated_NK.double()
    weight_N1 = f.new_ones(len(f), 1) if weight_N is None else weight_N.to(f)[:, None]
    weighted = weight_N1 * f
    cross_KK = weighted.T @ tf
    return PairMoments(weight_N1.sum(), weighted.sum(0), weighted.T @ f, (cross_KK + cross_KK.T) / 2)
