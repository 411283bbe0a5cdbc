"""A graph with features on its nodes, from edge lists, sparse matrices, files, NetworkX, PyTorch Geometric or OGB.

Edges count both ways, whatever way they are given. Loops are left out and repeated edges merged: a pair of a node with itself
says nothing about its surroundings. A `GraphWarning` counts them, nodes without edges, and edges of one direction among others of
both, as in a directed graph, once for every graph that is read.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.errors import DataError, GraphWarning, InputError, NonFiniteError, ShapeError
from neigenmaps.graphs.settings import check_whole

SPLIT_KEYS = {"train": "train_idx", "val": "val_idx", "test": "test_idx"}


@dataclass(frozen=True, eq=False)
class Graph:
    """adjacency: CSR (N, N), float32, symmetric, no diagonal. features: (N, F), a float32 tensor or CSR, or None.

    labels_N: -1 for unlabelled. splits: row numbers by name. n_self_loops, n_duplicates, n_one_way: of the edges as given; an edge
    given once in each direction, as many formats have it, is no duplicate, and n_one_way is 0 where all have one direction.
    """

    adjacency: sp.csr_matrix
    features: Tensor | sp.csr_matrix | None = None
    labels_N: Tensor | None = None
    splits: dict[str, Tensor] = field(default_factory=dict)
    n_self_loops: int = 0
    n_duplicates: int = 0
    n_one_way: int = 0

    def __len__(self) -> int:
        return int(self.adjacency.shape[0])

    @property
    def n_edges(self) -> int:
        return int(self.adjacency.nnz) // 2

    @property
    def isolated(self) -> NDArray[np.int64]:
        """Nodes without an edge: never part of a pair, embedded by their features all the same."""
        return np.flatnonzero(np.diff(self.adjacency.indptr) == 0)

    def edges(self) -> Tensor:
        """Every edge once, (E, 2), smaller number first."""
        upper = sp.triu(self.adjacency, k=1).tocoo()
        return torch.from_numpy(np.stack([upper.row, upper.col], axis=1).astype(np.int64))


def graph_from_edges(
    edges_E2: Tensor | NDArray[Any],
    n_nodes: int,
    *,
    weights_E: Tensor | NDArray[Any] | None = None,
    features: Any = None,
    labels_N: Any = None,
    splits: dict[str, Any] | None = None,
) -> Graph:
    """A graph out of pairs of node numbers, each edge once or both ways.

    weights_E: above 0; an edge given twice, or in both directions, keeps its largest weight.
    Raises ShapeError, InputError for numbers outside 0..n_nodes-1, weights that are not above 0, no edge between two nodes,
    labels that are no integers; NonFiniteError for features with NaN or infinity.
    """
    check_whole(1, n_nodes=n_nodes)
    edges = np.asarray(edges_E2)
    if edges.ndim != 2 or edges.shape[1] != 2 or len(edges) == 0 or edges.dtype.kind not in "iu":
        hint = ""
        if edges.ndim == 2 and len(edges) == 2 < edges.shape[1]:
            hint = ": transpose it, edges.T"
        elif edges.ndim == 2 and edges.dtype.kind == "f" and (edges == edges.round()).all():
            hint = ": make whole numbers integers by edges.astype(int)"
        raise ShapeError(
            f"expected edges as integers of shape (E, 2) with E > 0, got {edges.dtype} {edges.shape}{hint}"
        )
    outside = (edges < 0) | (edges >= n_nodes)
    if outside.any():
        row, others = int(outside.any(axis=1).argmax()), int(outside.any(axis=1).sum()) - 1
        raise InputError(
            f"expected node numbers from 0 to {n_nodes - 1}, got edge {tuple(edges[row].tolist())} in row {row}"
            f"{f' and {others} more' if others else ''}: is the number of nodes right, does counting start at 0?"
        )
    weights = None if weights_E is None else np.asarray(_numeric("weights", weights_E), dtype=np.float32)
    if weights is not None and weights.shape != (len(edges),):
        raise InputError(f"expected {len(edges)} finite weights above 0, one for each edge, got shape {weights.shape}")
    if weights is not None and not (right := np.isfinite(weights) & (weights > 0)).all():
        row = int((~right).argmax())
        raise InputError(
            f"expected {len(edges)} finite weights above 0, got {weights[row]} in row {row} and {int((~right).sum()) - 1} more "
            "that are not: leave such edges out"
        )
    low, high = edges.min(axis=1).astype(np.int64), edges.max(axis=1).astype(np.int64)
    apart = low != high
    if not apart.any():
        raise InputError("expected edges between different nodes, got self-loops alone")
    directed = (2 * (low * n_nodes + high) + (edges[:, 0] > edges[:, 1]))[apart]
    del low, high
    pairs, kept_weights, n_duplicates = _merged(directed, None if weights is None else weights[apart])
    n_both_ways = len(directed) - n_duplicates - len(pairs)
    low, high = np.divmod(pairs, n_nodes)
    graph = _graph(
        _both_ways(low, high, kept_weights, n_nodes),
        features,
        labels_N,
        splits,
        n_self_loops=int((~apart).sum()),
        n_duplicates=n_duplicates,
        n_one_way=len(pairs) - n_both_ways if n_both_ways else 0,
    )
    _warn_of(graph)
    return graph


def graph_from_adjacency(
    adjacency: Any, *, features: Any = None, labels_N: Any = None, splits: dict[str, Any] | None = None
) -> Graph:
    """A graph out of a square sparse matrix (or array) of weights; an entry on either side of the diagonal is an edge."""
    matrix = sp.coo_matrix(adjacency if sp.issparse(adjacency) else _numeric("an adjacency", adjacency))
    if matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(f"expected a square adjacency, got {matrix.shape}")
    stored = matrix.data != 0
    edges = np.stack([matrix.row[stored], matrix.col[stored]], axis=1).astype(np.int64)
    if len(edges) == 0:
        raise InputError("expected an adjacency with edges, got zeros alone")
    return graph_from_edges(
        edges, matrix.shape[0], weights_E=matrix.data[stored], features=features, labels_N=labels_N, splits=splits
    )


def as_graph(given: Any) -> Graph:
    """A `Graph` from a Graph, sparse matrix, NetworkX graph, PyTorch Geometric `Data`, OGB data set or path to an npz file.

    NetworkX: node attributes "x" (features) and "y" (label), edge attribute "weight", each if every node or edge has it.
    PyTorch Geometric: `edge_index`, `x`, `y`, `train_mask`, `val_mask`, `test_mask`. OGB: a `NodePropPredDataset`, its features,
    split and labels (NaN is unlabelled; several labels for a node are left out). None of the packages is imported.
    """
    if isinstance(given, Graph):
        return given
    if isinstance(given, str | Path):
        return read_graph(given)
    if sp.issparse(given):
        return graph_from_adjacency(given)
    if hasattr(given, "get_idx_split"):
        return _from_ogb(given)
    if hasattr(given, "edge_index"):
        return _from_geometric(given)
    if hasattr(given, "nodes") and hasattr(given, "edges"):
        return _from_networkx(given)
    raise InputError(
        f"expected a Graph, a SciPy sparse matrix, a NetworkX graph, a PyTorch Geometric Data or a path, got "
        f"{type(given).__name__}: make one with graph_from_edges"
    )


def read_graph(path: str | Path) -> Graph:
    """A graph from an npz file, read without pickle.

    Keys: `edges` (E, 2) or `adj_indptr`, `adj_indices`, `adj_shape`; features as `x` (N, F) or `x_indptr`, `x_indices`,
    `x_shape` and, unless all are 1, `x_data`; optional `num_nodes`, `labels`, `train_idx`, `val_idx`, `test_idx`.
    Raises DataError when the file cannot be read or holds no edges.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"expected a graph in an npz file at {path}: {error}") from error
    features, labels = _features_of(arrays), arrays.get("labels")
    splits = {name: arrays[key] for name, key in SPLIT_KEYS.items() if key in arrays}
    if "edges" in arrays:
        known = [len(part) for part in (labels, arrays.get("x")) if part is not None]
        rows = arrays.get("x_shape", known or [int(arrays["edges"].max()) + 1])[0]
        n_nodes = int(arrays.get("num_nodes", rows))
        return graph_from_edges(arrays["edges"], n_nodes, features=features, labels_N=labels, splits=splits)
    if {"adj_indptr", "adj_indices", "adj_shape"} <= arrays.keys():
        data = arrays.get("adj_data", np.ones(len(arrays["adj_indices"]), np.float32))
        adjacency = sp.csr_matrix((data, arrays["adj_indices"], arrays["adj_indptr"]), shape=arrays["adj_shape"])
        return graph_from_adjacency(adjacency, features=features, labels_N=labels, splits=splits)
    raise DataError(
        f"expected keys 'edges', or 'adj_indptr', 'adj_indices', 'adj_shape' in {path}, got {sorted(arrays)}"
    )


