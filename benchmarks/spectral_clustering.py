"""Spectral clustering by a network beside scikit-learn's and k-means: ARI, NMI, CPU seconds, memory, growth with the rows.

    python benchmarks/spectral_clustering.py                               # digits
    python benchmarks/spectral_clustering.py --data FOLDER --sets digits mfeat mnist --rows 1250 5000 20000 70000
    python benchmarks/spectral_clustering.py --data FOLDER --sets digits mfeat mnist --rows 1250 --graphs   # graph or solver?

FOLDER/multiview/mfeat.npz holds six views and labels, FOLDER/mnist/mnist.npz x_train, y_train, x_test, y_test. Every method
gets the same rows, four fifths of the set, and labels the rest if it can. Each runs in a process of its own on one thread and is
ended at `--limit` CPU seconds or `--memory` GB; then it is not run on larger parts of the set. Imports are not counted. Peak
memory includes Python, torch and the data. Results are added to those in `--out`.

    neural              NeuralSpectralClustering, default settings
    neural, objective   the same graph, functions learned from pairs alone, 1,000 steps
    scikit-learn        SpectralClustering(affinity="nearest_neighbors"), 10 neighbours, its default
    ..., lobpcg         the same with eigen_solver="lobpcg", which does without a factorisation
    ..., our graph      affinity="precomputed", the graph that the network gets
    ..., rbf            SpectralClustering(): the affinity it has by default, gamma=1

`--graphs` takes apart, over 10 seeds, what differs from scikit-learn's at few rows: three solvers on either graph, "eigh" being
the dense eigenvectors, each of variance 1, less the constant. scikit-learn counts a row as its own neighbour and weighs
an edge 1, or 1/2 where one of the two rows alone has the other among its neighbours.
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import kneighbors_graph

from neigenmaps.files import whole_file
from neigenmaps.graphs import NeuralEigenmap, NeuralSpectralClustering
from neigenmaps.provenance import provenance
from neigenmaps.reporting.tables import MISSING
from neigenmaps.spectral import neighbor_graph

Array = NDArray[Any]
METHODS = (
    "k-means",
    "neural",
    "neural, objective",
    "scikit-learn",
    "scikit-learn, lobpcg",
    "scikit-learn, our graph",
    "scikit-learn, rbf",
)
GRAPH_SEEDS = range(10)
THEIRS, COSINE = "scikit-learn, its graph", "smallest cosine, network and eigh, %"
GRAPH = {"n_neighbors": 10, "metric": "euclidean", "kernel": "symmetric_gaussian"}


def load(name: str, folder: Path, rows: int) -> tuple[Array, Array]:
    if name == "digits":
        bunch = load_digits()
        return bunch.data / 16, bunch.target
    with np.load(folder / {"mfeat": "multiview", "mnist": "mnist"}[name] / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file}
    if name == "mfeat":
        views = [value.astype(float) for key, value in sorted(arrays.items()) if value.ndim == 2]
        scaled = [(v - v.mean(0)) / np.where(v.std(0) > 0, v.std(0), 1) / np.sqrt(v.shape[1]) for v in views]
        return np.concatenate(scaled, axis=1), next(value for value in arrays.values() if value.ndim == 1)
    images = np.concatenate([arrays["x_train"], arrays["x_test"]]).reshape(-1, 784)
    labels = np.concatenate([arrays["y_train"], arrays["y_test"]])
    chosen = np.random.default_rng(0).permutation(len(images))[:rows]
    return images[chosen].astype(np.float32) / 255, labels[chosen]


def make(method: str, classes: int, seed: int) -> Any:
    if method == "k-means":
        return KMeans(classes, n_init=10, random_state=seed)
    if method == "neural":
        return NeuralSpectralClustering(classes, random_state=seed)
    if method == "neural, objective":
        embedding = NeuralEigenmap(classes - 1, kernel="neighbors", kernel_params=GRAPH, span="outputs", max_steps=1000)
        return NeuralSpectralClustering(classes, embedding=embedding, random_state=seed)
    settings = {
        "scikit-learn": {"affinity": "nearest_neighbors"},
        "scikit-learn, lobpcg": {"affinity": "nearest_neighbors", "eigen_solver": "lobpcg"},
        "scikit-learn, our graph": {"affinity": "precomputed"},
        "scikit-learn, rbf": {},
    }
    return SpectralClustering(classes, random_state=seed, **settings[method])


def scores(labels: Array, found: Array) -> dict[str, float]:
    return {"ari": adjusted_rand_score(labels, found), "nmi": normalized_mutual_info_score(labels, found)}


def measure(
    answer: Connection, limit: int, memory: int, name: str, folder: Path, rows: int, method: str, seed: int
) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_AS, (memory << 30, memory << 30))
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # imports a second's worth of torch
    warnings.filterwarnings("ignore", message="Graph is not fully connected")
    x, labels = load(name, folder, rows)
    order = np.random.default_rng(seed).permutation(len(x))
    seen, unseen = order[: int(0.8 * len(x))], order[int(0.8 * len(x)) :]
    x_seen, x_unseen = x[seen], x[unseen]
    estimator = make(method, len(np.unique(labels)), seed)
    started, wall = time.process_time(), time.perf_counter()
    if method == "scikit-learn, our graph":
        estimator.fit(neighbor_graph(x_seen, **GRAPH).adjacency.astype(np.float64))
    else:
        estimator.fit(x_seen)
    result = {"cpu_seconds": time.process_time() - started, "seconds": time.perf_counter() - wall}
    result |= scores(labels[seen], estimator.labels_)
    if hasattr(estimator, "predict"):
        started = time.process_time()
        result |= {f"unseen_{key}": value for key, value in scores(labels[unseen], estimator.predict(x_unseen)).items()}
        result["predict_cpu_seconds"] = time.process_time() - started
    answer.send(result | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})


def compare_graphs(name: str, folder: Path, rows: int) -> dict[str, list[float]]:
    """ARI by solver and graph, on the rows that `measure` takes; smallest cosine of the network's span with that of eigh."""
    warnings.filterwarnings("ignore", message="Graph is not fully connected")
    x, labels = load(name, folder, rows)
    classes, found = len(np.unique(labels)), {}
    for seed in GRAPH_SEEDS:
        seen = np.random.default_rng(seed).permutation(len(x))[: int(0.8 * len(x))]
        near = kneighbors_graph(x[seen], 10, include_self=True)
        ours = neighbor_graph(x[seen], **GRAPH).adjacency.astype(np.float64)
        network = make("neural", classes, seed).fit(x[seen])
        labelled = {"network, our graph": network.labels_}
        for graph, adjacency in (("its", 0.5 * (near + near.T)), ("our", ours)):
            given = SpectralClustering(classes, affinity="precomputed", random_state=seed).fit(adjacency)
            functions = walk_functions(adjacency, classes)
            means = KMeans(classes, n_init=10, random_state=seed).fit(functions)
            labelled |= {f"scikit-learn, {graph} graph": given.labels_, f"eigh, {graph} graph": means.labels_}
        for key, value in labelled.items():
            found.setdefault(key, []).append(adjusted_rand_score(labels[seen], value))
        codes = network.embedding_.transform(x[seen])
        angles = subspace_angles(codes - codes.mean(0), functions - functions.mean(0))
        found.setdefault(COSINE, []).append(float(np.cos(angles.max())))
    return found


