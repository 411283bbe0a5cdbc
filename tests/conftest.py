"""Data small enough for a whole training run within a test, on one thread."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

# tensors here are tiny; on a busy machine two threads waiting for each other take 50 times as long
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 handwritten digits to learn from and 30 held out, of 8x8 pixels, in an .npz file."""
    bunch = load_digits()
    images, labels = (bunch.images[:100] * (255 / 16)).astype(np.uint8), bunch.target[:100]
    path = tmp_path_factory.mktemp("data") / "few_digits.npz"
    np.savez(path, x_train=images[:70], y_train=labels[:70], x_test=images[70:], y_test=labels[70:])
    return path


@pytest.fixture(scope="session")
def finished(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    from cli_runs import make_config, train, write_config  # here, as most tests need no Lightning

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        train(["fit", "--config", write_config(make_config(few_digits, folder), folder), "--run.ritz_pairs=90"])
    return folder / "runs" / "tiny" / "v"


@pytest.fixture
def config(few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a run in the folder of the test, which is the working directory."""
    from cli_runs import make_config

    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    return make_config(few_digits, tmp_path)
