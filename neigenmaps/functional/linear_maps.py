"""Linear maps between two spaces of matched rows, in closed form: orthogonal (Procrustes) and ridge.

Maps act on the right, y = x M + t. Work is done in float64 and maps are kept so; a map answers in the precision of the
rows it is given. Letters: N rows, F and G the widths of the two spaces, R the smaller one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, RowMismatchError, ShapeError

POWER_STEPS = 5
NEWTON_STEPS = 4  # an error of 0.01 becomes 1e-16 in three


class AffineMap(NamedTuple):
    """x -> x @ matrix_FG + offset_G, float64."""

    matrix_FG: Tensor
    offset_G: Tensor

    def __call__(self, x_NF: Tensor) -> Tensor:
        """Mapped rows (N, G) in the precision and on the device of `x_NF`. Raises ShapeError for another width."""
        if x_NF.ndim != 2 or x_NF.shape[1] != self.matrix_FG.shape[0]:
            raise ShapeError(f"expected rows (N, {self.matrix_FG.shape[0]}), got {tuple(x_NF.shape)}: wrong space?")
        return torch.addmm(self.offset_G.to(x_NF), x_NF, self.matrix_FG.to(x_NF))

    def inverse(self) -> "AffineMap":
        """The way back by the pseudo-inverse: exact where the map loses nothing, the nearest preimage elsewhere."""
        matrix_GF = torch.linalg.pinv(self.matrix_FG)
        return AffineMap(matrix_GF, -self.offset_G @ matrix_GF)


def polar_factor(matrix_FG: Tensor, *, error: float = 0.0) -> Tensor:
    """The (semi-)orthogonal Q that maximises tr(Q^T M): Q = U V^T from M = U S V^T, (F, G).

    Q^T Q = I where F >= G, else Q Q^T = I. Unique when M has full rank min(F, G).
    error: of Q that may be paid for half of the time: eigenvectors of the smaller M^T M take the place of the singular
    vectors where rounding times the square of the condition number stays below it.
    """
    if error > 0 and matrix_FG.shape[0] < matrix_FG.shape[1]:
        return polar_factor(matrix_FG.T, error=error).T
    if error > 0:
        gram_GG = matrix_FG.T @ matrix_FG
        if _well_conditioned(gram_GG, error):
            right_GG = torch.linalg.eigh(gram_GG).eigenvectors
            turned_FG = matrix_FG @ right_GG
            return F.normalize(turned_FG, dim=0) @ right_GG.T
    left_FR, _, right_RG = torch.linalg.svd(matrix_FG, full_matrices=False)
    return left_FR @ right_RG


def _well_conditioned(gram_GG: Tensor, error: float) -> bool:
    """Whether the smallest eigenvalue is above eps / error of the largest: a Cholesky factor of the rest shows it."""
    vector_G = gram_GG.diagonal()
    for _ in range(POWER_STEPS):
        vector_G = gram_GG @ F.normalize(vector_G, dim=0)
    least = torch.finfo(gram_GG.dtype).eps / error * torch.linalg.vector_norm(vector_G)
    if not least > 0:
        return False
    return int(torch.linalg.cholesky_ex(gram_GG - least * torch.eye(len(gram_GG)).to(gram_GG)).info) == 0


def nearest_orthogonal(map_FG: Tensor) -> Tensor:
    """The polar factor of what is orthogonal but for a small error, by Newton and Schulz: X <- X (3 I - X^T X) / 2."""
    if map_FG.shape[0] < map_FG.shape[1]:
        return nearest_orthogonal(map_FG.T).T
    identity_GG = torch.eye(map_FG.shape[1]).to(map_FG)
    for _ in range(NEWTON_STEPS):
        missing_GG = identity_GG - map_FG.T @ map_FG
        if missing_GG.abs().max() < 16 * torch.finfo(map_FG.dtype).eps:
            return map_FG
        map_FG = map_FG + map_FG @ missing_GG / 2
    return map_FG


def orthogonal_map(
    x_NF: Tensor, y_NG: Tensor, *, scale: bool = False, translation: bool = True, weights_N: Tensor | None = None
) -> AffineMap:
    """min over orthogonal Q (and s, t) of sum_n w_n |s x_n Q + t - y_n|^2; matrix = s Q, Q the polar factor of X^T W Y.

    For F < G the narrow space is embedded isometrically (Q Q^T = I). For F > G it is projected (Q^T Q = I), and Q is the
    one of largest inner product with y, which is the least error only among projections that keep as much of x.
    Directions that rows do not determine (N < F and G) are turned arbitrarily, lengths kept.
    Schönemann 1966; errors as in `check_paired_rows`, and InputError when one side does not vary.
    """
    centred = _centred_pair(x_NF, y_NG, translation, weights_N)
    for name, rows in (("x", centred.x_NF), ("y", centred.y_NG)):
        if not rows.any():
            raise InputError(f"expected rows of {name} that vary, got equal ones: there is nothing to turn")
    own_FF = centred.x_NF.T @ centred.x_NF
    matrix_FG = orthogonal_from_covariance(own_FF, centred.x_NF.T @ centred.y_NG, scale=scale)
    return AffineMap(matrix_FG, centred.mean_y_G - centred.mean_x_F @ matrix_FG)


def ridge_map(
    x_NF: Tensor, y_NG: Tensor, *, ridge: float = 1e-3, translation: bool = True, weights_N: Tensor | None = None
) -> AffineMap:
    """min over M (and t) of sum_n w_n |x_n M + t - y_n|^2 + lambda |M|^2, lambda = ridge * tr(X^T W X) / F.

    ridge is relative to the mean eigenvalue of the (centred) covariance, so it means the same at every scale and N.
    ridge=0 is least squares, of least norm where rows do not determine the map. Errors as in `check_paired_rows`, and
    InputError for ridge < 0.
    """
    if not ridge >= 0:
        raise InputError(f"expected ridge >= 0, got {ridge}: it is a share of the mean eigenvalue of the covariance")
    centred = _centred_pair(x_NF, y_NG, translation, weights_N)
    matrix_FG = _ridge_solution(centred.x_NF, centred.y_NG, ridge)
    return AffineMap(matrix_FG, centred.mean_y_G - centred.mean_x_F @ matrix_FG)


def ridge_from_covariance(own_FF: Tensor, cross_FG: Tensor, ridge: float) -> Tensor:
    """`ridge_map`'s matrix (F, G) from covariances. At ridge=0 directions below 1e-7 of the largest deviation are absent."""
    width = len(own_FF)
    penalty = ridge * own_FF.diagonal().sum() / width
    if penalty == 0:
        return torch.linalg.pinv(own_FF, rtol=1e-14 * width, hermitian=True) @ cross_FG
    return torch.linalg.solve(own_FF + penalty * torch.eye(width).to(own_FF), cross_FG)


