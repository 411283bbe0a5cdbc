"""Geometry correction: maps within the universe that turn every space's rows toward the consensus of the others.

After alignment row i of space m is u_mi, direction u^_mi = u_mi / |u_mi|. Its target is the consensus of the OTHERS,

    c_i,-m = normalise(sum_{n != m} w_ni u^_ni),

since a space that is part of its own target (2602.06205 includes it) is told to keep its noise: at M = 3 a third of it.
All maps here are linear and follow from sums over rows in closed form, so rows may come in chunks. A ladder, from what
changes least to what changes most; which rung pays is for held-out rows to say (`alignment.GCPA`):

    diagonal      s_j = agreement / variance along each axis of agreement, the same for all spaces (Wiener)
    shared ridge  one W: min sum_mi w_mi |u^_mi W - c_i,-m|^2 + lambda |W|^2
    model ridge   one W_m each
    agreement     W_m A: then whitened, and every direction weighed by its correlation between spaces

Letters: M spaces, N rows, K width of the universe, D = M K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.linalg import sorted_eigh

SMALLEST = (
    1e-3  # singular values of a map below this share of the largest are lifted to it, so that there is a way back
)


class CorrectionMoments(NamedTuple):
    """Sums over rows, float64. s = sqrt(w), and w = 0 where no other space has the row.

    weight_MM: sum of s_m s_n. gram_DD: blocks sum of s_m s_n u^_m^T u^_n. target_MKK: sum of w_m u^_m^T c_-m.
    """

    weight_MM: Tensor
    gram_DD: Tensor
    target_MKK: Tensor

    def merge(self, other: CorrectionMoments) -> CorrectionMoments:
        """Moments of both sets of rows."""
        return CorrectionMoments(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def gram(self, m: int) -> Tensor:
        """Of one space with itself, (K, K)."""
        own = slice(m * self.target_MKK.shape[1], (m + 1) * self.target_MKK.shape[1])
        return self.gram_DD[own, own]


class Drift(NamedTuple):
    """1 - cos(T(u), u) over rows: how far a correction leaves the geometry it was given."""

    mean: float
    median: float
    p95: float


def directions(u_MNK: Tensor, weights_MN: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows (M, N, K), consensus of the others (M, N, K), and weights (M, N), 0 where there is no consensus; float64.

    Raises ShapeError for fewer than two spaces, no rows or weights of another shape; NonFiniteError; InputError for
    negative weights.
    """
    if u_MNK.ndim != 3 or u_MNK.shape[0] < 2 or 0 in u_MNK.shape:
        raise ShapeError(f"expected rows (M, N, K) of two or more spaces, got {tuple(u_MNK.shape)}: stack them")
    if not torch.isfinite(u_MNK).all():
        raise NonFiniteError("expected finite rows, got NaN or infinity: look at the encoders that made them")
    if weights_MN is None:
        weights_MN = u_MNK.new_ones(u_MNK.shape[:2], dtype=torch.float64)
    if weights_MN.shape != u_MNK.shape[:2]:
        raise ShapeError(f"expected weights {tuple(u_MNK.shape[:2])}, got {tuple(weights_MN.shape)}: one per row")
    if not (weights_MN >= 0).all():
        raise InputError("expected weights >= 0, got others: a weight says how much a row counts")
    unit_MNK = F.normalize(u_MNK.double(), dim=2)
    weights_MN = weights_MN.to(unit_MNK)
    counted_MNK = weights_MN[:, :, None] * unit_MNK
    consensus_MNK = F.normalize(counted_MNK.sum(dim=0) - counted_MNK, dim=2)
    return unit_MNK, consensus_MNK, weights_MN * consensus_MNK.any(dim=2)


def correction_moments(u_MNK: Tensor, weights_MN: Tensor | None = None) -> CorrectionMoments:
    """What all corrections here are made of. Chunks of rows add up by `merge`; errors as in `directions`."""
    unit_MNK, consensus_MNK, weights_MN = directions(u_MNK, weights_MN)
    root_MN = weights_MN.sqrt()
    scaled_MNK = root_MN[:, :, None] * unit_MNK
    side_ND = scaled_MNK.transpose(0, 1).flatten(1)
    target_MKK = (weights_MN[:, :, None] * unit_MNK).mT @ consensus_MNK
    return CorrectionMoments(root_MN @ root_MN.T, side_ND.T @ side_ND, target_MKK)


def diagonal_correction(moments: CorrectionMoments) -> Tensor:
    """V diag(b_j / t_j) V^T, (K, K): V the eigenvectors of the mean cross-product B between spaces, t of T within.

    Directions without agreement are shrunk to SMALLEST. With equal noise in all directions it is the identity times a
    number.
    """
    n_models, width, _ = moments.target_MKK.shape
    identity_DK = torch.eye(width).to(moments.gram_DD).repeat(n_models, 1)
    within_KK, between_KK = _within_and_between(moments, identity_DK)
    agreement_K, axes_KK = sorted_eigh(between_KK)
    variance_K = (axes_KK * (within_KK @ axes_KK)).sum(dim=0)
    shrinkage_K = torch.where(variance_K > 1e-12 * variance_K.max(), agreement_K / variance_K, 0.0)
    return with_way_back((axes_KK * shrinkage_K.clamp_min(0)) @ axes_KK.T)


