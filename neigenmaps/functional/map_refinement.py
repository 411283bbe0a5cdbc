"""From a functional map to matched rows and back: ICP and ZoomOut, which alternate the two until nothing moves.

    rows from C    row m of Y goes with the row of X whose phi_x C^T is nearest to phi_y[m]
    C from rows    the least-squares solution of phi_y C = phi_x[rows of X matched to the rows of Y]

Both sides' functions have mean square 1 (sqrt(N) x unit vectors), so that a value means the same on spaces of different
size. ZoomOut: Melzi et al. 2019; ICP: Ovsjanikov et al. 2012. Letters: N rows and K functions on X, M rows and L functions on Y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.linear_maps import polar_factor

Nearest = Callable[[Tensor, Tensor], Tensor]
"""Index (Q,) of the point nearest to each query, from queries (Q, K) and points (N, K)."""

MOVED = 1e-3  # share of rows whose match may still change when an iteration counts as settled


def nearest_points(queries_QK: Tensor, points_NK: Tensor, chunk: int = 2048) -> Tensor:
    """Index (Q,) of the Euclidean nearest point; at most chunk x N scores exist at a time."""
    half_square_N = points_NK.square().sum(dim=1) / 2
    return torch.cat([(part @ points_NK.T - half_square_N).argmax(dim=1) for part in queries_QK.split(chunk)])


def rows_from_map(c_LK: Tensor, phi_x_NK: Tensor, phi_y_ML: Tensor, nearest: Nearest = nearest_points) -> Tensor:
    """For every row of Y its row of X, (M,). Raises ShapeError if C does not fit the functions."""
    if c_LK.shape != (phi_y_ML.shape[1], phi_x_NK.shape[1]):
        raise ShapeError(
            f"expected a map {(phi_y_ML.shape[1], phi_x_NK.shape[1])}, functions of Y by functions of X, got "
            f"{tuple(c_LK.shape)}: it takes coefficients on X to coefficients on Y"
        )
    return nearest(phi_y_ML, phi_x_NK @ c_LK.T)


def map_from_rows(
    phi_x_NK: Tensor, phi_y_ML: Tensor, x_row_of_y_M: Tensor, *, mass_y_M: Tensor | None = None
) -> Tensor:
    """The C, (L, K), that best carries every function of X to its values on the matched rows of Y.

    mass_y_M: how much every row of Y counts; all alike when None. Raises ShapeError unless every row of Y has a match.
    """
    if x_row_of_y_M.shape != (len(phi_y_ML),):
        raise ShapeError(
            f"expected one row of X for each of {len(phi_y_ML)} rows of Y, got {tuple(x_row_of_y_M.shape)}"
        )
    weighted_ML = phi_y_ML if mass_y_M is None else mass_y_M[:, None] * phi_y_ML
    return torch.linalg.solve(weighted_ML.T @ phi_y_ML, weighted_ML.T @ phi_x_NK[x_row_of_y_M])


def icp(
    c_LK: Tensor, phi_x_NK: Tensor, phi_y_ML: Tensor, *, max_steps: int = 20, nearest: Nearest = nearest_points
) -> Tensor:
    """Rows from C, C from rows, polar factor; until at most one row in a thousand changes its match."""
    index_M = rows_from_map(c_LK, phi_x_NK, phi_y_ML, nearest)
    for _ in range(max_steps):
        c_LK = polar_factor(map_from_rows(phi_x_NK, phi_y_ML, index_M))
        before_M, index_M = index_M, rows_from_map(c_LK, phi_x_NK, phi_y_ML, nearest)
        if (index_M != before_M).double().mean() <= MOVED:
            break
    return c_LK


def zoomout_sizes(
    values_x_K: Tensor, values_y_L: Tensor, start: int, *, step: int = 4, stop: int | None = None
) -> list[tuple[int, int]]:
    """Sizes (functions of X, of Y) to grow through, from `start` to `stop` or to all.

    Every next size lies 1 to `step` further, where the spectra of both spaces have their widest gaps: a cut through a
    group of equal eigenvalues would keep an arbitrary part of their space. The last size is all functions on both
    sides, whose numbers may differ.

    Raises InputError unless 1 <= start <= stop <= the smaller number of functions, and step >= 1.
    """
    common = min(len(values_x_K), len(values_y_L))
    last = common if stop is None else stop
    if not 1 <= start <= last <= common or step < 1:
        raise InputError(
            f"expected 1 <= start <= stop <= {common} functions and step >= 1, got start={start}, stop={last}, step={step}"
        )
    gap = values_x_K[:common].diff() + values_y_L[:common].diff()
    sizes = [start]
    while sizes[-1] < last:
        nearest, furthest = sizes[-1] + 1, min(sizes[-1] + step, last)
        ahead = gap[nearest - 1 : furthest]
        sizes.append(last if furthest == last else nearest + int(ahead.argmax()))
    pairs = [(size, size) for size in sizes]
    return pairs if stop is not None else [*pairs[:-1], (len(values_x_K), len(values_y_L))]


def zoomout(
    c_LK: Tensor,
    phi_x_NK: Tensor,
    phi_y_ML: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    max_final_steps: int = 10,
    nearest: Nearest = nearest_points,
) -> Tensor:
    """Grow C through `sizes`, rows from the smaller map, the larger map from the rows; at the last size until settled."""
    n_x, n_y = sizes[0]
    c_LK = c_LK[:n_y, :n_x]
    index_M = rows_from_map(c_LK, phi_x_NK[:, :n_x], phi_y_ML[:, :n_y], nearest)
    for step, (n_x, n_y) in enumerate([*sizes[1:], *[sizes[-1]] * max_final_steps]):
        c_LK = map_from_rows(phi_x_NK[:, :n_x], phi_y_ML[:, :n_y], index_M)
        before_M, index_M = index_M, rows_from_map(c_LK, phi_x_NK[:, :n_x], phi_y_ML[:, :n_y], nearest)
        if step >= len(sizes) - 1 and (index_M != before_M).double().mean() <= MOVED:
            break
    return c_LK
