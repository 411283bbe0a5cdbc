"""LatentFunctionalMap against the pipeline that a user would assemble today, on planted pairs: time, memory, accuracy.

    python benchmarks/lfm_speed.py --rows 1000 5000 20000 50000

The rival has the steps of the published code: scikit-learn neighbours, scipy `svds` of the normalised adjacency, geodesic
descriptors of the anchors, pyfmaps' energy under L-BFGS, ten rounds of ZoomOut on a kd-tree, orthogonal map on
the pairs found. Two of its defects are mended, or it would score nothing on shuffled rows: the map is fitted in the right
direction, and the sign of the first function is fixed. Same neighbours, eigenvectors and anchors for both.

Both run in this process, in turn; peak memory is that of a fresh process each, less that of one which only makes the data.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from planted_spaces import PlantedPair, planted_pair
from pyFM.optimize import energy_and_grad_std
from scipy.optimize import fmin_l_bfgs_b
from scipy.sparse.csgraph import dijkstra
from scipy.sparse.linalg import svds
from sklearn.neighbors import KDTree, NearestNeighbors

from neigenmaps.alignment import LatentFunctionalMap
from neigenmaps.files import whole_file
from neigenmaps.provenance import provenance

Anchors = tuple[NDArray[np.int64], NDArray[np.int64]]
Basis = tuple[NDArray[np.float64], NDArray[np.float64], sp.csr_matrix]


def neighbours_for(n_rows: int) -> int:
    return 30 if n_rows < 5_000 else 100


def rival_basis(x_NF: NDArray[np.float32], n_neighbors: int, n_eigenvectors: int) -> Basis:
    unit = x_NF / np.linalg.norm(x_NF, axis=1, keepdims=True)
    search = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(unit)
    distance, index = search.kneighbors(unit)
    distance, index = distance[:, 1:], index[:, 1:]
    rows = np.repeat(np.arange(len(unit)), n_neighbors)
    weights = np.exp(-4 * (distance / distance[:, -1:]) ** 2)
    graph = sp.csr_matrix((weights.ravel(), (rows, index.ravel())), shape=(len(unit),) * 2)
    graph = (graph + graph.T) / 2
    root = sp.diags(1 / np.sqrt(np.asarray(graph.sum(1)).ravel()))
    left, values, _ = svds(root @ graph @ root, k=n_eigenvectors)
    lengths = sp.csr_matrix((distance.ravel(), (rows, index.ravel())), shape=graph.shape)
    return 1 - values[::-1], left[:, ::-1] * np.sign(left[0, -1]), lengths.maximum(lengths.T)


def rival(pair: PlantedPair, anchors: Anchors, n_eigenvectors: int) -> NDArray[np.float32]:
    """X's rows in Y's space."""
    n_neighbors = neighbours_for(len(pair.x_NF))
    spaces = [rival_basis(x_NF, n_neighbors, n_eigenvectors) for x_NF in (pair.x_NF, pair.y_NG)]
    descriptors, operators = [], []
    for (_, vectors, lengths), chosen in zip(spaces, anchors, strict=True):
        geodesic = dijkstra(lengths, directed=False, indices=chosen).T
        heat = np.exp(-((geodesic / np.median(geodesic[np.isfinite(geodesic)])) ** 2))
        descriptors.append(vectors.T @ heat)
        operators.append([vectors.T @ (column[:, None] * vectors) for column in heat.T])
    gaps = np.square(spaces[0][0][None, :] - spaces[1][0][:, None])
    start = np.zeros((n_eigenvectors, n_eigenvectors))
    start[0, 0] = 1.0  # pyfmaps keeps the first column as given; both first functions are positive
    # pyfmaps' weights: descriptors, Laplacian, commutativity, orientation (the published 1, 1e-3, 1e-1, 0)
    arguments = (1.0, 1e-3, 1e-1, 0.0, *descriptors, operators, [], gaps / gaps.sum())
    functional_map = fmin_l_bfgs_b(energy_and_grad_std, start.ravel(), args=arguments)[0].reshape(
        n_eigenvectors, n_eigenvectors
    )
    phi_x, phi_y = spaces[0][1], spaces[1][1]
    for size in range(n_eigenvectors - 10, n_eigenvectors):
        matched = nearest(phi_x[:, :size] @ functional_map[:size, :size].T, phi_y[:, :size])
        functional_map = np.linalg.lstsq(phi_y[:, : size + 1], phi_x[matched, : size + 1], rcond=None)[0]
    matched = nearest(phi_x @ functional_map.T, phi_y)
    left, _, right = np.linalg.svd(pair.x_NF[matched].T @ pair.y_NG, full_matrices=False)
    mapped: NDArray[np.float32] = pair.x_NF @ (left @ right)
    return mapped


def nearest(rows: NDArray[Any], queries: NDArray[Any]) -> NDArray[np.int64]:
    index: NDArray[np.int64] = KDTree(rows).query(queries)[1][:, 0]
    return index


def ours(pair: PlantedPair, anchors: Anchors, n_eigenvectors: int) -> NDArray[np.float32]:
    """X's rows in Y's space."""
    aligner = LatentFunctionalMap(n_eigenvectors=n_eigenvectors, n_neighbors=neighbours_for(len(pair.x_NF)))
    mapped: NDArray[np.float32] = aligner.fit(pair.x_NF, pair.y_NG, anchors=anchors).transform(pair.x_NF).numpy()
    return mapped


METHODS: dict[str, Callable[[PlantedPair, Anchors, int], NDArray[np.float32]]] = {"pipeline": rival, "neigenmaps": ours}


def reciprocal_rank(mapped_NG: NDArray[np.float32], pair: PlantedPair, n_queries: int = 2_000) -> float:
    """Mean over rows of X of 1 / (rows of Y at least as near, by cosine, as the true partner)."""
    unit_x = mapped_NG / np.linalg.norm(mapped_NG, axis=1, keepdims=True)
    unit_y = pair.y_NG / np.linalg.norm(pair.y_NG, axis=1, keepdims=True)
    chosen = np.random.default_rng(0).permutation(len(unit_x))[:n_queries]
    ranks = []
    for some in np.array_split(chosen, max(1, len(chosen) // 500)):
        scores = unit_x[some] @ unit_y.T
        own = scores[np.arange(len(some)), pair.partner_N[some]]
        ranks.append((scores >= own[:, None]).sum(1))
    return float((1 / np.concatenate(ranks)).mean())


def peak_megabytes(name: str | None, n_rows: int, width: int, seed: int, n_anchors: int, n_eigenvectors: int) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, n_rows, width, seed, n_anchors, n_eigenvectors))


def _peak(name: str | None, n_rows: int, width: int, seed: int, n_anchors: int, n_eigenvectors: int) -> int:
    pair = planted_pair(n_rows, width, seed)
    if name is not None:
        METHODS[name](pair, pair.anchors(n_anchors, np.random.default_rng(seed)), n_eigenvectors)
    status = Path("/proc/self/status").read_text()  # a fresh process inherits getrusage's maximum from its parent
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 5_000, 20_000, 50_000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--anchors", type=int, default=10)
    parser.add_argument("--eigenvectors", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each, after one of both to warm up")
    parser.add_argument("--no-memory", action="store_true", help="leave out the two further runs that measure memory")
    parser.add_argument("--append", action="store_true", help="keep the sizes already in the file --out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "lfm_speed.json")
    arguments = parser.parse_args()
    warm = planted_pair(500, arguments.width, 99)
    for method in METHODS.values():
        method(warm, warm.anchors(10, np.random.default_rng(0)), 20)
    results = []
    for n_rows in arguments.rows:
        runs: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu": [], "mrr": []} for name in METHODS}
        for seed in range(arguments.repeats):
            pair = planted_pair(n_rows, arguments.width, seed)
            anchors = pair.anchors(arguments.anchors, np.random.default_rng(seed))
            for name in list(METHODS)[:: 1 if seed % 2 == 0 else -1]:
                started, cpu = time.perf_counter(), time.process_time()
                mapped = METHODS[name](pair, anchors, arguments.eigenvectors)
                runs[name]["seconds"].append(round(time.perf_counter() - started, 3))
                runs[name]["cpu"].append(round(time.process_time() - cpu, 3))
                runs[name]["mrr"].append(round(reciprocal_rank(mapped, pair), 4))
        sizes = (n_rows, arguments.width, 0, arguments.anchors, arguments.eigenvectors)
        memory = None
        if not arguments.no_memory:
            bare = peak_megabytes(None, *sizes)
            memory = {name: peak_megabytes(name, *sizes) - bare for name in METHODS}
        ratio = statistics.median(
            rival / own for rival, own in zip(runs["pipeline"]["seconds"], runs["neigenmaps"]["seconds"], strict=True)
        )
        results.append({"rows": n_rows, "n_neighbors": neighbours_for(n_rows), "ratio": round(ratio, 2)})
        results[-1] |= {"runs": runs, "peak_megabytes_above_data": memory}
        results[-1] |= {"provenance": provenance(list(range(arguments.repeats))), "threads": torch.get_num_threads()}
        print(json.dumps({k: v for k, v in results[-1].items() if k != "provenance"}), flush=True)
    kept = json.loads(arguments.out.read_text())["results"] if arguments.append else []
    with whole_file(arguments.out) as path:
        path.write_text(json.dumps({"results": kept + results}, indent=1))


if __name__ == "__main__":
    main()
