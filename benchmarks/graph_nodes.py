"""Node representations without message passing, beside rivals with and without: ridge probe by share of labels.

    python benchmarks/graph_nodes.py --data FOLDER                     # cora citeseer cora_ml actor: about half an hour
    python benchmarks/graph_nodes.py --data FOLDER --graphs cora --seeds 1
    python benchmarks/graph_nodes.py --report                          # the table from results/graph_nodes.json

FOLDER holds npz files as `neigenmaps.graphs.read_graph` reads them. Every method's numbers go to one probe (ridge regression
on one-hot labels, its penalty by leave-one-out on the training labels); random splits are 60 % to train, 20 % left
out, 20 % to test, of which 100, 10 and 1 % of the training labels are used; 10 splits (3 for raw features). Networks have
`--seeds` seeds, of which split r takes one in turn. All but "unseen" see all edges and features, no labels; the GCN
is trained with the labels, on the first `--gcn-splits` splits. "unseen" hides every edge of a test node while training.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import normalize
from torch import Tensor

from neigenmaps.files import whole_file
from neigenmaps.graphs import Graph, NeuralEigenmap, graph_from_adjacency, read_graph
from neigenmaps.graphs.network import ResidualMLP
from neigenmaps.graphs.operators import WalkOperator
from neigenmaps.nn import BarlowTwins
from neigenmaps.provenance import provenance

Array = NDArray[Any]
SETTINGS = {"hidden": 256, "depth": 1, "batch_norm": True}
WIDTH, STEPS, BATCH, RATE = 64, 200, 512, 2e-3
SPLITS, FEW_SPLITS = 10, 3
SHARES = {"100 %": 1.0, "10 %": 0.1, "1 %": 0.01}
LENGTHS = (4, 8, 16, 32)


def splits_of(graph: Graph) -> Iterator[tuple[str, int, Array, Array]]:
    """Name, number, training rows, test rows."""
    labels = graph.labels_N.numpy()
    if "train" in graph.splits:
        train, test = (graph.splits[part].numpy() for part in ("train", "test"))
        for number in range(SPLITS):  # the rows are the same; networks differ
            yield "public", number, train[labels[train] >= 0], test[labels[test] >= 0]
    known = np.flatnonzero(labels >= 0)
    for number in range(SPLITS):
        order = np.random.default_rng(number).permutation(known)
        train, test = order[: int(0.6 * len(order))], order[int(0.8 * len(order)) :]
        for name, share in SHARES.items():
            yield name, number, train[: max(round(share * len(train)), 2)], test


def probe(values: Array | sp.csr_matrix, labels: Array, train: Array, test: Array) -> float:
    """Accuracy of ridge regression; columns in their own proportions or each of variance 1, as leave-one-out prefers.

    Bags of words are taken in their own proportions: to bring rare words to the size of common ones costs 10 to 15 points.
    """
    treatments = [False] if sp.issparse(values) else [False, True]
    values = values.toarray() if sp.issparse(values) else values
    centred = values - values[train].mean(0)
    fitted = []
    for each in treatments:
        spread = centred[train].std(0)
        scale = np.where(spread > 1e-9, spread, 1) if each else np.sqrt(np.square(spread).mean())
        rows = centred / scale / np.sqrt(values.shape[1])
        classifier = RidgeClassifierCV(10.0 ** np.arange(-4, 4)).fit(rows[train], labels[train])
        fitted.append((classifier.best_score_, classifier.score(rows[test], labels[test])))
    return float(max(fitted)[1])


def normalised(graph: Graph) -> sp.csr_matrix:
    looped = graph.adjacency + sp.eye(len(graph))
    root = sp.diags(1 / np.sqrt(np.asarray(looped.sum(1)).ravel()))
    return (root @ looped @ root).tocsr()


def laplacian_eigenmaps(graph: Graph) -> Array:
    rng = np.random.default_rng(0)
    return eigsh(normalised(graph), WIDTH, which="LA", v0=rng.standard_normal(len(graph)), tol=1e-6)[1]


def netmf(graph: Graph, window: int = 10, negative: float = 1.0) -> Array:
    """DeepWalk as the matrix it factorises (Qiu et al., WSDM 2018): no package of node2vec is light and alive."""
    dense = graph.adjacency.toarray()
    degrees = np.maximum(dense.sum(1), 1)
    step, power, total = dense / degrees[:, None], np.eye(len(dense)), np.zeros_like(dense)
    for _ in range(window):
        power = power @ step
        total += power
    pointwise = dense.sum() / (negative * window) * total / degrees
    values, vectors = eigsh(np.log(np.maximum(pointwise, 1)), WIDTH, which="LM", v0=np.ones(len(dense)))
    return vectors * np.sqrt(np.abs(values))


def gcn_accuracy(graph: Graph, features: Tensor, labels: Array, train: Array, test: Array, seed: int) -> float:
    """Kipf and Welling's two layers and their settings, 200 epochs, with the labels."""
    sparse = normalised(graph).tocoo()
    step = (
        torch.sparse_coo_tensor(np.stack([sparse.row, sparse.col]), sparse.data, sparse.shape).float().to_sparse_csr()
    )
    smooth = (normalised(graph) @ sp.csr_matrix(features.numpy())).tocsr()
    rows = torch.from_numpy(smooth.toarray()).float()
    torch.manual_seed(seed)
    first, last = torch.nn.Linear(rows.shape[1], 64), torch.nn.Linear(64, int(labels.max()) + 1)
    optimiser = torch.optim.Adam(
        [{"params": first.parameters(), "weight_decay": 5e-4}, {"params": last.parameters()}], 0.01
    )
    target, drop = torch.from_numpy(labels), torch.nn.Dropout(0.5)
    for _ in range(200):
        scores = step @ last(drop(torch.relu(first(rows))))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(scores[train], target[train]).backward()
        optimiser.step()
    with torch.no_grad():
        return float(((step @ last(torch.relu(first(rows)))).argmax(1)[test] == target[test]).double().mean())


