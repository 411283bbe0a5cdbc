"""What AlignmentMonitor costs on configs/cifar10.yaml: seconds of an alignment beside seconds of a training step.

    python benchmarks/monitor_overhead.py                # two minutes on one core; writes results/monitor_overhead.json

Planted images of CIFAR-10's shape, the file's network, views, references and schedule; four steps of 64 images instead of 1,024,
from which an epoch's time is reckoned by images. On a CPU every second of the monitor counts. On a GPU the alignment runs on a
thread of the CPU while training goes on, and only the pass over the probe set is waited for; how short an epoch may be before
even the whole of it would be 2 % is given too.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from neigenmaps.data import DatasetSplits, ImageStore
from neigenmaps.data.datasets import DATASETS
from neigenmaps.evaluation.convergence import ReferencePanel, embed_layers
from neigenmaps.files import whole_file
from neigenmaps.provenance import provenance
from neigenmaps.training import AlignmentMonitor, EigenmapCLI

ROOT = Path(__file__).parent.parent
N_TRAIN, N_EPOCH_IMAGES, BATCH, REPEATS = 256, 50_000, 64, 3


def planted_splits() -> DatasetSplits:
    """Ten classes of smooth colour fields with noise: (N, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(0)
    n_rows = N_TRAIN + 10_000
    labels_N = torch.arange(n_rows) % 10
    fields = torch.nn.functional.interpolate(torch.randn(10, 3, 4, 4, generator=generator), size=32, mode="bilinear")
    noisy = fields[labels_N] + 0.5 * torch.randn(n_rows, 3, 32, 32, generator=generator)
    images = (128 + 50 * noisy).clamp(0, 255).to(torch.uint8)
    parts = ((images[:N_TRAIN], labels_N[:N_TRAIN]), (images[N_TRAIN:], labels_N[N_TRAIN:]))
    return DatasetSplits(*(ImageStore.from_tensors(x, y, source="planted") for x, y in parts))


def fit(folder: str) -> tuple[EigenmapCLI, AlignmentMonitor]:
    options = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=1", "run.ritz_pairs=64"]
    options += ["trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false", "trainer.logger=false"]
    options += ["trainer.limit_val_batches=0", f"data.batch_size={BATCH}", f"run.root={folder}"]
    given = sys.argv
    sys.argv = [given[0], "fit", f"--config={ROOT / 'configs' / 'cifar10.yaml'}", *(f"--{one}" for one in options)]
    cli = EigenmapCLI()
    sys.argv = given
    return cli, next(one for one in cli.trainer.callbacks if isinstance(one, AlignmentMonitor))


def timed(work: object) -> list[float]:
    """CPU seconds, by repeat."""
    seconds = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()  # type: ignore[operator]
        seconds.append(time.process_time() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "monitor_overhead.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    DATASETS["cifar10"] = lambda root, download: planted_splits()
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        cli, watch = fit(folder)
        spent = time.process_time() - started
        epochs = (
            int(200 / (watch.every_n_epochs or 1)) + 1
        )  # alignments of the file's 200 epochs, the untrained one counted
        probe, model = watch.probe, cli.model.model
        embed = timed(lambda: embed_layers(model, probe.images_NCHW, watch.layers))
        rows = embed_layers(model, probe.images_NCHW, watch.layers)
        align = timed(lambda: watch.panel.align(rows))
        prepared = timed(lambda: ReferencePanel(watch.references, probe, watch.settings))[0:1]
    step = (spent - prepared[0] - len(watch.alignments) * statistics.fmean(align + embed)) / (N_TRAIN // BATCH)
    epoch = step * N_EPOCH_IMAGES / BATCH
    cost = epochs * (statistics.fmean(align) + statistics.fmean(embed)) + prepared[0]
    found = {
        "cpu_seconds": {"alignment": align, "probe_pass": embed, "preparing_references": prepared, "step_of_64": step},
        "probe_images": len(probe),
        "alignments_in_200_epochs": epochs,
        "epoch_on_one_core": epoch,
        "share_on_one_core": cost / (200 * epoch + cost),
        "monitor_cpu_seconds_in_200_epochs": cost,
        "epoch_seconds_at_which_the_share_in_the_foreground_is_2_percent": 0.98 * cost / 0.02 / 200,
    }
    with whole_file(arguments.out) as path:
        path.write_text(json.dumps(found | {"provenance": provenance(0)}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