def _numeric(what: str, given: Any) -> NDArray[Any]:
    try:
        array = np.asarray(given)
    except ValueError as error:  # rows of unequal length
        raise InputError(f"expected {what} as numbers, got {type(given).__name__}: {error}") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"expected {what} as real numbers, got {type(given).__name__} of {array.dtype}")
    return array


def _features_of(arrays: dict[str, NDArray[Any]]) -> Any:
    if "x_indptr" not in arrays:
        return arrays.get("x")
    data = arrays.get("x_data", np.ones(len(arrays["x_indices"]), np.float32))
    return sp.csr_matrix((data, arrays["x_indices"].astype(np.int32), arrays["x_indptr"]), shape=arrays["x_shape"])


def _from_geometric(data: Any) -> Graph:
    masks = {"train": "train_mask", "val": "val_mask", "test": "test_mask"}
    splits = {
        name: np.flatnonzero(np.asarray(getattr(data, mask)))
        for name, mask in masks.items()
        if getattr(data, mask, None) is not None
    }
    labels = getattr(data, "y", None)
    return graph_from_edges(
        np.asarray(data.edge_index).T,
        int(data.num_nodes),
        features=getattr(data, "x", None),
        labels_N=None if labels is None else np.asarray(labels).reshape(-1),
        splits=splits,
    )


