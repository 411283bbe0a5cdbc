"""The k largest eigenvalues of a sparse symmetric matrix with spectrum in [-1, 1], and their vectors.

    dense      LAPACK: small matrices, or a third of the spectrum and more
    chebyshev  subspace iteration, a block at a time, with the polynomial that damps [-1, cut] most (Zhou, Saad, Tiago and
               Chelikowsky, 2006): products of the sparse matrix with blocks and little else, in torch, on any device;
               sees multiplicities up to the width of its block. On ten graphs of 1,000 to 20,000 rows 0.6 to 4 times as
               fast as ARPACK in float64, 1 to 9 times in float32
    arpack     implicitly restarted Lanczos, scipy: one vector at a time, so copies of a multiple eigenvalue need a search
               of their own; half the memory. With hundreds of neighbours eigenvalues crowd below the gap, where a
               Krylov space gets through and a filtered block may not
    auto       dense where small, arpack where rows have many neighbours, else, and on GPUs, chebyshev

Letters: N rows, K eigenvalues asked for, B width of the block, L vectors that are done.
"""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import reverse_cuthill_mckee  # type: ignore[import-untyped]
from scipy.sparse.linalg import LinearOperator, eigsh  # type: ignore[import-untyped]
from torch import Tensor

Solver = Literal["auto", "dense", "arpack", "chebyshev"]

DENSE_UP_TO = 1000  # rows: an eighth of a second
CROWDED = 64  # neighbours per row, from where on Lanczos is the safer and faster of the two
SPARE = 0.5  # of k: what the block holds beyond it; the rest of the spectrum is damped from there
LONGEST_FILTER = 80  # degree; longer ones let the largest eigenvectors drown the others in rounding
WORTHWHILE = math.log(10)  # gain of the longest filter below which the block grows, up to
WIDEST = 4  # times k
MOST_ROUNDS = 200
STUCK = 10  # rounds without a new vector or a residual that falls by a third
ROWS_AT_A_TIME = 1 << 15


class Eigenpairs(NamedTuple):
    """values_K: falling. vectors_NK: orthonormal."""

    values_K: Tensor
    vectors_NK: Tensor


def largest_eigenpairs(
    matrix: sp.csr_matrix, k: int, solver: Solver, dtype: torch.dtype, device: torch.device, tolerance: float
) -> Eigenpairs:
    """tolerance: of the residuals |A v - mu v|. Warns where they stay above it."""
    n = matrix.shape[0]
    if solver == "auto":
        crowded = matrix.nnz >= CROWDED * n and device.type == "cpu"
        solver = "dense" if n <= DENSE_UP_TO or 3 * k >= n else "arpack" if crowded else "chebyshev"
    if solver == "dense":
        values, vectors = torch.linalg.eigh(torch.from_numpy(matrix.toarray()).double())
        pairs = Eigenpairs(values.flip(0)[:k], vectors.flip(1)[:, :k])
    elif solver == "arpack":
        pairs = _arpack(matrix.astype(np.float32 if dtype == torch.float32 else np.float64), k, tolerance)
    else:
        pairs = _chebyshev_of_csr(matrix, k, dtype, device, tolerance)
    return Eigenpairs(pairs.values_K.to(device, dtype), pairs.vectors_NK.to(device, dtype))


def sparse_on_device(matrix: sp.csr_matrix, dtype: torch.dtype, device: torch.device) -> Tensor:
    matrix.sort_indices()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        parts = [torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data)]
        return torch.sparse_csr_tensor(
            parts[0], parts[1], parts[2].to(dtype), matrix.shape, device=device, check_invariants=True
        )


def chebyshev(matrix_NN: Tensor, k: int, tolerance: float) -> Eigenpairs:
    """A block of random vectors is filtered and turned to Ritz vectors, round after round; what is done is set aside."""
    n, dtype, device = matrix_NN.shape[0], matrix_NN.dtype, matrix_NN.device
    random = torch.Generator().manual_seed(0)
    spare = max(8, int(SPARE * k))
    block_NB = torch.randn(n, min(n, k + spare), generator=random, dtype=dtype).to(device)
    done_NL, done_L = block_NB[:, :0], block_NB[0, :0]
    cut, degree = 0.0, 10
    lowest, since = math.inf, 0
    for _ in range(MOST_ROUNDS):
        block_NB = chebyshev_filter(matrix_NN, block_NB, degree, cut)
        for _ in range(2):  # once leaves a trace of what is done where the block is nearly dependent
            block_NB = _orthonormal(block_NB - done_NL @ (done_NL.mT @ block_NB))
        image_NB = matrix_NN @ block_NB
        projected_BB = _product_in_double(block_NB, image_NB)
        ritz_B, turn_BB = torch.linalg.eigh((projected_BB + projected_BB.mT) / 2)
        ritz_B, turn_BB = ritz_B.flip(0).to(dtype), turn_BB.flip(1).to(dtype)
        block_NB, image_NB = block_NB @ turn_BB, image_NB @ turn_BB
        left = k - len(done_L)
        residual_B = (image_NB - block_NB * ritz_B).norm(dim=0)[:left].tolist()
        fine = next((i for i, residual in enumerate(residual_B) if residual > tolerance), left)
        done_NL, done_L = torch.cat([done_NL, block_NB[:, :fine]], 1), torch.cat([done_L, ritz_B[:fine]])
        since = 0 if fine or max(residual_B) < 0.7 * lowest else since + 1
        lowest = math.inf if fine else min(lowest, max(residual_B))
        if fine == left:
            break
        block_NB, ritz = block_NB[:, fine:], ritz_B[fine:].tolist()
        cut, worst = ritz[-1], max(residual_B[fine:])
        rate = math.acosh(max(1 + 1e-15, 2 * (ritz[left - fine - 1] + 1) / (cut + 1) - 1))  # growth in one degree, log
        degree = max(8, min(LONGEST_FILTER, math.ceil(math.log(10 * worst / tolerance) / max(rate, 1e-9))))
        widest = min(n, WIDEST * k + 50) - len(done_L)
        if rate * LONGEST_FILTER < WORTHWHILE and block_NB.shape[1] < widest:
            # The k-th eigenvalue and the last of the block lie too close together, or are one: look further.
            wider = min(spare, widest - block_NB.shape[1])
            block_NB = torch.cat([block_NB, torch.randn(n, wider, generator=random, dtype=dtype).to(device)], 1)
        if since == STUCK:
            break
    if len(done_L) < k:
        warnings.warn(
            f"expected residuals of at most {tolerance:.1g}, got {worst:.1g} and no less in further rounds: eigenvalue {k} has "
            "too many close ones; ask for another number of functions, a larger tolerance, or solver='arpack'",
            stacklevel=2,
        )
        done_NL, done_L = torch.cat([done_NL, block_NB], 1), torch.cat([done_L, ritz_B[fine:]])
    order_K = done_L.argsort(descending=True, stable=True)[:k]
    return Eigenpairs(done_L[order_K], done_NL[:, order_K])


