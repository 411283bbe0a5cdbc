"""Neighbour graph and eigenbasis by number of rows: seconds, memory, recall, residuals.

    python benchmarks/spectral_scale.py                                  # 1,000 to 50,000 rows: minutes on 2 CPU cores
    python benchmarks/spectral_scale.py --rows 1000000 --dtype float32 --append

Data: an untrained encoder, tanh of a random linear map of 20 Gaussian clusters in 12 dimensions. Each row of the table is a
process of its own, so that its peak memory is its own; the clocks start when the rows exist and faiss is imported. CPU
seconds count all threads. Writes `results/spectral_scale.json` with provenance, after each run, and a table beside it.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from neigenmaps.files import whole_file
from neigenmaps.provenance import provenance
from neigenmaps.spectral import Eigenbasis, NeighborGraph, laplacian_eigenbasis, neighbor_graph

Result = TypeVar("Result")


def clusters_in_latent(n_rows: int, width: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(20, 12, generator=random)
    encoder = torch.randn(12, width, generator=random) / 12**0.5
    latent = centres[torch.randint(20, (n_rows,), generator=random)] + torch.randn(n_rows, 12, generator=random)
    return torch.tanh(latent @ encoder)


def timed(work: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_gb_so_far": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def measure(n_rows: int, arguments: argparse.Namespace) -> dict[str, Any]:
    X = clusters_in_latent(n_rows, arguments.width, arguments.seed)
    neighbor_graph(X[:200], 5)  # imports faiss
    dtype = getattr(torch, arguments.dtype)

    def graph_of() -> NeighborGraph:
        return neighbor_graph(X, arguments.neighbors, method=arguments.method)

    def basis_of() -> Eigenbasis:
        return laplacian_eigenbasis(graph, arguments.functions, solver=arguments.solver, dtype=dtype)

    graph, graph_cost = timed(graph_of)
    basis, basis_cost = timed(basis_of)
    settings = {
        name: getattr(arguments, name) for name in ("width", "neighbors", "functions", "method", "solver", "dtype")
    }
    return {
        "rows": n_rows,
        "settings": settings,
        "graph": graph_cost
        | {"recall": graph.recall, "edges": graph.adjacency.nnz // 2, "bridges": len(graph.bridges)},
        "basis": basis_cost
        | {
            "residual": float(basis.residuals_K.max()),
            "orthogonality_error": basis.orthogonality_error,
            "last_eigenvalue": float(basis.eigenvalues_K[-1]),
            "next_gap": basis.next_gap,
        },
        **provenance(arguments.seed),
    }


def table(runs: list[dict[str, Any]]) -> str:
    lines = [
        "| rows | dtype | graph, CPU-s (wall) | recall | basis, CPU-s (wall) | residual | peak memory, GB |",
        "| --: | --- | --: | --: | --: | --: | --: |",
    ]
    for run in sorted(runs, key=lambda run: (run["rows"], run["settings"]["dtype"])):
        graph, basis = run["graph"], run["basis"]
        lines.append(
            f"| {run['rows']:,} | {run['settings']['dtype']} | {graph['cpu_seconds']} ({graph['seconds']}) | "
            f"{graph['recall']:.3f} | {basis['cpu_seconds']} ({basis['seconds']}) | {basis['residual']:.0e} | "
            f"{basis['peak_gb_so_far']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 5000, 20_000, 50_000])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--neighbors", type=int, default=30)
    parser.add_argument("--functions", type=int, default=50)
    parser.add_argument("--method", default="auto", choices=["auto", "exact", "approximate"])
    parser.add_argument("--solver", default="auto", choices=["auto", "arpack", "chebyshev"])
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "spectral_scale.json")
    parser.add_argument("--append", action="store_true", help="keep the runs already in the file --out")
    arguments = parser.parse_args()
    runs = json.loads(arguments.out.read_text())["runs"] if arguments.append and arguments.out.exists() else []
    for n_rows in arguments.rows:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            runs.append(alone.apply(measure, (n_rows, arguments)))
        print(table(runs[-1:]), flush=True)
        with whole_file(arguments.out) as path:  # after each run: an hour's work survives an interruption
            path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        with whole_file(arguments.out.with_suffix(".md")) as path:
            path.write_text(table(runs))


if __name__ == "__main__":
    main()