def _from_ogb(dataset: Any) -> Graph:
    given, labels = dataset[0]
    labels_NT = np.asarray(labels).reshape(int(given["num_nodes"]), -1)
    labels_N = None
    if labels_NT.shape[1] == 1:
        labels_N = np.nan_to_num(labels_NT[:, 0].astype(np.float64), nan=-1).astype(np.int64)
    return graph_from_edges(
        np.asarray(given["edge_index"]).T,
        int(given["num_nodes"]),
        features=given.get("node_feat"),
        labels_N=labels_N,
        splits={"val" if name == "valid" else name: rows for name, rows in dataset.get_idx_split().items()},
    )


def _from_networkx(graph: Any) -> Graph:
    number = {node: row for row, node in enumerate(graph.nodes)}
    edges = [(number[a], number[b], values.get("weight", 1.0)) for a, b, values in graph.edges(data=True)]
    nodes = [values for _, values in graph.nodes(data=True)]
    return graph_from_edges(
        np.array([edge[:2] for edge in edges], dtype=np.int64).reshape(-1, 2),
        len(number),
        weights_E=np.array([edge[2] for edge in edges]),
        features=np.array([values["x"] for values in nodes]) if all("x" in values for values in nodes) else None,
        labels_N=np.array([values["y"] for values in nodes]) if all("y" in values for values in nodes) else None,
    )


