"""Do self-supervised encoders of real photographs converge toward one another, and toward supervised networks?

    python benchmarks/monitor_cifar.py --data FOLDER --runs FOLDER            # trains, about 25 minutes on one core
    python benchmarks/monitor_cifar.py --data FOLDER --runs FOLDER --report   # JSON, tables and picture of finished runs

CIFAR-10 as JPEG of quality 75: 10,000 images to train on, 1,000 held-out ones as probe set. A narrow ResNet-10,
312 steps of 256 images: eight passes, an early look at convergence, not its end. Three objectives, three seeds each; network,
optimiser, views and order of the images are the same. References: four supervised ResNets, pixels and their principal components.
"""

import argparse
import io
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import NETWORKS as ENCODERS
from multiway_data import resnet_features
from PIL import Image
from quiet import quiet_trainer
from safetensors.torch import load_file
from torch import Tensor

from neigenmaps.data import ImageStore, load_splits, simclr_cifar_law
from neigenmaps.errors import IdentifiabilityWarning
from neigenmaps.evaluation import knn_accuracy
from neigenmaps.evaluation.alignments import Alignment, read_alignments
from neigenmaps.evaluation.convergence import AlignmentSettings, ReferencePanel
from neigenmaps.evaluation.references import PixelReference, Reference
from neigenmaps.files import whole_file
from neigenmaps.nn import BarlowTwins, NestedLowRank, Objective, SimCLR
from neigenmaps.provenance import provenance
from neigenmaps.reporting.alignment_figures import plot_alignment
from neigenmaps.reporting.report import Series
from neigenmaps.training import AlignmentMonitor, EigenmapModule, ViewsDataModule

RESULTS = Path(__file__).parent / "results"
N_TRAIN, N_PROBE, BATCH, EPOCHS = 10_000, 1_000, 256, 8
NETWORKS = ("resnet20", "resnet32", "resnet44", "resnet56")
LAW = replace(simclr_cifar_law(), crop_scale=(0.3, 1.0))


@dataclass(frozen=True)
class SupervisedNetwork(Reference):
    """A trained CIFAR ResNet; its key is its file's name, since the files are fixed."""

    path: Path

    def embed(self, images: ImageStore) -> Tensor:
        weights = load_file(self.path)
        with torch.no_grad():
            return torch.cat([resnet_features(weights, part.float()) for part in images.images_NCHW.split(250)])

    def key(self) -> str:
        return f"supervised:{self.path.name}"


def objectives() -> dict[str, Objective]:
    return {
        "neural eigenmap": NestedLowRank("octave"),
        "Barlow Twins": BarlowTwins(lambda_param=0.02),
        "SimCLR": SimCLR(temperature=0.2),
    }


def references(folder: Path) -> dict[str, Reference]:
    networks = {name: SupervisedNetwork(folder / "cifar10_models" / f"{name}.safetensors") for name in NETWORKS}
    return {**networks, "pixels": PixelReference(), "PCA 32": PixelReference(32)}


