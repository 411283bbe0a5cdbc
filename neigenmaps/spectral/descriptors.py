"""Functions on a graph that two spaces share without knowing each other's coordinates; (N, P), one column each.

    geodesic_distances, geodesic_similarities   along the graph to anchors
    latent_distances                            straight through the space to anchors
    label_indicators, laplacian_of              from labels
    heat_kernel_signature, wave_kernel_signature, heat_kernel_to_anchors   from a basis

Two spaces get the same scale by the same `times_P` or `energies_P`: take them from both bases at once, `heat_times(n, a, b)`
and `wave_energies(n, a, b)`. Signatures don't depend on signs, nor on rotations inside eigenspaces as long as the basis
ends between two eigenspaces (`Eigenbasis.ends_at_a_gap`).

Names after "Latent Functional Maps" (arXiv 2406.14183). N rows, P descriptors or anchors, K functions, C classes, T times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse.csgraph import dijkstra  # type: ignore[import-untyped]
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.spectral.eigenbasis import Eigenbasis
from neigenmaps.spectral.graph import NeighborGraph

if TYPE_CHECKING:
    from neigenmaps.spectral.neighbors import Array

ZERO = {
    torch.float64: 1e-8,
    torch.float32: 1e-5,
}  # eigenvalues up to here are those of pieces, constants without a scale


def geodesic_distances(graph: NeighborGraph, anchors_P: Tensor) -> Tensor:
    """Length of the shortest path to every anchor; infinite where there is none. float64. Lengths are distances, not 1 / w."""
    anchors = _anchors(anchors_P, len(graph.reach_N)).numpy()
    return torch.from_numpy(dijkstra(graph.lengths.astype(np.float64), directed=False, indices=anchors).T.copy())


def geodesic_similarities(graph: NeighborGraph, anchors_P: Tensor, *, scale: float | None = None) -> Tensor:
    """exp(-(g / scale)^2), 0 where there is no path. scale: None is the median finite distance, of each graph its own.

    The paper has exp(-g^2), with the units of g left to chance: scale=1.
    """
    distances_NP = geodesic_distances(graph, anchors_P)
    apart = distances_NP[torch.isfinite(distances_NP) & (distances_NP > 0)]
    if scale is None:
        scale = float(apart.median()) if len(apart) else 1.0
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"expected a scale above 0, got {scale}")
    return torch.exp(-(distances_NP / scale).square())


def latent_distances(X: Array, anchors_P: Tensor, metric: Literal["cosine", "euclidean"] = "cosine") -> Tensor:
    """1 - cos, or the Euclidean distance, of every row to every anchor row; in X's dtype, on its device."""
    x_NF = torch.as_tensor(X).detach()
    if x_NF.ndim != 2 or 0 in x_NF.shape:
        raise ShapeError(f"expected rows of shape (N, F), got {tuple(x_NF.shape)}")
    if metric not in ("cosine", "euclidean"):
        raise InputError(f"expected metric 'cosine' or 'euclidean', got {metric!r}: name one of them")
    if not torch.isfinite(x_NF).all():
        raise NonFiniteError("expected finite rows, got NaN or infinity: look at the encoder that made them")
    anchors = _anchors(anchors_P, len(x_NF)).to(x_NF.device)
    dtype = x_NF.dtype if x_NF.is_floating_point() else torch.get_default_dtype()
    x_NF = x_NF.to(torch.promote_types(dtype, torch.float32))
    if metric == "cosine":
        if (x_NF == 0).all(dim=1).any():
            raise InputError("a zero row has no direction: drop it or use metric='euclidean'")
        x_NF = F.normalize(x_NF / x_NF.abs().amax(dim=1, keepdim=True), dim=1)
    distances_NP = torch.cdist(x_NF, x_NF[anchors], compute_mode="donot_use_mm_for_euclid_dist")
    return (distances_NP.square() / 2 if metric == "cosine" else distances_NP).to(dtype)


