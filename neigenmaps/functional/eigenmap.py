"""START HERE: the objectives whose minimisers are the ordered eigenfunctions of the augmentation kernel.

Two views x, x+ of one image are a draw from the joint law p(x, x+). The augmentation kernel

    k(x, x') = p(x, x') / (p(x) p(x'))        (T f)(x) = E[f(x+) | x]

has eigenfunctions phi_1, phi_2, ... with eigenvalues mu_1 >= mu_2 >= ... in [0, 1]; the constant, with eigenvalue 1,
is removed by centring. Everything below is built from two k x k moments of the network's outputs f = (f_1, ..., f_k):

    G = E[f(x) f(x)^T]        R = E[f(x) f(x+)^T]

R alone asks views to agree; G keeps the outputs apart. *Order* comes from a triangle: function j is pushed away from
the functions i < j, which do not feel it (stop-gradient). All losses take two (B, k) batches of paired outputs, are
averaged over the batch, and return one `EigenmapResult`. Products run in float32 (float64 stays) also under autocast.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.nested_terms import NestedTerms, Reduce

P = ParamSpec("P")
T = TypeVar("T")
Nesting = Literal["sequential", "joint", "octave"]
Weighting = Literal["constant", "adaptive"]

PAPER_TEMPERATURE = 10.0  # the published code scales each output to sum of squares t = 10, which multiplies alpha by t
PAPER_ALPHA_TIMES_WIDTH = 20.48  # 0.01, 0.005, 0.0025 at widths 2048, 4096, 8192 are this one constant over k


class EigenmapResult(NamedTuple):
    """What every objective returns.

    loss: scalar to minimise. alignment: sum_j R_jj as the loss sees it, less a threshold. orthogonality: the penalty, without its
    factor alpha. eigenvalues: (k,), detached Rayleigh quotients R_jj / G_jj of the centred outputs, in the order of
    the outputs.
    """

    loss: Tensor
    alignment: Tensor
    orthogonality: Tensor
    eigenvalues: Tensor


def _in_full_precision(objective: Callable[P, T]) -> Callable[P, T]:
    """Sums in half precision would add noise above the smallest eigenvalues, so moments leave autocast."""

    @functools.wraps(objective)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        devices = {value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)} or {"cpu"}
        with torch.autocast(devices.pop(), enabled=False):
            return objective(*args, **kwargs)

    return wrapped


@_in_full_precision
def nested_low_rank_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    nesting: Nesting = "sequential",
    scale: float = 1.0,
    threshold: float = 0.0,
    center: bool = True,
    reduce: Reduce | None = None,
) -> EigenmapResult:
    r"""NestedLoRA: the best low-rank approximation of the kernel at every length at once. The recommended default.

    The first l outputs minimise ||k - sum_{j<=l} f_j f_j||^2: -2 sum_j R_jj + sum_{ij} G_ij^2 over the leading l x l
    blocks:

        sequential   -2 sum_j R_jj + sum_j G_jj^2 + 2 sum_{i<j} E[sg(f_i) f_j]^2    (each output fits its own length)
        joint        the mean over the lengths 1..k of the losses of the leading blocks, without stop-gradient, which is
                     -2 sum_j v_j R_jj + sum_{ij} min(v_i, v_j) G_ij^2 with v_j = (k-j+1)/k
        octave       the same with length l weighted by 1/l, so that every octave of lengths counts alike: v_j is the share of
                     1 + 1/2 + ... + 1/k that lies at j and beyond

    Minimiser: f_j = sqrt(mu_j) phi_j, so that G_jj is the eigenvalue. There is no weight to choose. Two numbers (ours) help runs
    of few steps, and change no function but its size:

        f / scale for f          f_j = scale sqrt(mu_j) phi_j. Outputs that start far smaller grow for a while without feeling each
                                 other, so that views are made to agree first
        R - threshold G for R    f_j = sqrt(mu_j - threshold) phi_j, or 0 where mu_j is below: the kernel less a multiple of the
                                 identity. Outputs of VICReg have such a threshold, too

    E[.]^2 is estimated without bias from pairs of *different* images. sg detaches f_i in both factors of the square: half of
    the deflation is lost otherwise, which no downstream accuracy reveals.

    reduce: sums a tensor over processes that each hold some rows of the batch, in any numbers; every one then gets the loss of
    the whole batch and the gradient of its own rows. None: these are all rows. Computed in blocks (`nested_terms`): memory grows
    with B k, not k^2.

    Shapes: z1, z2 (B, k), B >= 2, row b of both from one image. Source: Ryu et al., arXiv 2402.03655, for view pairs
    and centred.
    """
    if not 0 < scale < float("inf"):
        raise InputError(f"scale must be above 0 and finite, got {scale}: 1 makes G_jj the eigenvalue")
    if not 0 <= threshold < 1:
        raise InputError(f"threshold must be in [0, 1), as eigenvalues are, got {threshold}: 0 keeps all functions")
    z1, z2 = _prepare(z1, z2, center=False, fewest=2 if reduce is None else 1)  # a share may be a single row
    if scale != 1:
        z1, z2 = z1 / scale, z2 / scale
    level_K = torch.ones(z1.shape[1], dtype=z1.dtype, device=z1.device)
    share_K = None
    if nesting in ("joint", "octave"):
        share_K = level_K if nesting == "joint" else 1 / level_K.cumsum(0)
        share_K = share_K / share_K.sum()
        level_K = share_K.flip(0).cumsum(0).flip(0)
    elif nesting != "sequential":
        raise InputError(f"nesting must be 'sequential', 'joint' or 'octave', got {nesting!r}")
    summed = _itself if reduce is None else reduce
    alignment, penalty, *sums = NestedTerms.apply(z1, z2, level_K, share_K, threshold, center, summed)
    eigenvalues = _quotients(*sums) if center else rayleigh_quotients(z1, z2, reduce=summed)
    return EigenmapResult(penalty - 2 * alignment, alignment, penalty, eigenvalues)


def of_row_power(z: Tensor, row_power: float) -> Tensor:
    """Rows of one length, sqrt(row_power) z / |z|: (B, k) -> (B, k), at least float32. A row of zeros stays.

    f_j = sqrt(mu_j) phi_j have sum_j f_j(x)^2 = k(x, x), truncated, with mean sum_j mu_j. A power below that mean leaves room for
    about so many functions, and the same for every x keeps few images from drawing the gradient to themselves. On kernels with a
    symmetry that carries every x to every other, the power sum_j mu_j changes no minimiser (unless k cuts an eigenspace in two).
    Source: HaoChen et al., arXiv 2106.04156, who bound it. InputError as in `check_row_power`.
    """
    check_row_power(row_power)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    return row_power**0.5 * torch.nn.functional.normalize(z, dim=1)


def check_row_power(row_power: float) -> float:
    """It; InputError unless it is finite and above 0."""
    if not 0 < row_power < float("inf"):
        raise InputError(
            f"row_power must be above 0 and finite, got {row_power}: None (null in YAML) leaves rows as they are"
        )
    return row_power


@_in_full_precision
def spectral_contrastive_loss(z1: Tensor, z2: Tensor, *, center: bool = True) -> EigenmapResult:
    """Unordered low-rank approximation of the kernel: -2 sum_j R_jj + sum_{ij} G_ij^2, squares over different images.

    Spans the leading eigenfunctions, in no order and any rotation: finish with `rayleigh_ritz`.
    Shapes as in `nested_low_rank_loss`. Source: HaoChen et al., arXiv 2106.04156 (there uncentred: `center=False`).
    """
    z1, z2 = _prepare(z1, z2, center)
    batch = z1.shape[0]
    scores_BB = (z1 @ z2.T).square()
    penalty = (scores_BB.sum() - scores_BB.diagonal().sum()) / (batch * (batch - 1))
    alignment = _diagonal(z1, z2).sum()
    return EigenmapResult(penalty - 2 * alignment, alignment, penalty, rayleigh_quotients(z1, z2))


@_in_full_precision
def neural_eigenmap_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    alpha: float,
    weighting: Weighting = "constant",
    stop_gradient: bool = True,
    cross_half: bool = False,
    center: bool = True,
    floor: float | None = None,
) -> EigenmapResult:
    r"""The Neural Eigenmaps objective, with outputs scaled to E[f_j^2] = 1 over both views of the batch:

        constant    -sum_j R_jj + alpha sum_{i<j} E[sg(f_i) f_j+]^2
        adaptive    -sum_j R_jj + alpha sum_{i<j} E[sg(f_i) f_j+]^2 / R_ii    (exact at alpha = 1, as in NeuralEF)

    Both halves of the loss treat the views alike. `alpha` is in unit-variance form: the published code's value times
    its hidden t = 10 (`paper_alpha`). Constant weighting finds new functions only for alpha > `separating_alpha(mu)`;
    below it, outputs repeat earlier ones. `stop_gradient=False` couples all pairs and so learns a span without order.

    cross_half: the square as a product of two independent half batches, unbiased (each half first averages the two view
    orders, so it is that of the symmetrised R); else it is too large by about 1/B per pair.
    floor: smallest R_ii that adaptive weighting divides by; `adaptive_floor` when None. `nested_low_rank_loss` needs none,
    because it estimates G_ij directly instead of as R_ij / R_ii.

    Shapes: z1, z2 (B, k), B >= 2 (4 with cross_half). Source: Deng et al., arXiv 2210.12637, eq. 12-15; 2205.00165
    for `adaptive`.
    """
    if not 0 <= alpha < float("inf"):
        raise InputError(f"alpha must be at least 0 and finite, got {alpha}")
    if floor is not None and not floor > 0:
        raise InputError(f"floor must be positive, or None for its default, got {floor}")
    z1, z2 = _prepare(z1, z2, center)
    batch, width = z1.shape
    rms_K = _power(z1, z2).clamp_min(1e-12).sqrt()
    z1, z2 = z1 / rms_K, z2 / rms_K
    cross_K = _diagonal(z1, z2)
    if weighting == "constant":
        weight_K = torch.ones_like(cross_K)
    elif weighting == "adaptive":
        smallest = adaptive_floor(batch, width) if floor is None else floor
        weight_K = 1 / cross_K.detach().clamp_min(smallest)
    else:
        raise InputError(f"weighting must be 'constant' or 'adaptive', got {weighting!r}")
    if cross_half:
        if batch < 4:
            raise ShapeError(
                f"cross_half needs at least 4 rows to halve, got {batch}: raise the batch size or switch it off"
            )
        first_KK = _cross_moments(z1[0::2], z2[0::2], stop_gradient)
        second_KK = _cross_moments(z1[1::2], z2[1::2], stop_gradient)
        squares_KK = first_KK.mean(0) * second_KK.mean(0)
    else:
        squares_KK = _cross_moments(z1, z2, stop_gradient).square().mean(0)
    penalty = (weight_K[:, None] * squares_KK.triu(1)).sum()
    alignment = cross_K.sum()
    return EigenmapResult(alpha * penalty - alignment, alignment, penalty, rayleigh_quotients(z1, z2))


def adaptive_floor(batch: int, width: int) -> float:
    """2 sqrt(2k/B): below it, dividing by R_ii costs more than it brings.

    R_ij of half a batch has noise of variance 2/B, and k such terms over R_ii pull on function j: their noise is
    sqrt(2k/B) / R_ii beside a signal of 1, and this keeps it below a half. Eigenvalues above the floor are deflated exactly,
    those below as with constant alpha = 1 / floor; the floor vanishes as B grows.
    """
    return 2 * (2 * width / batch) ** 0.5


def paper_alpha(width: int) -> float:
    """The published code's penalty weight in unit-variance form: t * 20.48 / k = 204.8 / k (0.1 at k = 2048)."""
    return PAPER_TEMPERATURE * PAPER_ALPHA_TIMES_WIDTH / width