def ridge_toward_identity(own_KK: Tensor, cross_KK: Tensor, ridge: float) -> Tensor:
    """min over A of sum_n |v_n A - u_n|^2 + lambda |A - I|^2, (K, K), from V^T V and V^T U; lambda as in `ridge_map`.

    What rows do not determine stays as it is, and A = I where u = v, whatever the ridge.
    """
    return torch.eye(len(own_KK)).to(own_KK) + ridge_from_covariance(own_KK, cross_KK - own_KK, ridge)


def orthogonal_from_covariance(own_FF: Tensor, cross_FG: Tensor, *, scale: bool = False) -> Tensor:
    """`orthogonal_map`'s matrix (F, G) from covariances."""
    matrix_FG = polar_factor(cross_FG)
    if not scale:
        return matrix_FG
    return matrix_FG * ((matrix_FG * cross_FG).sum() / (matrix_FG * (own_FF @ matrix_FG)).sum())


def _ridge_solution(x_NF: Tensor, y_NG: Tensor, ridge: float) -> Tensor:
    n_rows, width = x_NF.shape
    penalty = ridge * x_NF.square().sum() / width
    if penalty == 0:  # singular values of x itself: those of X^T X would lose half the digits
        return torch.linalg.pinv(x_NF, rtol=max(n_rows, width) * torch.finfo(x_NF.dtype).eps) @ y_NG
    if n_rows < width:
        gram_NN = x_NF @ x_NF.T
        gram_NN.diagonal().add_(penalty)
        return x_NF.T @ torch.linalg.solve(gram_NN, y_NG)
    return ridge_from_covariance(x_NF.T @ x_NF, x_NF.T @ y_NG, ridge)


