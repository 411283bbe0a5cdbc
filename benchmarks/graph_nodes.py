"""Node representations without message passing, beside rivals with and without: ridge probe by share of labels.

    pip install torch_geometric node2vec                               # two of the rivals
    python benchmarks/graph_nodes.py --data FOLDER                     # cora citeseer cora_ml actor: 40 minutes of one core
    python benchmarks/graph_nodes.py --data FOLDER --graphs cora       # one of them anew, the others stay in the record
    python benchmarks/graph_nodes.py --data FOLDER --only GCN node2vec # of all graphs, these rows of the tables anew
    python benchmarks/graph_nodes.py --report                          # table and picture from results/graph_nodes.json

FOLDER holds npz files as `neigenmaps.graphs.read_graph` reads them. Every method's numbers go to one probe (ridge regression
on one-hot labels, its penalty by leave-one-out on the training labels); random splits are 60 % to train, 20 % left
out, 20 % to test, of which 100, 10 and 1 % of the training labels are used; 10 splits. Networks have `--seeds` seeds and
node2vec 3, of which split r takes one in turn; methods that draw nothing have one figure on the public split. All but
"unseen" see all edges and features, no labels; the GCN is trained with the labels, anew for every split. "unseen" hides every
edge of a test node while training, on the first 3 splits of 100, 10 and 1 %: its nodes are embedded by their words alone.

Settings were chosen on the public split's validation rows of cora and citeseer, and on left-out rows of random splits
numbered from 1000, for the kernel (steps, own, rarity, scaling) and for Barlow Twins (pairs, masking, steps). Never on the
test rows of a public split; random splits overlap, so that a test row here may have been a left-out row there.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.preprocessing import normalize
from torch import Tensor

from neigenmaps.files import whole_file
from neigenmaps.graphs import (
    Graph,
    NeuralEigenmap,
    NodeKernel,
    correct_and_smooth,
    graph_from_adjacency,
    read_graph,
)
from neigenmaps.graphs.network import ResidualMLP
from neigenmaps.graphs.operators import WalkOperator
from neigenmaps.nn import BarlowTwins
from neigenmaps.provenance import provenance
from neigenmaps.reporting import Spread, plot_truncation_panels

Array = NDArray[Any]
SETTINGS = {"hidden": 256, "depth": 1, "batch_norm": True}
WIDTH, STEPS, BATCH, RATE = 64, 200, 1024, 2e-3
PAIRS = 512  # of edges a step: 1024 rows, as many as in a batch of the kernel
SPLITS, UNSEEN_SPLITS, WALKED = 10, 3, 3
METHODS = ("fixed", "node2vec", "networks", "unseen", "GCN")
OURS, BARLOW, MASKED = "neural eigenmap", "Barlow Twins", "Barlow Twins, masked"
GCN = "GCN, with labels"
HIDDEN = "hidden layer"
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


def node2vec(graph: Graph, seed: int) -> Array:
    """The package node2vec (over gensim), p = q = 1: 10 walks of 20 steps from every node, window 5."""
    import networkx
    from node2vec import Node2Vec

    drawn = networkx.from_scipy_sparse_array(graph.adjacency)
    walks = Node2Vec(drawn, dimensions=WIDTH, walk_length=20, num_walks=10, workers=1, quiet=True, seed=seed)
    vectors = walks.fit(window=5, min_count=0, seed=seed, workers=1).wv
    return np.stack([vectors[str(node)] for node in range(len(graph))])


def gcn_accuracy(graph: Graph, features: Tensor, labels: Array, train: Array, test: Array, seed: int) -> float:
    """PyTorch Geometric's GCNConv twice, with Kipf and Welling's settings (64 hidden units), 200 epochs, with the labels."""
    from torch_geometric.nn import GCNConv

    torch.manual_seed(seed)
    edges = torch.from_numpy(np.stack(graph.adjacency.nonzero()).astype(np.int64))
    first, last = GCNConv(features.shape[1], 64, cached=True), GCNConv(64, int(labels.max()) + 1, cached=True)
    optimiser = torch.optim.Adam(
        [{"params": first.parameters(), "weight_decay": 5e-4}, {"params": last.parameters()}], 0.01
    )
    target, drop = torch.from_numpy(labels), torch.nn.functional.dropout
    words = features.to_sparse_coo().coalesce()  # zeros stay zeros when dropped: eight times as fast as dense
    for _ in range(200):
        kept = torch.sparse_coo_tensor(words.indices(), drop(words.values()), words.shape, is_coalesced=True)
        scores = last(drop(torch.relu(first(kept, edges))), edges)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(scores[train], target[train]).backward()
        optimiser.step()
    with torch.no_grad():
        scores = last(torch.relu(first(words, edges)), edges)
    return float((scores.argmax(1)[test] == target[test]).double().mean())


def barlow_twins(graph: Graph, features: Tensor, seed: int, *, masked: float) -> dict[str, Array]:
    """The same network, steps and optimiser with Barlow Twins' loss: of edges, or of masked words two lazy steps apart."""
    torch.manual_seed(seed)
    network = ResidualMLP(features.shape[1], WIDTH, drop_features=masked, **SETTINGS)
    network.set_units(features.mean(0), (features - features.mean(0)).square().mean().sqrt())
    adjacency = (graph.adjacency + sp.eye(len(graph), dtype=np.float32)).tocsr() if masked else graph.adjacency
    walk = WalkOperator(features, adjacency, steps=2 if masked else 1, shift=0.0, device=features.device)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS, pct_start=0.1)
    loss, generator = BarlowTwins(), torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        first, last = walk.pairs(PAIRS, generator)
        optimiser.zero_grad()
        loss(*network(features[torch.cat([first, last])]).codes.chunk(2)).loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        hidden, codes = network(features)
    name = MASKED if masked else BARLOW
    return {f"{name}, hidden": hidden.numpy(), f"{name}, codes": codes.numpy()}