def label_indicators(labels_N: Array | Sequence[int], classes_C: Array | Sequence[int] | None = None) -> Tensor:
    """1 where a row has the class of the column, else 0; float64. Rows of a class that is not listed are 0 throughout.

    classes_C: None lists the classes found, rising. Two spaces need the same list. A class without rows is refused.
    """
    labels = torch.as_tensor(labels_N)
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point():
        raise InputError(f"expected whole-numbered labels of shape (N,), got {labels.dtype}, {tuple(labels.shape)}")
    classes = labels.unique() if classes_C is None else torch.as_tensor(classes_C).to(labels.device)
    if classes.ndim != 1 or len(classes.unique()) != len(classes):
        raise InputError(f"expected each class once, got {classes_C}")
    indicators_NC = labels[:, None] == classes
    if not indicators_NC.any(dim=0).all():
        raise InputError(
            f"no row has label {classes[~indicators_NC.any(dim=0)].tolist()}: list classes both spaces have"
        )
    return indicators_NC.double()


def laplacian_of(graph: NeighborGraph | sp.csr_matrix, functions_NP: Tensor) -> Tensor:
    """f - D^-1/2 W D^-1/2 f. What the paper's code has for labels: `laplacian_of(graph, label_indicators(y))`."""
    weights = (graph.adjacency if isinstance(graph, NeighborGraph) else sp.csr_matrix(graph)).astype(np.float64)
    if functions_NP.ndim != 2 or len(functions_NP) != weights.shape[0]:
        raise ShapeError(f"expected functions ({weights.shape[0]}, P), got {tuple(functions_NP.shape)}")
    degrees = weights @ np.ones(weights.shape[0])
    root = np.sqrt(np.where(degrees > 0, degrees, 1.0))[:, None]
    values: NDArray[np.float64] = functions_NP.detach().cpu().double().numpy()
    alone = (degrees == 0)[:, None]  # a node without edges has eigenvalue 0
    return torch.from_numpy(np.where(alone, 0, values - weights @ (values / root) / root)).to(functions_NP)


def heat_kernel_signature(basis: Eigenbasis, times_P: Tensor) -> Tensor:
    """sum_j exp(-t l_j) phi_j^2 / sum_j exp(-t l_j); times above 0."""
    decay_KP = torch.softmax(-basis.eigenvalues_K[:, None] * _times(times_P, basis), dim=0)
    return basis.eigenvectors_NK.square() @ decay_KP


def heat_kernel_to_anchors(basis: Eigenbasis, anchors_P: Tensor, times_T: Tensor) -> Tensor:
    """sum_j exp(-t l_j) phi_j(a) phi_j: heat from every anchor, (N, P * T), the times of an anchor side by side."""
    phi_NK, anchors = basis.eigenvectors_NK, _anchors(anchors_P, len(basis.eigenvectors_NK))
    decay_KT = torch.exp(-basis.eigenvalues_K[:, None] * _times(times_T, basis))
    source_KPT = phi_NK[anchors.to(phi_NK.device)].mT[:, :, None] * decay_KT[:, None]
    return phi_NK @ source_KPT.flatten(1)


class WaveEnergies(NamedTuple):
    """Logarithms of eigenvalues, and the width of the windows around them."""

    energies_P: Tensor
    sigma: float


def wave_kernel_signature(basis: Eigenbasis, energies: WaveEnergies) -> Tensor:
    """sum_j w_j phi_j^2 / sum_j w_j with w_j = exp(-(e - log l_j)^2 / (2 sigma^2)); constants (l = 0) are left out."""
    energies_P = torch.as_tensor(energies.energies_P, dtype=torch.float64)
    if energies_P.ndim != 1 or len(energies_P) == 0 or not torch.isfinite(energies_P).all() or not energies.sigma > 0:
        raise InputError(f"expected finite energies and sigma above 0, got {energies}: see wave_energies")
    log_K = _spectrum(basis).log()
    distance_KP = (log_K[:, None] - energies_P.to(log_K)) / energies.sigma
    window_KP = torch.softmax(-distance_KP.square() / 2, dim=0)  # sums to 1 however far the energy lies
    return basis.eigenvectors_NK[:, -len(log_K) :].square() @ window_KP


