"""The neighbour graph of a point cloud: the domain on which functional maps live.

Every row is a node, joined to its nearest rows; the matrix of weights W is symmetric, its diagonal zero. Unusual here:

- the weights are scipy's CSR in float32, since the eigensolver (ARPACK), shortest paths and connected components are
  scipy's, which torch's sparse tensors have no counterpart for;
- a graph in several pieces is joined by the shortest missing edges, and the result says so: the eigenvectors of a graph
  in pieces are indicators of the pieces, and a map between two such graphs matches nothing inside them;
- distances are kept beside the weights, so that geodesics measure lengths whatever the kernel.

Kernels, after "Latent Functional Maps" (arXiv 2406.14183) and the graph library its code uses. d: distance, d_k(i):
distance of i's last neighbour.

    gaussian            exp(-4 d^2 / d_k(i)^2), then (W + W^T) / 2
    symmetric_gaussian  exp(-4 d^2 / (d_k(i) d_k(j)))
    inverse_distance    1 / d
    distance            d: the farthest neighbour weighs most; harmless only where neighbours are many, kept for the paper
    uniform             1

The last four are joined by the elementwise maximum. "angular" is the Euclidean distance of unit rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
from numpy.typing import NDArray

from neigenmaps.errors import InputError
from neigenmaps.spectral.components import Bridge, add_bridges, component_labels
from neigenmaps.spectral.neighbors import Method, Metric, PointCloud, nearest_neighbors, point_cloud

if TYPE_CHECKING:
    from neigenmaps.spectral.neighbors import Array

Kernel = Literal["gaussian", "symmetric_gaussian", "inverse_distance", "distance", "uniform"]
Disconnected = Literal["bridge", "keep", "refuse"]

KERNELS = ("gaussian", "symmetric_gaussian", "inverse_distance", "distance", "uniform")
DUPLICATE_FLOOR = 1e-3  # of the median neighbour distance: shorter ones count as this long, so 1/d stays finite
WEAKEST = 1e-12  # no edge is rounded away when the Gaussians of a dense and a sparse region meet


class GraphSettings(TypedDict):
    n_neighbors: int
    metric: Metric
    kernel: Kernel


PAPER_GRAPHS = MappingProxyType(
    {  # the authors' 300 neighbours count the row itself
        "retrieval": GraphSettings(n_neighbors=299, metric="angular", kernel="inverse_distance"),
        "similarity": GraphSettings(n_neighbors=299, metric="angular", kernel="distance"),
        "stitching": GraphSettings(n_neighbors=299, metric="angular", kernel="distance"),
    }
)
"""The paper's settings by experiment: `neighbor_graph(X, **PAPER_GRAPHS["retrieval"])`."""


@dataclass(frozen=True, eq=False)
class NeighborGraph:
    """A symmetric graph over the rows of a point cloud.

    adjacency: CSR (N, N), float32, no diagonal, indices sorted. lengths: distances on the same edges.
    n_components: pieces of the graph as it stands; n_components_found: before bridges were added.
    bridges: (i, j, weight) of every added edge, i < j.
    n_duplicates: rows that coincide with another row. recall: of the neighbour search, 1 if exact, else measured on a sample.
    reach_N: distance of every row's last neighbour. floor: distance that shorter ones are raised to. cloud: the rows.
    """

    adjacency: sp.csr_matrix
    lengths: sp.csr_matrix
    n_components: int
    n_components_found: int
    bridges: tuple[Bridge, ...]
    n_duplicates: int
    recall: float
    settings: GraphSettings
    reach_N: NDArray[np.float64]
    floor: float
    cloud: PointCloud

    @property
    def degrees(self) -> NDArray[np.float64]:
        """Sum of the weights at every node, (N,)."""
        degrees: NDArray[np.float64] = self.adjacency @ np.ones(self.adjacency.shape[0])  # .sum() adds in float32
        return degrees


