"""Does a poor pair of encoders improve as strong ones join its universe? The paper's Figure 2 (2602.06205) on CIFAR-10.

    OMP_NUM_THREADS=1 python benchmarks/multiway_weak_link.py --data FOLDER     # about 10 minutes of one core
    python benchmarks/multiway_weak_link.py --report                            # the table again, no fitting

The paper replaces 85 % of the training images by dilated edges, for each weak encoder by a draw of its own, and lets
strong encoders join one at a time; how much of that concerns the encoders' own training isn't clear to us, so both:

    trained  two small CNNs are trained on such images (labels right), then embed clean ones
    rows     ResNet-20 and a CNN that were trained on clean images embed such images as their rows to align

Unseen rows are clean, 1,017 test images. Edges: Sobel magnitude above a fifth of its largest value, widened to 3 x 3, white
on black. Strong encoders: ResNets and CNNs trained by others. Rank-1 of the weak pair, mean of both directions; intervals by
bootstrap over test rows, and the least and most over seeds. Writes `results/multiway_weak_link.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from multiway_data import lossless_images, resnet8_features, resnet_features
from multiway_report import markdown
from safetensors.torch import load_file
from torch import Tensor, nn

from neigenmaps.alignment import GCCA, GCPA, GPA, AbstractAligner, any_to_any
from neigenmaps.errors import ConvergenceWarning
from neigenmaps.files import whole_file
from neigenmaps.functional.pair_ranking import bootstrap_counts
from neigenmaps.provenance import provenance

SHARE = 0.85
N_JOINED = (0, 1, 2, 3, 5, 7)
CNN_MEAN, CNN_STD = (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)
STRONG = {
    "trained": ("resnet56", "resnet44", "resnet32", "resnet20", "resnet8_mlperf_tiny", "cnn8", "cnn9"),
    "rows": ("resnet56", "resnet44", "resnet32", "resnet8_mlperf_tiny", "cnn9", "cnn8", "cnn5"),
}
WEAK = {"trained": ("wide", "deep"), "rows": ("resnet20", "cnn0")}


def edges(images_NHWC: Tensor) -> Tensor:
    """White where brightness changes much, as uint8 images of the same shape."""
    grey_N1HW = images_NHWC.float().mean(dim=3)[:, None]
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    padded = F.pad(grey_N1HW, (1, 1, 1, 1), mode="replicate")
    slope_N2HW = F.conv2d(padded, torch.stack([across, across.T])[:, None])
    size_N1HW = slope_N2HW.square().sum(dim=1, keepdim=True).sqrt()
    strong = (size_N1HW > 0.2 * size_N1HW.amax(dim=(2, 3), keepdim=True)).float()
    white = F.max_pool2d(strong, 3, stride=1, padding=1).permute(0, 2, 3, 1)
    return (255 * white).to(torch.uint8).expand_as(images_NHWC)


def spoiled(images_NHWC: Tensor, generator: torch.Generator) -> Tensor:
    """A random `SHARE` of the images replaced by their edges."""
    picked_N = torch.rand(len(images_NHWC), generator=generator) < SHARE
    return torch.where(picked_N[:, None, None, None], edges(images_NHWC), images_NHWC)


def weak_network(kind: str) -> nn.Sequential:
    """Features of width 64: few wide layers or more narrow ones."""
    widths, kernel = ((48, 64), 5) if kind == "wide" else ((16, 32, 32, 64), 3)
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def pixels(images_NHWC: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (CNN_MEAN, CNN_STD))
    return (images_NHWC.permute(0, 3, 1, 2).float() / 255 - mean) / std


def trained(kind: str, images_NHWC: Tensor, labels_N: Tensor, seed: int, epochs: int = 5) -> nn.Sequential:
    """Adam at 2e-3, batch 128, no augmentation."""
    torch.manual_seed(seed)  # modules draw their weights from the global generator
    network = weak_network(kind)
    head = nn.Linear(64, 10)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch_B in torch.randperm(len(images_NHWC), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(head(network(pixels(images_NHWC[batch_B]))), labels_N[batch_B]).backward()
            optimizer.step()
    return network.eval()


def cnn_features(weights: dict[str, Tensor], images_NHWC: Tensor) -> Tensor:
    """Pooled features (B, 64) of the eight-layer CNNs of the layer-matching experiment."""
    x = pixels(images_NHWC)
    for i in range(8):
        part = f"layers.{i}"
        x = F.conv2d(x, weights[f"{part}.0.weight"], weights[f"{part}.0.bias"], stride=2 if i in (2, 5) else 1)
        norm = (weights[f"{part}.1.{field}"] for field in ("running_mean", "running_var", "weight", "bias"))
        x = F.relu(F.batch_norm(x, *norm))
    return x.mean(dim=(2, 3))


def embedded(folder: Path, name: str, images_NHWC: Tensor) -> Tensor:
    """By a network that others have trained."""
    if name.startswith("cnn"):
        weights = load_file(folder / "lfm_cifar_cnn" / f"model_seed_{name.removeprefix('cnn')}.safetensors")
        parts = [cnn_features(weights, part) for part in images_NHWC.split(500)]
    else:
        weights = load_file(folder / "cifar10_models" / f"{name}.safetensors")
        encode = resnet8_features if name.startswith("resnet8") else resnet_features
        parts = [encode(weights, part.permute(0, 3, 1, 2).float()) for part in images_NHWC.split(500)]
    return torch.cat(parts).double()


def scores(train: dict[str, Tensor], test: dict[str, Tensor], weak: tuple[str, ...], strong: tuple[str, ...]) -> Any:
    """By method, for every number of strong encoders that have joined."""
    counts = bootstrap_counts(len(next(iter(test.values()))), 1000, torch.Generator().manual_seed(0))
    found: dict[str, list[Any]] = {"GPA": [], "GCCA": [], "GCPA": []}
    for n_joined in N_JOINED:
        spaces = {name: train[name] for name in (*weak, *strong[:n_joined])}
        makers: dict[str, AbstractAligner] = {"GPA": GPA(), "GCCA": GCCA(), "GCPA": GCPA(folds=2)}
        for method, aligner in makers.items():
            aligner.fit(spaces)
            codes = {name: aligner.transform(test[name], source=name) for name in weak}
            found[method].append(any_to_any(codes).mean("rank_1", counts))
        print(n_joined, {method: round(values[-1].value, 3) for method, values in found.items()}, flush=True)
    return found


def study(folder: Path, seeds: int, n_rows: int) -> Iterator[dict[str, Any]]:
    """What is known after each seed."""
    images_NHWC, labels_N = lossless_images(folder, "train")
    test_NHWC, test_labels_N = lossless_images(folder, "test")
    names = {name for group in STRONG.values() for name in group} | set(WEAK["rows"])
    strong_train = {name: embedded(folder, name, images_NHWC[:n_rows]) for name in sorted(names)}
    strong_test = {name: embedded(folder, name, test_NHWC) for name in sorted(names)}
    runs: dict[str, list[Any]] = {"trained": [], "rows": []}
    for seed in range(seeds):
        train, test = dict(strong_train), dict(strong_test)
        accuracy = {}
        for m, kind in enumerate(WEAK["trained"]):
            generator = torch.Generator().manual_seed(100 * seed + m)
            network = trained(kind, spoiled(images_NHWC[:n_rows], generator), labels_N[:n_rows], seed=10 * seed + m)
            with torch.no_grad():
                train[kind] = network(pixels(images_NHWC[:n_rows])).double()
                test[kind] = network(pixels(test_NHWC)).double()
            means_CF = torch.stack([train[kind][labels_N[:n_rows] == label].mean(dim=0) for label in range(10)])
            accuracy[kind] = (torch.cdist(test[kind], means_CF).argmin(dim=1) == test_labels_N).double().mean().item()
        print("nearest class mean", accuracy, flush=True)
        found = scores(train, test, WEAK["trained"], STRONG["trained"])
        runs["trained"].append({"rank_1": found, "nearest_class_mean": accuracy})
        for m, name in enumerate(WEAK["rows"]):
            generator = torch.Generator().manual_seed(100 * seed + 50 + m)
            train[name] = embedded(folder, name, spoiled(images_NHWC[:n_rows], generator))
        runs["rows"].append({"rank_1": scores(train, test, WEAK["rows"], STRONG["rows"])})
        yield {"n_joined": N_JOINED, "n_rows": n_rows, "n_test": len(test_NHWC), "runs": runs}


def report(record: dict[str, Any]) -> str:
    lines = [
        "# The weak link\n",
        f"Rank-1 % of the weak pair on {record['n_test']:,} unseen CIFAR-10 images, {record['n_rows']:,} rows to align, by the "
        "number of strong encoders in the universe: mean over seeds [least, most]; width: mean 95 % bootstrap interval over test "
        "rows.\n",
    ]
    for variant, runs in record["runs"].items():
        rows = []
        for method in runs[0]["rank_1"]:
            row, widths = [method], []
            for place in range(len(record["n_joined"])):
                values = [100 * run["rank_1"][method][place][0] for run in runs]
                widths += [100 * (run["rank_1"][method][place][2] - run["rank_1"][method][place][1]) for run in runs]
                row.append(f"{statistics.mean(values):.1f} [{min(values):.1f}, {max(values):.1f}]")
            rows.append([*row, f"{statistics.mean(widths):.1f}"])
        lines += [f"## {variant}, n = {len(runs)} seeds\n"]
        lines += markdown(["method", *(str(n) for n in record["n_joined"]), "width"], rows)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000, help="training images, of weak encoders and of aligners")
    parser.add_argument("--report", action="store_true", help="only the table, from the file --out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "multiway_weak_link.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.report:
        if arguments.data is None:
            parser.error("--data FOLDER is needed to fit")
        started = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for known in study(arguments.data, arguments.seeds, arguments.rows):
                record = known | provenance(0) | {"cpu_seconds": round(time.process_time() - started)}
                with whole_file(arguments.out) as path:
                    path.write_text(json.dumps(record, indent=1) + "\n")
    with whole_file(arguments.out.with_suffix(".md")) as path:
        path.write_text(report(json.loads(arguments.out.read_text())))


if __name__ == "__main__":
    main()
