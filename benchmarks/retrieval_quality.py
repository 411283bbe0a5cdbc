"""What cut codes retrieve: ours and rivals' on MNIST and CIFAR-10-JPEG75, also on data they were not trained on.

    python benchmarks/retrieval_quality.py --data FOLDER       # FOLDER/mnist/mnist.npz, FOLDER/cifar10_jpeg/{train,test}.npz
    python benchmarks/retrieval_quality.py --report            # tables from results/retrieval_quality.json, no training

Small on purpose: 10,000 training images, made smaller (14x14, 16x16), the digits network, 117 steps of 256 pairs: a run takes
minutes on one core. Only the objective differs; no learning rate was tuned here. Scale and threshold were chosen on MNIST
training images alone (`retrieval_findings.md`). Every projector (128 numbers, or 32) is read as trained (centred), cut at random
places (mean of 3 draws), in its principal components, and after Rayleigh-Ritz over views of the training images, also with
functions of small eigenvalue damped (diffusion). The gallery holds training images, queries are held-out ones; under transfer
both are of another data set and the network sees neither before. Cosine; mAP over all relevant images, ties against the method.
The digits are scikit-learn's 1,797, at 600 steps.
"""

import argparse
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from quiet import quiet_trainer
from torch import Tensor

from neigenmaps.data import DatasetSplits, ImageStore, ViewLaw, digits_law, load_splits, mnist_law, simclr_cifar_law
from neigenmaps.data.rows import store_with_channels
from neigenmaps.evaluation import TruncationCurve, code_lengths, principal_components, truncation_curve
from neigenmaps.files import whole_file
from neigenmaps.nn import BarlowTwins, NestedLowRank, NeuralEigenmapModel, SimCLR, SpectralContrastive, VICReg
from neigenmaps.provenance import provenance
from neigenmaps.reporting import markdown_table
from neigenmaps.training import EigenmapModule, ViewsDataModule
from neigenmaps.training.ritz import FitRitz

RESULTS = Path(__file__).parent / "results"
WIDTH, BATCH, TRAIN_ROWS, TEST_ROWS = 128, 256, 10_000, 2_000
GALLERY, QUERIES = 5_000, 500
RANDOM_DRAWS = 3
DIFFUSION = (4, 16)  # 16 looked best on the digits, so those say nothing about it; the plain reading has 1 / 2
OBJECTIVES: dict[str, Callable[[], Any]] = {
    "nested low-rank, octave (ours)": lambda: NestedLowRank(nesting="octave"),
    "nested low-rank, octave, scale 2.5, threshold .5 (ours)": lambda: NestedLowRank("octave", 2.5, 0.5),
    "nested low-rank, octave, row_power 10 (ours)": lambda: NestedLowRank(nesting="octave"),
    "nested low-rank, octave, 32 functions (ours)": lambda: NestedLowRank(nesting="octave"),
    "Barlow Twins": lambda: BarlowTwins(lambda_param=0.02),
    "VICReg": VICReg,
    "SimCLR": lambda: SimCLR(temperature=0.2),
    "spectral contrastive": SpectralContrastive,
}
FEWER = {"nested low-rank, octave, 32 functions (ours)": 32}  # outputs, where they are not WIDTH
# SimCLR's loss sees directions alone: read with their lengths, its functions would not be those that it trained
ROW_POWERS = {"nested low-rank, octave, row_power 10 (ours)": 10.0, "SimCLR": 1.0}


class Problem(NamedTuple):
    channels: int
    size: int
    law: ViewLaw
    epochs: int
    transfer: tuple[str, ...]


PROBLEMS = {
    "digits": Problem(1, 8, digits_law(), 120, ("mnist",)),
    "mnist": Problem(1, 14, mnist_law(), 3, ("digits",)),
    "cifar10_jpeg75": Problem(3, 16, simclr_cifar_law(), 3, ("mnist",)),
}