def _orthonormal(block_NB: Tensor) -> Tensor:
    """A basis of the columns; in float32 by their Gram matrix, as Householder's sums lose three digits at 200,000 rows."""
    if block_NB.dtype == torch.float64:
        return torch.linalg.qr(block_NB).Q
    block_NB = block_NB / block_NB.norm(dim=0)
    values_B, axes_BB = torch.linalg.eigh(_product_in_double(block_NB, block_NB))
    return block_NB @ (axes_BB / values_B.clamp_min(1e-14 * values_B[-1]).sqrt()).to(block_NB)


def _product_in_double(a_NB: Tensor, b_NB: Tensor) -> Tensor:
    """a^T b, (N, B) each, summed in float64: float32 sums over 200,000 rows leave residuals of 3e-5."""
    parts = zip(a_NB.split(ROWS_AT_A_TIME), b_NB.split(ROWS_AT_A_TIME), strict=True)
    total_BB = a_NB.new_zeros(a_NB.shape[1], b_NB.shape[1], dtype=torch.float64)
    for a_RB, b_RB in parts:
        total_BB += a_RB.double().mT @ b_RB.double()
    return total_BB


def _chebyshev_of_csr(
    matrix: sp.csr_matrix, k: int, dtype: torch.dtype, device: torch.device, tolerance: float
) -> Eigenpairs:
    # Neighbours come to lie close in memory: the products are 1.7 times as fast at 50,000 rows.
    order = np.ascontiguousarray(reverse_cuthill_mckee(matrix, symmetric_mode=True))
    values_K, ordered_NK = chebyshev(sparse_on_device(matrix[order][:, order].tocsr(), dtype, device), k, tolerance)
    places_N = torch.from_numpy(order).long().to(device)
    return Eigenpairs(values_K, torch.empty_like(ordered_NK).index_copy(0, places_N, ordered_NK))


def chebyshev_filter(matrix_NN: Tensor, block_NB: Tensor, degree: int, cut: float) -> Tensor:
    """T_degree of the map that takes [-1, cut] to [-1, 1], divided by its value at 1 at every step."""
    centre, half = (cut - 1) / 2, (cut + 1) / 2
    first = scale = half / (1 - centre)
    previous_NB = block_NB
    now_NB = torch.addmm(block_NB, matrix_NN, block_NB, beta=-centre * scale / half, alpha=scale / half)
    for _ in range(degree - 1):
        following = 1 / (2 / first - scale)
        next_NB = torch.addmm(
            now_NB, matrix_NN, now_NB, beta=-2 * centre * following / half, alpha=2 * following / half
        )
        next_NB.add_(previous_NB, alpha=-scale * following)
        previous_NB, now_NB, scale = now_NB, next_NB, following
    return now_NB


def _arpack(matrix: sp.csr_matrix, k: int, tolerance: float) -> Eigenpairs:
    n, random = matrix.shape[0], np.random.default_rng(0)

    def start() -> NDArray[Any]:
        return random.standard_normal(n).astype(matrix.dtype)

    copy = 1e-9 if matrix.dtype == np.float64 else 1e-5  # larger by this than the last one: not found before
    values, vectors = eigsh(matrix, k, which="LA", tol=tolerance, v0=start())
    for _ in range(k):  # one start vector may not see all of a multiple eigenvalue: search what is left
        rest = LinearOperator((n, n), matvec=partial(_deflated, matrix, vectors), dtype=matrix.dtype)
        left, missed = eigsh(rest, 1, which="LA", tol=tolerance**0.5, v0=start())  # off by the residual's square
        if left[0] <= values.min() + copy:
            break
        _, missed = eigsh(rest, 1, which="LA", tol=tolerance, v0=missed[:, 0])
        basis = np.linalg.qr(np.concatenate([vectors, missed], axis=1))[0]
        ritz, rotation = np.linalg.eigh(basis.T @ (matrix @ basis))
        values, vectors = ritz[1:], basis @ rotation[:, 1:]
    order = np.argsort(-values)
    return Eigenpairs(torch.from_numpy(values[order]), torch.from_numpy(vectors[:, order]))


def _deflated(matrix: sp.csr_matrix, vectors: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """What is left of the matrix beside the known eigenvectors, whose eigenvalues move below its spectrum, by -3."""
    result: NDArray[Any] = matrix @ x - vectors @ (3 * (vectors.T @ x))
    return result