def _merged(
    directed: NDArray[np.int64], weights: NDArray[np.float32] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """Every pair once, its largest weight, and how many edges were given before in the same direction.

    directed: twice the number of the pair, and 1 for the direction from high to low. Sorted in place.
    """
    sorted_weights = None
    if weights is not None and weights.min() < weights.max():
        order = np.lexsort((-weights, directed >> 1))
        sorted_weights = weights[order]
    directed.sort()
    pairs = directed >> 1
    first = np.r_[True, pairs[1:] != pairs[:-1]]
    n_duplicates = int((directed[1:] == directed[:-1]).sum())
    pairs = pairs[first]
    if sorted_weights is not None:
        return pairs, sorted_weights[first], n_duplicates
    return pairs, np.full(len(pairs), 1 if weights is None else weights[0], np.float32), n_duplicates


def _warn_of(graph: Graph) -> None:
    found = [
        (graph.n_self_loops, "self-loop(s) (left out)"),
        (graph.n_duplicates, "repeated edge(s) (each counts once, with its largest weight)"),
        (graph.n_one_way, "edge(s) of one direction where others have both (they count both ways)"),
        (len(graph.isolated), "node(s) without edges (known by their own features alone)"),
    ]
    parts = [f"{count:,} {what}" for count, what in found if count]
    if parts:
        warnings.warn(
            f"a graph of {len(graph):,} nodes and {graph.n_edges:,} edges, as given with {', '.join(parts)}: look at how "
            "it was made if you expected none",
            GraphWarning,
            stacklevel=3,
        )


def _both_ways(
    low: NDArray[np.int64], high: NDArray[np.int64], weights: NDArray[np.float32], n_nodes: int
) -> sp.csr_matrix:
    small = np.int32 if n_nodes < 2**31 else np.int64
    low, high = low.astype(small), high.astype(small)
    one_way = sp.csr_matrix((weights, (low, high)), shape=(n_nodes, n_nodes))
    adjacency = (one_way + one_way.T).tocsr()
    adjacency.sort_indices()
    return adjacency


def _graph(adjacency: sp.csr_matrix, features: Any, labels: Any, splits: dict[str, Any] | None, **counts: int) -> Graph:
    n = adjacency.shape[0]
    if features is not None:
        features = checked_features(features, n)
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise InputError(f"expected {n} labels as integers, -1 for unlabelled, got {labels.dtype} {labels.shape}")
        labels = torch.from_numpy(labels.astype(np.int64))
    rows = {}
    if not isinstance(splits or {}, dict):
        raise InputError(f"expected splits as a dictionary of row numbers by name, got {splits!r}")
    for name, given in (splits or {}).items():
        array = np.asarray(given)
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise InputError(
                f"expected row numbers of split {name!r} as integers (R,), got {array.dtype} {array.shape}: "
                "np.flatnonzero(mask) makes them of a mask"
            )
        rows[name] = torch.from_numpy(array.astype(np.int64))
    for name, index in rows.items():
        if len(index) and not (index.min() >= 0 and index.max() < n):
            raise InputError(f"expected rows of split {name!r} from 0 to {n - 1}, got up to {int(index.max())}")
    return Graph(adjacency, features, labels, rows, **counts)


def checked_features(features: Any, n_rows: int) -> Tensor | sp.csr_matrix:
    """float32, dense or CSR. Raises ShapeError, and NonFiniteError with the first row at fault."""
    if not isinstance(features, Tensor) and not sp.issparse(features):
        features = _numeric("features", features)
    if features.ndim != 2 or features.shape[0] != n_rows or features.shape[1] == 0:
        raise ShapeError(
            f"expected features of shape ({n_rows}, F), one row for every node, got {tuple(features.shape)}"
        )
    if sp.issparse(features):
        features = sp.csr_matrix(features, dtype=np.float32)
        finite = np.isfinite(features.data)
        if not finite.all():
            row = int(np.searchsorted(features.indptr, int((~finite).argmax()), side="right")) - 1
            raise NonFiniteError(
                f"expected finite features, got NaN or infinity, first in row {row}: fill or drop them"
            )
        return features
    tensor = torch.as_tensor(features).float()
    finite = torch.isfinite(tensor).all(dim=1)
    if not finite.all():
        raise NonFiniteError(
            f"expected finite features, got NaN or infinity in {int((~finite).sum())} of {n_rows} rows, first in row "
            f"{int((~finite).int().argmax())}: fill or drop them"
        )
    return tensor