def barlow_twins(graph: Graph, features: Tensor, seed: int) -> dict[str, Array]:
    """The same network, pairs, steps and optimiser, with Barlow Twins' loss."""
    torch.manual_seed(seed)
    network = ResidualMLP(features.shape[1], WIDTH, **SETTINGS)
    network.set_units(features.mean(0), (features - features.mean(0)).square().mean().sqrt())
    walk = WalkOperator(features, graph.adjacency, steps=1, shift=0.0, device=features.device)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS, pct_start=0.1)
    loss, generator = BarlowTwins(), torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        first, last = walk.pairs(BATCH, generator)
        optimiser.zero_grad()
        loss(*network(features[torch.cat([first, last])]).codes.chunk(2)).loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        hidden, codes = network(features)
    return {"Barlow Twins, hidden": hidden.numpy(), "Barlow Twins, codes": codes.numpy()}


def eigenmap(graph: Graph, features: Tensor, seed: int) -> dict[str, Array]:
    fitted = NeuralEigenmap(
        WIDTH,
        pairs=graph,
        span="outputs",
        scaling="sqrt_eigenvalue",
        batch_size=BATCH,
        max_steps=STEPS,
        lr=RATE,
        random_state=seed,
        **SETTINGS,
    ).fit(features)
    with torch.no_grad():
        hidden = fitted.network_(features).hidden.numpy()
    return {"neural eigenmap, hidden": hidden, "neural eigenmap, codes": fitted.transform(features).numpy()}


def without(graph: Graph, hidden: Array) -> Graph:
    kept = np.ones(len(graph))
    kept[hidden] = 0
    return graph_from_adjacency((sp.diags(kept) @ graph.adjacency @ sp.diags(kept)).tocsr())


