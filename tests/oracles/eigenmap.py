"""The objectives as loops over images and functions, straight from their formulas.

Every loss takes the *stopped* outputs apart from the trained ones: f is what the gradient moves, s is what it sees as
given. Their value is at s = f; their gradient at fixed s is the stop-gradient, here by a complex step, which is exact
to the last digit because no loss takes an absolute value of what it trains.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = NDArray[Any]  # (B, k), complex while a derivative is taken
Views = tuple[Outputs, Outputs]
Loss = Callable[[Views, Views], Any]  # (stopped, trained)


def nested_sequential(s: Views, f: Views, *, center: bool = True) -> Any:
    """-2 sum_j R_jj + sum_j G_jj^2 + 2 sum_{i<j} E[s_i f_j]^2, squares over pairs of different images."""
    (s1, s2), (f1, f2) = _prepared(s, center), _prepared(f, center)
    batch, width = f1.shape
    total = -2 * _alignment(f1, f2)
    for b, c in _different(batch):
        for j in range(width):
            total += f1[b, j] ** 2 * f2[c, j] ** 2 / (batch * (batch - 1))
            for i in range(j):
                total += 2 * s1[b, i] * f1[b, j] * s2[c, i] * f2[c, j] / (batch * (batch - 1))
    return total


def nested_joint(f: Views, *, center: bool = True) -> Any:
    """The mean over lengths l = 1..k of the plain low-rank loss of the first l functions."""
    return _over_lengths(f, np.ones(f[0].shape[1]), center)


def nested_octave(f: Views, *, center: bool = True) -> Any:
    """The same mean with length l weighted by 1 / l."""
    return _over_lengths(f, 1 / np.arange(1, f[0].shape[1] + 1), center)


def _over_lengths(f: Views, shares: Any, center: bool) -> Any:
    lengths = range(1, len(shares) + 1)
    losses = [spectral_contrastive((f[0][:, :n], f[1][:, :n]), center=center) for n in lengths]
    return sum(share * loss for share, loss in zip(shares, losses, strict=True)) / sum(shares)


def with_threshold(loss: Loss, scale: float, threshold: float, level: NDArray[Any], *, center: bool = True) -> Loss:
    """The same loss of outputs / scale for the kernel less threshold times the identity: + 2 threshold sum_j v_j G_jj."""

    def shifted(s: Views, f: Views) -> Any:
        s, f = ((a / scale, b / scale) for a, b in (s, f))
        f1, f2 = _prepared(f, center)
        power = sum(level @ (f1[b] ** 2 + f2[b] ** 2) for b in range(len(f1))) / (2 * len(f1))
        return loss(s, f) + 2 * threshold * power

    return shifted


def spectral_contrastive(f: Views, *, center: bool = True) -> Any:
    """-2 E[f . f+] + E[(f(x) . f(x'))^2] over pairs of different images."""
    f1, f2 = _prepared(f, center)
    batch = len(f1)
    scores = sum(sum(f1[b] * f2[c]) ** 2 for b, c in _different(batch))
    return -2 * _alignment(f1, f2) + scores / (batch * (batch - 1))


def neural_eigenmap(
    s: Views, f: Views, *, alpha: float, adaptive_floor: float | None = None, cross_half: bool = False, center: bool
) -> Any:
    """-sum_j R_jj + alpha sum_{i<j} E[s_i f_j+]^2 (/ R_ii when there is a floor).

    The square is a mean over the two orders of the views; with cross_half each half averages them before the product.
    """
    s1, s2 = _unit(_prepared(s, center))
    f1, f2 = _unit(_prepared(f, center))
    batch, width = f1.shape
    everyone, even, odd = range(batch), range(0, batch, 2), range(1, batch, 2)
    total = -_alignment(f1, f2)
    for j in range(width):
        for i in range(j):
            weight = 1.0 if adaptive_floor is None else 1 / max((s1[:, i] * s2[:, i]).mean().real, adaptive_floor)
            if cross_half:
                first, second = (_moment(s1, f2, i, j, half) + _moment(s2, f1, i, j, half) for half in (even, odd))
                square = first * second / 4
            else:
                square = (_moment(s1, f2, i, j, everyone) ** 2 + _moment(s2, f1, i, j, everyone) ** 2) / 2
            total += alpha * weight * square
    return total


def published_code(s: Views, f: Views, *, alpha: float, t: float = 10.0) -> Any:
    """Section 2.1, line by line: pooled norms, sqrt(2t), and the strict upper triangles of both products."""
    width = f[0].shape[1]

    def scaled(z1: Outputs, z2: Outputs) -> Views:
        norm = np.sqrt((z1**2).sum(0) + (z2**2).sum(0))
        return np.sqrt(2 * t) * z1 / norm, np.sqrt(2 * t) * z2 / norm

    (q1, q2), (p1, p2) = scaled(*s), scaled(*f)
    loss = -(2 / width) * (p1 * p2).sum()
    penalty = ((np.triu(q2.T @ p1, 1) ** 2).sum() + (np.triu(q1.T @ p2, 1) ** 2).sum()) / width
    return loss + alpha * penalty


def gradient(loss: Loss, z1: Outputs, z2: Outputs, *, stopped: bool = True) -> Views:
    """d loss / d (z1, z2) with the stopped outputs held fixed, or moved along."""
    both = np.stack([z1, z2])
    result = np.zeros_like(both)
    for index in np.ndindex(both.shape):
        moved = both.astype(complex)
        moved[index] += 1e-40j
        given = both if stopped else moved
        result[index] = loss((given[0], given[1]), (moved[0], moved[1])).imag / 1e-40
    return result[0], result[1]


def _moment(s: Outputs, f: Outputs, i: int, j: int, rows: range) -> Any:
    return sum(s[b, i] * f[b, j] for b in rows) / len(rows)


def _alignment(f1: Outputs, f2: Outputs) -> Any:
    return sum(sum(f1[b] * f2[b]) for b in range(len(f1))) / len(f1)


def _different(batch: int) -> list[tuple[int, int]]:
    return [(b, c) for b in range(batch) for c in range(batch) if b != c]


def _prepared(f: Views, center: bool) -> Views:
    shift = (f[0].mean(0) + f[1].mean(0)) / 2 if center else 0.0
    return f[0] - shift, f[1] - shift


def _unit(f: Views) -> Views:
    rms = np.sqrt((f[0] ** 2 + f[1] ** 2).mean(0) / 2)
    return f[0] / rms, f[1] / rms