def photographs(path: Path, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images (N, 3, 32, 32) and labels of a packed file of JPEGs; their order is random."""
    packed = np.load(path)
    head, payload, starts = packed["header"].tobytes(), packed["payload"].tobytes(), packed["offsets"]
    files = (head + payload[starts[i] : starts[i + 1]] + b"\xff\xd9" for i in range(at_most))
    images = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return np.stack(images).transpose(0, 3, 1, 2), packed["labels"][:at_most].astype(np.int64)


def pack(folder: Path, runs: Path) -> Path:
    path = runs / "cifar10_jpeg75.npz"
    if not path.is_file():
        source = folder / "cifar10_jpeg"
        (x_train, y_train), (x_test, y_test) = (
            photographs(source / f"{part}.npz", n) for part, n in (("train", N_TRAIN), ("test", N_PROBE))
        )
        with whole_file(path) as unfinished:
            np.savez(unfinished, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def train(objective: Objective, seed: int, data: ViewsDataModule, folder: Path, known: dict[str, Reference]) -> None:
    torch.manual_seed(seed)
    module = EigenmapModule(
        **ENCODERS["narrow"],
        in_chans=3,
        image_size=32,
        width=64,
        hidden=256,
        pixel_mean=(0.4914, 0.4822, 0.4465),
        pixel_std=(0.2470, 0.2435, 0.2616),
        objective=objective,
        channels_last=True,
    )
    watch = AlignmentMonitor(
        known,
        probe_size=N_PROBE,
        every_n_epochs=2,
        n_permutations=99,
        cache=str(folder.parent / "references"),
    )
    trainer = quiet_trainer(
        default_root_dir=folder,
        max_epochs=EPOCHS,
        callbacks=[watch],
    )
    started = time.process_time()
    trainer.fit(module, datamodule=data)
    seconds = time.process_time() - started
    bank, probe = data.splits.train, data.splits.test
    rows, queries = (module.model.encode(store.images_NCHW, space="backbone") for store in (bank, probe))
    assert bank.labels_N is not None
    assert probe.labels_N is not None
    module.model.save_pretrained(folder / "model")
    facts = {"seconds": seconds, "knn": knn_accuracy(rows, bank.labels_N, queries, probe.labels_N, n_neighbors=10)}
    with whole_file(folder / "facts.json") as path:
        path.write_text(json.dumps(facts | {"provenance": provenance(seed)}, indent=2) + "\n")
    print(folder.name, facts, flush=True)


@dataclass(frozen=True)
class Finished:
    """A run that was trained to its end."""

    objective: str
    seed: int
    knn: float
    seconds: float
    history: list[Alignment]


def finished(runs: Path) -> list[Finished]:
    found = []
    for path in sorted(runs.glob("*, seed */facts.json")):
        objective, _, seed = path.parent.name.rpartition(", seed ")
        facts = json.loads(path.read_text())
        history = read_alignments(path.parent / "alignment")
        found.append(Finished(objective, int(seed), facts["knn"], facts["seconds"], history))
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "n": len(values),
    }


def with_references(runs: list[Finished]) -> dict[str, Any]:
    """By reference, measure, objective and step: mean and sd over seeds; "supervised" is the mean of the four networks."""
    steps = [one.step for one in runs[0].history]
    measures = list(runs[0].history[0].values["backbone"]["pixels"])

    def value(run: Finished, at: int, reference: str, measure: str) -> float:
        names = NETWORKS if reference == "supervised" else (reference,)
        known = run.history[at].values["backbone"]
        return statistics.fmean(known[name][measure]["calibrated"] for name in names)

    return {
        reference: {
            measure: {
                objective: {
                    str(step): spread(
                        [value(run, at, reference, measure) for run in runs if run.objective == objective]
                    )
                    for at, step in enumerate(steps)
                }
                for objective in objectives()
            }
            for measure in measures
        }
        for reference in ("supervised", "pixels", "PCA 32")
    }


def with_each_other(runs: list[Finished]) -> dict[str, Any]:
    """Overlap of smooth functions of two runs at the same step: of one objective, and of two, always of different seeds.

    Runs of one seed begin as the same network.
    """
    kinds: dict[str, dict[str, list[float]]] = {}
    for a, b in itertools.combinations(runs, 2):
        if a.seed == b.seed:
            continue
        kind = a.objective if a.objective == b.objective else " and ".join(sorted((a.objective, b.objective)))
        for one, other in zip(a.history, b.history, strict=True):
            kinds.setdefault(kind, {}).setdefault(str(one.step), []).append(one.likeness(other, "backbone"))
    return {kind: {step: spread(values) for step, values in by_step.items()} for kind, by_step in kinds.items()}


def curves(by_name: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Series]:
    """Mean with a band of one standard deviation; dotted, where each began: the untrained networks."""
    series = []
    for name, by_step in by_name.items():
        steps, found = [int(step) for step in by_step], list(by_step.values())
        mean = [one["mean"] for one in found]
        low, high = ([one["mean"] + sign * one["sd"] for one in found] for sign in (-1, 1))
        series.append(Series(name, steps, mean, low, high, level=mean[0]))
    return series


def report(runs: list[Finished], data: Path, folder: Path) -> None:
    references_found, each_other = with_references(runs), with_each_other(runs)
    settings = AlignmentSettings(methods=["lfm"], measures=[])
    probe = load_splits(str(pack(data, folder))).test
    between = ReferencePanel(references(data), probe, settings, cache=folder / "references").facts["between"]
    supervised = [between[a][b] for a, b in itertools.combinations(NETWORKS, 2)]
    accuracy = {name: spread([run.knn for run in runs if run.objective == name]) for name in objectives()}
    found = {
        "knn_accuracy": accuracy,
        "with_references": references_found,
        "with_each_other": each_other,
        "supervised_with_each_other": spread(supervised),
        "cpu_seconds": spread([run.seconds for run in runs]),
        "images": {"train": N_TRAIN, "probe": N_PROBE},
        "provenance": provenance([run.seed for run in runs]),
    }
    with whole_file(RESULTS / "monitor_cifar.json") as path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    title = "latent functional map, weighted overlap"
    plot_alignment(curves(references_found["supervised"]["lfm"]), RESULTS / "monitor_cifar_supervised.png", title=title)
    plot_alignment(curves(each_other), RESULTS / "monitor_cifar_runs.png", title=title)
    steps = [str(one.step) for one in runs[0].history]
    for heading, by_name in (
        *((f"with supervised networks, {measure}", by) for measure, by in references_found["supervised"].items()),
        ("with pixels, lfm", references_found["pixels"]["lfm"]),
        ("with each other, lfm", each_other),
    ):
        print(f"\n| {heading} | " + " | ".join(steps) + " |\n| --- |" + " --: |" * len(steps))
        for name, by_step in by_name.items():
            cells = " | ".join(f"{one['mean']:.2f} ± {one['sd']:.2f}" for one in by_step.values())
            print(f"| {name} (n = {next(iter(by_step.values()))['n']}) | {cells} |")
    print("\nkNN %:", {name: f"{100 * one['mean']:.1f} ± {100 * one['sd']:.1f}" for name, one in accuracy.items()})
    print("supervised with each other:", found["supervised_with_each_other"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10_jpeg and cifar10_models")
    parser.add_argument("--runs", type=Path, required=True, help="folder for what is trained; finished runs are kept")
    parser.add_argument("--report", action="store_true", help="of the runs that are finished; trains nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.report:
        report(finished(arguments.runs), arguments.data, arguments.runs)
        return
    warnings.filterwarnings("ignore", category=IdentifiabilityWarning)
    known = references(arguments.data)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    packed = pack(arguments.data, arguments.runs)
    for seed in arguments.seeds:
        for name, objective in objectives().items():
            folder = arguments.runs / f"{name}, seed {seed}"
            if not (folder / "facts.json").is_file():
                train(objective, seed, ViewsDataModule(str(packed), [LAW], BATCH, seed=seed), folder, known)


if __name__ == "__main__":
    main()
