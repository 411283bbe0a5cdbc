"""The functional map between two eigenbases: a small matrix C that takes coefficients of functions on X to those on Y.

    E(C) = w_d/2 |C A - B|^2 + w_l/2 sum_lk m_lk C_lk^2 + w_c/2 sum_j |C S_j - T_j C|^2

A, B: coefficients of the same P functions in both bases. m: penalty that is small where eigenvalues agree. S_j, T_j:
operators that C should carry into each other, most often multiplication by function j. E is a quadratic form, so its
minimum is the solution of one linear system: no iteration that stops early, no start, no dependence on the threads.

Ovsjanikov et al. 2012; Latent Functional Maps, arXiv 2406.14183. The resolvent: Ren et al. 2019.

Letters: K functions on X, L functions on Y, P descriptors, J operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError

MaskForm = Literal["resolvent", "squared", "paper"]
Solver = Literal["auto", "rows", "cholesky", "conjugate_gradient"]

CHOLESKY_UP_TO = (
    400  # unknowns of one dense system; at 50 x 50, conjugate gradients need a quarter to a 25th of its time
)


class MapWeights(NamedTuple):
    """How much each term of the energy counts. The paper's, for its mask: 1, 1e-3, 1e-1."""

    descriptors: float = 1.0
    laplacian: float = 1e-3
    commutativity: float = 0.0


class MapTerms(NamedTuple):
    """What E(C) is made of. s_JKK and t_JLL: both or neither."""

    a_KP: Tensor
    b_LP: Tensor
    mask_LK: Tensor
    s_JKK: Tensor | None = None
    t_JLL: Tensor | None = None
    weights: MapWeights = MapWeights()

    def energy(self, c_LK: Tensor) -> Tensor:
        """E(C), shape ()."""
        w = self.weights
        energy = w.descriptors * (c_LK @ self.a_KP - self.b_LP).square().sum()
        energy = energy + w.laplacian * (self.mask_LK * c_LK.square()).sum()
        if self.s_JKK is not None and self.t_JLL is not None:
            energy = energy + w.commutativity * (c_LK @ self.s_JKK - self.t_JLL @ c_LK).square().sum()
        return energy / 2

    def gradient(self, c_LK: Tensor) -> Tensor:
        """dE/dC, (L, K)."""
        return self.curvature(c_LK) - self.weights.descriptors * self.b_LP @ self.a_KP.T

    def curvature(self, c_LK: Tensor) -> Tensor:
        """The linear part of the gradient."""
        w = self.weights
        product_LK = w.descriptors * (c_LK @ self.a_KP) @ self.a_KP.T + w.laplacian * self.mask_LK * c_LK
        if self.s_JKK is None or self.t_JLL is None:
            return product_LK
        gap_JLK = c_LK @ self.s_JKK - self.t_JLL @ c_LK
        return product_LK + w.commutativity * (gap_JLK @ self.s_JKK.mT - self.t_JLL.mT @ gap_JLK).sum(dim=0)


def laplacian_mask(values_x_K: Tensor, values_y_L: Tensor, form: MaskForm = "resolvent") -> Tensor:
    """Penalty (L, K) for sending eigenfunction k of X into eigenfunction l of Y; 0 where the eigenvalues agree.

    resolvent: both spectra over their common maximum, g = l^(1/2), squared difference of g/(1+g^2) plus that of
        1/(1+g^2): finer at the smooth end of the spectrum, where eigenfunctions carry over.
    squared: (l_x - l_y)^2 over its mean. paper: over its sum, which makes a weight of 1e-3 nearly nothing.
    """
    for name, values in (("X", values_x_K), ("Y", values_y_L)):
        if values.ndim != 1 or len(values) == 0 or not torch.isfinite(values).all() or (values < 0).any():
            raise InputError(f"expected eigenvalues of {name}, a row of numbers of at least 0, got {values}")
    if form not in ("resolvent", "squared", "paper"):
        raise InputError(f"expected form 'resolvent', 'squared' or 'paper', got {form!r}: name one of them")
    if form != "resolvent":
        square_LK = (values_x_K - values_y_L[:, None]).square()
        total = square_LK.sum() if form == "paper" else square_LK.mean()
        return square_LK / total if total > 0 else square_LK
    largest = torch.maximum(values_x_K.max(), values_y_L.max())
    x_2K, y_2L = (_resolvent(values / largest if largest > 0 else values) for values in (values_x_K, values_y_L))
    return (x_2K[:, None, :] - y_2L[:, :, None]).square().sum(dim=0)


def _resolvent(values: Tensor) -> Tensor:
    root = values.sqrt()
    return torch.stack([root / (1 + values), 1 / (1 + values)])