def decoded(path: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Images and labels of JPEGs that share one header."""
    with np.load(path) as file:
        head, data, ends, labels = file["header"].tobytes(), file["payload"].tobytes(), file["offsets"], file["labels"]
    jpegs = (head + data[a:b] + b"\xff\xd9" for a, b in pairwise(ends))
    return np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs]), labels


def write_subsets(data: Path, folder: Path) -> dict[str, str]:
    """An .npz for each problem, of the rows that all runs share."""
    with np.load(data / "mnist" / "mnist.npz") as file:
        mnist = (file["x_train"], file["y_train"]), (file["x_test"], file["y_test"])
    cifar = tuple(decoded(data / "cifar10_jpeg" / f"{part}.npz") for part in ("train", "test"))
    paths = {"digits": "digits"}
    for name, (train, test) in {"mnist": mnist, "cifar10_jpeg75": cifar}.items():
        arrays = {}
        for part, (images, labels), rows in (("train", train, TRAIN_ROWS), ("test", test, TEST_ROWS)):
            chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:rows])
            arrays[f"x_{part}"], arrays[f"y_{part}"] = images[chosen], labels[chosen].astype(np.int64)
        np.savez(folder / f"{name}.npz", **arrays)
        paths[name] = str(folder / f"{name}.npz")
    return paths


def fit(
    objective: str, path: str, problem: Problem, seed: int, epochs: int | None
) -> tuple[EigenmapModule, ViewsDataModule]:
    pl.seed_everything(seed, verbose=False)
    data = ViewsDataModule(path, laws=[problem.law], batch_size=BATCH, image_size=problem.size, seed=seed)
    module = EigenmapModule(
        "digits_cnn",
        in_chans=problem.channels,
        image_size=problem.size,
        width=FEWER.get(objective, WIDTH),
        row_power=ROW_POWERS.get(objective),
        objective=OBJECTIVES[objective](),
        channels_last=True,
    )
    trainer = quiet_trainer(max_epochs=epochs or problem.epochs, callbacks=[FitRitz(pairs=TRAIN_ROWS)])
    trainer.fit(module, datamodule=data)
    return module, data


def readings(
    model: NeuralEigenmapModel, gallery: ImageStore, queries: ImageStore
) -> Iterator[tuple[str, Tensor, Tensor]]:
    raw = [model.encode(store.images_NCHW, space="projector") for store in (gallery, queries)]
    a, b = (codes - raw[0].mean(0) for codes in raw)
    yield "as trained", a, b
    width = a.shape[1]
    for draw in range(RANDOM_DRAWS):
        order = torch.randperm(width, generator=torch.Generator().manual_seed(draw))
        yield "random places", a[:, order], b[:, order]
    yield "PCA", *principal_components(a, b, n_components=width)
    yield "Rayleigh-Ritz", model.order(raw[0]), model.order(raw[1])
    unit = [model.order(codes, scaling="unit") for codes in raw]
    for power in DIFFUSION:
        scale = model.eigenvalues[: unit[0].shape[1]].clamp_min(0) ** power
        yield f"Rayleigh-Ritz, eigenvalues to the power {power}", unit[0] * scale, unit[1] * scale


def curves_of(model: NeuralEigenmapModel, splits: DatasetSplits) -> dict[str, list[dict[str, Any]]]:
    gallery, queries = splits.train.thin(GALLERY), splits.test.thin(QUERIES)
    assert gallery.labels_N is not None
    assert queries.labels_N is not None
    found: dict[str, list[dict[str, Any]]] = {}
    for name, a, b in readings(model, gallery, queries):
        lengths = code_lengths(a.shape[1])
        if name == "random places":
            lengths = [m for m in lengths if m < a.shape[1]]  # all of them is no choice
        curve = truncation_curve(a, gallery.labels_N, b, queries.labels_N, dims=lengths)
        found.setdefault(name, []).append(curve.as_dict())
    return found


def measure(name: str, objective: str, seed: int, paths: dict[str, str], epochs: int | None) -> dict[str, Any]:
    problem, started = PROBLEMS[name], time.process_time()
    module, data = fit(objective, paths[name], problem, seed, epochs)
    seconds = time.process_time() - started
    curves = {name: curves_of(module.model, data.splits)}
    for other in problem.transfer:
        splits = load_splits(paths[other], image_size=problem.size)
        curves[f"{name} to {other}"] = curves_of(
            module.model, DatasetSplits(*(store_with_channels(store, problem.channels) for store in splits))
        )
    curve = curves[name]["Rayleigh-Ritz"][0]
    print(
        f"{name}, {objective}, seed {seed}: {seconds:.0f} CPU s, mAP {[round(x, 3) for x in curve['retrieval_map']]}",
        flush=True,
    )
    return {"data": name, "objective": objective, "cpu_seconds": round(seconds), "curves": curves} | provenance(seed)


def report(record: dict[str, Any], path: Path) -> None:
    """Tables by data, measure and reading, mean and standard deviation over seeds."""
    by_place: dict[tuple[str, str], dict[str, list[TruncationCurve]]] = {}
    for run in record["runs"]:
        for data, by_reading in run["curves"].items():
            for reading, drawn in by_reading.items():
                one = {key: np.mean([curve[key] for curve in drawn], axis=0).tolist() for key in drawn[0]}
                one["dims"] = drawn[0]["dims"]
                by_place.setdefault((data, reading), {}).setdefault(run["objective"], []).append(TruncationCurve(**one))
    lines = ["# Retrieval by code length\n", f"{__doc__}\n"]
    for (data, reading), curves in by_place.items():
        seeds = sorted({len(given) for given in curves.values()})
        lines.append(f"**{data}, {reading}** (seeds: {', '.join(map(str, seeds))})\n")
        for measure_name in ("retrieval_map", "knn_accuracy"):
            lines.append(markdown_table(curves, measure=measure_name))  # type: ignore[arg-type]
    with whole_file(path) as unfinished:
        unfinished.write_text("\n".join(lines))


def main() -> None:
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=None, help="instead of each problem's")
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--out", type=Path, default=RESULTS / "retrieval_quality.json")
    parser.add_argument("--append", action="store_true", help="keep the runs already in the file --out")
    parser.add_argument("--report", action="store_true", help="only tables, from the file --out")
    arguments = parser.parse_args()
    if arguments.report:
        report(json.loads(arguments.out.read_text()), arguments.out.with_suffix(".md"))
        return
    if arguments.data is None:
        parser.error("--data FOLDER is needed to train")
    torch.set_num_threads(1)
    record: dict[str, Any] = {"runs": json.loads(arguments.out.read_text())["runs"] if arguments.append else []}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_subsets(arguments.data, Path(folder))
        for seed in arguments.seeds:
            for name in arguments.problems:
                for objective in arguments.objectives:
                    run = measure(name, objective, seed, paths, arguments.epochs)
                    run["command"] = run["command"].replace(str(arguments.data), "FOLDER")
                    record["runs"].append(run)
                    with whole_file(arguments.out) as path:  # after each run: an hour's work survives an interruption
                        path.write_text(json.dumps(record, indent=1) + "\n")
    report(record, arguments.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