def walk_functions(adjacency: Any, classes: int) -> Array:
    dense = adjacency.toarray()
    root = np.sqrt(dense.sum(1))
    vectors = np.linalg.eigh(dense / np.outer(root, root))[1][:, ::-1][:, 1:classes] / root[:, None]
    return vectors / vectors.std(0)


def graph_table(comparisons: list[dict[str, Any]]) -> str:
    """One column for every set: mean and standard deviation over seeds, and the paired difference with its standard error."""
    names = [f"{one['set']}, {one['rows']:,} rows" for one in comparisons]
    text = f"\n**The graph, or the solver?** n = {len(GRAPH_SEEDS)}; in brackets the paired difference to {THEIRS}, its standard "
    text += f"error\n\n| ARI % | {' | '.join(names)} |\n| --- |{' --: |' * len(names)}\n"
    for key in comparisons[0]["scores"]:
        cells = []
        for one in comparisons:
            values, theirs = 100 * np.array(one["scores"][key]), 100 * np.array(one["scores"][THEIRS])
            apart = values - theirs
            error = apart.std(ddof=1) / len(apart) ** 0.5
            bracket = "" if key in (THEIRS, COSINE) else f" ({apart.mean():+.1f}, {error:.1f})"
            cells.append(_spread(list(values)) + bracket)
        text += f"| {key} | {' | '.join(cells)} |\n"
    return text


