"""All that linear alignment needs to know of M spaces with matched rows: one D x D matrix, D the sum of the widths.

Weighted sums over rows of x_m^T x_n for every pair of spaces add up over batches, so that a fit's memory does not grow
with N. A row that is missing in one space weighs 0 there and counts in the pairs that have it.

Letters: N rows, M spaces, F_m their widths, D = sum of F_m: columns of all spaces side by side.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.errors import InputError

CHUNK_ROWS = 4096  # held in float64 at a time


class CrossMoments(NamedTuple):
    """Sums over rows, float64, of rows taken off `origin_D`, which keeps large means from eating digits.

    widths: (F_1, ..., F_M). n_rows: rows seen, whatever their weight. With s_m the weight of a row in space m:
    weight_MM: sum of s_m s_n. sum_MD: row m, columns of n: sum of s_m s_n x_n. product_DD: sum of s_m s_n x_m^T x_n.
    """

    widths: tuple[int, ...]
    n_rows: int
    origin_D: Tensor
    weight_MM: Tensor
    sum_MD: Tensor
    product_DD: Tensor

    def merge(self, other: "CrossMoments") -> "CrossMoments":
        """Moments of both sets of rows; `other` must have been taken from the same origin."""
        if self.widths != other.widths or not torch.equal(self.origin_D, other.origin_D):
            raise InputError("expected moments about one origin: pass origin_D of the first batch to the others")
        return CrossMoments(
            self.widths,
            self.n_rows + other.n_rows,
            self.origin_D,
            self.weight_MM + other.weight_MM,
            self.sum_MD + other.sum_MD,
            self.product_DD + other.product_DD,
        )

    def first(self, n_spaces: int) -> "CrossMoments":
        """Of the first spaces alone; shares the memory."""
        width = sum(self.widths[:n_spaces])
        return CrossMoments(
            self.widths[:n_spaces],
            self.n_rows,
            self.origin_D[:width],
            self.weight_MM[:n_spaces, :n_spaces],
            self.sum_MD[:n_spaces, :width],
            self.product_DD[:width, :width],
        )

    def means(self) -> Tensor:
        """Weighted mean of every column over the rows its own space has, (D,)."""
        return self.origin_D + self._shift_D()

    def centred(self) -> Tensor:
        """sum of s_m s_n (x_m - mean_m)^T (x_n - mean_n), (D, D)."""
        shift_MD = torch.zeros_like(self.sum_MD)
        for m, columns in enumerate(block_slices(self.widths)):
            shift_MD[m, columns] = self.sum_MD[m, columns] / self.weight_MM[m, m]
        twice_MD = self.sum_MD - self.weight_MM @ shift_MD / 2
        return self.product_DD.addmm(twice_MD.T, shift_MD, alpha=-1).addmm_(shift_MD.T, twice_MD, alpha=-1)

    def extended(
        self, known: Sequence[int], spaces: Sequence[Tensor], scale_NM: Tensor | None = None
    ) -> "CrossMoments":
        """With one more space, the last of `spaces`, measured against those at the positions `known`, the others.

        Sums among the earlier spaces stay as they are: the rows may have been counted before.
        """
        columns = block_slices(self.widths)
        width, old = spaces[-1].shape[1], len(self.origin_D)
        known_D = torch.cat([torch.arange(columns[m].start, columns[m].stop) for m in known]).to(self.origin_D.device)
        new_origin_F = _origin(spaces[-1:], None if scale_NM is None else scale_NM[:, -1:])
        weight_MM = F.pad(self.weight_MM, (0, 1, 0, 1))
        sum_MD = F.pad(self.sum_MD, (0, width, 0, 1))
        product_DD = F.pad(self.product_DD, (0, width, 0, width))
        for scale_BM, rows_BD in _chunks(spaces, scale_NM, torch.cat([self.origin_D[known_D], new_origin_F])):
            new_BF, own_B = rows_BD[:, -width:], scale_BM[:, -1]
            weight_MM[-1, list(known)] += own_B @ scale_BM[:, :-1]
            weight_MM[-1, -1] += own_B @ own_B
            sum_MD[-1, known_D] += own_B @ rows_BD[:, :-width]
            sum_MD[-1, old:] += own_B @ new_BF
            sum_MD[list(known), old:] += scale_BM[:, :-1].T @ new_BF
            product_DD[old:, known_D] += new_BF.T @ rows_BD[:, :-width]
            product_DD[old:, old:] += new_BF.T @ new_BF
        weight_MM[:-1, -1] = weight_MM[-1, :-1]
        product_DD[:old, old:] = product_DD[old:, :old].T
        origin_D = torch.cat([self.origin_D, new_origin_F])
        return CrossMoments((*self.widths, width), self.n_rows, origin_D, weight_MM, sum_MD, product_DD)

    def pair(self, first: int, second: int, *, center: bool = True) -> "PairMoments":
        """Of the rows that both spaces have: covariance, about their means or about 0."""
        columns = block_slices(self.widths)
        weight = self.weight_MM[first, second]
        mean_F = self.sum_MD[second, columns[first]] / weight
        mean_G = self.sum_MD[first, columns[second]] / weight
        origin_F, origin_G = self.origin_D[columns[first]], self.origin_D[columns[second]]
        cross_FG = self.product_DD[columns[first], columns[second]] / weight
        if center:
            cross_FG = cross_FG - torch.outer(mean_F, mean_G)
            return PairMoments(origin_F + mean_F, origin_G + mean_G, cross_FG)
        cross_FG = cross_FG + torch.outer(origin_F + mean_F, origin_G) + torch.outer(origin_F, mean_G)
        return PairMoments(torch.zeros_like(origin_F), torch.zeros_like(origin_G), cross_FG)

    def _shift_D(self) -> Tensor:
        own = [self.sum_MD[m, columns] / self.weight_MM[m, m] for m, columns in enumerate(block_slices(self.widths))]
        return torch.cat(own)


class PairMoments(NamedTuple):
    """Points (F,), (G,) that rows are taken off, and the mean of x^T y, (F, G), after that."""

    mean_F: Tensor
    mean_G: Tensor
    cross_FG: Tensor


def cross_moments(
    spaces: Sequence[Tensor], *, scale_NM: Tensor | None = None, origin_D: Tensor | None = None
) -> CrossMoments:
    """Moments of M spaces, (N, F_m) each. scale_NM: weight of every row in every space; its square for the space itself.

    Rows of weight 0 must be finite all the same. origin_D: of earlier moments that these shall be merged with.
    """
    widths = tuple(x_NF.shape[1] for x_NF in spaces)
    columns = block_slices(widths)
    if origin_D is None:
        origin_D = _origin(spaces, scale_NM)
    weight_MM = origin_D.new_zeros(len(widths), len(widths))
    sum_MD = origin_D.new_zeros(len(widths), sum(widths))
    product_DD = origin_D.new_zeros(sum(widths), sum(widths))
    for scale_BM, rows_BD in _chunks(spaces, scale_NM, origin_D):
        weight_MM.addmm_(scale_BM.T, scale_BM)
        sum_MD.addmm_(scale_BM.T, rows_BD)
        for own in columns:  # of a pair and its mirror image one is enough
            product_DD[own, own.start :].addmm_(rows_BD[:, own].T, rows_BD[:, own.start :])
    for own in columns:
        product_DD[own.stop :, own] = product_DD[own, own.stop :].T
    return CrossMoments(widths, len(spaces[0]), origin_D, weight_MM, sum_MD, product_DD)


def _chunks(spaces: Sequence[Tensor], scale_NM: Tensor | None, origin_D: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights (B, M) and weighted rows (B, D) off the origin, float64."""
    columns = torch.tensor([x_NF.shape[1] for x_NF in spaces], device=origin_D.device)
    for start in range(0, len(spaces[0]), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        rows_BD = torch.cat([x_NF[chunk].double() for x_NF in spaces], dim=1) - origin_D
        if scale_NM is None:
            yield rows_BD.new_ones(len(rows_BD), len(spaces)), rows_BD
        else:
            scale_BM = scale_NM[chunk].double()
            yield scale_BM, rows_BD * scale_BM.repeat_interleave(columns, dim=1)


def _origin(spaces: Sequence[Tensor], scale_NM: Tensor | None) -> Tensor:
    """Mean of the first rows of every space, of those it has."""
    origins = []
    for m, x_NF in enumerate(spaces):
        first = x_NF[:CHUNK_ROWS].double()
        if scale_NM is not None:
            first = first[scale_NM[:CHUNK_ROWS, m] > 0]
        origins.append(first.mean(dim=0) if len(first) else first.new_zeros(x_NF.shape[1]))
    return torch.cat(origins)


def block_slices(widths: Sequence[int]) -> list[slice]:
    """Columns of every space among the D."""
    ends = torch.tensor(widths).cumsum(0).tolist()
    return [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]