def heat_times(n: int, *bases: Eigenbasis) -> Tensor:
    """n times from 4 ln 10 / l_max to 4 ln 10 / l_min in equal ratios; l_min, l_max over all bases, zeros left out."""
    lowest, highest = _range(n, bases)
    return torch.logspace(
        math.log10(4 * math.log(10) / highest), math.log10(4 * math.log(10) / lowest), n, dtype=torch.float64
    )


def wave_energies(n: int, *bases: Eigenbasis) -> WaveEnergies:
    """n energies from e_min + 2 sigma to e_max - 2 sigma; e = log l over all bases, zeros left out.

    sigma = 7 (e_max - e_min) / n as published, yet at most an eighth of the range: below 28 energies the published ones
    run backwards and past both ends.
    """
    lowest, highest = (math.log(value) for value in _range(n, bases))
    sigma = (highest - lowest) * min(7 / n, 1 / 8) or 1.0
    low, high = lowest + 2 * sigma, highest - 2 * sigma
    if n == 1 or highest == lowest:
        low = high = (lowest + highest) / 2
    return WaveEnergies(torch.linspace(low, high, n, dtype=torch.float64), sigma)


def unit_columns(functions_NP: Tensor, mass_N: Tensor | None = None) -> Tensor:
    """Columns of norm 1, sum_n m_n f_n^2 = 1, so that no descriptor outweighs another; a column of zeros stays."""
    if functions_NP.ndim != 2 or (mass_N is not None and mass_N.shape != functions_NP.shape[:1]):
        given = None if mass_N is None else tuple(mass_N.shape)
        raise ShapeError(f"expected functions (N, P) and mass (N,), got {tuple(functions_NP.shape)} and {given}")
    weighted_NP = functions_NP if mass_N is None else functions_NP * mass_N.to(functions_NP)[:, None].sqrt()
    norm_P = weighted_NP.norm(dim=0)
    return functions_NP / torch.where(norm_P > 0, norm_P, torch.ones_like(norm_P))


def _anchors(anchors_P: Tensor, n: int) -> Tensor:
    anchors = torch.as_tensor(anchors_P).detach().cpu()
    whole = anchors.ndim == 1 and len(anchors) > 0 and not anchors.is_floating_point() and anchors.dtype != torch.bool
    if not whole or not (anchors.min() >= 0 and anchors.max() < n):
        raise InputError(f"expected anchors, row numbers in 0..{n - 1}, got {anchors_P}")
    return anchors.long()


def _times(times_P: Tensor, basis: Eigenbasis) -> Tensor:
    times = torch.as_tensor(times_P, dtype=torch.float64)
    if times.ndim != 1 or len(times) == 0 or not (torch.isfinite(times).all() and (times > 0).all()):
        raise InputError(f"expected times above 0, got {times_P}")
    return times.to(basis.eigenvalues_K)


def _range(n: int, bases: tuple[Eigenbasis, ...]) -> tuple[float, float]:
    if n < 1 or not bases:
        raise InputError(f"expected n >= 1 and at least one basis, got n={n} and {len(bases)}")
    spectra = [_spectrum(basis) for basis in bases]
    return min(float(values.min()) for values in spectra), max(float(values.max()) for values in spectra)


def _spectrum(basis: Eigenbasis) -> Tensor:
    above_zero: Tensor = basis.eigenvalues_K[basis.eigenvalues_K > ZERO[basis.eigenvalues_K.dtype]]
    if len(above_zero) == 0:
        raise InputError(
            f"all {len(basis.eigenvalues_K)} eigenvalues are zero, one for each piece of the graph: ask for more "
            "functions, or bridge the pieces"
        )
    return above_zero
