"""Small dense linear algebra that the field keeps rewriting: sorted eigh, fixed signs, principal angles."""

import torch
from torch import Tensor

from neigenmaps.errors import ShapeError


def sorted_eigh(matrix_KK: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix in falling order, (K,), and their eigenvectors as columns, (K, K)."""
    values, vectors = torch.linalg.eigh((matrix_KK + matrix_KK.mT) / 2)
    return values.flip(-1), vectors.flip(-1)


def column_signs(values_NK: Tensor) -> Tensor:
    """Signs (K,) that make each column's entry of largest magnitude positive; 1 for a column of zeros."""
    if values_NK.ndim != 2 or values_NK.shape[0] == 0:
        raise ShapeError(f"expected function values of shape (N, K) with N > 0, got {tuple(values_NK.shape)}")
    largest_K = values_NK.gather(0, values_NK.abs().argmax(0, keepdim=True)).squeeze(0)
    return torch.where(largest_K < 0, -1.0, 1.0).to(values_NK.dtype)


def principal_cosines(a_NK: Tensor, b_NL: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Cosines of the principal angles between two column spans, falling, (min(K, L),).

    weights_N: inner product sum_n w_n a_n b_n; a plain sum when None. Columns must be linearly independent.
    """
    if a_NK.shape[0] != b_NL.shape[0]:
        raise ShapeError(f"expected the same rows in both spans, got {a_NK.shape[0]} and {b_NL.shape[0]}")
    if weights_N is not None:
        root_N1 = weights_N.sqrt()[:, None]
        a_NK, b_NL = root_N1 * a_NK, root_N1 * b_NL
    basis_a, basis_b = torch.linalg.qr(a_NK).Q, torch.linalg.qr(b_NL).Q
    return torch.linalg.svdvals(basis_a.mT @ basis_b).clamp(max=1.0)
