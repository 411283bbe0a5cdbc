"""How scores of likeness answer to damage: one class moved away, and noise of rising strength.

    python benchmarks/lfm_robustness.py --data FOLDER     # some ten minutes on one CPU core
    python benchmarks/lfm_robustness.py --report          # tables and pictures from results/lfm_robustness.json

Class shift, after the Latent Functional Maps paper's third figure: the pooled features (64 wide) of one of its networks
on 2,000 CIFAR-10 images, against themselves with class 0 moved along the normal of its one-against-rest linear SVM.
Noise: MNIST pixels, 2,000 test images, against themselves with Gaussian noise, in multiples of the pixels' root mean
square, over angular and Euclidean graphs. Rows shuffled: what a score says of nothing at all. FOLDER holds
lfm_cifar_cnn, cifar10_lossless_subset and mnist.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar_networks import layer_features, weights_of
from multiway_data import lossless_images
from sklearn.svm import LinearSVC
from torch import Tensor

from neigenmaps.alignment import LFMSimilarity, lfm_similarity, similarity_basis
from neigenmaps.files import whole_file
from neigenmaps.functional.similarity import linear_cka
from neigenmaps.provenance import provenance
from neigenmaps.reporting.alignment_figures import plot_distortion, plot_functional_maps, plot_score_curves
from neigenmaps.spectral import PAPER_GRAPHS

RESULTS = Path(__file__).parent / "results"
N = 2000
SHIFTS = (0.0, 3.3, 6.7, 10.0, 20.0, 40.0, 80.0)
NOISES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
DRAWS = 3
PICTURED_SHIFT = 10.0
KEPT = ("weighted_overlap", "overlap", "nuclear", "orthogonality", "rows", "paper_ratio", "paper_ratio_unsquared")


def scores(result: LFMSimilarity) -> dict[str, float]:
    return {"headline": result.score} | {name: float(result.panel[name].value) for name in KEPT}


def separation(values_N: Tensor, marked_N: Tensor) -> float:
    """Area under the ROC curve of `values_N` for the marked rows."""
    return float((values_N[marked_N][:, None] > values_N[~marked_N]).double().mean())


def class_shift(data: Path) -> dict[str, Any]:
    images, labels = (part[:N] for part in lossless_images(data, "train"))
    x_NF = layer_features(weights_of(data, 0), images)[-1]
    moved_N = labels == 0
    normal = LinearSVC(dual=False, random_state=0).fit(x_NF.numpy(), moved_N.numpy()).coef_[0]
    direction_F = torch.from_numpy(normal / np.linalg.norm(normal)).float()
    paper = PAPER_GRAPHS["similarity"]
    basis, paper_basis = similarity_basis(x_NF), similarity_basis(x_NF, **paper)
    levels = []
    for shift in SHIFTS:
        y_NF = x_NF + shift * moved_N[:, None] * direction_F
        result = lfm_similarity(basis, y_NF, n_permutations=0)
        by_paper = lfm_similarity(paper_basis, y_NF, n_permutations=0, **paper)
        levels.append(
            {"shift": shift} | scores(result) | cka(x_NF, y_NF)
            | {"paper_ratio_unsquared, paper's graph": float(by_paper.panel["paper_ratio_unsquared"].value)}
            | {"auc_of_distortion": separation(result.distortion_y, moved_N),
               "auc_of_worst_function": separation(result.worst_y, moved_N)}
            | {"map": result.functional_map.tolist()}
        )  # fmt: skip
        if shift == PICTURED_SHIFT:
            principal_NF = torch.pca_lowrank(y_NF, q=2, niter=8)
            places_N2 = (y_NF - y_NF.mean(0)) @ principal_NF[2]
            rows = {"places": places_N2.tolist(), "x": result.distortion_x.tolist(), "y": result.distortion_y.tolist()}
        print({name: value for name, value in levels[-1].items() if name != "map"}, flush=True)
    order_N = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    result = lfm_similarity(basis, x_NF[order_N], n_permutations=0)
    by_paper = lfm_similarity(paper_basis, x_NF[order_N], n_permutations=0, **paper)
    shuffled = scores(result) | cka(x_NF, x_NF[order_N])
    shuffled["paper_ratio_unsquared, paper's graph"] = float(by_paper.panel["paper_ratio_unsquared"].value)
    return {"levels": levels, "shuffled": shuffled, "rows": rows}


def cka(x_NF: Tensor, y_NF: Tensor) -> dict[str, float]:
    return {
        "linear CKA": float(linear_cka(x_NF, y_NF).value),
        "unbiased CKA": float(linear_cka(x_NF, y_NF, unbiased=True).value),
    }


def noise_ladder(data: Path) -> dict[str, Any]:
    with np.load(data / "mnist" / "mnist.npz") as stored:
        images = torch.from_numpy(stored["x_test"][:N])
    x_NF = images.flatten(1).float() / 255
    size = x_NF.square().mean().sqrt()
    ladders: dict[str, Any] = {}
    for metric in ("angular", "euclidean"):
        basis = similarity_basis(x_NF, metric=metric)
        ladders[metric] = []
        for noise in NOISES:
            draws = []
            for draw in range(DRAWS if noise else 1):
                generator = torch.Generator().manual_seed(draw)
                y_NF = x_NF + noise * size * torch.randn(x_NF.shape, generator=generator)
                result = lfm_similarity(basis, y_NF, metric=metric, n_permutations=0)
                draws.append(scores(result) | cka(x_NF, y_NF))
            ladders[metric].append({"noise": noise, "draws": draws, "map": result.functional_map.tolist()})
            print(metric, noise, draws[0], flush=True)
    return ladders


def table(head: str, levels: list[str], columns: dict[str, list[str]]) -> list[str]:
    lines = [f"| {head} | " + " | ".join(columns) + " |", "| --: |" + " --: |" * len(columns)]
    for number, level in enumerate(levels):
        lines.append(f"| {level} | " + " | ".join(values[number] for values in columns.values()) + " |")
    return lines


def report(record: dict[str, Any], folder: Path) -> None:
    shift = record["class shift"]
    levels, shuffled = shift["levels"], shift["shuffled"]
    names = ["headline", "overlap", "rows", "paper_ratio_unsquared, paper's graph", "paper_ratio", "linear CKA",
             "unbiased CKA", "auc_of_distortion", "auc_of_worst_function"]  # fmt: skip
    columns = {name: [f"{row[name]:.3f}" for row in [*levels, shuffled | dict.fromkeys(names[-2:], float("nan"))]]
               for name in names}  # fmt: skip
    lines = [f"n = {N} rows; command `{record['command']}`, {record['device']}, {record['threads']} thread.", "",
             "**One class moved** (one network, one direction: no spread to state)", "",
             *table("shift", [*(f"{row['shift']:g}" for row in levels), "rows shuffled"], columns)]  # fmt: skip
    for metric, rungs in record["noise"].items():
        names = ["headline", "overlap", "rows", "paper_ratio", "linear CKA", "unbiased CKA"]
        columns = {name: [_spread([draw[name] for draw in rung["draws"]]) for rung in rungs] for name in names}
        lines += ["", f"**Noise, {metric} graphs** (mean ± sd of {DRAWS} draws)", "",
                  *table("noise", [f"{rung['noise']:g}" for rung in rungs], columns)]  # fmt: skip
        maps = {f"noise {rung['noise']:g}": torch.tensor(rung["map"]) for rung in rungs}
        plot_functional_maps(maps, folder / f"lfm_robustness_noise_{metric}.png", columns=7)
    with whole_file(folder / "lfm_robustness.md") as unfinished:
        unfinished.write_text("\n".join(lines) + "\n")
    curves = {
        name: [row[name] for row in levels]
        for name in ("headline", "overlap", "paper_ratio", "paper_ratio_unsquared, paper's graph", "linear CKA")
    }
    plot_score_curves(SHIFTS, curves, folder / "lfm_robustness_shift.png", xlabel="shift of class 0")  # fmt: skip
    rungs = {f"{name}, {metric}": [float(np.mean([draw[name] for draw in rung["draws"]])) for rung in ladder]
             for metric, ladder in record["noise"].items() for name in ("headline", "overlap", "paper_ratio")}  # fmt: skip
    rungs["linear CKA"] = [
        float(np.mean([d["linear CKA"] for d in rung["draws"]])) for rung in record["noise"]["angular"]
    ]
    plot_score_curves(NOISES, rungs, folder / "lfm_robustness_noise.png", xlabel="noise / root mean square of pixels")
    plot_functional_maps({f"shift {row['shift']:g}": torch.tensor(row["map"]) for row in levels},
                         folder / "lfm_robustness_shift_maps.png", columns=7)  # fmt: skip
    rows = {name: torch.tensor(values) for name, values in shift["rows"].items()}
    plot_distortion(rows["places"], rows["x"], rows["y"], folder / "lfm_robustness_rows.png",
                    names=("lost of X", f"lost of Y, its class 0 moved by {PICTURED_SHIFT:g}"))  # fmt: skip
    print("\n".join(lines))


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the networks and images")
    parser.add_argument("--report", action="store_true", help="no measurement")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = RESULTS / "lfm_robustness.json"
    if not given.report:
        if given.data is None:
            parser.error("expected --data FOLDER, or --report")
        record = provenance(0) | {"class shift": class_shift(given.data), "noise": noise_ladder(given.data)}
        with whole_file(out) as unfinished:
            unfinished.write_text(json.dumps(_rounded(record)))
    report(json.loads(out.read_text()), RESULTS)


def _rounded(value: Any) -> Any:
    """Five digits of scores, three of maps and rows: they are only drawn, and the file stays small."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [round(part, 3) if isinstance(part, float) else _rounded(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
