"""Eigenvalues and functions of a network beside the eigensolver's, and beside Nystrom's formula at points not seen.

    python benchmarks/kernel_exactness.py                       # closed forms, graphs, digits
    python benchmarks/kernel_exactness.py --data FOLDER         # and MNIST, FOLDER/mnist/mnist.npz

Truth: SciPy's eigsh on the whole matrix over the rows; at unseen points its functions carried on over all rows,
f(x) = mean_n k(x, x_n) f(x_n) / mu. Nystrom at equal cost: the same with so many random rows that an unseen point takes as
many multiplications as the network's forward pass; where that is more rows than there are, with all, and then it is the truth.
The worst of the functions counts: error of the eigenvalue (of 1 - eigenvalue for walks), cosine; after the stroke the least
cosine between the spans, since functions of nearly equal eigenvalue may trade places. Mean over seeds.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh
from scipy.stats import norm
from sklearn.datasets import load_digits
from torch import Tensor

from neigenmaps.files import whole_file
from neigenmaps.functional.kernels import arc_cosine_kernel, polynomial_kernel, rbf_kernel
from neigenmaps.graphs import NeuralEigenmap
from neigenmaps.provenance import provenance
from neigenmaps.reporting.tables import MISSING

Array = NDArray[Any]
Kernel = Callable[[Tensor, Tensor], Tensor]
SMOOTH = {"max_steps": 40, "hidden": 96, "batch_size": 128}


def problems(folder: Path | None) -> dict[str, tuple[Array, Array, Kernel, int, dict[str, Any]]]:
    """Rows, unseen rows, kernel, number of functions, settings."""
    normal, between = (norm.ppf((np.arange(n) + 0.5) / n)[:, None] for n in (800, 1001))
    even, middle = (((np.arange(n) + 0.5) / n * 2 - 1)[:, None] for n in (800, 1001))
    images = load_digits().data / 16
    images = images[np.random.default_rng(0).permutation(len(images))]
    real = {"max_steps": 1500, "hidden": 256}
    found = {
        "A: RBF, N(0, 1)": (normal, between, partial(rbf_kernel, gamma=0.5), 6, SMOOTH),
        "B: RBF, U(-2, 2)": (2 * even, 2 * middle, partial(rbf_kernel, gamma=0.5), 6, SMOOTH),
        "C: (xy + 1.5)^4, U(-1, 1)": (even, middle, partial(polynomial_kernel, degree=4, coef0=1.5), 5, SMOOTH),
        "digits, RBF": (images[:1400], images[1400:], partial(rbf_kernel, gamma=1 / 8), 8, real),
        "digits, arc-cosine": (images[:1400], images[1400:], partial(arc_cosine_kernel, order=1), 8, real),
    }
    if folder is not None:
        with np.load(folder / "mnist" / "mnist.npz") as file:
            pixels = file["x_train"][:10_000].reshape(-1, 784) / 255.0
        found["MNIST, RBF"] = (pixels[:8000], pixels[8000:], partial(rbf_kernel, gamma=1 / 50), 8, real)
    return found


def graphs() -> dict[str, tuple[sp.csr_matrix, Array]]:
    def path(n: int) -> sp.csr_matrix:
        return sp.diags([np.ones(n - 1)] * 2, [-1, 1]).tocsr()

    grid = sp.kronsum(path(10), path(14)).tocsr()
    places = np.stack(np.meshgrid(np.arange(14), np.arange(10), indexing="ij"), -1).reshape(-1, 2) / 5
    return {"path of 100": (path(100), np.linspace(-1, 1, 100)[:, None]), "grid of 14 x 10": (grid, places)}


def cosines(f_NK: Array, g_NK: Array, weights_N: Array | float = 1.0) -> Array:
    w = np.broadcast_to(weights_N, len(f_NK))
    return np.abs(w @ (f_NK * g_NK)) / np.sqrt((w @ f_NK**2) * (w @ g_NK**2))


def span_cosine(f_NK: Array, g_NK: Array) -> float:
    bases = [np.linalg.qr(functions)[0] for functions in (f_NK, g_NK)]
    return float(np.linalg.svd(bases[0].T @ bases[1])[1].min())


def leading(matrix: Any, count: int) -> tuple[Array, Array]:
    values, vectors = eigsh(matrix, count, which="LA")
    return values[::-1], vectors[:, ::-1]


def extended(kernel: Kernel, rows: Array, unseen: Array, count: int) -> tuple[Array, Array, Array]:
    """Eigenvalues, functions at the rows and at unseen points."""
    a, b = torch.from_numpy(rows), torch.from_numpy(unseen)
    values, vectors = leading(kernel(a, a).numpy() / len(a), count)
    return values, vectors, kernel(b, a).numpy() @ vectors


def on_kernel(rows: Array, unseen: Array, kernel: Kernel, count: int, settings: dict[str, Any], seed: int) -> Any:
    started = time.process_time()
    values, vectors, truth = extended(kernel, rows, unseen, count)
    solver, started = time.process_time() - started, time.process_time()
    found = NeuralEigenmap(count, kernel=kernel, random_state=seed, **settings).fit(rows)
    width, hidden = rows.shape[1], settings["hidden"]
    landmarks = min(len(rows), (hidden * (width + 2 * hidden + count)) // width)
    result = {
        "eigenvalue_error": float(np.abs(found.eigenvalues_ / values - 1).max()),
        "cosine": float(cosines(found.transform(rows), vectors).min()),
        "unseen_cosine": float(cosines(found.transform(unseen), truth).min()),
        "unseen_span_cosine": span_cosine(found.transform(unseen), truth),
        "cpu_seconds": time.process_time() - started,
        "eigsh_cpu_seconds": solver,
        "landmarks": landmarks,
    }
    if landmarks < len(rows):
        chosen = np.random.default_rng(seed).permutation(len(rows))[:landmarks]
        approximate, _, nystrom = extended(kernel, rows[chosen], unseen, count)
        result["nystrom_unseen_cosine"] = float(cosines(nystrom, truth).min())
        result["nystrom_unseen_span_cosine"] = span_cosine(nystrom, truth)
        result["nystrom_eigenvalue_error"] = float(np.abs(approximate / values - 1).max())
    return result


def on_graph(adjacency: sp.csr_matrix, points: Array, seed: int) -> Any:
    degrees = np.asarray(adjacency.sum(1)).ravel()
    root = sp.diags(1 / np.sqrt(degrees))
    started = time.process_time()
    values, vectors = leading(root @ adjacency @ root, 7)
    solver, started = time.process_time() - started, time.process_time()
    found = NeuralEigenmap(6, pairs=adjacency, random_state=seed, **SMOOTH).fit(points)
    return {
        "eigenvalue_error": float(np.abs((1 - found.eigenvalues_) / (1 - values[1:]) - 1).max()),
        "cosine": float(cosines(found.transform(points), (root @ vectors)[:, 1:], degrees).min()),
        "cpu_seconds": time.process_time() - started,
        "eigsh_cpu_seconds": solver,
    }


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    head = ["", "eigenvalue error", "\\|cos\\|, rows", "\\|cos\\|, unseen", "Nyström, as many products", "its rows"]
    text = f"| {' | '.join(head)} |\n| --- |{' --: |' * 5}\n"
    for name, runs in results.items():
        mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        unseen = MISSING
        if "unseen_cosine" in mean:
            unseen = f"{mean['unseen_cosine']:.4f} / {mean['unseen_span_cosine']:.4f}"
        rival = "exact" if "landmarks" in mean else MISSING
        if "nystrom_unseen_cosine" in mean:
            rival = f"{mean['nystrom_unseen_cosine']:.4f} / {mean['nystrom_unseen_span_cosine']:.4f}"
        rows = f"{mean['landmarks']:,.0f}" if "landmarks" in mean else MISSING
        cells = [name, f"{100 * mean['eigenvalue_error']:.2g} %", f"{mean['cosine']:.4f}", unseen, rival, rows]
        text += f"| {' | '.join(cells)} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernel_exactness.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, (adjacency, points) in graphs().items():
        results[name] = [on_graph(adjacency, points, seed) for seed in arguments.seeds]
    for name, problem in problems(arguments.data).items():
        results[name] = [on_kernel(*problem, seed) for seed in arguments.seeds]
        print(name, results[name], flush=True)
    with whole_file(arguments.out) as path:
        path.write_text(json.dumps({"provenance": provenance(arguments.seeds), "results": results}, indent=1) + "\n")
    with whole_file(arguments.out.with_suffix(".md")) as path:
        path.write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
