"""How far an alignment would lie elsewhere had other images been drawn as the probe set: the jackknife over folds of its rows.

    folds = probe_folds(1000, seed=0)
    a, b = (FoldSpace.of(x.rows, x.leading, functions_without(x.graph, x.basis, folds), folds) for x in spaces)
    jackknife_interval(value, a.lfm(b))

Every measure is computed anew without each fold in turn, from what the whole set gave: no graph is built and no eigenproblem
solved a second time. What a measure costs here is a few of its permutations.

The jackknife: var = (G - 1) / G sum_g (v_g - mean v)^2 for G folds, and Student's t with G - 1 degrees of freedom. It takes the
measure at this number of images: one that changes with it (k nearest neighbours of more images lie closer) has no other truth.

Letters: G folds, N rows, F and K widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from torch import Tensor

from neigenmaps.functional import map_scores
from neigenmaps.functional.similarity_neighbours import MutualKNN, nearest_rows
from neigenmaps.functional.similarity_subspaces import ProcrustesDistance
from neigenmaps.spectral import Eigenbasis, NeighborGraph

N_FOLDS = 10
T_975 = 2.262  # Student's quantile for N_FOLDS - 1 degrees of freedom
SPARE = 2  # times k: neighbours that are kept, so that k are left when a tenth of the rows is gone

Folds = Sequence[Tensor]
"""Row numbers by fold; together all rows, each once."""


def probe_folds(n_rows: int, seed: int) -> Folds:
    """Random folds whose sizes differ by at most one."""
    return torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed)).tensor_split(N_FOLDS)


def jackknife_interval(value: float, without_G: Tensor, *, largest: float = 1.0) -> tuple[float, float]:
    """Bounds of 95 % around `value`, from the values without each fold; neither lies above `largest`."""
    n = len(without_G)
    half = T_975 * float((n - 1) / n * (without_G - without_G.mean()).square().sum()) ** 0.5
    return min(value - half, largest), min(value + half, largest)


def means_without(values_NK: Tensor, folds: Folds) -> Tensor:
    """Column means over the rows outside each fold, (G, K)."""
    total_K = values_NK.sum(dim=0)
    return torch.stack([(total_K - values_NK[rows].sum(dim=0)) / (len(values_NK) - len(rows)) for rows in folds])


@dataclass(frozen=True, eq=False)
class FoldSpace:
    """One space without each fold: what its measures with any other space of the same rows need.

    leading_NK: what Procrustes sees. nearest_NM: rows by falling cosine, SPARE k of each. functions, weights: by fold, the smooth
    functions on the graph without it, (n, K) orthonormal, the constant one left out, and what `weighted_overlap` weighs
    them by; empty where the functional map is not asked for.
    """

    folds: Folds
    narrow_NF: Tensor
    hsic_G: Tensor
    leading_NK: Tensor
    nearest_NM: Tensor
    functions: Sequence[Tensor]
    weights: Sequence[Tensor]

    @classmethod
    def of(
        cls,
        rows_NF: Tensor,
        leading_NK: Tensor,
        smooth: tuple[Sequence[Tensor], Sequence[Tensor]],
        folds: Folds,
    ) -> FoldSpace:
        """smooth: `functions_without` of its graph, or two empty sequences."""
        narrow_NF = _narrow(rows_NF)
        spare = min(SPARE * MutualKNN.k, len(rows_NF) - 1)
        nearest_NM = nearest_rows(rows_NF, spare, MutualKNN.metric, MutualKNN.chunk)
        hsic_G = _hsic_without(narrow_NF, narrow_NF, folds)
        return cls(folds, narrow_NF, hsic_G, leading_NK, nearest_NM, *smooth)

    def lfm(self, other: FoldSpace) -> Tensor:
        """`lfm_similarity`'s headline without each fold, (G,)."""
        scores = []
        for phi_NK, w_K, psi_NL, v_L in zip(self.functions, self.weights, other.functions, other.weights, strict=True):
            found = map_scores.weighted_overlap(psi_NL.T @ phi_NK, w_K, v_L)
            by_chance = map_scores.weighted_overlap_by_chance(phi_NK, psi_NL, w_K, v_L)
            scores.append((found - by_chance) / (1 - by_chance))
        return torch.stack(scores)

    def unbiased_cka(self, other: FoldSpace) -> Tensor:
        """(G,)."""
        cross_G = _hsic_without(self.narrow_NF, other.narrow_NF, self.folds)
        return cross_G / (self.hsic_G * other.hsic_G).clamp_min(torch.finfo(cross_G.dtype).tiny).sqrt()

    def mutual_knn(self, other: FoldSpace) -> Tensor:
        """(G,); rows that a fold takes out of the lists are replaced by those behind them."""
        measure = MutualKNN()
        return torch.stack([measure.compare(self._nearest(rows), other._nearest(rows)) for rows in self.folds])

    def procrustes(self, other: FoldSpace) -> Tensor:
        """(G,)."""
        measure, values = ProcrustesDistance(), []
        for kept_N in self._kept():
            prepared = [measure.prepare(one.leading_NK[kept_N], second=False) for one in (self, other)]
            values.append(measure.compare(*prepared))
        return torch.stack(values)

    def _kept(self) -> list[Tensor]:
        return [kept_without(rows, len(self.leading_NK)) for rows in self.folds]

    def _nearest(self, rows: Tensor) -> Tensor:
        kept_N = kept_without(rows, len(self.nearest_NM))
        lists_NM = self.nearest_NM[kept_N]
        left_NM = torch.isin(lists_NM, rows)
        return lists_NM.gather(1, left_NM.byte().argsort(dim=1, stable=True)[:, : MutualKNN.k])