def eigenmap(graph: Graph, features: Tensor, seed: int) -> dict[str, Array]:
    fitted = NeuralEigenmap(
        WIDTH,
        kernel=NodeKernel(graph),
        scaling="eigenvalue",
        batch_size=BATCH,
        max_steps=STEPS,
        lr=RATE,
        random_state=seed,
        **SETTINGS,
    ).fit(features)
    with torch.no_grad():
        hidden = fitted.network_(features).hidden.numpy()
    return {f"{OURS}, hidden": hidden, f"{OURS}, codes": fitted.transform(features).numpy()}


def corrected(graph: Graph, codes: Array, labels: Array, train: Array, test: Array) -> float:
    """Logistic regression on the codes, then correct and smooth: messages pass here, after the representation."""
    scaled = codes / np.sqrt(np.square(codes).sum(1).mean())
    classifier = LogisticRegression(C=10, max_iter=1000).fit(scaled[train], labels[train])
    classes = torch.from_numpy(classifier.classes_.astype(np.int64))
    probabilities = torch.zeros(len(codes), int(labels.max()) + 1)
    probabilities[:, classes] = torch.from_numpy(classifier.predict_proba(scaled)).float()
    scores = correct_and_smooth(graph, probabilities, torch.from_numpy(train), torch.from_numpy(labels[train]))
    return float((scores.argmax(1).numpy()[test] == labels[test]).mean())


def without(graph: Graph, hidden: Array) -> Graph:
    kept = np.ones(len(graph))
    kept[hidden] = 0
    return graph_from_adjacency((sp.diags(kept) @ graph.adjacency @ sp.diags(kept)).tocsr())