def paper_neural_eigenmap_loss(
    z1: Tensor, z2: Tensor, *, alpha: float | None = None, stop_gradient: bool = True
) -> EigenmapResult:
    """The published code's loss to the digit: `neural_eigenmap_loss` with its alpha, uncentred, biased, times 2 t / k.

    alpha: as its command line takes it, default 20.48 / k. Such an alpha rarely separates eigenfunctions
    (`separating_alpha`).
    """
    width = _prepare(z1, z2, center=False)[0].shape[1]
    unit_alpha = paper_alpha(width) if alpha is None else PAPER_TEMPERATURE * alpha
    result = neural_eigenmap_loss(z1, z2, alpha=unit_alpha, stop_gradient=stop_gradient, center=False)
    return result._replace(loss=result.loss * (2 * PAPER_TEMPERATURE / width))


def separating_alpha(eigenvalues: Tensor) -> Tensor:
    """Smallest constant alpha at which every one of these functions is learned once: max_{i<j} (mu_i - mu_j) / mu_i^2.

    A new direction j pays more than a second copy of i only for alpha above this (best response with all i < j
    exact). Include the constant's eigenvalue 1 for an uncentred objective. Shapes: (k,) positive, in any order ->
    scalar.
    """
    mu_K = eigenvalues.sort(descending=True).values
    gains_KK = (mu_K[:, None] - mu_K[None, :]) / mu_K[:, None].square()
    return gains_KK.triu(1).max()