def kept_without(rows: Tensor, n_rows: int) -> Tensor:
    """The other rows, in order."""
    return torch.ones(n_rows, dtype=torch.bool).index_fill(0, rows, False).nonzero()[:, 0]


def functions_without(graph: NeighborGraph, basis: Eigenbasis, folds: Folds) -> tuple[list[Tensor], list[Tensor]]:
    """The smooth functions on the graph without each fold, and their weights, as `FoldSpace` holds them.

    By Rayleigh-Ritz in the span of the whole graph's functions, restricted, and their image under the operator.
    """
    phi_NK = (basis.eigenvectors_NK.double() * basis.mass_N.double().sqrt()[:, None]).cpu()
    found = [_smooth(graph.adjacency, phi_NK, kept_without(rows, len(phi_NK)).numpy()) for rows in folds]
    functions, weights = zip(*found, strict=True)
    return list(functions), list(weights)


def _smooth(adjacency: sp.csr_matrix, phi_NK: Tensor, kept: np.ndarray) -> tuple[Tensor, Tensor]:
    edges = adjacency[kept][:, kept].astype(np.float64)
    degrees = np.maximum(edges @ np.ones(len(kept)), np.finfo(np.float64).tiny)
    scale = sp.diags(degrees**-0.5)
    operator = scale @ edges @ scale
    constant = np.sqrt(degrees / degrees.sum())

    def without_constant(functions: np.ndarray) -> np.ndarray:
        return functions - np.outer(constant, constant @ functions)

    start = without_constant(phi_NK[kept].numpy()[:, 1:])
    span, _ = np.linalg.qr(np.hstack([start, without_constant(operator @ start)]))
    values, turn = np.linalg.eigh(span.T @ (operator @ span))
    leading = values[::-1][: start.shape[1]]  # 1 - eigenvalue, the last one is where weights end
    functions = span @ turn[:, ::-1][:, : start.shape[1] - 1]
    return torch.from_numpy(functions), torch.from_numpy(np.maximum(leading[:-1] - leading[-1], 0))


def _narrow(rows_NF: Tensor) -> Tensor:
    """Centred rows in at most N columns, of unit norm, with the same products."""
    rows_NF = rows_NF.double() - rows_NF.double().mean(dim=0)
    rows_NF = rows_NF / torch.linalg.matrix_norm(rows_NF)
    if rows_NF.shape[1] <= len(rows_NF):
        return rows_NF.float()
    values_N, vectors_NN = torch.linalg.eigh(rows_NF @ rows_NF.T)
    return (vectors_NN * values_N.clamp_min(0).sqrt()).float()


def _hsic_without(a_NF: Tensor, b_NG: Tensor, folds: Folds) -> Tensor:
    """Unbiased HSIC without each fold, up to a factor that CKA is free of: see `LinearCKA`, whose formula this is."""
    whole_FG, norms = a_NF.T @ b_NG, [x.square().sum(dim=1) for x in (a_NF, b_NG)]
    found = []
    for rows in folds:
        n = len(a_NF) - len(rows)
        parts = [x[rows] for x in (a_NF, b_NG)]
        means = [-part.sum(dim=0) / n for part in parts]  # of the rows that are left, as all sum to zero
        cross_FG = whole_FG - parts[0].T @ parts[1] - n * torch.outer(*means)
        diagonals = []
        for x, norm_N, mean in zip((a_NF, b_NG), norms, means, strict=True):
            diagonal_N = (norm_N - 2 * (x @ mean) + mean @ mean).double()
            diagonals.append(diagonal_N.index_fill(0, rows, 0.0))
        square = cross_FG.double().square().sum()
        traces = diagonals[0].sum() * diagonals[1].sum()
        found.append(square - n / (n - 2) * (diagonals[0] @ diagonals[1]) + traces / ((n - 1) * (n - 2)))
    return torch.stack(found)
