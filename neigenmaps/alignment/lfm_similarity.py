"""Compare two spaces whose rows correspond through the functional map between their neighbour graphs.

    result = lfm_similarity(X, Y)
    result.score, result.p_value, result.panel["overlap"], result.distortion_x

Rows correspond, so C = Phi_Y^T Phi_X is known, and every score is a formula in it (`neigenmaps.functional.map_scores`).
One null is shared by all: permuting rows permutes Phi, and no graph is built again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, RowMismatchError, ShapeError
from neigenmaps.functional import map_scores
from neigenmaps.functional.similarity import Similarity, calibrate
from neigenmaps.spectral import Eigenbasis, NeighborGraph, laplacian_eigenbasis, neighbor_graph

if TYPE_CHECKING:
    from neigenmaps.spectral.graph import Kernel
    from neigenmaps.spectral.neighbors import Array, Metric

    Space = Array | NeighborGraph | Eigenbasis

HEADLINE = "weighted_overlap"
BATCH_ELEMENTS = 1 << 25  # of the permuted functions held at once: 256 MB


@dataclass(frozen=True, eq=False)
class LFMSimilarity:
    """What `lfm_similarity` found.

    score: the headline, `panel["weighted_overlap"].calibrated`; 1 for equal spans, 0 for what chance gives.
    p_value: of the headline. panel: every score with its null mean, sd, z, p and calibrated value (None for no null).
    n_eigenvectors: m, functions compared, the constant one counted; less than asked for where an eigenspace lies across.
    functional_map: C (L, K), takes coefficients on X to those on Y; the first function of each is the constant one.
    angles: principal angles without the constant function, in radians, rising.
    curve: overlap of the first 1, 2, ... functions, the constant one left out; curve_by_chance: its mean over orders of
        the rows; curve_at_gap: whether both spectra have a gap there, else the value depends on an arbitrary choice.
    distortion_x, distortion_y: what the map loses of each row, see `map_scores.row_distortion`.
    worst_x, worst_y: the most distorted function of each space, see `map_scores.most_distorted_function`.
    basis_x, basis_y: give them back to `lfm_similarity` in place of a space that is compared again.
    """

    score: float
    p_value: float | None
    panel: Mapping[str, Similarity]
    n_eigenvectors: int
    functional_map: Tensor
    angles: Tensor
    curve: Tensor
    curve_by_chance: Tensor
    curve_at_gap: Tensor
    distortion_x: Tensor
    distortion_y: Tensor
    worst_x: Tensor
    worst_y: Tensor
    basis_x: Eigenbasis
    basis_y: Eigenbasis


def lfm_similarity(
    X: Space,
    Y: Space,
    *,
    n_eigenvectors: int = 50,
    n_neighbors: int | None = None,
    metric: Metric = "angular",
    kernel: Kernel = "gaussian",
    n_permutations: int = 199,
    random_state: int = 0,
) -> LFMSimilarity:
    """How alike the geometry of two spaces is, X (N, F) and Y (N, G), row i of one with row i of the other.

    The headline compares the smoothest functions of both graphs, the constant one left out, each weighted by how far
    its eigenvalue lies below the first one not used, w_k = lambda_(m+1) - lambda_k:

        sum_lk v_l w_k C_lk^2 / (|v| |w|), then (s - e) / (1 - e) with e its exact mean over all orders of the rows

    This is the cosine of the two low-pass filters Phi diag(w) Phi^T. It is symmetric; signs, and rotations inside an
    eigenspace, leave it as it is, since equal eigenvalues weigh the same; it is continuous where a hard cut at m is not,
    as functions enter with weight 0; and shuffled rows get 0 whatever N is.

    Why not the paper's ratio |diag(C^T C)|^2 / |C^T C|^2: it is blind to the size of C, so that 0.01 I scores 1; the
    constant functions always match, so that shuffled rows score higher than most true pairs; it changes when an
    eigenspace is rotated, and when X and Y change places. It is in the panel, with its null, beside the ratio without
    the constant function.

    The panel: paper_ratio, paper_ratio_unsquared, ratio_without_constant, overlap, overlap_without_constant, nuclear,
    orthogonality, angle, rows (area distortion, mean over rows), weighted_overlap. All but the last
    use the first m functions alike, m <= n_eigenvectors the largest number behind which both spectra have a gap.

    X, Y: arrays, tensors, graphs, or bases from `similarity_basis`; n_neighbors, metric and kernel are for arrays and
        tensors only.
    n_neighbors: None is 15 % of the rows, at least 10, at most 300.
    n_permutations: of the null; p >= 1 / (1 + n_permutations). 0 leaves z and p out, not the score.

    Tensors come back in the input's dtype (the wider one) and on X's device; work is done in float64.

    Raises:
        RowMismatchError: X and Y have different numbers of rows.
        ShapeError, NonFiniteError: a space that is not a matrix, or not finite.
        InputError: n_eigenvectors not in 2..N-1, or more than a given basis holds; no gap in both spectra up to there;
            n_permutations < 0; what `neighbor_graph` refuses.
    """
    if n_permutations < 0:
        raise InputError(f"expected n_permutations >= 0, got {n_permutations}: 0 leaves the null out")
    if n_eigenvectors < 2:
        raise InputError(f"expected n_eigenvectors >= 2, got {n_eigenvectors}: the first function is constant")
    rows_x, rows_y = _n_rows(X), _n_rows(Y)
    if rows_x != rows_y:
        raise RowMismatchError(
            f"expected the same rows in X and Y, got {rows_x} and {rows_y}: keep the common rows, in one order"
        )
    basis_x, basis_y = (
        similarity_basis(space, n_eigenvectors=n_eigenvectors, n_neighbors=n_neighbors, metric=metric, kernel=kernel)
        for space in (X, Y)
    )
    m = _common_gap(basis_x, basis_y, n_eigenvectors)
    device = basis_x.eigenvectors_NK.device
    phi_NK, psi_NL = (_functions(basis, n_eigenvectors).to(device) for basis in (basis_x, basis_y))
    weights_K, weights_L = (_weights(basis, n_eigenvectors).to(device) for basis in (basis_x, basis_y))
    energies = map_scores.row_energy(phi_NK[:, 1:m]), map_scores.row_energy(psi_NL[:, 1:m])
    c_LK = psi_NL.T @ phi_NK
    null_PLK = _null_maps(basis_x, basis_y, phi_NK, psi_NL, n_permutations, random_state)
    scores, nulls = (_scores(maps, m, weights_K, weights_L, *energies) for maps in (c_LK, null_PLK))
    panel = {name: calibrate(value, nulls[name]) for name, value in scores.items()}

    by_chance = map_scores.weighted_overlap_by_chance(phi_NK[:, 1:], psi_NL[:, 1:], weights_K, weights_L)
    score = (scores[HEADLINE] - by_chance) / (1 - by_chance)
    if n_permutations:
        panel[HEADLINE] = panel[HEADLINE]._replace(null_mean=by_chance, calibrated=score)
    c_LK, phi_NK, psi_NL = c_LK[:m, :m], phi_NK[:, :m], psi_NL[:, :m]
    inner_LK = c_LK[1:, 1:]
    like = _likeness(X, Y, basis_x)
    return LFMSimilarity(
        score=float(score),
        p_value=float(p) if (p := panel[HEADLINE].p) is not None else None,
        panel=panel,
        n_eigenvectors=m,
        functional_map=c_LK.to(like),
        angles=map_scores.principal_angles(inner_LK).to(like),
        curve=map_scores.overlap_curve(inner_LK).to(like),
        curve_by_chance=_curve_by_chance(phi_NK[:, 1:], psi_NL[:, 1:]).to(like),
        curve_at_gap=_at_gap(basis_x, basis_y)[1:m],
        distortion_x=map_scores.row_distortion(inner_LK, phi_NK[:, 1:]).to(like),
        distortion_y=map_scores.row_distortion(inner_LK.T, psi_NL[:, 1:]).to(like),
        worst_x=map_scores.most_distorted_function(inner_LK, phi_NK[:, 1:]).to(like),
        worst_y=map_scores.most_distorted_function(inner_LK.T, psi_NL[:, 1:]).to(like),
        basis_x=basis_x,
        basis_y=basis_y,
    )


def similarity_basis(
    X: Space,
    *,
    n_eigenvectors: int = 50,
    n_neighbors: int | None = None,
    metric: Metric = "angular",
    kernel: Kernel = "gaussian",
) -> Eigenbasis:
    """The basis that `lfm_similarity` needs of one space: one function more than n_eigenvectors, for the gap behind them.

    Make it once for a reference that many spaces are compared with. A basis is given back as it is. Errors as there.
    """
    n_rows = _n_rows(X)
    if n_eigenvectors >= n_rows:
        raise InputError(
            f"expected n_eigenvectors <= {n_rows - 1}, one less than the rows, got {n_eigenvectors}: lower it, or give "
            "more rows"
        )
    if isinstance(X, Eigenbasis):
        if len(X.eigenvalues_K) <= n_eigenvectors:
            raise InputError(
                f"expected a basis of at least {n_eigenvectors + 1} functions, got {len(X.eigenvalues_K)}: make it with "
                f"similarity_basis(X, n_eigenvectors={n_eigenvectors}), or lower n_eigenvectors"
            )
        if not torch.isfinite(X.eigenvectors_NK).all():
            raise NonFiniteError("expected a finite basis, got NaN or infinity: make it with similarity_basis")
        return X
    graph = similarity_graph(X, n_neighbors=n_neighbors, metric=metric, kernel=kernel)
    return laplacian_eigenbasis(graph, n_eigenvectors + 1)


def similarity_graph(
    X: Array | NeighborGraph, *, n_neighbors: int | None = None, metric: Metric = "angular", kernel: Kernel = "gaussian"
) -> NeighborGraph:
    """The graph that `lfm_similarity` makes of one space. A graph is given back as it is. Errors as there."""
    if isinstance(X, NeighborGraph):
        return X
    n_rows = _n_rows(X)
    if n_neighbors is None:
        n_neighbors = min(n_rows - 1, max(10, min(300, round(0.15 * n_rows))))
    return neighbor_graph(X, n_neighbors, metric, kernel)


def _n_rows(space: Space) -> int:
    if isinstance(space, NeighborGraph):
        return space.adjacency.shape[0]
    if isinstance(space, Eigenbasis):
        return len(space.eigenvectors_NK)
    shape = torch.as_tensor(space).shape
    if len(shape) != 2:
        raise ShapeError(f"expected rows of shape (N, F), got {tuple(shape)}: flatten every sample to one row")
    return shape[0]


def _likeness(X: Space, Y: Space, basis_x: Eigenbasis) -> Tensor:
    """An empty tensor with the results' dtype and device: those of arrays and tensors, else of X's basis."""
    given = [torch.as_tensor(space) for space in (X, Y) if isinstance(space, Tensor | np.ndarray)]
    if not given:
        return basis_x.eigenvectors_NK.new_empty(0)
    dtypes = [tensor.dtype if tensor.dtype.is_floating_point else torch.float64 for tensor in given]
    dtype = functools.reduce(torch.promote_types, dtypes)
    return torch.empty(0, dtype=dtype, device=given[0].device)


def _at_gap(basis_x: Eigenbasis, basis_y: Eigenbasis) -> Tensor:
    """Whether no group of equal eigenvalues, of either basis, continues behind its first m functions; m = 1, 2, ..."""
    width = min(len(basis_x.eigenvalues_K), len(basis_y.eigenvalues_K)) - 1
    at_gap = torch.ones(width, dtype=torch.bool)
    for basis in (basis_x, basis_y):
        ends = torch.tensor([stop for _, stop in basis.groups])
        at_gap &= torch.isin(torch.arange(1, width + 1), ends)
    return at_gap


def _common_gap(basis_x: Eigenbasis, basis_y: Eigenbasis, n_eigenvectors: int) -> int:
    places = torch.nonzero(_at_gap(basis_x, basis_y)[:n_eigenvectors]).flatten() + 1
    if len(places) == 0 or places[-1] < 2:
        raise InputError(
            f"expected a gap in both spectra below function {n_eigenvectors + 1}, got none: no span is defined there; raise "
            "n_eigenvectors past the multiple eigenvalue, or choose another n_neighbors or kernel"
        )
    return int(places[-1])


def _functions(basis: Eigenbasis, m: int) -> Tensor:
    """The first m functions as orthonormal columns (N, m), the constant one (sqrt(degree)) first.

    It is the first by itself in a connected graph; elsewhere it lies somewhere in the eigenspace of 0, which is turned.
    """
    phi_NK = basis.eigenvectors_NK.double() * basis.mass_N.double().sqrt()[:, None]
    stop = basis.groups[0][1]
    if stop == 1:
        return phi_NK[:, :m]
    constant_N = basis.degrees_N.double().sqrt()
    along_K = phi_NK[:, :stop].T @ (constant_N / constant_N.norm())
    turn_KK = torch.linalg.qr(torch.cat([along_K[:, None], torch.eye(stop).to(along_K)], dim=1)).Q
    return torch.cat([phi_NK[:, :stop] @ turn_KK, phi_NK[:, stop:m]], dim=1)


def _weights(basis: Eigenbasis, m: int) -> Tensor:
    """lambda_(m+1) - lambda_k of functions 2..m; one weight for each group of equal eigenvalues, so 0 for one that is cut."""
    eigenvalues_K = basis.eigenvalues_K.double()
    eigenvalues_K = torch.cat([eigenvalues_K[start:stop].mean().expand(stop - start) for start, stop in basis.groups])
    return (eigenvalues_K[m] - eigenvalues_K[1:m]).clamp_min(0)


def _null_maps(
    basis_x: Eigenbasis, basis_y: Eigenbasis, phi_NK: Tensor, psi_NL: Tensor, n_permutations: int, random_state: int
) -> Tensor:
    """C under random orders of the rows, (P, L, K).

    The space with the larger sum of eigenvalues is permuted, a choice that no order of rows can change: so that the
    p-values, too, stay the same when X and Y change places.
    """
    generator, n = torch.Generator().manual_seed(random_state), phi_NK.shape[1]
    permute_x = float(basis_x.eigenvalues_K[:n].sum()) >= float(basis_y.eigenvalues_K[:n].sum())
    still, moved = (psi_NL, phi_NK) if permute_x else (phi_NK, psi_NL)
    step = max(1, BATCH_ELEMENTS // moved.numel())
    maps = [still.new_empty(0, still.shape[1], moved.shape[1])]
    for start in range(0, n_permutations, step):
        orders_PN = [torch.randperm(len(moved), generator=generator) for _ in range(min(step, n_permutations - start))]
        maps.append(still.T @ moved[torch.stack(orders_PN).to(moved.device)])
    null = torch.cat(maps)
    return null if permute_x else null.mT


def _scores(
    c_LK: Tensor, m: int, weights_K: Tensor, weights_L: Tensor, energy_KK: Tensor, energy_LL: Tensor
) -> dict[str, Tensor]:
    weighted = map_scores.weighted_overlap(c_LK[..., 1:, 1:], weights_K, weights_L)
    c_LK = c_LK[..., :m, :m]
    inner_LK = c_LK[..., 1:, 1:]
    return {
        "paper_ratio": map_scores.paper_ratio(c_LK),
        "paper_ratio_unsquared": map_scores.paper_ratio(c_LK, squared=False),
        "ratio_without_constant": map_scores.paper_ratio(inner_LK),
        "overlap": map_scores.overlap(c_LK),
        "overlap_without_constant": map_scores.overlap(inner_LK),
        "nuclear": map_scores.nuclear_overlap(inner_LK),
        "orthogonality": map_scores.orthogonality(c_LK),
        "angle": map_scores.angle_score(inner_LK),
        "rows": map_scores.row_score(inner_LK, energy_KK, energy_LL),
        HEADLINE: weighted,
    }


def _curve_by_chance(phi_NK: Tensor, psi_NL: Tensor) -> Tensor:
    width = phi_NK.shape[1]
    values = [
        map_scores.weighted_overlap_by_chance(phi_NK[:, :m], psi_NL[:, :m], *(phi_NK.new_ones(m),) * 2)
        for m in range(1, width + 1)
    ]
    return torch.stack(values)