@_in_full_precision
def rayleigh_quotients(z1: Tensor, z2: Tensor, *, reduce: Reduce | None = None) -> Tensor:
    """Eigenvalue estimates R_jj / G_jj of centred outputs, (B, k) twice -> (k,), detached; 0 for a constant output.

    reduce: as in `nested_low_rank_loss`.
    """
    summed = _itself if reduce is None else reduce
    with torch.no_grad():
        z1, z2 = _prepare(z1, z2, center=False, fewest=2 if reduce is None else 1)
        n = summed(torch.full((), len(z1), dtype=z1.dtype, device=z1.device))
        mean_K = summed(z1.sum(0) + z2.sum(0)) / (2 * n)
        raw_K = summed(_sum_of_squares(z1) + _sum_of_squares(z2))
        z1, z2 = z1 - mean_K, z2 - mean_K
        power_K = summed(_sum_of_squares(z1) + _sum_of_squares(z2))
        cross_K = 2 * summed(torch.linalg.vecdot(z1, z2, dim=0))
        return _quotients(cross_K, power_K, raw_K)


def _quotients(cross_K: Tensor, power_K: Tensor, raw_K: Tensor) -> Tensor:
    """cross_K / power_K of centred outputs, which had power raw_K before."""
    rounding_K = (16 * torch.finfo(raw_K.dtype).eps) ** 2 * raw_K  # what centring leaves of a constant
    return torch.where(power_K > rounding_K, cross_K / power_K.clamp_min(1e-30), 0.0)


