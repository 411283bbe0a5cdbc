"""Views per second: the batched augmentation beside what trains image encoders elsewhere, the same law for all.

    python benchmarks/augmentation_speed.py                  # 1 CPU core: 3 minutes; Kornia takes part where it is installed

    neigenmaps    BatchAugmentation(simclr_cifar_law()), a batch of uint8 images at once
    lightly       its SimCLRTransform without blur, image by image (PIL), as its DataLoader's workers run it
    torchvision   the same operations of `torchvision.transforms`, image by image (PIL)
    kornia        its own operations for batches, every image with its own parameters

Crop, flip, colour jitter and grey, two views of each image, without normalisation where that can be left out. Methods alternate
within a round, and CPU seconds are counted on one thread: loaders share them among their workers, ours among its threads.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from torchvision import transforms

from neigenmaps.data import BatchAugmentation, simclr_cifar_law
from neigenmaps.files import whole_file
from neigenmaps.provenance import provenance

try:
    import kornia.augmentation
except ImportError:
    kornia = None

VIEWS = 2
Call = Callable[[], Any]


def ours(images_BCHW: torch.Tensor) -> Call:
    augment, generator = BatchAugmentation(simclr_cifar_law(), n_views=VIEWS), torch.Generator().manual_seed(0)
    return lambda: augment(images_BCHW, generator)


def of_lightly(images_BCHW: torch.Tensor) -> Call:
    transform = SimCLRTransform(input_size=images_BCHW.shape[-1], gaussian_blur=0.0, cj_strength=0.5)
    pictures = as_pictures(images_BCHW)
    return lambda: [torch.stack(views) for views in zip(*map(transform, pictures), strict=True)]


def of_torchvision(images_BCHW: torch.Tensor) -> Call:
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = transforms.RandomResizedCrop(images_BCHW.shape[-1], (0.2, 1.0))
    steps = [crop, transforms.RandomHorizontalFlip(), jitter, transforms.RandomGrayscale(0.2), transforms.ToTensor()]
    transform, pictures = transforms.Compose(steps), as_pictures(images_BCHW)
    return lambda: [torch.stack([transform(picture) for picture in pictures]) for _ in range(VIEWS)]


def of_kornia(images_BCHW: torch.Tensor) -> Call:
    K, size = kornia.augmentation, images_BCHW.shape[-1]
    transform = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
    )
    return lambda: transform(images_BCHW.repeat(VIEWS, 1, 1, 1).float() / 255)


def as_pictures(images_BCHW: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0))) for image in images_BCHW]


METHODS = {"neigenmaps": ours, "lightly": of_lightly, "torchvision": of_torchvision} | (
    {"kornia": of_kornia} if kornia else {}
)


def views_per_cpu_second(call: Call, images: int, seconds: float) -> float:
    """Of as many calls as fit."""
    calls, started, clock = 0, time.process_time(), time.process_time()
    while clock - started < seconds:
        call()
        calls, clock = calls + 1, time.process_time()
    return calls * VIEWS * images / (clock - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 96, 224], help="sides of the images in pixels")
    parser.add_argument("--pixels", type=int, default=256 * 32 * 32, help="of a batch, over all its images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of CPU time for each method and round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "augmentation_speed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"provenance": provenance(0), "load_before": os.getloadavg()[0], "by_size": {}}
    record["kornia"] = kornia.__version__ if kornia else None
    for size in options.sizes:
        batch = max(8, options.pixels // size**2)
        images_BCHW = torch.randint(
            0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        calls = {name: method(images_BCHW) for name, method in METHODS.items()}
        for call in calls.values():
            call()
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.rounds):
            for name, call in calls.items():
                found[name].append(views_per_cpu_second(call, batch, options.seconds))
        record["by_size"][size] = {"batch": batch} | {
            name: {
                "views_per_cpu_second": round(statistics.median(rates)),
                "range": [round(min(rates)), round(max(rates))],
                "ours_times_as_fast": round(
                    statistics.median(a / b for a, b in zip(found["neigenmaps"], rates, strict=True)), 2
                ),
                "n": len(rates),
            }
            for name, rates in found.items()
        }
        print(size, record["by_size"][size], flush=True)
    with whole_file(options.out) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
