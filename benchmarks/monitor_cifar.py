"""Do self-supervised encoders of real photographs converge toward one another, and toward supervised networks?

    python benchmarks/monitor_cifar.py --data FOLDER --runs FOLDER            # trains, about 25 minutes on one core
    python benchmarks/monitor_cifar.py --data FOLDER --runs FOLDER --report   # JSON, tables and picture of finished runs

CIFAR-10 as JPEG of quality 75: 10,000 images to train on, 1,000 held-out ones as probe set. A narrow ResNet-10 (1.2 million weights),
312 steps of 256 images: eight passes, so an early look at convergence, not its end. Three objectives with three seeds each; network,
optimiser, views and order of the images are the same. References: four supervised ResNets, pixels and their principal components.
"""

import argparse
import io
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from multiway_data import resnet_features
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from neigenmaps.data import ImageStore, ViewLaw
from neigenmaps.errors import IdentifiabilityWarning
from neigenmaps.evaluation import knn_accuracy
from neigenmaps.evaluation.references import PixelReference, Reference
from neigenmaps.files import whole_file
from neigenmaps.nn import BarlowTwins, NestedLowRank, NeuralEigenmapModel, Objective, SimCLR
from neigenmaps.provenance import provenance
from neigenmaps.training import AlignmentMonitor, EigenmapModule, ViewsDataModule

RESULTS = Path(__file__).parent / "results"
N_TRAIN, N_PROBE, BATCH, EPOCHS = 10_000, 1_000, 256, 8
NETWORKS = ("resnet20", "resnet32", "resnet44", "resnet56")
LAW = ViewLaw(
    crop_scale=(0.3, 1.0),
    flip=0.5,
    jitter_prob=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale=0.2,
)


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
        "resnet10t",
        in_chans=3,
        image_size=32,
        width=64,
        hidden=256,
        pixel_mean=(0.4914, 0.4822, 0.4465),
        pixel_std=(0.2470, 0.2435, 0.2616),
        backbone_options={"channels": [32, 64, 128, 256], "stem_width": 16},
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
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10_jpeg and cifar10_models")
    parser.add_argument("--runs", type=Path, required=True, help="folder for what is trained; finished runs are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
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
