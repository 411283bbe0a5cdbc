"""Images per second of a whole training step: ours, lightly's own recipe, a plain PyTorch loop, and the network alone.

    python benchmarks/train_throughput.py                                    # 2 CPU cores: about 15 minutes
    python benchmarks/train_throughput.py --device cuda --batch 1024 --steps 100 --precisions bf16-mixed --workers 16
    python benchmarks/train_throughput.py --backbone digits_cnn --batch 256 --steps 15 --precisions 32-true \
        --out benchmarks/results/train_throughput_small.json                 # a network that does not hide its images' cost

All train a ResNet-18 with a 3x3 stem (or --backbone) and the same projector on two views of the same images, with AdamW.

    ceiling              forward, backward and update on random tensors that lie on the device: no images, no loss worth the name
    ceiling, compiled    the same, the network by torch.compile
    neigenmaps           `trainer.fit` of EigenmapModule and ViewsDataModule with logger and CollapseGuard, NestedLowRank
    neigenmaps, auto     the same with `compile="auto"`: compiled where the first step finds that faster
    lightly              its SimCLRTransform, a DataLoader with workers, Lightning's Trainer, its BarlowTwinsLoss
    plain                torchvision's transforms, a DataLoader with workers, a loop over batches, the same loss

Each run is a process of its own, forked from one that has only imported, so that memory and the time to the first step are its
own; methods alternate within a round. Steps after the warm-up count. CPU seconds (of the process and its workers) per image stand
beside the clock, as they hold on a machine that others use too. Images: `--data FILE.npz` with x_train (N, H, W, 3) or (N, 3, H, W)
uint8, else noise of 32 x 32 pixels: no step depends on what is in them.
"""

import argparse
import json
import logging
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightly.loss import BarlowTwinsLoss
from lightly.transforms import SimCLRTransform
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from quiet import quiet_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from neigenmaps.data import simclr_cifar_law
from neigenmaps.files import whole_file
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.provenance import provenance
from neigenmaps.training import CollapseGuard, EigenmapModule, FitRitz, ViewsDataModule
from neigenmaps.training.compiling import Compile

WIDTH, HIDDEN = 512, 2048
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


class Clock:
    """Steps as they end: the first, and after the warm-up time and CPU time per step."""

    def __init__(self, steps: int, warmup: int, device: str) -> None:
        self.steps, self.warmup, self.device = steps, warmup, device
        self.started = time.perf_counter()
        self.done = 0
        self.first = self.at_warm = 0.0

    def tick(self) -> None:
        self.done += 1
        if self.done in (1, self.warmup, self.steps + self.warmup) and self.device == "cuda":
            torch.cuda.synchronize()
        if self.done == 1:
            self.first = time.perf_counter() - self.started
        if self.done == self.warmup:
            self.at_warm, self.cpu_at_warm = time.perf_counter(), cpu_seconds()
        if self.done == self.steps + self.warmup:
            self.seconds = (time.perf_counter() - self.at_warm) / self.steps
            self.cpu = (cpu_seconds() - self.cpu_at_warm) / self.steps


def cpu_seconds() -> float:
    """Of this process and of its living workers."""
    total = time.process_time()
    tick = os.sysconf("SC_CLK_TCK")
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


class Tick(pl.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *given: Any) -> None:
        self.clock.tick()


