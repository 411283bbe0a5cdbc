"""Codes in fewer bits: half precision, eight bits a number, or bits shared out by what each number is worth.

Sharing out bits is reverse water-filling (Cover & Thomas, *Elements of Information Theory*, 10.3.3): independent numbers
of variances s_j, in b_j bits, are off by sum s_j D(b_j). Under sum b_j = B the least error gives numbers of small
variance no bits, and the others about log2(s_j) / 2 + constant. Bits are whole and D is convex, so giving each next bit
where it removes most error is optimal. D is that of the best quantiser of a Gaussian (Max, 1960); the levels themselves
are learned from the codes by Lloyd's rule.

All sizes are in bytes a code, so that kinds can be compared at equal cost. Letters: N codes, K width, B bytes a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from neigenmaps.errors import InputError, NotFittedError, ShapeError
from neigenmaps.retrieval.store import checked_codes

if TYPE_CHECKING:
    Array = torch.Tensor | NDArray[Any]

Kind = Literal["float32", "float16", "int8", "eigenvalue_bits"]

BYTES_PER_NUMBER = {"float32": 4, "float16": 2, "int8": 1}
MOST_BITS = 8  # of one number
# mean squared error of the best quantiser of a standard Gaussian with 2**b levels, b = 0 .. 8: Max's table to 5 bits, then
# Panter and Dite's limit sqrt(3) pi / 2 / 4**b, which is up to 4 % too high there
GAUSSIAN_ERROR = (1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499, 6.642e-4, 1.661e-4, 4.151e-5)
LEARNED_FROM = 20_000  # codes
LLOYD_ROUNDS = 25
AT_A_TIME = 1 << 22  # bits unpacked at once, a byte each


def allot_bits(variances_K: Array, n_bits: int) -> NDArray[np.int64]:
    """Bits (K,) of least total error, n_bits in all, at most 8 each; equal gains go to the earlier number.

    Raises InputError for variances that are negative or all zero, or n_bits outside 1..8 K.
    """
    variances = np.asarray(variances_K, dtype=np.float64)
    if variances.ndim != 1 or not np.isfinite(variances).all() or (variances < 0).any() or not variances.any():
        raise InputError(
            "expected variances (K,) of at least 0, some above, got others: pass eigenvalues or mean squares"
        )
    if not 1 <= n_bits <= MOST_BITS * len(variances):
        raise InputError(f"expected 1 <= n_bits <= {MOST_BITS * len(variances)}, {MOST_BITS} a number, got {n_bits}")
    # convex: what a bit saves falls from bit to bit, so the largest savings are a number's first bits
    savings = -np.diff(GAUSSIAN_ERROR)[:, None] * variances
    order = np.argsort(-savings, axis=None, kind="stable")[:n_bits]
    return np.bincount(order % len(variances), minlength=len(variances))


class CodeQuantizer:
    """Codes to `n_bytes` bytes each, and back.

    kind: "float32", "float16" and "int8" keep the first n_bytes / 4, / 2, / 1 numbers of a code, "int8" in steps of a
    hundred and twenty-seventh of the number's largest magnitude. "eigenvalue_bits" looks at all numbers and gives each
    the bits that `allot_bits` says. eigenvalues: variances for that; when None, the mean squares of the codes learned from.

    Learned: width_, bits_K_ (of every number, 0 where it is dropped), and for "int8" and "eigenvalue_bits" the values
    that each number can take.
    """

    def __init__(self, n_bytes: int, kind: Kind = "eigenvalue_bits", *, eigenvalues: Array | None = None) -> None:
        if kind not in (*BYTES_PER_NUMBER, "eigenvalue_bits"):
            raise InputError(
                f"expected kind 'float32', 'float16', 'int8' or 'eigenvalue_bits', got {kind!r}: name one of them"
            )
        if n_bytes < BYTES_PER_NUMBER.get(kind, 1):
            raise InputError(
                f"expected room for a number, {BYTES_PER_NUMBER.get(kind, 1)} bytes or more, got {n_bytes}"
            )
        self.n_bytes = n_bytes
        self.kind = kind
        self.eigenvalues = eigenvalues

    def fit(self, codes: Array) -> Self:
        """Learn from codes (N, K), 20,000 of them at most. Errors as `CodeStore` for codes, and as `allot_bits`."""
        rows = checked_codes("given", codes)
        seen = rows[np.linspace(0, len(rows) - 1, min(len(rows), LEARNED_FROM)).astype(np.int64)].astype(np.float32)
        width = rows.shape[1]
        if self.kind == "eigenvalue_bits":
            given = np.square(seen, dtype=np.float64).mean(axis=0) if self.eigenvalues is None else self.eigenvalues
            variances = np.maximum(np.asarray(given, dtype=np.float64), 0)
            if variances.shape != (width,):
                raise ShapeError(
                    f"expected eigenvalues ({width},), got {variances.shape}: one for each number of a code"
                )
            bits_K = allot_bits(variances, min(8 * self.n_bytes, MOST_BITS * width))
            values = [_lloyd_levels(seen[:, j], int(bits)) for j, bits in enumerate(bits_K)]
        else:
            n_kept = min(width, self.n_bytes // BYTES_PER_NUMBER[self.kind])
            bits_K = np.where(np.arange(width) < n_kept, 8 * BYTES_PER_NUMBER[self.kind], 0)
            steps = np.abs(seen).max(axis=0) / 127 if self.kind == "int8" else np.zeros(width)
            values = [np.arange(-127, 128, dtype=np.float32) * np.float32(step) for step in steps[:n_kept]]
        self.width_, self.bits_K_, self._values = width, bits_K, values
        return self

    def encode(self, codes: Array) -> NDArray[np.uint8]:
        """Codes (N, K) to bytes (N, B), B at most n_bytes. Errors: NotFittedError, ShapeError, NonFiniteError."""
        rows = checked_codes("given", codes, width=self._fitted().width_)
        kept = np.flatnonzero(self.bits_K_)
        if self.kind in ("float32", "float16"):
            with np.errstate(over="ignore"):  # beyond half precision's range: the largest there is, below
                numbers = rows[:, kept].astype(self.kind)
            limit = np.finfo(numbers.dtype).max
            return np.ascontiguousarray(np.clip(numbers, -limit, limit)).view(np.uint8).reshape(len(rows), -1)
        packed = np.empty((len(rows), -(-int(self.bits_K_.sum()) // 8)), dtype=np.uint8)
        step = max(1, AT_A_TIME // int(self.bits_K_.sum()))
        for start in range(0, len(rows), step):
            packed[start : start + step] = self._packed(rows[start : start + step].astype(np.float32), kept)
        return packed

    def decode(self, packed_NB: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Bytes (N, B) to codes (N, K), zero where a number was dropped. Errors: NotFittedError, ShapeError."""
        kept = np.flatnonzero(self._fitted().bits_K_)
        n_bytes = -(-int(self.bits_K_.sum()) // 8)
        if packed_NB.ndim != 2 or packed_NB.shape[1] != n_bytes or packed_NB.dtype != np.uint8:
            raise ShapeError(
                f"expected uint8 (N, {n_bytes}), got {packed_NB.dtype} {packed_NB.shape}: pass what encode returned"
            )
        codes = np.zeros((len(packed_NB), self.width_), dtype=np.float32)
        if self.kind in ("float32", "float16"):
            codes[:, kept] = np.ascontiguousarray(packed_NB).view(self.kind)
            return codes
        step = max(1, AT_A_TIME // int(self.bits_K_.sum()))
        for start in range(0, len(codes), step):
            bits = np.unpackbits(packed_NB[start : start + step], axis=1)
            offset = 0
            for j in kept:
                n_bits = int(self.bits_K_[j])
                index = bits[:, offset : offset + n_bits] @ (1 << np.arange(n_bits - 1, -1, -1))
                codes[start : start + step, j] = self._values[j][np.minimum(index, len(self._values[j]) - 1)]
                offset += n_bits
        return codes

    def _packed(self, rows: NDArray[np.float32], kept: NDArray[np.int64]) -> NDArray[np.uint8]:
        fields = []
        for j in kept:
            values = self._values[j]
            index = np.searchsorted((values[1:] + values[:-1]) / 2, rows[:, j]).astype(np.uint8)
            fields.append(np.unpackbits(index[:, None], axis=1)[:, 8 - int(self.bits_K_[j]) :])
        return np.packbits(np.concatenate(fields, axis=1), axis=1)

    def _fitted(self) -> Self:
        if not hasattr(self, "width_"):
            raise NotFittedError("this quantizer has not learned from codes yet: call fit(codes) first")
        return self


def _lloyd_levels(values_N: NDArray[np.float32], n_bits: int) -> NDArray[np.float32]:
    """2**n_bits rising levels of least mean squared error, by Lloyd's rule.

    It starts at the levels that are best for a Gaussian when there are many: spread like one of three times its
    variance (Panter and Dite, 1951). From equally filled cells it would need hundreds of rounds.
    """
    n_levels = 1 << n_bits
    ordered = np.sort(values_N.astype(np.float64))
    total = np.concatenate([[0.0], np.cumsum(ordered)])
    shares = (torch.arange(n_levels, dtype=torch.float64) + 0.5) / n_levels
    levels = ordered.mean() + np.sqrt(3) * ordered.std() * torch.special.ndtri(shares).numpy()
    for _ in range(LLOYD_ROUNDS):
        edges = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(ordered)]])
        counts = np.diff(bounds)
        levels = np.where(counts > 0, np.diff(total[bounds]) / np.maximum(counts, 1), levels)
    return levels.astype(np.float32)
