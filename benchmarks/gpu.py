"""All that is measured on a GPU, in calls of at most nine minutes: each runs some stages and adds what it found to one JSON file.

    python benchmarks/gpu.py --stages ceiling augmentation throughput loss --out gpu.json
    python benchmarks/gpu.py --stages pretrain --data cifar10.npz --objective neigenmaps --seed 0 --out gpu.json
    python benchmarks/gpu.py --stages ceiling augmentation throughput loss pretrain --device cpu --smoke --out smoke.json

    ceiling       steps of the bare network: precisions, memory formats, torch.compile
    augmentation  views per second of the batched augmentation alone, and its share of a step of the ceiling
    throughput    benchmarks/train_throughput.py, in a process of its own
    loss          benchmarks/loss_cost.py, in a process of its own
    pretrain      `configs/cifar10.yaml` for --epochs; kNN and linear probe on backbone features and on codes. Rivals differ in the
                  objective only; seconds are recorded, so that equal times can be compared. `--network narrow` is a ResNet-10 that
                  trains within minutes on a CPU

A stage that does not fit into what is left of --minutes is named in the file and not begun. `--smoke` takes sizes that a CPU does
in a minute: it shows that the script runs, and its numbers mean nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from quiet import quiet_trainer
from train_throughput import HIDDEN, MEAN, STD, WIDTH, make_network

from neigenmaps.data import BatchAugmentation, simclr_cifar_law
from neigenmaps.evaluation import code_lengths, knn_accuracy, linear_probe_accuracy
from neigenmaps.files import whole_file
from neigenmaps.nn import BarlowTwins, NestedLowRank, NeuralEigenmap, Objective, SimCLR, SpectralContrastive, VICReg
from neigenmaps.provenance import provenance
from neigenmaps.training import CollapseGuard, EigenmapModule, FitRitz, ViewsDataModule

HERE = Path(__file__).parent
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "neigenmaps": lambda: NestedLowRank("octave"),
    "short": lambda: NestedLowRank("octave", 2.5, 0.5),
    "sequential": lambda: NestedLowRank("sequential"),
    "neural_eigenmap": lambda: NeuralEigenmap(alpha=0.5),
    "spectral_contrastive": SpectralContrastive,
    "barlow_twins": lambda: BarlowTwins(0.02),
    "vicreg": VICReg,
    "simclr": lambda: SimCLR(0.2),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"backbone": "resnet18", "stem": "cifar"},
    "narrow": {"backbone": "resnet10t", "backbone_options": {"channels": [32, 64, 128, 256], "stem_width": 16}},
}
NEEDS_MINUTES = {"ceiling": 1.5, "augmentation": 0.5, "throughput": 4.0, "loss": 2.0, "pretrain": 2.0}


def timed(call: Callable[[], Any], device: str, *, repeats: int, warmup: int) -> float:
    """Seconds per call, between two synchronisations."""
    for _ in range(warmup):
        call()
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    wait(device)
    return (time.perf_counter() - started) / repeats


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ceiling(options: argparse.Namespace) -> dict[str, Any]:
    """Two-view images per second by setting; the first step, which compiles, is timed apart."""
    found = {}
    compiled = [False] if options.device == "cpu" else [False, True]
    for precision, layout, is_compiled in [
        (p, m, c) for p in ("32", "bf16") for m in ("contiguous", "channels_last") for c in compiled
    ]:
        network = make_network().to(options.device)
        form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        network.backbone.to(memory_format=form)  # type: ignore[operator, union-attr]
        run = torch.compile(network) if is_compiled else network
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
        views = torch.rand(2 * options.batch, 3, 32, 32, device=options.device).to(memory_format=form)

        def step(
            run: Any = run, optimizer: Any = optimizer, views: Any = views, half: bool = precision == "bf16"
        ) -> None:
            with torch.autocast(options.device, torch.bfloat16, enabled=half):
                codes = run(views).codes
            optimizer.zero_grad()
            codes.float().square().mean().backward()
            optimizer.step()

        first = timed(step, options.device, repeats=1, warmup=0)
        seconds = timed(step, options.device, repeats=options.steps, warmup=options.warmup)
        name = f"{precision}, {layout}{', compiled' if is_compiled else ''}"
        found[name] = {
            "images_per_second": options.batch / seconds,
            "step_ms": 1e3 * seconds,
            "first_step_seconds": first,
        }
        print(name, found[name], flush=True)
    return found


def augmentation(options: argparse.Namespace) -> dict[str, Any]:
    images = torch.randint(0, 256, (options.batch, 3, 32, 32), dtype=torch.uint8, device=options.device)
    augment = BatchAugmentation(simclr_cifar_law())
    generator = torch.Generator(device=options.device).manual_seed(options.seed)
    seconds = timed(lambda: augment(images, generator), options.device, repeats=options.steps, warmup=options.warmup)
    return {"views_per_second": 2 * options.batch / seconds, "batch_ms": 1e3 * seconds}


def of_script(name: str, arguments: list[str]) -> dict[str, Any]:
    """What another benchmark writes, run as it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        subprocess.run([sys.executable, str(HERE / name), *arguments, "--out", str(path)], check=True)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {"batch": options.batch, "steps": options.steps, "warmup": options.warmup, "workers": options.workers}
    sizes |= {"rounds": 1 if options.smoke else 3, "images": 8 * options.batch}
    arguments = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    precisions = ["32-true"] if options.smoke else ["bf16-mixed"]
    if options.smoke:  # compiling takes long
        arguments += ["--methods", "ceiling", "neigenmaps", "lightly", "plain"]
    return of_script("train_throughput.py", [*arguments, "--device", options.device, "--precisions", *precisions])


