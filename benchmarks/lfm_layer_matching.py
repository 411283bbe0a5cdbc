"""Layer matching: does a layer find its own copy among the layers of the same network trained from another seed?

    python benchmarks/lfm_layer_matching.py --data FOLDER                # about ten minutes of one CPU core
    python benchmarks/lfm_layer_matching.py --data FOLDER --cache PLACE  # keeps the eigenbases for the next run
    python benchmarks/lfm_layer_matching.py --report                     # table and pictures from results/*.json

Ten seeds of one convolutional network on CIFAR-10 (the Latent Functional Maps authors'), 9 layers each: 8 convolutions,
flattened, and the pool; or the 8 alone. For every ordered pair of networks each layer of the first chooses the most
alike layer of the second; accuracy is the share of right choices over all pairs and layers. Batch norm in evaluation mode.

The number of functions that suits a score is chosen on networks 0-4 and training images 0-1999 (original pixels);
what is reported comes from training images 2000-3999: networks 5-9, disjoint from the choice in both, and all ten. FOLDER
holds lfm_cifar_cnn, cifar10_lossless_subset and cifar10_models.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scipy.sparse as sp
import torch
from cifar_networks import LAYERS, angular_graph, gram_rows, layer_features, weights_of
from multiway_data import lossless_images, resnet_features
from safetensors.torch import load_file
from torch import Tensor

from neigenmaps.alignment import lfm_similarity
from neigenmaps.files import whole_file
from neigenmaps.functional import map_scores
from neigenmaps.functional.similarity import CCA, AbstractMeasure, LinearCKA
from neigenmaps.provenance import provenance
from neigenmaps.reporting.alignment_figures import plot_layer_tables
from neigenmaps.spectral import Eigenbasis, laplacian_eigenbasis, neighbor_graph

RESULTS = Path(__file__).parent / "results"
NEIGHBORS, FUNCTIONS = (300,), (20, 30, 40, 50, 70, 100)  # the paper's neighbours
DEFAULT = (300, 50)  # what lfm_similarity takes for 2,000 rows when asked for nothing
SCORES = ("paper ratio", "overlap", "headline")
RIVALS: dict[str, AbstractMeasure] = {"linear CKA": LinearCKA(), "unbiased CKA": LinearCKA(unbiased=True)}
SHARES = (
    0.5,
    0.7,
    0.9,
)  # of the variance, for SVCCA; at its 0.99 the directions of a wide layer fill the space of all rows
SVCCA_ROWS = 1000
SEARCH, REPORT = slice(0, 2000), slice(2000, 4000)
CHOICE, FRESH, ALL = range(5), range(5, 10), range(10)


def bases_of(data: Path, cache: Path, seed: int, rows: slice) -> dict[int, list[Eigenbasis]]:
    """By number of neighbours, one basis for every layer; from the cache where it is there."""
    place = cache / f"bases_{rows.start}_{seed}.pt"
    if not place.exists():
        bases: dict[int, list[Eigenbasis]] = {n_neighbors: [] for n_neighbors in NEIGHBORS}
        for x_NF in layer_features(weights_of(data, seed), lossless_images(data, "train")[0][rows]):
            for n_neighbors, layers in bases.items():
                graph = angular_graph(x_NF, n_neighbors)
                layers.append(laplacian_eigenbasis(graph, max(FUNCTIONS) + 1, solver="arpack"))
        by_package = neighbor_graph(x_NF, n_neighbors).adjacency  # of the pool, the narrowest layer
        apart = sp.linalg.norm(graph - by_package) / sp.linalg.norm(by_package)  # last neighbours may tie in float32
        assert apart < 1e-3, "not the graph of the package"
        torch.save(bases, place)
        print(f"{time.process_time():.0f} s: graphs of network {seed}, images {rows.start}-{rows.stop - 1}", flush=True)
    loaded: dict[int, list[Eigenbasis]] = torch.load(place, weights_only=False)  # written by this script
    return loaded


def lfm_tables(bases: dict[int, list[Eigenbasis]], m: int) -> dict[str, dict[tuple[int, int], Tensor]]:
    """Score -> ordered pair of networks -> likeness (A, A) of their layers. The formulas of `lfm_similarity`, in batches."""
    tables: dict[str, dict[tuple[int, int], Tensor]] = {name: {} for name in SCORES}
    phi = {seed: torch.stack([basis.eigenvectors_NK[:, :m] for basis in layers]) for seed, layers in bases.items()}
    weights = {
        seed: torch.stack([basis.eigenvalues_K[m] - basis.eigenvalues_K[1:m] for basis in layers])
        for seed, layers in bases.items()
    }
    for a, b in itertools.combinations(bases, 2):
        maps = torch.einsum("bnl,ank->ablk", phi[b], phi[a])
        headline = torch.stack(
            [torch.stack([_headline(maps[i, j], phi[a][i], phi[b][j], weights[a][i], weights[b][j])
                          for j in range(len(LAYERS))]) for i in range(len(LAYERS))]
        )  # fmt: skip
        symmetric = {"overlap": map_scores.overlap(maps), "headline": headline}
        for name, table_AA in symmetric.items():
            tables[name][a, b], tables[name][b, a] = table_AA, table_AA.T
        tables["paper ratio"][a, b] = map_scores.paper_ratio(maps)
        tables["paper ratio"][b, a] = map_scores.paper_ratio(maps.mT).T
    a, b = list(bases)[:2]
    by_package = lfm_similarity(bases[a][0], bases[b][1], n_eigenvectors=m, n_permutations=0).score
    assert abs(by_package - float(tables["headline"][a, b][0, 1])) < 1e-9, "not the formula of the package"
    return tables


def _headline(c_LK: Tensor, phi_NK: Tensor, psi_NL: Tensor, weights_K: Tensor, weights_L: Tensor) -> Tensor:
    value = map_scores.weighted_overlap(c_LK[1:, 1:], weights_K, weights_L)
    by_chance = map_scores.weighted_overlap_by_chance(phi_NK[:, 1:], psi_NL[:, 1:], weights_K, weights_L)
    return (value - by_chance) / (1 - by_chance)


def rival_tables(features: dict[int, list[Tensor]], measure: AbstractMeasure) -> dict[tuple[int, int], Tensor]:
    prepared = {seed: [measure.prepare(x_NF, second=False) for x_NF in layers] for seed, layers in features.items()}
    tables = {}
    for a, b in itertools.combinations(prepared, 2):
        tables[a, b] = torch.stack([torch.stack([measure.compare(x, y) for y in prepared[b]]) for x in prepared[a]])
        tables[b, a] = tables[a, b].T
    return tables


def accuracy(tables: dict[tuple[int, int], Tensor], seeds: Sequence[int], n_layers: int) -> dict[str, float]:
    """Per cent right over ordered pairs of `seeds`, and its spread over pairs."""
    right = [
        (table_AA[:n_layers, :n_layers].argmax(dim=1) == torch.arange(n_layers)).double().mean()
        for (a, b), table_AA in tables.items()
        if a in seeds and b in seeds
    ]
    rates = 100 * torch.stack(right)
    return {"mean": float(rates.mean()), "sd_over_pairs": float(rates.std()), "n_choices": len(rates) * n_layers}


def accuracies(tables: dict[tuple[int, int], Tensor]) -> dict[str, dict[str, float]]:
    return {
        f"{name}, {n_layers} layers": accuracy(tables, seeds, n_layers)
        for name, seeds in (("networks 5-9", FRESH), ("all networks", ALL))
        for n_layers in (9, 8)
    }


def rows_of(data: Path, seeds: Sequence[int], images: Tensor) -> dict[int, list[Tensor]]:
    """Layers of every network as rows that are no wider than there are images."""
    return {seed: [gram_rows(x_NF) for x_NF in layer_features(weights_of(data, seed), images)] for seed in seeds}


def choose_share(data: Path) -> float:
    """The share of the variance with which SVCCA matches best on the networks and images kept for choosing."""
    features = rows_of(data, CHOICE, lossless_images(data, "train")[0][SEARCH][:SVCCA_ROWS])
    right = {}
    for share in SHARES:
        tables = rival_tables(features, CCA(share))
        right[share] = sum(accuracy(tables, CHOICE, n_layers)["mean"] for n_layers in (9, 8))
        print(f"SVCCA {share}: {right[share] / 2:.2f}", flush=True)
    return max(right, key=lambda share: right[share])


def choose(data: Path, cache: Path) -> tuple[dict[str, tuple[int, int]], list[dict[str, Any]]]:
    """Neighbours and functions that match best, by score, on the networks and images kept for choosing."""
    trials = []
    bases = {seed: bases_of(data, cache, seed, SEARCH) for seed in CHOICE}
    for n_neighbors in NEIGHBORS:
        for n_eigenvectors in FUNCTIONS:
            layers = {seed: by_number[n_neighbors] for seed, by_number in bases.items()}
            for score, tables in lfm_tables(layers, n_eigenvectors).items():
                nine, eight = (accuracy(tables, CHOICE, n_layers)["mean"] for n_layers in (9, 8))
                trials.append({"score": score, "n_neighbors": n_neighbors, "n_eigenvectors": n_eigenvectors,
                               "9 layers": nine, "8 layers": eight})  # fmt: skip
                print(trials[-1], flush=True)
    best = {}
    for score in SCORES:
        trial = max((t for t in trials if t["score"] == score), key=lambda t: t["9 layers"] + t["8 layers"])
        best[score] = (trial["n_neighbors"], trial["n_eigenvectors"])
    return best, trials


def same_layer(tables: dict[tuple[int, int], Tensor]) -> dict[str, Any]:
    """Likeness of a layer and itself in another seed: mean over pairs by layer, and the least of all."""
    diagonals = torch.stack([table_AA.diagonal() for table_AA in tables.values()])
    return {"mean_by_layer": diagonals.mean(0).tolist(), "least": float(diagonals.min()), "n": diagonals.numel()}


def residual_networks(data: Path) -> dict[str, float]:
    """The headline between the last features of four trained CIFAR ResNets of different depths, first 2,000 images."""
    images = lossless_images(data, "train")[0][SEARCH].permute(0, 3, 1, 2).float()
    bases = {}
    for name in ("resnet20", "resnet32", "resnet44", "resnet56"):
        weights = load_file(data / "cifar10_models" / f"{name}.safetensors")
        with torch.no_grad():
            x_NF = torch.cat([resnet_features(weights, part) for part in images.split(500)])
        bases[name] = laplacian_eigenbasis(neighbor_graph(x_NF, DEFAULT[0]), DEFAULT[1] + 1, solver="arpack")
    return {f"{a}, {b}": lfm_similarity(bases[a], bases[b], n_permutations=0).score
            for a, b in itertools.combinations(bases, 2)}  # fmt: skip


def run(data: Path, cache: Path) -> dict[str, Any]:
    chosen, trials = choose(data, cache)
    rows: dict[str, Any] = {}
    matrices: dict[str, Any] = {}
    bases = {seed: bases_of(data, cache, seed, REPORT) for seed in ALL}
    for setting in sorted({DEFAULT, *chosen.values()}):
        layers = {seed: by_number[setting[0]] for seed, by_number in bases.items()}
        for score, tables in lfm_tables(layers, setting[1]).items():
            kinds = [kind for kind, at in (("default", DEFAULT), ("chosen", chosen[score])) if at == setting]
            for kind in kinds:
                rows[f"LFM {score}, {kind} (k {setting[0]}, m {setting[1]})"] = accuracies(tables)
            if score == "headline" and setting == DEFAULT:
                seeds = same_layer(tables)
            if kinds:
                matrices[f"LFM {score}\nk {setting[0]}, m {setting[1]}"] = _mean(tables)
    images = lossless_images(data, "train")[0][REPORT]
    share = choose_share(data)
    svcca = f"SVCCA ({100 * share:.0f} % of variance)"
    features = rows_of(data, ALL, images)
    few = {seed: [gram_rows(x_NF[:SVCCA_ROWS]) for x_NF in layers] for seed, layers in features.items()}
    for name, measure in (RIVALS | {svcca: CCA(share)}).items():
        tables = rival_tables(few if name == svcca else features, measure)
        rows[name] = accuracies(tables)
        matrices[name.replace(" (", "\n(")] = _mean(tables)
        print(name, rows[name], flush=True)
    return provenance(0) | {
        "n_images": 2000, "chosen": chosen, "search": trials, "accuracy": rows, "headline_same_layer": seeds,
        "headline_residual_networks": residual_networks(data), "matrices": matrices,
    }  # fmt: skip


def _mean(tables: dict[tuple[int, int], Tensor]) -> list[list[float]]:
    mean: list[list[float]] = torch.stack(list(tables.values())).mean(0).tolist()
    return mean


def report(record: dict[str, Any], folder: Path) -> None:
    columns = list(next(iter(record["accuracy"].values())))
    lines = [
        "Layer matching on ten CIFAR-10 networks, % of layers that find their copy (± sd over ordered pairs).",
        f"2,000 training images the choice has not seen; command `{record['command']}`, {record['device']}, "
        f"{record['threads']} thread.",
        "Published for these networks, images and layers unknown: LFM 99.8, CKA 99.6.", "",
        "| score | " + " | ".join(columns) + " |", "| --- |" + " --: |" * len(columns),
    ]  # fmt: skip
    for name, row in record["accuracy"].items():
        cells = [f"{row[column]['mean']:.2f} ± {row[column]['sd_over_pairs']:.2f}" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    counts = ", ".join(f"{column}: {row[column]['n_choices']}" for column in columns)
    same = record["headline_same_layer"]
    pairs = record["headline_residual_networks"]
    lines += ["", f"Choices: {counts}.", "",
              f"SVCCA: {SVCCA_ROWS:,} images, the share of the variance that matches best of {SHARES} on the networks and "
              "images of the choice.", "",
              "Headline at its defaults, same layer of two seeds, mean over 90 pairs: "
              + ", ".join(f"{layer} {value:.3f}" for layer, value in zip(LAYERS, same["mean_by_layer"], strict=True))
              + f"; least of {same['n']}: {same['least']:.3f}.",
              "", "Headline between trained ResNets of different depths, last features: "
              + ", ".join(f"{name} {value:.3f}" for name, value in pairs.items()) + "."]  # fmt: skip
    with whole_file(folder / "lfm_layer_matching.md") as unfinished:
        unfinished.write_text("\n".join(lines) + "\n")
    tables = {name: torch.tensor(rows) for name, rows in record["matrices"].items()}
    plot_layer_tables(tables, LAYERS, folder / "lfm_layer_matching.png")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the networks and images")
    parser.add_argument("--cache", type=Path, help="where eigenbases are kept; none: thrown away")
    parser.add_argument("--report", action="store_true", help="no measurement")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = RESULTS / "lfm_layer_matching.json"
    if not given.report:
        if given.data is None:
            parser.error("expected --data FOLDER, or --report")
        with tempfile.TemporaryDirectory() as thrown_away:
            cache = given.cache or Path(thrown_away)
            cache.mkdir(parents=True, exist_ok=True)
            record = run(given.data, cache)
        with whole_file(out) as unfinished:
            unfinished.write_text(json.dumps(record, indent=1))
    report(json.loads(out.read_text()), RESULTS)


if __name__ == "__main__":
    main()
