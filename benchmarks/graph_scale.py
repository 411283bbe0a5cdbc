"""Node representation on a generated graph of OGBN-products' size: memory, and steps a second.

    python benchmarks/graph_scale.py --nodes 2400000 --edges 60000000         # an epoch: every edge once on average
    python benchmarks/graph_scale.py --steps 150                              # a share of it; the epoch is extrapolated

Edges join nodes of one of 50 blocks four times in five; features are the block's mean and noise. Peak memory is that of
the process, edge list and features included.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch

from neigenmaps.files import whole_file
from neigenmaps.functional.eigenmap import nested_low_rank_loss
from neigenmaps.graphs import graph_from_edges
from neigenmaps.graphs.network import ResidualMLP
from neigenmaps.graphs.operators import WalkOperator
from neigenmaps.provenance import provenance

BLOCKS, FEATURES = 50, 100


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2_400_000)
    parser.add_argument("--edges", type=int, default=60_000_000)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=None, help="instead of an epoch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "graph_scale.json")
    arguments = parser.parse_args()
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    n, per_block = arguments.nodes, arguments.nodes // BLOCKS
    first = rng.integers(0, n, arguments.edges, dtype=np.int32)
    last = rng.integers(0, n, arguments.edges, dtype=np.int32)
    inside = rng.random(arguments.edges, dtype=np.float32) < 0.8
    last[inside] = first[inside] // per_block * per_block + last[inside] % per_block
    edges = np.stack([first, np.minimum(last, n - 1)], axis=1)
    del first, last, inside
    result: dict[str, object] = {
        "provenance": provenance(0),
        "nodes": n,
        "edges_given": len(edges),
        "made_gb": peak_gb(),
    }
    started = time.process_time()
    graph = graph_from_edges(edges, n)
    result |= {"edges": graph.n_edges, "graph_cpu_seconds": time.process_time() - started, "graph_gb": peak_gb()}
    del edges
    means = torch.randn(BLOCKS + 1, FEATURES, generator=generator)
    rows = torch.randn(n, FEATURES, generator=generator)
    for part in torch.arange(n).split(1 << 18):
        rows[part] += means[part // per_block]
    device = torch.device(arguments.device)
    walk = WalkOperator(rows, graph.adjacency, steps=1, shift=0.0, device=torch.device("cpu"))
    network = ResidualMLP(FEATURES, 64, hidden=256, depth=1, batch_norm=True).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    steps = arguments.steps or graph.n_edges // arguments.batch
    started, sampling, losses = time.perf_counter(), 0.0, []
    cpu = time.process_time()
    for step in range(steps):
        before = time.process_time()
        ends = torch.cat(walk.pairs(arguments.batch, generator))
        batch = rows[ends].to(device)
        sampling += time.process_time() - before
        result_of_step = nested_low_rank_loss(*network(batch).codes.chunk(2))
        optimiser.zero_grad()
        result_of_step.loss.backward()
        optimiser.step()
        if step % 10 == 0:
            losses.append(result_of_step.loss.item())
    cpu, epoch = time.process_time() - cpu, graph.n_edges // arguments.batch
    result |= {
        "batch": arguments.batch,
        "steps": steps,
        "steps_in_an_epoch": epoch,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu,
        "epoch_cpu_seconds": cpu / steps * epoch,
        "epoch_is_extrapolated": steps < epoch,
        "sampling_cpu_seconds": sampling,
        "peak_gb": peak_gb(),
        "losses": losses,
    }
    print(json.dumps(result, indent=1))
    with whole_file(arguments.out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