def loss(options: argparse.Namespace) -> dict[str, Any]:
    widths, batches = (["8"], ["16"]) if options.smoke else (["512", "2048", "8192"], ["4096"] * 3)
    arguments = ["--device", options.device, "--widths", *widths, "--batches", *batches]
    return of_script("loss_cost.py", [*arguments, "--rounds", "1" if options.smoke else "10"])


def pretrain(options: argparse.Namespace) -> dict[str, Any]:
    recipe = yaml.safe_load((HERE.parent / "configs" / "cifar10.yaml").read_text())
    data = ViewsDataModule(
        str(options.data or smoke_data(options)), laws=[simclr_cifar_law()], batch_size=options.batch, seed=options.seed
    )
    chosen = recipe["model"]
    torch.manual_seed(options.seed)
    module = EigenmapModule(
        **NETWORKS[options.network],
        in_chans=3,
        image_size=32,
        width=options.width,
        hidden=options.hidden,
        row_power=options.row_power,
        pixel_mean=MEAN,
        pixel_std=STD,
        objective=OBJECTIVES[options.objective](),
        optimizer=chosen["optimizer"],
        lr=options.lr or chosen["lr"],
        weight_decay=chosen["weight_decay"],
        channels_last=True,
        compile=chosen["compile"] if options.device == "cuda" else False,
    )
    guard = CollapseGuard()
    trainer = quiet_trainer(
        max_epochs=options.epochs,
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if options.device == "cuda" else "32-true",
        callbacks=[guard, FitRitz(options.ritz_pairs)],
    )
    started, cpu = time.perf_counter(), time.process_time()
    trainer.fit(module, datamodule=data)
    wait(options.device)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    model = module.model.to(options.device)  # Lightning leaves it on the CPU
    scores: dict[str, dict[str, Any]] = {}
    train, test = data.splits
    known = train.thin_rows(options.bank)
    images = train.images_NCHW[known], test.images_NCHW
    assert train.labels_N is not None
    assert test.labels_N is not None
    labels = train.labels_N[known].to(options.device), test.labels_N.to(options.device)
    for space in ("backbone", "eigenmap"):
        bank, queries = (model.encode(part, space=space) for part in images)  # type: ignore[arg-type]
        width = bank.shape[1]
        by_length = {
            length: knn_accuracy(bank[:, :length], labels[0], queries[:, :length], labels[1])
            for length in (code_lengths(width) if space == "eigenmap" else [width])
        }
        linear = linear_probe_accuracy(bank, labels[0], queries, labels[1])
        scores[space] = {"knn": by_length[width], "linear": linear, "knn_by_length": by_length}
    return {
        "objective": options.objective,
        "network": options.network,
        "data": Path(str(options.data)).name,
        "epochs": options.epochs,
        "steps": trainer.global_step,
        "fit_seconds": seconds,
        "fit_cpu_seconds": cpu,
        "images_per_second": trainer.global_step * options.batch / seconds,
        "guard": {"skipped": guard.skipped, "rollbacks": guard.rollbacks},
        "eigenvalues": model.eigenvalues[:32].tolist(),
        "accuracy": scores,
    }


def smoke_data(options: argparse.Namespace) -> Path:
    if not options.smoke:
        raise SystemExit("error: pretrain needs --data: an .npz file, a folder, or cifar10")
    draw = np.random.default_rng(0)
    arrays = {
        f"x_{part}": draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for part, n in (("train", 40), ("test", 20))
    }
    labels = {f"y_{part}": np.arange(n) % 2 for part, n in (("train", 40), ("test", 20))}
    path = Path(tempfile.mkdtemp()) / "noise.npz"
    np.savez(path, **arrays, **labels)
    return path


STAGES = {stage.__name__: stage for stage in (ceiling, augmentation, throughput, loss, pretrain)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["ceiling", "augmentation"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--data")
    parser.add_argument("--objective", choices=OBJECTIVES, default="neigenmaps")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--row_power", type=float, help="model.row_power; SimCLR's loss does not feel it")
    parser.add_argument("--network", choices=NETWORKS, default="resnet18")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--ritz_pairs", type=int, default=100_000)
    parser.add_argument("--bank", type=int, default=1_000_000, help="training images that kNN and probe see, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    options = parser.parse_args()
    if options.smoke:
        options.batch, options.steps, options.warmup, options.epochs, options.width = 8, 1, 1, 1, 8
        options.workers, options.ritz_pairs = 1, 64
    started = time.perf_counter()
    given = {name: value for name, value in vars(options).items() if name not in ("out", "data")}
    call: dict[str, Any] = {
        "provenance": provenance(options.seed, device=torch.device(options.device)),
        "arguments": given,
    }
    call |= {"stages": {}, "not_begun": []}
    earlier = json.loads(options.out.read_text())["calls"] if options.out.exists() else []
    for name in options.stages:
        left = options.minutes - (time.perf_counter() - started) / 60
        if left < NEEDS_MINUTES[name] and not options.smoke:
            call["not_begun"].append(name)
            continue
        begun = time.perf_counter()
        call["stages"][name] = STAGES[name](options) | {"stage_seconds": round(time.perf_counter() - begun, 1)}
        with whole_file(options.out) as path:  # after each stage: a later one may not come to its end
            path.write_text(json.dumps({"calls": [*earlier, call]}, indent=1) + "\n")
        print(name, json.dumps(call["stages"][name])[:2000], flush=True)


if __name__ == "__main__":
    main()
