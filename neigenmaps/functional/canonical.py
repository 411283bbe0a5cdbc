"""Canonical correlation of two spaces and of many (GCCA), from covariances alone, and how many directions are shared.

    C_m = (1 - s) S_m + s (tr S_m / F_m) I        A_m A_m^T = C_m^-1        whitened covariance G = A^T S A

GCCA (Carroll 1968): the leading eigenvectors V of G. With no shrinkage s, an eigenvalue sigma_j^2 is between 0 and M, 1
for a direction that one space has alone, and (sigma_j^2 - 1) / (M - 1) is the mean correlation of the M projections
x_m A_m V_mj. Two spaces give canonical correlations. s = 1 whitens nothing: two spaces then give Procrustes.

Letters as in `cross_moments`; covariances are divided by the number of rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.functional.cross_moments import block_slices
from neigenmaps.functional.linalg import column_signs, sorted_eigh

ABSENT = 1e-10  # share of the largest eigenvalue of a covariance below which a direction is not there


class CanonicalSpaces(NamedTuple):
    """x_m @ projections_DK[m's rows]: component j has unit variance on average over the spaces.

    values_K: eigenvalues of the whitened covariance (canonical correlations for two spaces), falling.
    correlations_K: mean correlation of each component between the spaces, what it is worth.
    """

    projections_DK: Tensor
    values_K: Tensor
    correlations_K: Tensor


def generalized_cca(
    covariance_DD: Tensor, widths: Sequence[int], *, n_components: int | None = None, shrinkage: float = 0.0
) -> CanonicalSpaces:
    """The directions on which M spaces agree most. All those of positive correlation when n_components is None.

    Raises InputError for a shrinkage outside 0..1, or n_components outside 1..(sum of the ranks).
    """
    whitener_DR = _whitener(covariance_DD, widths, shrinkage)
    gram_RR = whitener_DR.T @ covariance_DD @ whitener_DR
    values_R, vectors_RR = sorted_eigh(gram_RR)
    own_DD = _diagonal_blocks(covariance_DD, widths)
    projections_DR = whitener_DR @ vectors_RR
    own_R = (projections_DR * (own_DD @ projections_DR)).sum(dim=0)
    total_R = (projections_DR * (covariance_DD @ projections_DR)).sum(dim=0)
    correlations_R = ((total_R / own_R - 1) / (len(widths) - 1)).clamp(-1, 1)
    kept = _kept(n_components, correlations_R)
    projections_DK = projections_DR[:, :kept] * (len(widths) / own_R[:kept]).sqrt()
    return CanonicalSpaces(projections_DK * column_signs(projections_DK), values_R[:kept], correlations_R[:kept])


def cca(
    covariance_DD: Tensor, widths: Sequence[int], *, n_components: int | None = None, shrinkage: float = 0.0
) -> CanonicalSpaces:
    """Two spaces, the canonical ridge (Vinod 1976): SVD of A_1^T S_12 A_2. Errors as in `generalized_cca`."""
    first, second = block_slices(widths)
    whitener_FR = whitening(covariance_DD[first, first], shrinkage)
    whitener_GR = whitening(covariance_DD[second, second], shrinkage)
    left, values, right = torch.linalg.svd(
        whitener_FR.T @ covariance_DD[first, second] @ whitener_GR, full_matrices=False
    )
    pair_DK = torch.cat([whitener_FR @ left, whitener_GR @ right.T])
    own_K = (pair_DK * (_diagonal_blocks(covariance_DD, widths) @ pair_DK)).sum(dim=0)
    cross_K = (pair_DK[first] * (covariance_DD[first, second] @ pair_DK[second])).sum(dim=0)
    correlations_K = 2 * cross_K / own_K
    kept = _kept(n_components, correlations_K)
    pair_DK = pair_DK[:, :kept] * (2 / own_K[:kept]).sqrt()
    return CanonicalSpaces(pair_DK * column_signs(pair_DK), values[:kept], correlations_K[:kept])


def whitening(covariance_FF: Tensor, shrinkage: float) -> Tensor:
    """A (F, R) with A A^T = C^-1 on the R directions that are there; C shrunk as above."""
    if not 0 <= shrinkage <= 1:
        raise InputError(
            f"expected shrinkage between 0 (CCA) and 1 (Procrustes), got {shrinkage}: 0.01 is a common value"
        )
    power_F, basis_FF = sorted_eigh(covariance_FF)
    power_F = power_F.clamp_min(0)
    there = int((power_F > ABSENT * power_F[0]).sum()) if shrinkage == 0 else len(power_F)
    shrunk_F = (1 - shrinkage) * power_F + shrinkage * power_F.mean()
    return basis_FF[:, :there] / shrunk_F[:there].sqrt()


def null_values(
    widths: Sequence[int], n_rows: int, *, draws: int, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """The largest eigenvalue that `generalized_cca` finds among independent Gaussian spaces, (draws,), no shrinkage.

    It does not depend on their covariances, so none are needed; above D + 10 rows nor do its costs on n_rows.
    """
    largest = []
    for _ in range(draws):
        scatter_DD = _independent_scatter(n_rows - 1, sum(widths), generator).to(device)
        whitener_DR = _whitener(scatter_DD, widths, 0.0)
        largest.append(torch.linalg.eigvalsh(whitener_DR.T @ scatter_DD @ whitener_DR)[-1])
    return torch.stack(largest)


def _independent_scatter(freedom: int, total: int, generator: torch.Generator) -> Tensor:
    """X^T X of `freedom` rows of `total` standard normal numbers, by its Cholesky factor (Bartlett) if there are enough.

    Its diagonal are chi variables, here by Wilson and Hilferty's cube, right to 1e-3 above 10 degrees of freedom.
    """
    if freedom < total + 10:
        rows_ND = torch.randn(freedom, total, generator=generator, dtype=torch.float64)
        return rows_ND.T @ rows_ND
    factor_DD = torch.randn(total, total, generator=generator, dtype=torch.float64).tril()
    freedom_D = torch.arange(freedom, freedom - total, -1, dtype=torch.float64)
    spread_D = 2 / (9 * freedom_D)
    chi_D = (freedom_D * (1 - spread_D + factor_DD.diagonal() * spread_D.sqrt()) ** 3).sqrt()
    factor_DD = factor_DD.tril(-1) + chi_D.diag()
    return factor_DD @ factor_DD.T


def shared_directions(covariance_DD: Tensor, widths: Sequence[int], null_P: Tensor) -> int:
    """How many eigenvalues of the whitened covariance exceed all of `null_P`, at least 1."""
    whitener_DR = _whitener(covariance_DD, widths, 0.0)
    values_R = torch.linalg.eigvalsh(whitener_DR.T @ covariance_DD @ whitener_DR)
    return max(1, int((values_R > null_P.max()).sum()))


def _whitener(covariance_DD: Tensor, widths: Sequence[int], shrinkage: float) -> Tensor:
    return torch.block_diag(*(whitening(covariance_DD[own, own], shrinkage) for own in block_slices(widths)))


def _diagonal_blocks(covariance_DD: Tensor, widths: Sequence[int]) -> Tensor:
    return torch.block_diag(*(covariance_DD[own, own] for own in block_slices(widths)))


def _kept(n_components: int | None, correlations_R: Tensor) -> int:
    if n_components is None:
        return max(1, int((correlations_R > 1e-12).cumprod(dim=0).sum()))
    if not 1 <= n_components <= len(correlations_R):
        raise InputError(
            f"expected 1 <= n_components <= {len(correlations_R)} (the directions there are), got {n_components}: None keeps "
            "all that agree"
        )
    return n_components