def measure(path: Path, seeds: int, gcn_splits: int) -> dict[str, Any]:
    graph = read_graph(path)
    labels = graph.labels_N.numpy()
    rows = normalize(sp.csr_matrix(graph.features))
    features = torch.from_numpy(rows.toarray())
    seconds: dict[str, float] = {}

    def timed(name: str, make: Callable[[], Any]) -> Any:
        started = time.process_time()
        made = make()
        seconds[name] = round(time.process_time() - started, 2)
        return made

    step = normalised(graph)
    fixed = {
        "features": rows,
        "features over two hops": timed("two hops", lambda: (step @ (step @ rows)).tocsr()),
        "Laplacian eigenmaps": timed("Laplacian eigenmaps", lambda: laplacian_eigenmaps(graph)),
        "DeepWalk (NetMF)": timed("NetMF", lambda: netmf(graph)),
    }
    trained = [
        timed("neural eigenmap", lambda seed=seed: eigenmap(graph, features, seed))
        | timed("Barlow Twins", lambda seed=seed: barlow_twins(graph, features, seed))
        for seed in range(seeds)
    ]
    scores: dict[str, dict[str, list[float]]] = {}
    for split, number, train, test in splits_of(graph):
        candidates = fixed | trained[number % seeds]
        if split == "100 %" and number == 0:
            alone = eigenmap(without(graph, test), features, 0)["neural eigenmap, codes"]
        if split != "public" and number == 0:
            scores.setdefault("neural eigenmap, codes, unseen", {})[split] = [probe(alone, labels, train, test)]
        codes = candidates["neural eigenmap, codes"]
        lengths = {f"neural eigenmap, first {m}": codes[:, :m] for m in LENGTHS}
        lengths |= {f"Barlow Twins, first {m}": candidates["Barlow Twins, codes"][:, :m] for m in LENGTHS}
        for name, values in (candidates | lengths).items():
            same_again = name in fixed and split == "public" and number > 0
            if same_again or (sp.issparse(values) and number >= FEW_SPLITS):
                continue
            scores.setdefault(name, {}).setdefault(split, []).append(probe(values, labels, train, test))
        if number < gcn_splits:
            accuracy = gcn_accuracy(graph, features, labels, train, test, number)
            scores.setdefault("GCN, with labels", {}).setdefault(split, []).append(accuracy)
    return {"graph": path.stem, "nodes": len(graph), "edges": graph.n_edges, "cpu_seconds": seconds, "scores": scores}


def report(record: dict[str, Any]) -> str:
    lines = []
    for result in record["graphs"]:
        columns = [name for name in ("public", *SHARES) if name in result["scores"]["features"]]
        lines += [
            f"\n**{result['graph']}**: {result['nodes']:,} nodes, {result['edges']:,} edges\n",
            "| method | " + " | ".join(columns) + " |",
            "| --- |" + " --: |" * len(columns),
        ]
        for name, by_split in result["scores"].items():
            shown = [by_split.get(column) for column in columns]
            texts = ["" if s is None else f"{100 * np.mean(s):.1f} ± {100 * np.std(s):.1f} ({len(s)})" for s in shown]
            lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/graphs"))
    parser.add_argument("--graphs", nargs="+", default=["cora", "citeseer", "cora_ml", "actor"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gcn-splits", type=int, default=FEW_SPLITS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "graph_nodes.json")
    parser.add_argument("--report", action="store_true", help="only the table, from the file --out")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")  # one label per class at 1 %
    if not arguments.report:
        torch.set_num_threads(1)
        record: dict[str, Any] = {"provenance": provenance(list(range(arguments.seeds))), "graphs": []}
        for name in arguments.graphs:
            record["graphs"].append(measure(arguments.data / f"{name}.npz", arguments.seeds, arguments.gcn_splits))
            with whole_file(arguments.out) as path:
                path.write_text(json.dumps(record, indent=1) + "\n")
    with whole_file(arguments.out.with_suffix(".md")) as path:
        path.write_text(report(json.loads(arguments.out.read_text())))


if __name__ == "__main__":
    main()