class _CentredPair(NamedTuple):
    x_NF: Tensor  # float64, without its weighted mean, times the root of the weights
    y_NG: Tensor
    mean_x_F: Tensor
    mean_y_G: Tensor


def _centred_pair(x_NF: Tensor, y_NG: Tensor, translation: bool, weights_N: Tensor | None) -> _CentredPair:
    check_paired_rows(x_NF, y_NG, weights_N)
    x_NF, y_NG = x_NF.double(), y_NG.double()
    weights_N = x_NF.new_ones(len(x_NF)) if weights_N is None else weights_N.double()
    share_N, root_N1 = weights_N / weights_N.sum(), weights_N.sqrt()[:, None]
    if not translation:
        return _CentredPair(root_N1 * x_NF, root_N1 * y_NG, torch.zeros_like(x_NF[0]), torch.zeros_like(y_NG[0]))
    mean_x_F, mean_y_G = share_N @ x_NF, share_N @ y_NG
    return _CentredPair(_without(x_NF, mean_x_F, root_N1), _without(y_NG, mean_y_G, root_N1), mean_x_F, mean_y_G)


def _without(x_NF: Tensor, mean_F: Tensor, root_N1: Tensor) -> Tensor:
    """Columns that vary by rounding alone become zeros, so that a constant column is seen as one."""
    centred_NF = x_NF - mean_F
    rounding_F = 16 * torch.finfo(x_NF.dtype).eps * x_NF.abs().amax(dim=0)
    return root_N1 * torch.where(centred_NF.abs().amax(dim=0) > rounding_F, centred_NF, 0.0)


def check_paired_rows(x_NF: Tensor, y_NG: Tensor, weights_N: Tensor | None = None) -> None:
    """Raise unless both are finite floating-point matrices with the same rows, and weights are >= 0, not all 0.

    Raises:
        ShapeError: not matrices, empty, or weights of another length.
        RowMismatchError: different numbers of rows.
        InputError: integer features, or weights that are negative or all zero. NonFiniteError: NaN or infinity.
    """
    for name, rows in (("x", x_NF), ("y", y_NG)):
        if rows.ndim != 2 or rows.numel() == 0:
            raise ShapeError(
                f"expected {name} of shape (N, F), got {tuple(rows.shape)}: flatten the features of each row"
            )
        if not rows.dtype.is_floating_point:
            raise InputError(
                f"expected floating-point features in {name}, got {rows.dtype}: convert them with .float()"
            )
        if not torch.isfinite(rows).all():
            raise NonFiniteError(f"expected finite features in {name}, got NaN or infinity: look at the encoder")
    if len(x_NF) != len(y_NG):
        raise RowMismatchError(f"expected matched rows, got {len(x_NF)} and {len(y_NG)}: row n of both is one thing")
    if weights_N is None:
        return
    if weights_N.shape != (len(x_NF),):
        raise ShapeError(f"expected weights ({len(x_NF)},), got {tuple(weights_N.shape)}: give every row one weight")
    if not (torch.isfinite(weights_N).all() and (weights_N >= 0).all() and weights_N.any()):
        raise InputError("expected finite weights >= 0, not all 0: a weight says how much a row counts")
