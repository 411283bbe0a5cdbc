"""What more views, smaller views and averaged weights buy on the digits: kNN and mAP at 8, 32 and 128 numbers.

    python benchmarks/multi_crop.py                          # 3 seeds: about ten minutes of one core
    python benchmarks/multi_crop.py --append --seeds 3 4     # more seeds of what the file holds, by its numbers of epochs
    python benchmarks/multi_crop.py --report                 # the table from results/multi_crop.json, no training

All train `configs/digits.yaml` for --epochs, or for as much CPU time as the two views take: a first short run of each kind
measures its CPU time per epoch. Averaged weights are of the same number of steps and cost next to nothing. Codes after
Rayleigh-Ritz, which for all is over pairs of full-size views.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from neigenmaps.evaluation import truncation_curve
from neigenmaps.files import whole_file
from neigenmaps.provenance import provenance
from neigenmaps.training import EigenmapCLI

ROOT = Path(__file__).parent.parent
DIMS = [8, 32, 128]
SMALL_LAW = {"crop_scale": [0.4, 0.7], "rotate": 15, "shear": 10, "gain": [0.7, 1.3], "noise": 0.08}
SMALL = json.dumps({"count": 4, "size": 6, "laws": [SMALL_LAW]})
KINDS = {
    "2 views": [],
    "2 views, averaged weights": ["--run.ema_decay=0.98"],
    "4 views": ["--data.n_views=4"],
    "2 views and 4 small": [f"--data.small_views={SMALL}"],
}
MEASURES = {"knn_accuracy": "kNN %", "retrieval_map": "mAP %"}


def fit(kind: str, seed: int, epochs: int) -> tuple[EigenmapCLI, float]:
    """What was trained, and its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            f"--config={ROOT / 'configs' / 'digits.yaml'}",
            f"--seed_everything={seed}",
            f"--run.root={folder}",
        ]
        arguments += ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.callbacks=[]"]
        arguments += ["--trainer.enable_checkpointing=false", "--trainer.limit_val_batches=0"]
        given, sys.argv = sys.argv, ["train.py", "fit", *arguments, f"--trainer.max_epochs={epochs}", *KINDS[kind]]
        started = time.process_time()
        cli = EigenmapCLI()
        sys.argv = given
        return cli, time.process_time() - started


def measure(kind: str, seed: int, epochs: int) -> dict[str, Any]:
    cli, seconds = fit(kind, seed, epochs)
    train, test = cli.datamodule.splits
    assert train.labels_N is not None
    assert test.labels_N is not None
    bank, queries = (cli.model.model.encode(store.images_NCHW) for store in (train, test))
    dims = [m for m in DIMS if m <= bank.shape[1]]
    curve = truncation_curve(bank, train.labels_N, queries, test.labels_N, dims=dims).as_dict()
    return {"kind": kind, "seed": seed, "epochs": epochs, "cpu_seconds": round(seconds, 1), "curve": curve}


def epochs_of_equal_time(epochs: int) -> dict[str, int]:
    """By CPU time per epoch, the cost of a run's start taken off."""
    fit("2 views", 0, 1)  # loads everything
    cost = {kind: fit(kind, 0, 5)[1] - fit(kind, 0, 1)[1] for kind in KINDS}
    return {kind: max(1, round(epochs * cost["2 views"] / spent)) for kind, spent in cost.items()}


def plan(arguments: argparse.Namespace, runs: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Kinds with their numbers of epochs: those of earlier runs, where there are any."""
    if runs:
        return list(dict.fromkeys((run["kind"], run["epochs"]) for run in runs))
    equal = epochs_of_equal_time(arguments.epochs)
    print(equal, flush=True)
    both = {
        kind: [arguments.epochs, equal[kind] if "averaged" not in kind else arguments.epochs]
        for kind in arguments.kinds
    }
    return [(kind, epochs) for kind, numbers in both.items() for epochs in dict.fromkeys(numbers)]


def table(runs: list[dict[str, Any]]) -> str:
    lines = []
    for measure, title in MEASURES.items():
        lines += [f"| {title}, after Rayleigh-Ritz | n | epochs | CPU s | " + " | ".join(map(str, DIMS)) + " |"]
        lines += ["| --- " + "| --: " * (len(DIMS) + 3) + "|"]
        for kind, epochs in dict.fromkeys((run["kind"], run["epochs"]) for run in runs):
            chosen = [run for run in runs if (run["kind"], run["epochs"]) == (kind, epochs)]
            cells = []
            for number in range(len(DIMS)):
                values = [100 * run["curve"][measure][number] for run in chosen]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            seconds = statistics.mean(run["cpu_seconds"] for run in chosen)
            lines.append(f"| {kind} | {len(chosen)} | {epochs} | {seconds:.0f} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "multi_crop.json")
    parser.add_argument("--append", action="store_true", help="add seeds to the runs in the file --out")
    parser.add_argument("--report", action="store_true", help="only the table, from the file --out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.report:
        record: dict[str, Any] = {"provenance": [], "runs": []}
        if arguments.append:
            record = json.loads(arguments.out.read_text())
        record["provenance"].append(provenance(None))
        done = {(run["kind"], run["epochs"], run["seed"]) for run in record["runs"]}
        chosen = plan(arguments, record["runs"])
        for seed in arguments.seeds:
            for kind, epochs in chosen:
                if (kind, epochs, seed) in done:
                    continue
                record["runs"].append(measure(kind, seed, epochs))
                print(record["runs"][-1], flush=True)
                with whole_file(arguments.out) as path:
                    path.write_text(json.dumps(record, indent=1) + "\n")
    runs = json.loads(arguments.out.read_text())["runs"]
    with whole_file(arguments.out.with_suffix(".md")) as path:
        path.write_text("# Digits: more views, small views, averaged weights\n\n" + table(runs))
    print(table(runs))


if __name__ == "__main__":
    main()
