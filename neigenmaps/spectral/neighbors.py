"""Nearest neighbours of the rows of a point cloud, the row itself left out.

Candidates are found in float32 and by |x|^2 + |y|^2 - 2xy, which loses the digits of near neighbours far from the origin.
So the rows are centred first, a few more candidates than asked for are fetched, and their distances are computed again
from differences, in the precision of the data. All pairs are compared by blocks of a matrix product, for wide rows and for
one neighbour twice as fast as faiss does it; approximate search is faiss's.

Letters: N rows, Q queries, F feature width, K neighbours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError

if TYPE_CHECKING:
    Array = Tensor | NDArray[Any]

Metric = Literal["angular", "euclidean"]
Method = Literal["auto", "exact", "approximate"]

EXACT_UP_TO = 10_000  # rows; beyond, comparing all pairs takes several times as long as looking into near cells
SLACK = 4  # candidates beyond K that let the exact distances correct the first order
WIDE = 64  # columns to which wider rows are projected for approximate search
PROBES = 32  # cells of the inverted file (IVF) that an approximate search looks into
RECALL_SAMPLE = 200  # rows whose exact neighbours tell the recall of an approximate search
CHUNK_ELEMENTS = 1 << 23  # of the largest temporary array
CACHE_ELEMENTS = 1 << 20  # of temporaries that are read three times: they must stay near the processor


class PointCloud(NamedTuple):
    """Rows ready for Euclidean search: of unit length if the metric is angular, centred, divided by `unit`.

    rows_NF: float32 or float64. center_F: float64, what was taken off. unit: the power of two below `spread`, the root mean
    square of the centred rows: squares neither overflow nor vanish, and nothing is rounded.
    device: of the data, where eigenvectors go; the search itself is on the CPU.
    """

    rows_NF: NDArray[Any]
    center_F: NDArray[np.float64]
    unit: float
    spread: float
    metric: Metric
    device: torch.device

    def place(self, X: Array) -> NDArray[Any]:
        """New rows in the same coordinates. Errors as in `point_cloud`."""
        tensor, dtype = _checked(X, self.metric)
        if tensor.shape[1] != len(self.center_F):
            raise ShapeError(f"expected rows of width {len(self.center_F)}, got {tensor.shape[1]}")
        placed = np.empty(tensor.shape, dtype)
        for part, rows in _metric_rows(tensor, self.metric):
            placed[part] = (rows - self.center_F) / self.unit
        return placed


class Neighbors(NamedTuple):
    """index_NK: in order of rising distance, never the row itself. distances_NK: float64, at least 0. recall: 1 if exact."""

    index_NK: NDArray[np.int64]
    distances_NK: NDArray[np.float64]
    recall: float


def point_cloud(X: Array, metric: Metric) -> PointCloud:
    """Raises ShapeError, NonFiniteError; InputError for an unknown metric, equal rows, zero rows under "angular"."""
    if metric not in ("angular", "euclidean"):
        raise InputError(f"expected metric 'angular' or 'euclidean', got {metric!r}: name one of them")
    tensor, dtype = _checked(X, metric)
    center_F, largest = np.zeros(tensor.shape[1]), 0.0
    for _, rows in _metric_rows(tensor, metric):
        center_F += rows.sum(axis=0) / len(tensor)
        largest = max(largest, float(np.abs(rows).max()))
    rows_NF = np.empty(tensor.shape, dtype)
    for part, rows in _metric_rows(tensor, metric):
        rows_NF[part] = rows - center_F
    reach = float(max(rows_NF.max(), -rows_NF.min())) or 1.0
    squares = sum(np.square(rows_NF[part].astype(np.float64) / reach).sum() for part in _parts(rows_NF))
    spread = float(np.sqrt(squares / len(rows_NF))) * reach
    if spread <= 8 * np.finfo(dtype).eps * largest:
        raise InputError(
            f"the {len(tensor)} rows are equal up to rounding under the {metric} metric: no neighbourhoods to speak of; "
            "look at the encoder that made them"
        )
    unit = 2.0 ** math.floor(math.log2(spread))
    rows_NF /= dtype(unit)
    return PointCloud(rows_NF, center_F, unit, spread, metric, torch.as_tensor(X).device)


def nearest_neighbors(cloud: PointCloud, n_neighbors: int, method: Method = "auto") -> Neighbors:
    """The `n_neighbors` rows nearest to each row.

    method: "exact" compares all pairs; "approximate" looks into the nearest cells of a clustering (IVF), rows wider than 64
        projected to their leading principal components for it, and measures its recall against exact neighbours of a
        sample; "auto" is exact up to 10,000 rows. Equal distances go to the lower index.
    Raises InputError unless 1 <= n_neighbors < N.
    """
    n_rows = len(cloud.rows_NF)
    if method not in ("auto", "exact", "approximate"):
        raise InputError(f"expected method 'auto', 'exact' or 'approximate', got {method!r}: name one of them")
    if not 1 <= n_neighbors < n_rows:
        raise InputError(f"expected 1 <= n_neighbors < {n_rows} (the number of rows), got {n_neighbors}")
    n_candidates = min(n_rows, n_neighbors + 1 + SLACK)
    points = cloud.rows_NF.astype(np.float32, copy=False)
    if method == "exact" or (method == "auto" and n_rows <= EXACT_UP_TO):
        index, distances = _select(cloud, np.arange(n_rows), brute_force(points, points, n_candidates), n_neighbors)
        return Neighbors(index, distances, recall=1.0)
    candidates = _in_near_cells(points, min(n_rows, n_candidates + n_neighbors // 2))
    short = (candidates < 0).any(axis=1)  # the cells held too few rows
    if short.any():
        candidates[short] = brute_force(points[short], points, candidates.shape[1])
    index, distances = _select(cloud, np.arange(n_rows), candidates, n_neighbors)
    sample = np.unique(np.linspace(0, n_rows - 1, RECALL_SAMPLE).astype(np.int64))
    _, exact = _select(cloud, sample, brute_force(points[sample], points, n_candidates), n_neighbors)
    reach = exact[:, -1:] * (1 + 1e-6)  # by distance, so that neighbours at equal distance count as found
    return Neighbors(index, distances, recall=float((distances[sample] <= reach).mean()))


def brute_force(queries: NDArray[np.float32], points: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices (Q, k) of the nearest points, all pairs compared."""
    index: NDArray[np.int64] = best_by_blocks(torch.from_numpy(queries), torch.from_numpy(points), k).numpy()
    return index


