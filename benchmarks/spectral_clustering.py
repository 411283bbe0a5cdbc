"""Spectral clustering by a network beside scikit-learn's and k-means: ARI, NMI, CPU seconds, growth with the number of rows.

    python benchmarks/spectral_clustering.py                               # digits
    python benchmarks/spectral_clustering.py --data FOLDER --sets digits mfeat mnist --rows 5000 70000

FOLDER/mfeat.npz holds six views and labels, FOLDER/mnist.npz x_train, y_train, x_test, y_test. Both spectral methods
cluster by the Euclidean graph of `--neighbors` neighbours. The network also labels 20 % of the rows that it has not seen.
scikit-learn's is left out above `--most` rows. Memory is the peak of the process, so run one set at a time to compare it.
"""

import argparse
import json
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from neigenmaps.files import whole_file
from neigenmaps.graphs import NeuralSpectralClustering
from neigenmaps.provenance import provenance

Array = NDArray[Any]


def load(name: str, folder: Path, rows: int) -> tuple[Array, Array]:
    if name == "digits":
        bunch = load_digits()
        return bunch.data / 16, bunch.target
    with np.load(folder / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file}
    if name == "mfeat":
        views = [value.astype(float) for key, value in sorted(arrays.items()) if value.ndim == 2]
        scaled = [(v - v.mean(0)) / np.where(v.std(0) > 0, v.std(0), 1) / np.sqrt(v.shape[1]) for v in views]
        return np.concatenate(scaled, axis=1), next(value for value in arrays.values() if value.ndim == 1)
    images = np.concatenate([arrays["x_train"], arrays["x_test"]]).reshape(-1, 784)
    labels = np.concatenate([arrays["y_train"], arrays["y_test"]])
    chosen = np.random.default_rng(0).permutation(len(images))[:rows]
    return images[chosen].astype(np.float32) / 255, labels[chosen]


def scores(labels: Array, found: Array) -> dict[str, float]:
    return {"ari": adjusted_rand_score(labels, found), "nmi": normalized_mutual_info_score(labels, found)}


def measure(name: str, x: Array, labels: Array, seed: int, neighbors: int, most: int) -> list[dict[str, Any]]:
    classes = len(np.unique(labels))
    order = np.random.default_rng(seed).permutation(len(x))
    seen, unseen = order[: int(0.8 * len(x))], order[int(0.8 * len(x)) :]
    methods: dict[str, Callable[[], Any]] = {
        "k-means": lambda: KMeans(classes, n_init=10, random_state=seed),
        "neural": lambda: NeuralSpectralClustering(classes, n_neighbors=neighbors, random_state=seed),
    }
    if len(x) <= most:
        methods["scikit-learn"] = lambda: SpectralClustering(
            classes, affinity="nearest_neighbors", n_neighbors=neighbors, random_state=seed
        )
    results = []
    for method, make in methods.items():
        started = time.process_time()
        estimator = make().fit(x[seen])
        result = {"set": name, "rows": len(seen), "seed": seed, "method": method}
        result |= {"cpu_seconds": time.process_time() - started} | scores(labels[seen], estimator.labels_)
        result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if hasattr(estimator, "predict"):
            started = time.process_time()
            result["unseen_ari"] = scores(labels[unseen], estimator.predict(x[unseen]))["ari"]
            result["predict_cpu_seconds"] = time.process_time() - started
        results.append(result)
        print(result, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--sets", nargs="+", default=["digits"], choices=["digits", "mfeat", "mnist"])
    parser.add_argument("--rows", type=int, nargs="+", default=[5000], help="of mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--neighbors", type=int, default=30)
    parser.add_argument("--most", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "spectral_clustering.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="Graph is not fully connected")
    torch.set_num_threads(1)
    record: dict[str, Any] = {"provenance": provenance(arguments.seeds), "results": []}
    for name in arguments.sets:
        for rows in arguments.rows if name == "mnist" else [0]:
            x, labels = load(name, arguments.data, rows)
            for seed in arguments.seeds:
                record["results"] += measure(name, x, labels, seed, arguments.neighbors, arguments.most)
                with whole_file(arguments.out) as path:
                    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