def measure(path: Path, seeds: int, only: Collection[str]) -> dict[str, Any]:
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

    step, fixed = normalised(graph), {}
    if "fixed" in only:
        fixed = {
            "features": rows,
            "features over two hops": timed("two hops", lambda: (step @ (step @ rows)).tocsr()),
            "Laplacian eigenmaps": timed("Laplacian eigenmaps", lambda: laplacian_eigenmaps(graph)),
        }
    walked: list[Array] = []
    for seed in range(WALKED if "node2vec" in only else 0):
        walked.append(timed("node2vec", lambda seed=seed: node2vec(graph, seed)))
    methods = {BARLOW: partial(barlow_twins, masked=0.0), MASKED: partial(barlow_twins, masked=0.4), OURS: eigenmap}
    trained: list[dict[str, Array]] = []
    for seed in range(seeds if "networks" in only else 0):
        trained.append({})
        for name, method in methods.items():
            trained[-1] |= timed(name, lambda method=method, seed=seed: method(graph, features, seed))
    scores: dict[str, dict[str, list[float]]] = {}

    def note(name: str, split: str, accuracy: float) -> None:
        scores.setdefault(name, {}).setdefault(split, []).append(accuracy)

    for split, number, train, test in splits_of(graph):
        candidates = dict(fixed) if split != "public" or number == 0 else {}
        if walked and (split != "public" or number < WALKED):
            candidates["node2vec"] = walked[number % WALKED]
        if trained:
            candidates |= trained[number % seeds]
            codes = {name: candidates[f"{name}, codes"] for name in (OURS, BARLOW, MASKED)}
            candidates |= {f"{name}, first {m}": values[:, :m] for name, values in codes.items() for m in LENGTHS}
            note(f"{OURS}, codes, correct and smooth", split, corrected(graph, codes[OURS], labels, train, test))
        for name, values in candidates.items():
            note(name, split, probe(values, labels, train, test))
        if "unseen" in only and split != "public" and number < UNSEEN_SPLITS:
            if split == "100 %":  # the test rows of the three shares are the same
                unseen = eigenmap(without(graph, test), features, number)[f"{OURS}, codes"]
            note(f"{OURS}, codes, unseen", split, probe(unseen, labels, train, test))
        if "GCN" in only:
            run = partial(gcn_accuracy, graph, features, labels, train, test, number)
            note(GCN, split, timed(GCN, run))
    return {"graph": path.stem, "nodes": len(graph), "edges": graph.n_edges, "cpu_seconds": seconds, "scores": scores}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The methods measured now in place of their old figures, the others as they were."""
    return new | {key: old.get(key, {}) | new[key] for key in ("cpu_seconds", "scores")}


def spread(accuracies: list[float]) -> Spread:
    return Spread(mean(accuracies), stdev(accuracies) if len(accuracies) > 1 else None, len(accuracies))


def report(record: dict[str, Any]) -> str:
    """A table for every graph, then one of code lengths at 10 % of the labels; n runs in brackets where not 10."""
    lines = []
    for result in record["graphs"]:
        scores = {name: by_split for name, by_split in result["scores"].items() if ", first " not in name}
        columns = [name for name in ("public", *SHARES) if name in scores["features"]]
        lines += [
            f"\n**{result['graph']}**: {result['nodes']:,} nodes, {result['edges']:,} edges\n",
            "| method | " + " | ".join(columns) + " |",
            "| --- |" + " --: |" * len(columns),
        ]
        for name, by_split in scores.items():
            lines.append(f"| {name} | " + " | ".join(shown(by_split.get(column)) for column in columns) + " |")
    names = [result["graph"] for result in record["graphs"]]
    lines += [
        "\n**By code length**, 10 % of the labels\n",
        f"| | {' | '.join(names)} |",
        "| --- |" + " --: |" * len(names),
    ]
    for name in (OURS, BARLOW, MASKED):
        for key in [f"{name}, first {length}" for length in LENGTHS] + [f"{name}, codes", f"{name}, hidden"]:
            lines.append(f"| {key} | " + " | ".join(shown(r["scores"][key]["10 %"]) for r in record["graphs"]) + " |")
    return "\n".join(lines) + "\n"


def shown(accuracies: list[float] | None) -> str:
    if accuracies is None:
        return ""
    return spread(accuracies).percent() + (f" ({len(accuracies)})" if len(accuracies) != SPLITS else "")


def draw(record: dict[str, Any], path: Path) -> None:
    """Accuracy at 10 % of the labels over code length, beside the whole hidden layer (256 numbers)."""
    panels = {}
    for result in record["graphs"]:
        at = {name: spread(by_split["10 %"]) for name, by_split in result["scores"].items() if "10 %" in by_split}
        panels[result["graph"]] = {
            name: {length: at[f"{name}, first {length}"] for length in LENGTHS} | {WIDTH: at[f"{name}, codes"]}
            for name in (OURS, BARLOW, MASKED)
        } | {HIDDEN: {SETTINGS["hidden"]: at[f"{OURS}, hidden"]}}
    plot_truncation_panels(panels, path, levels=[HIDDEN], measure="accuracy %, 10 % of labels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/graphs"))
    parser.add_argument("--graphs", nargs="+", default=["cora", "citeseer", "cora_ml", "actor"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=METHODS, choices=METHODS, help="measure these; the rest stays")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "graph_nodes.json")
    parser.add_argument("--report", action="store_true", help="only the table, from the file --out")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")  # one label per class at 1 %
    if not arguments.report:
        torch.set_num_threads(1)
        record: dict[str, Any] = {"provenance": [], "graphs": []}
        if arguments.out.exists():
            record = json.loads(arguments.out.read_text())
        record["provenance"].append(provenance(list(range(arguments.seeds))))
        for name in arguments.graphs:
            measured = measure(arguments.data / f"{name}.npz", arguments.seeds, arguments.only)
            known = {one["graph"]: one for one in record["graphs"]}
            known[name] = merged(known.get(name, {}), measured)
            record["graphs"] = list(known.values())
            with whole_file(arguments.out) as path:
                path.write_text(json.dumps(record, indent=1) + "\n")
    record = json.loads(arguments.out.read_text())
    with whole_file(arguments.out.with_suffix(".md")) as path:
        path.write_text(report(record))
    draw(record, arguments.out.with_name("graph_lengths.png"))


if __name__ == "__main__":
    main()