def in_own_process(*arguments: Any) -> dict[str, Any] | None:
    """What `measure` sends; None where it is ended before."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv()
        return found
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def table(results: list[dict[str, Any]]) -> str:
    """One line for every method on every set, mean and standard deviation over seeds."""
    head = ["rows", "method", "n", "ARI %", "NMI %", "unseen ARI %", "CPU s", "peak GB"]
    order = {name: place for place, name in enumerate(["digits", "mfeat", "mnist", *METHODS])}
    results = sorted(results, key=lambda one: (order[one["set"]], one["rows"], order[one["method"]]))
    text, groups = "", {(one["set"], one["rows"], one["method"]): [] for one in results}
    for one in results:
        groups[one["set"], one["rows"], one["method"]].append(one)
    for name in dict.fromkeys(one["set"] for one in results):
        text += f"\n**{name}**\n\n| {' | '.join(head)} |\n| --: | --- |{' --: |' * 6}\n"
        for (of, rows, method), runs in groups.items():
            if of != name:
                continue
            if "ari" not in runs[0]:
                cells = [MISSING] * 4 + [f"ended at {runs[0]['limit']} s or {runs[0]['memory']} GB", MISSING]
            else:
                percents = [
                    _spread([100 * run.get(key, np.nan) for run in runs]) for key in ("ari", "nmi", "unseen_ari")
                ]
                seconds = _spread([run["cpu_seconds"] for run in runs], digits=2)
                cells = [str(len(runs)), *percents, seconds, f"{max(run['peak_gb'] for run in runs):.2f}"]
            text += f"| {rows:,} | {method} | {' | '.join(cells)} |\n"
    return text


def _spread(values: list[float], digits: int = 1) -> str:
    if np.isnan(values).any():
        return MISSING
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--sets", nargs="+", default=["digits"], choices=["digits", "mfeat", "mnist"])
    parser.add_argument("--rows", type=int, nargs="+", default=[5000], help="of mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--limit", type=int, default=600, help="CPU seconds of one process")
    parser.add_argument("--memory", type=int, default=16, help="GB of one process")
    parser.add_argument("--graphs", action="store_true", help="only the comparison of graphs and solvers")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "spectral_clustering.json")
    arguments = parser.parse_args()
    record: dict[str, Any] = {"provenance": [], "results": []}
    if arguments.out.exists():
        record = json.loads(arguments.out.read_text())
    record["provenance"].append(provenance(arguments.seeds))
    results = record["results"]
    given_up = set()
    for name in arguments.sets:
        for rows in arguments.rows if name == "mnist" else [0]:
            seen = int(0.8 * len(load(name, arguments.data, rows)[1]))
            if arguments.graphs:
                scores_of = compare_graphs(name, arguments.data, rows)
                compared = [one for one in record.get("graphs", []) if (one["set"], one["rows"]) != (name, seen)]
                record["graphs"] = [*compared, {"set": name, "rows": seen, "scores": scores_of}]
                continue
            for method, seed in itertools.product(arguments.methods, arguments.seeds):
                if (name, method) in given_up:
                    continue
                found = in_own_process(arguments.limit, arguments.memory, name, arguments.data, rows, method, seed)
                if found is None:
                    given_up.add((name, method))
                key = {"set": name, "rows": seen, "seed": seed, "method": method}
                results[:] = [one for one in results if any(one[k] != value for k, value in key.items())]
                results.append(key | (found or {"limit": arguments.limit, "memory": arguments.memory}))
                print(results[-1], flush=True)
                with whole_file(arguments.out) as path:
                    path.write_text(json.dumps(record, indent=1) + "\n")
    with whole_file(arguments.out) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    with whole_file(arguments.out.with_suffix(".md")) as path:
        path.write_text(table(results) + (graph_table(record["graphs"]) if "graphs" in record else ""))


if __name__ == "__main__":
    main()