def neighbor_graph(
    X: Array,
    n_neighbors: int = 30,
    metric: Metric = "angular",
    kernel: Kernel = "gaussian",
    method: Method = "auto",
    *,
    disconnected: Disconnected = "bridge",
) -> NeighborGraph:
    """Join every row of X, (N, F), to its nearest rows.

    n_neighbors: per row, the row itself not counted; a node has more where others chose it. It should grow with N:
        30 serve a thousand rows, ten thousand want 100 to 300.
    method: "exact", "approximate" (recall is measured and reported), or "auto": exact up to 10,000 rows.
    disconnected: "bridge" adds the shortest edge between pieces until one is left, each no heavier than the lightest
        edge found; "keep" leaves the pieces, and `laplacian_eigenbasis` solves each; "refuse" raises.

    Rows that coincide are joined like others, at the distance `DUPLICATE_FLOOR` x the median.

    Raises:
        ShapeError: X is not a matrix. NonFiniteError: NaN or infinity, with the first row that has one.
        InputError: n_neighbors not in 1..N-1; all rows equal; zero rows under "angular"; unknown names; pieces when refused.
    """
    if kernel not in KERNELS:
        raise InputError(f"expected kernel {', '.join(map(repr, KERNELS))}, got {kernel!r}: name one of them")
    if disconnected not in ("bridge", "keep", "refuse"):
        raise InputError(f"expected disconnected 'bridge', 'keep' or 'refuse', got {disconnected!r}: name one of them")
    cloud = point_cloud(X, metric)
    neighbors = nearest_neighbors(cloud, n_neighbors, method)
    distances_NK = neighbors.distances_NK
    apart = distances_NK > 1e-6 * cloud.spread
    typical = float(np.median(distances_NK[apart])) if apart.any() else cloud.spread
    floor = DUPLICATE_FLOOR * typical
    distances_NK = np.maximum(distances_NK, floor)
    reach_N = distances_NK[:, -1]
    weights_NK = edge_weights(kernel, distances_NK, reach_N[:, None], reach_N[neighbors.index_NK])
    adjacency = _symmetric(neighbors.index_NK, weights_NK, mean=kernel == "gaussian")
    lengths = _symmetric(neighbors.index_NK, distances_NK, mean=False)
    n_found = int(component_labels(adjacency).max()) + 1
    bridges: tuple[Bridge, ...] = ()
    if n_found > 1 and disconnected == "refuse":
        raise InputError(
            f"the graph falls into {n_found} pieces at n_neighbors={n_neighbors}: raise n_neighbors, or pass "
            "disconnected='bridge' to join them, 'keep' to work on each"
        )
    if n_found > 1 and disconnected == "bridge":
        adjacency, lengths, bridges = add_bridges(cloud, adjacency, lengths, typical, floor)
    return NeighborGraph(
        adjacency=adjacency,
        lengths=lengths,
        n_components=1 if bridges else n_found,
        n_components_found=n_found,
        bridges=bridges,
        n_duplicates=int((~apart[:, 0]).sum()),
        recall=neighbors.recall,
        settings=GraphSettings(n_neighbors=n_neighbors, metric=metric, kernel=kernel),
        reach_N=reach_N,
        floor=floor,
        cloud=cloud,
    )


def edge_weights(
    kernel: Kernel, distances: NDArray[Any], own_reach: NDArray[Any], other_reach: NDArray[Any]
) -> NDArray[np.float64]:
    """Weights of directed edges before W is made symmetric; distances above 0, shapes that broadcast."""
    if kernel == "gaussian":
        weights = np.exp(-4 * np.square(distances / own_reach))
    elif kernel == "symmetric_gaussian":
        weights = np.exp(-4 * (distances / own_reach) * (distances / other_reach))
    elif kernel == "inverse_distance":
        weights = 1 / distances
    elif kernel == "distance":
        weights = distances
    else:
        return np.ones_like(distances)
    return np.maximum(weights, WEAKEST) if "gaussian" in kernel else weights


def _symmetric(index_NK: NDArray[np.int64], values_NK: NDArray[Any], *, mean: bool) -> sp.csr_matrix:
    n_rows, k = index_NK.shape
    starts = np.arange(0, n_rows * k + 1, k)
    directed = sp.csr_matrix((values_NK.ravel(), index_NK.ravel(), starts), shape=(n_rows, n_rows))
    joined = (directed + directed.T) / 2 if mean else directed.maximum(directed.T)
    joined = joined.tocsr().astype(np.float32)
    joined.sort_indices()
    return joined