def multiplication_operators(phi_NK: Tensor, functions_NP: Tensor, mass_N: Tensor) -> Tensor:
    """phi^T M diag(f_p) phi for every function, (P, K, K): what multiplying by f_p does to coefficients."""
    weighted_NK = mass_N[:, None] * phi_NK
    return torch.stack([weighted_NK.T @ (f_N[:, None] * phi_NK) for f_N in functions_NP.T])


def solve_functional_map(terms: MapTerms, *, first_column_L: Tensor | None = None, solver: Solver = "auto") -> Tensor:
    """The C, (L, K), at which the energy is least; its gradient there is zero up to rounding.

    first_column_L: C[:, 0], if it is known, as between two connected graphs, whose first functions are constant.
    solver: "rows", L systems of size K, exact where nothing has to commute; "cholesky", one system of size L x K;
        "conjugate_gradient", preconditioned by its blocks of size K; "auto" takes the first of these that serves.

    Raises:
        ShapeError, NonFiniteError: terms that do not fit or are not finite.
        InputError: weights below 0; "rows" with commutativity; a minimum that is not unique.
    """
    _check_terms(terms, first_column_L)
    commutes = terms.s_JKK is not None and terms.weights.commutativity > 0
    if solver not in ("auto", "rows", "cholesky", "conjugate_gradient"):
        raise InputError(f"expected solver 'auto', 'rows', 'cholesky' or 'conjugate_gradient', got {solver!r}")
    if solver == "rows" and commutes:
        raise InputError("expected no operators that commute for solver='rows', got some: use solver='cholesky'")
    terms = terms if commutes else terms._replace(s_JKK=None, t_JLL=None)
    start_LK = torch.zeros_like(terms.mask_LK)
    first = 0
    if first_column_L is not None:
        start_LK[:, 0], first = first_column_L, 1
    if first == terms.mask_LK.shape[1]:
        return start_LK
    right_LK = -terms.gradient(start_LK)[:, first:]

    def apply(step_LK: Tensor) -> Tensor:
        return terms.curvature(torch.nn.functional.pad(step_LK, (first, 0)))[:, first:]

    if solver == "auto":
        fits = right_LK.numel() <= CHOLESKY_UP_TO
        solver = "rows" if not commutes else "cholesky" if fits else "conjugate_gradient"
    if solver == "cholesky":
        inverse = _inverse(_dense(terms, first), right_LK.shape)
    else:
        inverse = _inverse(_row_blocks(terms, first), right_LK.shape)
    if solver == "conjugate_gradient":
        step_LK = _conjugate_gradient(apply, inverse, right_LK)
    else:
        step_LK = inverse(right_LK)
        step_LK = step_LK + inverse(right_LK - apply(step_LK))  # takes off the rounding of the first solution
    left = torch.linalg.vector_norm(right_LK - apply(step_LK))
    if not left <= math.sqrt(torch.finfo(right_LK.dtype).eps) * torch.linalg.vector_norm(right_LK):
        raise InputError(_NOT_UNIQUE)
    start_LK[:, first:] = step_LK
    return start_LK


_NOT_UNIQUE = (
    "expected terms with one minimum, got a system that is singular up to rounding: add descriptors, or raise the "
    "weight of the Laplacian term"
)


def _row_blocks(terms: MapTerms, first: int) -> Tensor:
    """Second derivatives within every row of C, (L, K, K)."""
    w = terms.weights
    a_KP = terms.a_KP[first:]
    blocks_LKK = w.descriptors * a_KP @ a_KP.T + torch.diag_embed(w.laplacian * terms.mask_LK[:, first:])
    if terms.s_JKK is not None and terms.t_JLL is not None:
        own_JL = terms.t_JLL.diagonal(dim1=1, dim2=2)
        cross_LKK = torch.einsum("jl,jkm->lkm", own_JL, terms.s_JKK[:, first:, first:])
        blocks_LKK = blocks_LKK + w.commutativity * (_gram(terms.s_JKK.mT)[first:, first:] - cross_LKK - cross_LKK.mT)
        square_L = _gram(terms.t_JLL).diagonal()
        blocks_LKK = blocks_LKK + w.commutativity * square_L[:, None, None] * _eye(a_KP)
    return blocks_LKK


def _dense(terms: MapTerms, first: int) -> Tensor:
    """All second derivatives, (L K, L K), C read row by row.

    I (x) (w_d A A^T + w_c sum S S^T) + w_c sum T^T T (x) I + w_l diag(m) - w_c sum [T (x) S + (T (x) S)^T]
    """
    w, s_JKK, t_JLL = terms.weights, terms.s_JKK, terms.t_JLL
    a_KP, mask_LK = terms.a_KP[first:], terms.mask_LK[:, first:]
    n_y, n_x = mask_LK.shape
    gram_KK = w.descriptors * a_KP @ a_KP.T
    dense = torch.diag(w.laplacian * mask_LK.flatten())
    if s_JKK is not None and t_JLL is not None:
        gram_KK = gram_KK + w.commutativity * _gram(s_JKK.mT)[first:, first:]
        inner_JKK = s_JKK[:, first:, first:]
        pairs = t_JLL.flatten(1).T @ inner_JKK.flatten(1)  # (L L, K K): one product for all operators
        cross = pairs.view(n_y, n_y, n_x, n_x).transpose(1, 2).reshape(n_y * n_x, n_y * n_x)
        dense = dense + w.commutativity * (torch.kron(_gram(t_JLL), _eye(gram_KK)) - cross - cross.T)
    return (dense + torch.kron(torch.eye(n_y, dtype=dense.dtype, device=dense.device), gram_KK))[None]


