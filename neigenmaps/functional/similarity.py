"""How alike two representations of the same rows are, and how much of it is chance.

    linear_cka(a_NF, b_NF, unbiased=True, null=199, generator=torch.Generator().manual_seed(0))

Every measure takes paired rows (N, F_a), (N, F_b) and gives one `Similarity`. With `null=P` the rows of the first
space are permuted P times: p = (1 + #{null at least as alike}) / (1 + P) is exact for independent spaces.
`compare_layers` does all pairs of two lists of layers under the same permutations, and calibrates their best pair by
the best pair of every permutation: the best of many values is large by chance.

Work is done in the features' precision, float32 at least; the neighbour measures give float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from neigenmaps.errors import InputError, RowMismatchError
from neigenmaps.functional.similarity_kernels import RBFCKA, RSA, Kernel, LinearCKA, MinibatchCKA
from neigenmaps.functional.similarity_measure import AbstractMeasure, checked_space
from neigenmaps.functional.similarity_neighbours import (
    CycleKNN,
    MutualKNN,
    RelativeSimilarity,
    relative_representation,
)
from neigenmaps.functional.similarity_subspaces import CCA, PWCCA, ProcrustesDistance

__all__ = [
    "CCA",
    "PWCCA",
    "RBFCKA",
    "RSA",
    "AbstractMeasure",
    "CycleKNN",
    "LayerSimilarity",
    "LinearCKA",
    "MinibatchCKA",
    "MutualKNN",
    "ProcrustesDistance",
    "RelativeSimilarity",
    "Similarity",
    "calibrate",
    "compare_layers",
    "cycle_knn",
    "linear_cka",
    "mean_cca",
    "minibatch_cka",
    "mutual_knn",
    "procrustes_distance",
    "pwcca",
    "rbf_cka",
    "relative_representation",
    "relative_similarity",
    "rsa",
    "svcca",
]


class Similarity(NamedTuple):
    """A value and its place in the permutation null: shape (), or (A, B) for a table. All but `value` are None for null=0.

    z and calibrated grow with likeness, for distances too.
    """

    value: Tensor
    null_mean: Tensor | None
    null_std: Tensor | None  # unbiased; 0 for a single permutation
    z: Tensor | None  # (value - null_mean) / null_std; 0 where the null does not vary
    p: Tensor | None
    calibrated: Tensor | None  # 0 at the null's mean, 1 at the best possible value; 0 where these two agree


class LayerSimilarity(NamedTuple):
    """All pairs (A, B) of layers; the most alike pair, its place, and its calibration by the best pair of every null."""

    pairs: Similarity
    best: Similarity
    best_pair: tuple[int, int]


def compare_layers(
    layers_a: Sequence[Tensor],
    layers_b: Sequence[Tensor],
    measure: AbstractMeasure,
    *,
    null: int = 0,
    generator: torch.Generator | None = None,
) -> LayerSimilarity:
    """`measure` between every layer of one model and every layer of another, (N, F) each, N shared by all.

    Every permutation is shared by all pairs. The p of `best` is family-wise: it may be read whatever the layers are.
    Gradients flow through the values, not through the null.

    Raises:
        ShapeError, NonFiniteError: a layer that is not a matrix, or not finite.
        RowMismatchError: layers with different numbers of rows.
        InputError: no layers, too few or equal rows, integer features, arguments out of range, no generator for the null.
    """
    if not layers_a or not layers_b:
        raise InputError("expected at least one layer on each side, got none: pass lists of (N, F) tensors")
    if null < 0:
        raise InputError(f"expected null >= 0 permutations, got {null}: 0 leaves the calibration out")
    if null > 0 and generator is None:
        raise InputError(f"expected a generator for null={null}, got None: pass torch.Generator().manual_seed(0)")
    spaces_a = [checked_space(f"layers_a[{i}]", x_NF, measure.min_rows) for i, x_NF in enumerate(layers_a)]
    spaces_b = [checked_space(f"layers_b[{i}]", x_NF, measure.min_rows) for i, x_NF in enumerate(layers_b)]
    rows = {len(x_NF) for x_NF in spaces_a + spaces_b}
    if len(rows) > 1:
        raise RowMismatchError(f"expected the same rows in all spaces, got {sorted(rows)} rows: match them first")
    dtype = torch.float64 if any(x_NF.dtype == torch.float64 for x_NF in spaces_a + spaces_b) else torch.float32
    prepared_a = [measure.prepare(x_NF.to(dtype), second=False) for x_NF in spaces_a]
    prepared_b = [measure.prepare(x_NF.to(dtype), second=True) for x_NF in spaces_b]

    def table(prepared: list) -> Tensor:
        return torch.stack([torch.stack([measure.compare(a, b) for b in prepared_b]) for a in prepared])

    value_AB, nulls = table(prepared_a), []
    with torch.no_grad():
        for _ in range(null):
            assert generator is not None
            order_N = torch.randperm(len(spaces_a[0]), generator=generator, device=generator.device)
            order_N = order_N.to(spaces_a[0].device)
            nulls.append(table([measure.permute(prepared, order_N) for prepared in prepared_a]))
    null_PAB = torch.stack(nulls) if nulls else value_AB.new_zeros(0, *value_AB.shape)
    sign = -1.0 if measure.falling else 1.0
    place = int((sign * value_AB.detach()).argmax())
    null_best_P = sign * (sign * null_PAB).flatten(1).amax(dim=1) if null else null_PAB.flatten()
    return LayerSimilarity(
        calibrate(value_AB, null_PAB, best=measure.best, falling=measure.falling),
        calibrate(value_AB.flatten()[place], null_best_P, best=measure.best, falling=measure.falling),
        (place // value_AB.shape[1], place % value_AB.shape[1]),
    )


def calibrate(value: Tensor, null_P: Tensor, *, best: float = 1.0, falling: bool = False) -> Similarity:
    """Place of `value` in `null_P`, its first dimension permutations. Equal up to rounding counts against the value."""
    if len(null_P) == 0:
        return Similarity(value, None, None, None, None, None)
    sign = -1.0 if falling else 1.0
    observed = value.detach()
    rounding = 256 * torch.finfo(observed.dtype).eps
    mean = null_P.mean(dim=0)
    std = null_P.std(dim=0) if len(null_P) > 1 else torch.zeros_like(mean)
    above = sign * (observed - mean)
    z = torch.where(std > rounding, above / std.clamp_min(rounding), 0.0)
    room = sign * (best - mean)
    calibrated = torch.where(room > rounding, above / room.clamp_min(rounding), 0.0)
    as_alike = (sign * (null_P - observed) >= -rounding).sum(dim=0)
    return Similarity(value, mean, std, z, (1 + as_alike).to(observed.dtype) / (1 + len(null_P)), calibrated)


def _pair(a: Tensor, b: Tensor, measure: AbstractMeasure, null: int, generator: torch.Generator | None) -> Similarity:
    return compare_layers([a], [b], measure, null=null, generator=generator).best


def linear_cka(
    a_NF: Tensor, b_NF: Tensor, *, unbiased: bool = False, null: int = 0, generator: torch.Generator | None = None
) -> Similarity:
    """Linear CKA. See `LinearCKA`; errors as in `compare_layers`."""
    return _pair(a_NF, b_NF, LinearCKA(unbiased), null, generator)


def rbf_cka(
    a_NF: Tensor,
    b_NF: Tensor,
    *,
    bandwidth: float = 1.0,
    unbiased: bool = False,
    null: int = 0,
    generator: torch.Generator | None = None,
) -> Similarity:
    """CKA of Gaussian kernels, their width a multiple of the median distance. See `RBFCKA`."""
    return _pair(a_NF, b_NF, RBFCKA(bandwidth, unbiased), null, generator)


def minibatch_cka(
    a_NF: Tensor,
    b_NF: Tensor,
    *,
    batch_size: int = 256,
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
    null: int = 0,
    generator: torch.Generator | None = None,
) -> Similarity:
    """Unbiased CKA averaged over batches of consecutive rows, for many rows. See `MinibatchCKA`."""
    return _pair(a_NF, b_NF, MinibatchCKA(batch_size, kernel, bandwidth), null, generator)


def mean_cca(a_NF: Tensor, b_NF: Tensor, *, null: int = 0, generator: torch.Generator | None = None) -> Similarity:
    """Mean canonical correlation. See `CCA`."""
    return _pair(a_NF, b_NF, CCA(), null, generator)


def svcca(
    a_NF: Tensor, b_NF: Tensor, *, explained: float = 0.99, null: int = 0, generator: torch.Generator | None = None
) -> Similarity:
    """Mean canonical correlation of the leading singular directions. See `CCA`."""
    return _pair(a_NF, b_NF, CCA(explained), null, generator)


def pwcca(a_NF: Tensor, b_NF: Tensor, *, null: int = 0, generator: torch.Generator | None = None) -> Similarity:
    """Canonical correlations weighted by what they carry of the first space. See `PWCCA`."""
    return _pair(a_NF, b_NF, PWCCA(), null, generator)


def procrustes_distance(
    a_NF: Tensor, b_NF: Tensor, *, null: int = 0, generator: torch.Generator | None = None
) -> Similarity:
    """Distance after the best rotation; small means alike, and p is small then too. See `ProcrustesDistance`."""
    return _pair(a_NF, b_NF, ProcrustesDistance(), null, generator)


def rsa(
    a_NF: Tensor,
    b_NF: Tensor,
    *,
    correlation: Literal["pearson", "spearman"] = "pearson",
    distance: Literal["euclidean", "cosine"] = "euclidean",
    null: int = 0,
    generator: torch.Generator | None = None,
) -> Similarity:
    """Correlation of pairwise distances. See `RSA`."""
    return _pair(a_NF, b_NF, RSA(correlation, distance), null, generator)


def mutual_knn(
    a_NF: Tensor,
    b_NF: Tensor,
    *,
    k: int = 10,
    metric: Literal["cosine", "euclidean"] = "cosine",
    chunk: int = 1024,
    null: int = 0,
    generator: torch.Generator | None = None,
) -> Similarity:
    """Share of common nearest neighbours. See `MutualKNN`."""
    return _pair(a_NF, b_NF, MutualKNN(k, metric, chunk), null, generator)


def cycle_knn(
    a_NF: Tensor,
    b_NF: Tensor,
    *,
    k: int = 10,
    metric: Literal["cosine", "euclidean"] = "cosine",
    chunk: int = 1024,
    null: int = 0,
    generator: torch.Generator | None = None,
) -> Similarity:
    """Share of rows that two neighbour steps can bring home. See `CycleKNN`."""
    return _pair(a_NF, b_NF, CycleKNN(k, metric, chunk), null, generator)


def relative_similarity(
    a_NF: Tensor, b_NF: Tensor, anchors: Sequence[int], *, null: int = 0, generator: torch.Generator | None = None
) -> Similarity:
    """Mean cosine of relative representations on shared anchor rows. See `RelativeSimilarity`."""
    return _pair(a_NF, b_NF, RelativeSimilarity(tuple(anchors)), null, generator)
