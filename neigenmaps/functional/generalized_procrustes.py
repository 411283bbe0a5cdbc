"""Generalised Procrustes: one orthogonal map per space into a common universe, from cross-products alone.

    max over (semi-)orthogonal R_m of   sum_{m<n} a_m a_n tr(R_m^T C_mn R_n),     C_mn = X_m^T X_n

For R_m that keep lengths this is min of sum_{m<n} a_m a_n |X_m R_m - X_n R_n|^2, M times the summed squared distance to
the mean of all. Each sweep sets every R_m in turn to the polar factor of sum_{n != m} a_n C_mn R_n, its best value given
the others, so the objective never falls. Leaving m itself out is what the textbook iteration lacks: with X_m R_m inside
the mean, a direction of much variance and little agreement keeps whatever sign it began with.

Sweeps begin a step ahead of where they stand (Nesterov's momentum), and from where they stand when that gained nothing.
Large problems are swept in float32, which shows gains of 1e-7, and finished in float64. Spectral start: Ling 2021
(2106.15493). Letters as in `cross_moments`, K width of the universe.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.cross_moments import block_slices
from neigenmaps.functional.linalg import column_signs, sorted_eigh
from neigenmaps.functional.linear_maps import nearest_orthogonal, polar_factor

LARGEST_EIGH = 512  # columns, of all spaces together: beyond, a few sweeps more cost less
LARGEST_DOUBLE, SINGLE_TOLERANCE = 2048, 1e-7


class ProcrustesConsensus(NamedTuple):
    """Maps of all spaces, stacked (D, K): R_m R_m^T = I where F_m <= K, else R_m^T R_m = I.

    Columns are the principal axes of the mean, by falling variance. history: objective after the start and every sweep.
    """

    maps_DK: Tensor
    objective: float
    history: tuple[float, ...]
    converged: bool


def generalized_procrustes(
    cross_DD: Tensor,
    widths: Sequence[int],
    *,
    n_components: int | None = None,
    model_weights_M: Tensor | None = None,
    start_DK: Tensor | None = None,
    max_sweeps: int = 500,
    tolerance: float = 1e-10,
) -> ProcrustesConsensus:
    """Maps into a universe of K = n_components dimensions, the largest width when None.

    cross_DD: (D, D) float64, blocks X_m^T X_n; its diagonal blocks are only read to order the axes.
    start_DK: maps to begin with instead of the spectral ones. Converged: a sweep gains no more than `tolerance` of the
    objective.

    Raises:
        ShapeError: cross_DD that is not (D, D). InputError: fewer than 2 spaces, n_components out of range.
    """
    columns = block_slices(widths)
    _check(cross_DD, widths, n_components)
    n_components = n_components or max(widths)
    weights_M = cross_DD.new_ones(len(widths)) if model_weights_M is None else model_weights_M.to(cross_DD)
    others_DD = between_blocks(cross_DD, widths, weights_M)
    single = len(others_DD) > LARGEST_DOUBLE and tolerance >= SINGLE_TOLERANCE
    swept_DD = others_DD.float() if single else others_DD
    maps_DK = spectral_start(swept_DD, widths, n_components) if start_DK is None else start_DK.to(swept_DD)
    history = [_objective(swept_DD, maps_DK)]
    before_DK, since_restart, converged = maps_DK, 0, False
    for _ in range(max_sweeps):
        ahead = since_restart / (since_restart + 3)
        swept_DK, objective = _sweep(swept_DD, maps_DK + ahead * (maps_DK - before_DK), columns, tolerance**0.5)
        if since_restart > 0 and objective <= history[-1]:  # a plain sweep cannot lose
            since_restart = 0
            swept_DK, objective = _sweep(swept_DD, maps_DK, columns, tolerance**0.5)
        before_DK, maps_DK = maps_DK, swept_DK
        since_restart += 1
        history.append(objective)
        if history[-1] - history[-2] <= tolerance * abs(objective):
            converged = True
            break
    maps_DK = torch.cat([nearest_orthogonal(maps_DK[own].to(cross_DD)) for own in columns])
    agreement_KK = maps_DK.T @ (others_DD @ maps_DK)
    history[-1] = float(agreement_KK.trace()) / 2
    for own, weight in zip(columns, weights_M, strict=True):
        agreement_KK += weight**2 * maps_DK[own].T @ (cross_DD[own, own] @ maps_DK[own])
    maps_DK = maps_DK @ sorted_eigh(agreement_KK)[1]
    return ProcrustesConsensus(maps_DK * column_signs(maps_DK), history[-1], tuple(history), converged)


def nuclear_bound(
    cross_DD: Tensor,
    widths: Sequence[int],
    *,
    n_components: int | None = None,
    model_weights_M: Tensor | None = None,
) -> float:
    """sum_{m<n} a_m a_n |C_mn|_(K), sums of the K largest singular values: no maps reach a higher objective.

    Costs about as much as two sweeps. Errors as in `generalized_procrustes`.
    """
    _check(cross_DD, widths, n_components)
    weights_M = cross_DD.new_ones(len(widths)) if model_weights_M is None else model_weights_M.to(cross_DD)
    columns = block_slices(widths)
    return sum(
        float(weights_M[m] * weights_M[n] * torch.linalg.svdvals(cross_DD[columns[m], columns[n]])[:n_components].sum())
        for n in range(len(widths))
        for m in range(n)
    )


def _sweep(others_DD: Tensor, maps_DK: Tensor, columns: Sequence[slice], error: float) -> tuple[Tensor, float]:
    """Maps after it, and their objective: each new map's product with those that are new already.

    An error in a map costs its square in the objective.
    """
    maps_DK, objective = maps_DK.clone(), 0.0
    for own in columns:
        new_FK = others_DD[own, : own.start] @ maps_DK[: own.start]
        maps_DK[own] = polar_factor(new_FK + others_DD[own, own.stop :] @ maps_DK[own.stop :], error=error)
        objective += float((maps_DK[own] * new_FK).sum(dtype=torch.float64))
    return maps_DK, objective


def between_blocks(cross_DD: Tensor, widths: Sequence[int], weights_M: Tensor) -> Tensor:
    """a_m a_n C_mn with zeros in place of the diagonal blocks."""
    weight_D = weights_M.repeat_interleave(torch.tensor(widths, device=weights_M.device))
    others_DD = cross_DD * torch.outer(weight_D, weight_D)
    for own in block_slices(widths):
        others_DD[own, own] = 0
    return others_DD


def spectral_start(others_DD: Tensor, widths: Sequence[int], n_components: int) -> Tensor:
    """Polar factors of the blocks of the K leading eigenvectors: the answer itself where all pairs agree.

    Above `LARGEST_EIGH` columns the maps of all spaces to the widest, which sweeps then mend.
    """
    columns = block_slices(widths)
    if len(others_DD) <= LARGEST_EIGH:
        leading_DK = sorted_eigh(others_DD)[1][:, :n_components]
    else:
        hub = max(range(len(widths)), key=lambda m: widths[m])
        leading_DK = others_DD[:, columns[hub]][:, :n_components].clone()
        leading_DK[columns[hub]] = torch.eye(widths[hub], n_components).to(others_DD)
    return torch.cat([polar_factor(leading_DK[own]) for own in columns])


def _objective(others_DD: Tensor, maps_DK: Tensor) -> float:
    return float((maps_DK * (others_DD @ maps_DK)).sum(dtype=torch.float64)) / 2


def _check(cross_DD: Tensor, widths: Sequence[int], n_components: int | None) -> None:
    if cross_DD.shape != (sum(widths), sum(widths)):
        raise ShapeError(
            f"expected cross-products ({sum(widths)}, {sum(widths)}), got {tuple(cross_DD.shape)}: give the width of every "
            "space, in the order of the blocks"
        )
    if len(widths) < 2:
        raise InputError(f"expected at least 2 spaces, got {len(widths)}: there is nothing to align")
    if n_components is not None and not 1 <= n_components <= max(widths):
        raise InputError(
            f"expected 1 <= n_components <= {max(widths)} (the largest width), got {n_components}: no more directions can be "
            "shared"
        )