class Images(Dataset[list[Tensor]]):
    """Arrays as PIL images, as torchvision's CIFAR10 hands them out."""

    def __init__(self, images_NHWC: np.ndarray, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.images, self.transform = images_NHWC, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[Tensor]:
        return self.transform(Image.fromarray(self.images[row]))


def make_network(backbone: str = "resnet18") -> nn.Module:
    return NeuralEigenmapModel(backbone, **of_network(backbone))


def of_network(backbone: str) -> dict[str, Any]:
    return {
        "stem": "cifar" if backbone.startswith("resnet") else "default",
        "in_chans": 3,
        "image_size": 32,
        "width": WIDTH,
        "hidden": HIDDEN,
        "pixel_mean": MEAN,
        "pixel_std": STD,
    }


class LightlyRecipe(pl.LightningModule):
    """The example of lightly's documentation, with this benchmark's network."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        network = make_network(backbone)
        self.backbone, self.projector, self.criterion = network.backbone, network.projector, BarlowTwinsLoss()

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        z0, z1 = (self.projector(self.backbone(view)) for view in batch)
        loss: Tensor = self.criterion(z0, z1)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def make_trainer(options: argparse.Namespace, precision: str, clock: Clock, folder: str, **more: Any) -> pl.Trainer:
    return quiet_trainer(
        max_steps=options.steps + options.warmup,
        max_epochs=-1,
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision=precision,
        logger=CSVLogger(folder),
        log_every_n_steps=10,
        callbacks=[Tick(clock), *more.pop("callbacks", [])],
        **more,
    )


def ours(
    images: np.ndarray,
    options: argparse.Namespace,
    precision: str,
    clock: Clock,
    folder: str,
    compile: Compile = False,
) -> None:
    path = Path(folder) / "images.npz"
    np.savez(path, x_train=images, x_test=images[:8])
    clock.started = time.perf_counter()
    data = ViewsDataModule(str(path), laws=[simclr_cifar_law()], batch_size=options.batch, probe_size=8)
    module = EigenmapModule(
        options.backbone, **of_network(options.backbone), lr=1e-3, channels_last=True, compile=compile
    )
    callbacks = [CollapseGuard(), NoOrder()]
    make_trainer(options, precision, clock, folder, callbacks=callbacks).fit(module, datamodule=data)


class NoOrder(FitRitz):
    """What comes after the last step is not measured."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None: ...

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None: ...


def batches_of(images: np.ndarray, transform: Any, options: argparse.Namespace) -> DataLoader[list[Tensor]]:
    return DataLoader(
        Images(images, transform),
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=True,
        pin_memory=options.device == "cuda",
    )


def lightly(images: np.ndarray, options: argparse.Namespace, precision: str, clock: Clock, folder: str) -> None:
    transform = SimCLRTransform(input_size=32, gaussian_blur=0.0, cj_strength=0.5)
    make_trainer(options, precision, clock, folder).fit(
        LightlyRecipe(options.backbone), batches_of(images, transform, options)
    )


def plain(images: np.ndarray, options: argparse.Namespace, precision: str, clock: Clock, folder: str) -> None:
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, (0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            jitter,
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    network, criterion = LightlyRecipe(options.backbone).to(options.device), BarlowTwinsLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for batch in endless(batches_of(images, lambda image: [view(image), view(image)], options)):
        with torch.autocast(options.device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            codes = [network.projector(network.backbone(part.to(options.device, non_blocking=True))) for part in batch]
        optimizer.zero_grad()
        criterion(*(part.float() for part in codes)).backward()
        optimizer.step()
        clock.tick()
        if clock.done == options.steps + options.warmup:
            return


def endless(loader: DataLoader[list[Tensor]]) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def ceiling(
    images: np.ndarray,
    options: argparse.Namespace,
    precision: str,
    clock: Clock,
    folder: str,
    compile: Compile = False,
) -> None:
    network = make_network(options.backbone).to(options.device)
    network.backbone.to(memory_format=torch.channels_last)  # type: ignore[operator, union-attr]
    run = torch.compile(network) if compile else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    views = torch.randn(2 * options.batch, 3, 32, 32, device=options.device).to(memory_format=torch.channels_last)
    for _ in range(options.steps + options.warmup):
        with torch.autocast(options.device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            codes = run(views).codes
        optimizer.zero_grad()
        codes.float().square().mean().backward()
        optimizer.step()
        clock.tick()


METHODS = {
    "ceiling": ceiling,
    "ceiling, compiled": partial(ceiling, compile=True),
    "neigenmaps": ours,
    "neigenmaps, auto": partial(ours, compile="auto"),
    "lightly": lightly,
    "plain": plain,
}


def in_child(name: str, images: np.ndarray, options: argparse.Namespace, precision: str) -> dict[str, float]:
    context = multiprocessing.get_context("fork")
    ours_end, theirs = context.Pipe()
    child = context.Process(target=_run, args=(theirs, name, images, options, precision))
    child.start()
    theirs.close()
    result: dict[str, float] = ours_end.recv()
    child.join()
    return result


def _run(pipe: Any, name: str, images: np.ndarray, options: argparse.Namespace, precision: str) -> None:
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    clock = Clock(options.steps, options.warmup, options.device)
    with tempfile.TemporaryDirectory() as folder:
        METHODS[name](images, options, precision, clock, folder)
    used = torch.cuda.max_memory_allocated() if options.device == "cuda" else peak_memory()
    pipe.send(
        {
            "images_per_second": options.batch / clock.seconds,
            "cpu_ms_per_image": 1e3 * clock.cpu / options.batch,
            "first_step_seconds": clock.first,
            "peak_mb": used / 2**20,
        }
    )


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_images(path: Path | None, count: int) -> np.ndarray:
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    images = np.load(path)["x_train"]
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an .npz file with x_train")
    parser.add_argument("--images", type=int, default=5_000, help="of noise, without --data")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train_throughput.json")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    images = read_images(options.data, options.images)
    given = {name: value for name, value in vars(options).items() if name not in ("out", "data")}
    record: dict[str, Any] = {"provenance": provenance(0), "arguments": given, "by_precision": {}}
    record["load_before"] = os.getloadavg()[0]  # above 1: clocks are of a machine that others use
    for precision in options.precisions:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in options.methods}
        for _ in range(options.rounds):
            for name, runs in found.items():
                runs.append(in_child(name, images, options, precision))
                print(precision, name, {key: round(value, 2) for key, value in runs[-1].items()}, flush=True)
        record["by_precision"][precision] = {name: summary(runs, found.get("ceiling")) for name, runs in found.items()}
    record["load_after"] = os.getloadavg()[0]
    with whole_file(options.out) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")


def summary(runs: list[dict[str, float]], best: list[dict[str, float]] | None) -> dict[str, Any]:
    """Median and range over rounds, and the share of the ceiling of the same round."""
    shown: dict[str, Any] = {"n": len(runs)}
    for key in runs[0]:
        values = [run[key] for run in runs]
        shown[key] = {
            "median": round(statistics.median(values), 3),
            "range": [round(min(values), 3), round(max(values), 3)],
        }
    if best is not None:
        pairs = list(zip(runs, best, strict=True))
        shown["share_of_ceiling"] = [round(a["images_per_second"] / b["images_per_second"], 3) for a, b in pairs]
        shown["share_of_ceiling_by_cpu_time"] = [
            round(b["cpu_ms_per_image"] / a["cpu_ms_per_image"], 3) for a, b in pairs
        ]
    return shown


if __name__ == "__main__":
    main()