def _gram(matrices_JKK: Tensor) -> Tensor:
    """sum_j M_j^T M_j."""
    stacked = matrices_JKK.flatten(0, 1)
    return stacked.T @ stacked


def _eye(like_KX: Tensor) -> Tensor:
    return torch.eye(len(like_KX), dtype=like_KX.dtype, device=like_KX.device)


def _inverse(blocks_XUU: Tensor, shape_LK: torch.Size) -> Callable[[Tensor], Tensor]:
    """Solver of the block-diagonal system, for right-hand sides (L, K)."""
    factor_XUU, failed_X = torch.linalg.cholesky_ex(blocks_XUU)
    if failed_X.any():
        raise InputError(_NOT_UNIQUE)

    def solve(right_LK: Tensor) -> Tensor:
        return torch.cholesky_solve(right_LK.reshape(len(factor_XUU), -1, 1), factor_XUU).reshape(shape_LK)

    return solve


def _conjugate_gradient(
    apply: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], right_LK: Tensor
) -> Tensor:
    """Hestenes & Stiefel 1952, preconditioned; the residual is computed afresh every 50 steps, so that it stays true."""
    enough = 20 * torch.finfo(right_LK.dtype).eps * torch.linalg.vector_norm(right_LK)
    x_LK = torch.zeros_like(right_LK)
    least = torch.full_like(enough, torch.inf)
    for _ in range(2 + right_LK.numel() // 50):
        residual_LK = right_LK - apply(x_LK)
        norm = torch.linalg.vector_norm(residual_LK)
        if norm <= enough or norm >= least:  # converged, or rounding is all that is left
            break
        least = norm
        direction_LK = z_LK = precondition(residual_LK)
        slope = (residual_LK * z_LK).sum()
        for _ in range(50):
            image_LK = apply(direction_LK)
            length = slope / (direction_LK * image_LK).sum()
            x_LK = x_LK + length * direction_LK
            residual_LK = residual_LK - length * image_LK
            if torch.linalg.vector_norm(residual_LK) <= enough:
                break
            z_LK = precondition(residual_LK)
            before, slope = slope, (residual_LK * z_LK).sum()
            direction_LK = z_LK + (slope / before) * direction_LK
    return x_LK


def _check_terms(terms: MapTerms, first_column_L: Tensor | None) -> None:
    a_KP, b_LP, mask_LK = terms.a_KP, terms.b_LP, terms.mask_LK
    if a_KP.ndim != 2 or b_LP.ndim != 2 or a_KP.shape[1] != b_LP.shape[1] or 0 in mask_LK.shape:
        raise ShapeError(
            f"expected coefficients (K, P) and (L, P) of the same functions, got {tuple(a_KP.shape)} and "
            f"{tuple(b_LP.shape)}: give the functions in the same order on both sides"
        )
    if mask_LK.shape != (len(b_LP), len(a_KP)):
        raise ShapeError(f"expected a mask of shape {(len(b_LP), len(a_KP))}, got {tuple(mask_LK.shape)}")
    if (terms.s_JKK is None) != (terms.t_JLL is None):
        raise InputError("expected operators on both sides or on none, got them on one")
    if terms.s_JKK is not None and terms.t_JLL is not None:
        expected = ((len(terms.s_JKK), len(a_KP), len(a_KP)), (len(terms.s_JKK), len(b_LP), len(b_LP)))
        if (terms.s_JKK.shape, terms.t_JLL.shape) != expected:
            raise ShapeError(
                f"expected operators {expected[0]} and {expected[1]}, got {tuple(terms.s_JKK.shape)} and "
                f"{tuple(terms.t_JLL.shape)}: one pair for every function"
            )
    if first_column_L is not None and first_column_L.shape != (len(b_LP),):
        raise ShapeError(f"expected a first column of shape {(len(b_LP),)}, got {tuple(first_column_L.shape)}")
    given = [t for t in (a_KP, b_LP, mask_LK, terms.s_JKK, terms.t_JLL, first_column_L) if t is not None]
    if not all(torch.isfinite(tensor).all() for tensor in given):
        raise NonFiniteError("expected finite terms, got NaN or infinity: look at the descriptors")
    if min(terms.weights) < 0 or (mask_LK < 0).any():
        raise InputError(f"expected weights and a mask of at least 0, got {terms.weights}")