def ridge_correction(moments: CorrectionMoments, *, ridge: float, shared: bool) -> Tensor:
    """(G_m + lambda I)^-1 H_m from G_m = sum w u^_m^T u^_m, H_m = sum w u^_m^T c_-m: (M, K, K); equal maps when shared.

    ridge: lambda as a share of the mean eigenvalue of G_m. Raises InputError unless ridge > 0.
    """
    return with_way_back(_ridges(moments, ridge, shared))


class Ridged(NamedTuple):
    """Per-model ridges (M, K, K), and second moments (K, K) of what they make of the rows, within and between spaces."""

    maps_MKK: Tensor
    within_KK: Tensor
    between_KK: Tensor


def after_ridge(moments: CorrectionMoments, ridge: float) -> Ridged:
    """What `agreement_map` is made of. Raises InputError unless ridge > 0."""
    ridge_MKK = ridge_correction(moments, ridge=ridge, shared=False)
    return Ridged(ridge_MKK, *_within_and_between(moments, ridge_MKK.flatten(0, 1)))


def agreement_map(ridged: Ridged, shrinkage: float) -> Tensor:
    """The shared A (K, K) that follows the ridges: the map of space m is W_m A.

    With T, B the second moments within and between spaces after the ridge, A = L Q diag(rho) O, where L whitens
    T + shrinkage tr(T) / K I and L^T B L = Q diag(rho) Q^T: what spaces do not share counts for nothing in a cosine,
    however large it is. This is canonical correlation with its weights, begun from the universe. O turns the result
    back, so that A is symmetric: no cosine depends on it, but drift would count the turn.

    Raises InputError unless shrinkage > 0.
    """
    if not shrinkage > 0:
        raise InputError(f"expected shrinkage > 0, got {shrinkage}: it is a share of the mean variance")
    variance_K, axes_KK = sorted_eigh(ridged.within_KK)
    whitener_KK = axes_KK / (variance_K.clamp_min(0) + shrinkage * variance_K.mean()).sqrt()
    agreement_K, turn_KK = sorted_eigh(whitener_KK.T @ ridged.between_KK @ whitener_KK)
    weighted_KK = whitener_KK @ turn_KK * agreement_K.clamp_min(0)
    square_K, axes_KK = sorted_eigh(weighted_KK @ weighted_KK.T)
    length_K = square_K.clamp_min(0).sqrt()
    return (axes_KK * torch.maximum(length_K, SMALLEST * length_K[0])) @ axes_KK.T


def with_way_back(map_KK: Tensor) -> Tensor:
    """The same map, or a batch of them, singular values below SMALLEST times the largest lifted to it."""
    squares = torch.linalg.eigvalsh(map_KK.mT @ map_KK)  # exact enough to see that nothing is to be lifted, and quick
    if (squares[..., 0] > (2 * SMALLEST) ** 2 * squares[..., -1]).all():
        return map_KK
    left, values, right = torch.linalg.svd(map_KK)
    return (left * torch.maximum(values, SMALLEST * values[..., :1])[..., None, :]) @ right


def drift(corrected_NK: Tensor, rows_NK: Tensor) -> Tensor:
    """1 - cos(T(u), u) of every row, (N,), float64."""
    return 1 - F.cosine_similarity(corrected_NK.double(), rows_NK.double(), dim=1)


def drift_summary(drift_N: Tensor) -> Drift:
    """Mean, median and .95 quantile."""
    median, p95 = drift_N.quantile(drift_N.new_tensor([0.5, 0.95])).tolist()
    return Drift(drift_N.mean().item(), median, p95)


def _ridges(moments: CorrectionMoments, ridge: float, shared: bool) -> Tensor:
    if not ridge > 0:
        raise InputError(f"expected ridge > 0, got {ridge}: it is a share of the mean eigenvalue, as 0.01 is")
    n_models, width, _ = moments.target_MKK.shape
    gram_MKK = torch.stack([moments.gram(m) for m in range(n_models)])
    target_MKK = moments.target_MKK
    if shared:
        gram_MKK, target_MKK = (sums.sum(dim=0, keepdim=True) for sums in (gram_MKK, target_MKK))
    penalty_M11 = ridge * gram_MKK.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    if not (penalty_M11 > 0).all():
        raise InputError("expected rows with a consensus in every space, got a space without: look at its weights")
    penalised_MKK = gram_MKK + penalty_M11 * torch.eye(width).to(gram_MKK)
    return torch.linalg.solve(penalised_MKK, target_MKK).expand(n_models, -1, -1)


def _within_and_between(moments: CorrectionMoments, maps_DK: Tensor) -> tuple[Tensor, Tensor]:
    """Mean second moments of the mapped unit rows, over spaces with themselves and with one another."""
    n_models = len(moments.target_MKK)
    maps_MKK = maps_DK.unflatten(0, (n_models, -1))
    own_MKK = torch.stack([moments.gram(m) for m in range(n_models)])
    within_KK, all_KK = (maps_MKK.mT @ own_MKK @ maps_MKK).sum(dim=0), maps_DK.T @ moments.gram_DD @ maps_DK
    own_weight = moments.weight_MM.diagonal().sum()
    return within_KK / own_weight, (all_KK - within_KK) / (moments.weight_MM.sum() - own_weight)
