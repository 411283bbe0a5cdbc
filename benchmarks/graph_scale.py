"""Node representation on a generated graph of OGBN-products' size: memory, and steps a second.

    python benchmarks/graph_scale.py --nodes 2400000 --edges 60000000         # an epoch: every edge once on average
    python benchmarks/graph_scale.py --steps 150 --hidden 256                 # a share of it; the epoch is extrapolated

Edges join nodes of one of 50 blocks four times in five; features are the block's mean and noise. Peak memory is that of
the process, edge list and features included. The walk's truth is known: 49 functions of eigenvalue 0.8, constant on
blocks, then none above noise (1 / sqrt(degree)); and nodes not in the graph, of the same blocks, are told by their codes.
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
from neigenmaps.functional.rayleigh_ritz import ritz_from_moments
from neigenmaps.graphs import graph_from_edges
from neigenmaps.graphs.network import ResidualMLP
from neigenmaps.graphs.operators import WalkOperator
from neigenmaps.provenance import provenance

BLOCKS, FEATURES = 50, 100
INSIDE = 0.8  # share of edges within a block: the eigenvalue of functions constant on blocks
UNSEEN = 50_000


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def recovered(
    network: ResidualMLP, walk: WalkOperator, means: torch.Tensor, generator: torch.Generator
) -> dict[str, float]:
    """Eigenvalues after Rayleigh-Ritz against the truth, and block accuracy at nodes that are not in the graph."""
    network.eval()
    moments, sign_rows = walk.moments(lambda rows: network(rows).codes, generator)
    solved = ritz_from_moments(moments, sign_rows=sign_rows)
    values = solved.eigenvalues
    block = torch.randint(BLOCKS, (2, UNSEEN), generator=generator)
    rows = means[block] + torch.randn(2, UNSEEN, FEATURES, generator=generator)
    with torch.no_grad():
        codes = torch.stack([solved(network(part).codes)[:, : BLOCKS - 1] for part in rows])
    return {
        "eigenvalue_first": float(values[0]),
        "eigenvalue_49th": float(values[BLOCKS - 2]),
        "eigenvalue_50th": float(values[BLOCKS - 1]),
        "unseen_accuracy_49_codes": least_squares_accuracy(codes, block),
        "unseen_accuracy_features": least_squares_accuracy(rows, block),
    }


def least_squares_accuracy(rows_2NF: torch.Tensor, block_2N: torch.Tensor) -> float:
    """Of a linear map onto one-hot blocks, learned on the first half of rows, on the second."""
    rows = torch.cat([rows_2NF.double(), torch.ones(*rows_2NF.shape[:2], 1, dtype=torch.float64)], dim=2)
    onto = torch.linalg.lstsq(rows[0], torch.nn.functional.one_hot(block_2N[0]).double()).solution
    return float(((rows[1] @ onto).argmax(1) == block_2N[1]).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2_400_000)
    parser.add_argument("--edges", type=int, default=60_000_000)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument(
        "--hidden", type=int, default=128, help="units of the hidden layers; 256 cost 3.5 times as much"
    )
    parser.add_argument("--steps", type=int, default=None, help="instead of an epoch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "graph_scale.json")
    arguments = parser.parse_args()
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    n, per_block = arguments.nodes, arguments.nodes // BLOCKS
    first = rng.integers(0, n, arguments.edges, dtype=np.int32)
    last = rng.integers(0, n, arguments.edges, dtype=np.int32)
    inside = rng.random(arguments.edges, dtype=np.float32) < INSIDE
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
    network = ResidualMLP(FEATURES, 64, hidden=arguments.hidden, depth=1, batch_norm=True).to(device)
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
        if step % 30 == 0:
            losses.append(result_of_step.loss.item())
            print(f"step {step} of {steps}: loss {losses[-1]:.3f}", flush=True)
    cpu, epoch = time.process_time() - cpu, graph.n_edges // arguments.batch
    result |= {
        "batch": arguments.batch,
        "hidden": arguments.hidden,
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
    result |= recovered(network.cpu(), walk, means[:BLOCKS], generator)
    print(json.dumps(result, indent=1))
    with whole_file(arguments.out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
