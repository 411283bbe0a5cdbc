"""Data small enough for a whole training run within a test, on one thread."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

torch.set_num_threads(
    1
)  # tensors here are tiny; on a busy machine two threads waiting for each other take 50 times as long


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 handwritten digits to learn from and 30 held out, of 8x8 pixels, in an .npz file."""
    bunch = load_digits()
    images, labels = (bunch.images[:100] * (255 / 16)).astype(np.uint8), bunch.target[:100]
    path = tmp_path_factory.mktemp("data") / "few_digits.npz"
    np.savez(path, x_train=images[:70], y_train=labels[:70], x_test=images[70:], y_test=labels[70:])
    return path
