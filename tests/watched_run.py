"""A run of two epochs that AlignmentMonitor watched, and the pages that are made of it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import make_config, train, write_config
from sklearn.datasets import load_digits

REFERENCES = {"pixels": "pixels", "pca": "pca:8"}
MONITOR = {
    "class_path": "neigenmaps.training.AlignmentMonitor",
    "init_args": {"references": REFERENCES, "n_eigenvectors": 8, "n_permutations": 9, "n_neighbors": 8},
}


def watched_config(folder: Path) -> dict[str, Any]:
    """84 digits to learn from and 56 held-out ones."""
    bunch = load_digits()
    images = (bunch.images[:140] * (255 / 16)).astype(np.uint8)[:, None]
    np.savez(folder / "digits.npz", images=images, labels=bunch.target[:140])
    config = make_config(folder / "digits.npz", folder)
    config["data"]["test_share"] = 0.4
    config["trainer"]["callbacks"] = [MONITOR]
    config["model"]["lr"] = 1e-3  # two epochs at the usual rate look like a divergence
    return config


def train_watched(folder: Path, version: str = "v", **options: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        given = [f"--{name}={value}" for name, value in options.items()]
        train(["fit", "--config", write_config(watched_config(folder), folder), f"--run.version={version}", *given])
    return folder / "runs" / "tiny" / version
