"""Train the small reference models of the default run: digits, by supervision, SimCLR and Barlow Twins.

    python benchmarks/reference_models.py                 # about two minutes on one core; writes checkpoints/reference/

A narrow ResNet of four blocks on the 1,400 training digits; the held-out ones, which monitors look at, are not seen. The same
seed gives the same weights to the bit on one machine with one thread.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from quiet import quiet_trainer

from neigenmaps.data import digits_law
from neigenmaps.evaluation import knn_accuracy
from neigenmaps.files import whole_file
from neigenmaps.nn import BarlowTwins, NeuralEigenmapModel, Objective, SimCLR
from neigenmaps.provenance import provenance
from neigenmaps.training import EigenmapModule, ViewsDataModule
from neigenmaps.training.optimizers import build_optimizer, warmup_cosine

FOLDER = Path(__file__).parent.parent / "checkpoints" / "reference"
NETWORK = {
    "backbone": "resnet18",
    "stem": "cifar",
    "backbone_options": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 64]},
    "hidden": 128,
}
EPOCHS, BATCH, LR = 120, 256, 2e-3
OBJECTIVES = {"digits_simclr": SimCLR(temperature=0.2), "digits_barlow_twins": BarlowTwins(lambda_param=0.02)}


def digits(seed: int) -> ViewsDataModule:
    data = ViewsDataModule("digits", [digits_law()], BATCH, seed=seed)
    data.setup()
    return data


def self_supervised(objective: Objective, seed: int) -> NeuralEigenmapModel:
    torch.manual_seed(seed)
    module = EigenmapModule(**NETWORK, width=64, objective=objective, lr=LR)
    trainer = quiet_trainer(
        max_epochs=EPOCHS,
    )
    trainer.fit(module, datamodule=digits(seed))
    return module.model


def supervised(seed: int) -> NeuralEigenmapModel:
    """The projector's outputs are the logits of the ten classes."""
    torch.manual_seed(seed)
    data, model = digits(seed), NeuralEigenmapModel(**NETWORK, width=10)
    train = data.splits.train
    assert train.labels_N is not None
    steps = EPOCHS * (len(train) // BATCH)
    optimizer = build_optimizer(model, "adamw", lr=LR, weight_decay=1e-4)
    scheduler = warmup_cosine(optimizer, total_steps=steps, warmup_steps=steps // 10)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(len(train), generator=generator)[:BATCH]
        views_VBCHW = data.augmentation(train.images_NCHW[rows], generator)
        loss = F.cross_entropy(model(views_VBCHW.flatten(0, 1)).codes, train.labels_N[rows].repeat(len(views_VBCHW)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return model


def knn_of(model: NeuralEigenmapModel) -> float:
    train, test = digits(0).splits
    assert train.labels_N is not None
    assert test.labels_N is not None
    bank, queries = (model.encode(store.images_NCHW, space="backbone") for store in (train, test))
    return knn_accuracy(bank, train.labels_N, queries, test.labels_N, n_neighbors=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = {}
    for name in ("digits_supervised", *OBJECTIVES):
        objective = OBJECTIVES.get(name)
        model = supervised(arguments.seed) if objective is None else self_supervised(objective, arguments.seed)
        model.save_pretrained(arguments.out / name)
        facts[name] = knn_of(model)
        print(f"{name}: kNN {100 * facts[name]:.1f} %", flush=True)
    with whole_file(arguments.out / "provenance.json") as path:
        path.write_text(json.dumps({"knn_accuracy": facts} | provenance(arguments.seed), indent=2) + "\n")


if __name__ == "__main__":
    main()