def _cross_moments(z1: Tensor, z2: Tensor, stop_gradient: bool) -> Tensor:
    """E[f_i f_j+] both ways, (2, k, k): row i is the stopped function, column j the trained one."""
    rows1, rows2 = (z1.detach(), z2.detach()) if stop_gradient else (z1, z2)
    return torch.stack([rows1.T @ z2, rows2.T @ z1]) / z1.shape[0]


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _sum_of_squares(z: Tensor) -> Tensor:
    return torch.linalg.vecdot(z, z, dim=0)


def _diagonal(z1: Tensor, z2: Tensor) -> Tensor:
    return (z1 * z2).mean(0)


def _power(z1: Tensor, z2: Tensor) -> Tensor:
    return (z1.square().mean(0) + z2.square().mean(0)) / 2


def _centered(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    mean_K = (z1.mean(0) + z2.mean(0)) / 2
    return z1 - mean_K, z2 - mean_K


def _prepare(z1: Tensor, z2: Tensor, center: bool, fewest: int = 2) -> tuple[Tensor, Tensor]:
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ShapeError(
            "expected two batches of shape (B, k), row b of both from one image, "
            f"got {tuple(z1.shape)} and {tuple(z2.shape)}"
        )
    if z1.shape[0] < fewest or z1.shape[1] < 1:
        raise ShapeError(f"expected at least {fewest} rows and 1 output, got {tuple(z1.shape)}: raise the batch size")
    if not z1.is_floating_point() or not z2.is_floating_point():
        raise InputError(f"expected floating-point outputs, got {z1.dtype} and {z2.dtype}")
    precision = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    z1, z2 = z1.to(precision), z2.to(precision)
    return _centered(z1, z2) if center else (z1, z2)
