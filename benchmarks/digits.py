"""Every objective on the handwritten digits, same network, views, optimiser and steps: kNN and mAP by code length.

    python benchmarks/digits.py                      # 3 seeds, all objectives: about 40 minutes on 2 CPU cores
    python benchmarks/digits.py --seeds 0 --objectives "nested low-rank, octave (default)" --out one.json
    python benchmarks/digits.py --report             # tables and picture from results/digits.json, no training

What is trained is `configs/digits.yaml`; what differs is the file in `configs/objectives`. Each network's projector is read in
three ways, because an unordered code cut at a random place would be an unfair rival: as trained (centred), rotated by PCA, and
rotated by Rayleigh-Ritz; its backbone features by PCA and by Rayleigh-Ritz. Writes `results/digits.json` with provenance.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from neigenmaps.evaluation import TruncationCurve, code_lengths, principal_components, truncation_curve
from neigenmaps.files import whole_file
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.provenance import provenance
from neigenmaps.reporting import markdown_table, plot_truncation
from neigenmaps.training import EigenmapCLI, ViewsDataModule, ritz_of

ROOT = Path(__file__).parent.parent
OBJECTIVES = {
    "nested low-rank, octave (default)": None,
    "nested low-rank, octave, scale 2.5, threshold .5": "nested_low_rank_short",
    "nested low-rank, octave, row_power 10": "nested_low_rank_rows",
    "nested low-rank, sequential": "nested_low_rank_sequential",
    "nested low-rank, joint": "nested_low_rank_joint",
    "neural eigenmap, alpha 0.5": "neural_eigenmap",
    "neural eigenmap, published alpha": "neural_eigenmap_paper",
    "spectral contrastive": "spectral_contrastive",
    "Barlow Twins": "barlow_twins",
    "VICReg": "vicreg",
    "SimCLR": "simclr",
}
PICTURED = [
    "nested low-rank, octave (default)",
    "nested low-rank, octave, row_power 10",
    "spectral contrastive",
    "Barlow Twins",
    "VICReg",
    "SimCLR",
]


def fit(objective: str | None, seed: int, epochs: int | None, folder: str) -> EigenmapCLI:
    configs = [ROOT / "configs" / "digits.yaml"]
    configs += [] if objective is None else [ROOT / "configs" / "objectives" / f"{objective}.yaml"]
    arguments = [f"--config={path}" for path in configs]
    arguments += [f"--seed_everything={seed}", f"--run.root={folder}", "--trainer.enable_progress_bar=false"]
    arguments += ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.callbacks=[]"]
    arguments += [] if epochs is None else [f"--trainer.max_epochs={epochs}"]
    given = sys.argv
    sys.argv = [given[0], "fit", *arguments]  # what EigenmapCLI reads
    cli = EigenmapCLI()
    sys.argv = given  # what provenance records
    return cli


def readings(model: NeuralEigenmapModel, data: ViewsDataModule) -> Iterator[tuple[str, Tensor, Tensor, list[float]]]:
    """Name, training codes, held-out codes and eigenvalues (where known) of every reading of one network."""
    for space in ("projector", "backbone"):
        train, test = (model.encode(store.images_NCHW, space=space) for store in data.splits)
        mean = train.mean(0)
        if space == "projector":
            yield "as trained", train - mean, test - mean, []
        yield f"{space}, PCA", *principal_components(train, test, n_components=128), []
        ritz = ritz_of(model, data, space=space)
        scale = ritz.eigenvalues.clamp_min(0).sqrt().float()
        train, test = ((ritz(codes) * scale)[:, :128] for codes in (train, test))
        yield f"{space}, Rayleigh-Ritz", train, test, ritz.eigenvalues[:128].tolist()


def measure(name: str, seed: int, epochs: int | None) -> dict[str, object]:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        cli = fit(OBJECTIVES[name], seed, epochs, folder)
    seconds = time.perf_counter() - started
    labels, test_labels = (store.labels_N for store in cli.datamodule.splits)
    curves = {}
    for reading, bank, queries, eigenvalues in readings(cli.model.model, cli.datamodule):
        curve = truncation_curve(bank, labels, queries, test_labels, dims=code_lengths(bank.shape[1]))
        curves[reading] = curve.as_dict() | {"eigenvalues": eigenvalues}
    knn = curves["projector, Rayleigh-Ritz"]["knn_accuracy"]
    print(
        f"{name}, seed {seed}: {seconds:.0f} s, kNN after Rayleigh-Ritz {[round(value, 3) for value in knn]}",
        flush=True,
    )
    return {"objective": name} | provenance(seed) | {"fit_seconds": round(seconds, 1), "readings": curves}


def report(record: dict[str, Any], folder: Path) -> None:
    """Markdown tables by reading, and the picture of the README."""
    by_reading: dict[str, dict[str, list[TruncationCurve]]] = {}
    for run in record["runs"]:
        for reading, curve in run["readings"].items():
            kept = {name: values for name, values in curve.items() if name != "eigenvalues"}
            by_reading.setdefault(reading, {}).setdefault(run["objective"], []).append(TruncationCurve(**kept))
    tables = [
        f"**{reading}**\n\n{markdown_table(curves, measure=measure)}"
        for reading, curves in by_reading.items()
        for measure in ("knn_accuracy", "retrieval_map")
    ]
    with whole_file(folder / "digits.md") as path:
        path.write_text("\n".join(["# Digits, by objective, reading and code length\n", *tables]))
    for reading, name in (("as trained", "as_trained"), ("projector, Rayleigh-Ritz", "rayleigh_ritz")):
        shown = {
            objective: by_reading[reading][objective] for objective in PICTURED if objective in by_reading[reading]
        }
        plot_truncation(shown, folder / f"digits_{name}.png")


def main() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--epochs", type=int, default=None, help="instead of the config's")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "digits.json")
    parser.add_argument("--append", action="store_true", help="keep the runs already in the file --out")
    parser.add_argument("--report", action="store_true", help="only tables and picture, from the file --out")
    arguments = parser.parse_args()
    if arguments.report:
        report(json.loads(arguments.out.read_text()), arguments.out.parent)
        return
    earlier = json.loads(arguments.out.read_text())["runs"] if arguments.append else []
    record: dict[str, Any] = {"runs": earlier}
    for seed in arguments.seeds:
        for name in arguments.objectives:
            record["runs"].append(measure(name, seed, arguments.epochs))
            with whole_file(arguments.out) as path:  # after each run: an hour's work survives an interruption
                path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