def best_by_blocks(query_QF: Tensor, rows_NF: Tensor, k: int) -> Tensor:
    """Indices (Q, k) of the nearest rows, as good as their precision tells, by blocks of queries, on the data's device."""
    half_square_N = rows_NF.square().sum(1) / 2
    found = []
    for part_BF in query_QF.split(max(1, (2 * CACHE_ELEMENTS if k > 1 else CACHE_ELEMENTS // 2) // len(rows_NF))):
        score_BN = torch.addmm(half_square_N, part_BF, rows_NF.mT, alpha=-1)  # the query's own norm changes no order
        best = score_BN.topk(k, dim=1, largest=False).indices if k > 1 else score_BN.argmin(dim=1, keepdim=True)
        found.append(best)
    return torch.cat(found)


def distances_to(cloud: PointCloud, rows: NDArray[Any], index_QK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distances (Q, K) from each of `rows`, already placed, to the points it lists; from differences, by chunks."""
    if cloud.rows_NF.dtype == np.float32:
        return _float32_distances_to(cloud, rows, index_QK)
    distances = np.empty(index_QK.shape)
    step = max(1, CACHE_ELEMENTS // max(1, index_QK.shape[1] * rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        difference = cloud.rows_NF[index_QK[part]] - rows[part, None]
        distances[part] = np.sqrt(np.einsum("qkf,qkf->qk", difference, difference)) * cloud.unit
    return distances


def _float32_distances_to(
    cloud: PointCloud, rows: NDArray[np.float32], index_QK: NDArray[np.int64]
) -> NDArray[np.float64]:
    faiss, square_QK = _faiss(), np.empty(index_QK.shape, np.float32)
    arrays = [np.ascontiguousarray(array) for array in (rows, cloud.rows_NF, index_QK)]
    pointers = [faiss.swig_ptr(array) for array in (square_QK, *arrays)]
    faiss.fvec_L2sqr_by_idx(*pointers, rows.shape[1], *index_QK.shape)  # six times as fast as gathering the rows
    return np.sqrt(square_QK, dtype=np.float64) * cloud.unit


def _select(
    cloud: PointCloud, own: NDArray[np.int64], candidates: NDArray[np.int64], n_neighbors: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest `n_neighbors` of each row's candidates by exact distance, a part at a time."""
    index, distances = np.empty((len(own), n_neighbors), np.int64), np.empty((len(own), n_neighbors))
    for part in _parts(candidates):
        choice = np.sort(candidates[part], axis=1)
        measured = distances_to(cloud, cloud.rows_NF[own[part]], choice)
        measured[choice == own[part, None]] = np.inf
        order = np.argsort(measured, axis=1, kind="stable")[:, :n_neighbors]
        index[part], distances[part] = np.take_along_axis(choice, order, 1), np.take_along_axis(measured, order, 1)
    return index, distances


def _in_near_cells(points: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Candidates (N, k) from the nearest cells of an inverted file; -1 where these hold fewer."""
    faiss, n_rows = _faiss(), len(points)
    if points.shape[1] > WIDE:
        points = _leading_components(points)
    n_cells = max(1, min(n_rows // 40, round(4 * n_rows**0.5)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], n_cells)
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.seed = 8, 64, 0
    index.nprobe = min(PROBES, n_cells)
    index.train(points)
    index.add(points)
    found: NDArray[np.int64] = index.search(points, k)[1]
    return found


def _leading_components(points: NDArray[np.float32]) -> NDArray[np.float32]:
    sample = points[:: max(1, len(points) // 20_000)].astype(np.float64)
    axes = np.linalg.eigh(sample.T @ sample)[1][:, -WIDE:]
    projected: NDArray[np.float32] = points @ axes.astype(np.float32)
    return projected


def _checked(X: Array, metric: Metric) -> tuple[Tensor, type[Any]]:
    """The rows, and the precision they came in (float32 at least)."""
    tensor = torch.as_tensor(X).detach().cpu()
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ShapeError(f"expected rows of shape (N, F), got {tuple(tensor.shape)}: flatten every sample to one row")
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise InputError(f"expected real numbers, got {tensor.dtype}: convert them with .float()")
    finite = torch.isfinite(tensor).all(dim=1)
    if not finite.all():
        raise NonFiniteError(
            f"expected finite rows, got NaN or infinity in {int((~finite).sum())} of {len(finite)}, first in row "
            f"{int(finite.int().argmin())}: drop them, or look at the encoder that made them"
        )
    zero = (tensor == 0).all(dim=1)
    if metric == "angular" and zero.any():
        raise InputError(
            f"{int(zero.sum())} rows are all zero, first row {int(zero.int().argmax())}: zero has no direction; "
            "drop them or use metric='euclidean'"
        )
    return tensor, np.float32 if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16) else np.float64


def _metric_rows(tensor: Tensor, metric: Metric) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Rows in float64, unit rows if angular, a part at a time: a million wide rows have no room for a whole copy."""
    for part in _parts(tensor, CACHE_ELEMENTS):
        rows_BF = tensor[part].double()
        if metric == "angular":
            rows_BF = rows_BF / rows_BF.abs().amax(dim=1, keepdim=True)  # so that squares neither overflow nor vanish
            rows_BF /= rows_BF.norm(dim=1, keepdim=True)
        yield part, rows_BF.numpy()


def _parts(rows_NF: Tensor | NDArray[Any], elements: int = CHUNK_ELEMENTS) -> Iterator[slice]:
    step = max(1, elements // rows_NF.shape[1])
    for start in range(0, len(rows_NF), step):
        yield slice(start, start + step)


def _faiss() -> Any:
    """faiss, imported when first needed: `import neigenmaps.spectral` stays light, and SWIG's warnings stay inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import faiss
    return faiss
