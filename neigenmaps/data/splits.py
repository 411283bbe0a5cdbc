"""Train and test parts, and the split that makes them where a data set comes in one piece."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from neigenmaps.data.store import ImageStore
from neigenmaps.errors import DataError

SPLIT_SEED = 0  # of its own: the parts must not change with the seed of a training run


class DatasetSplits(NamedTuple):
    train: ImageStore
    test: ImageStore


def split_rows(
    n_rows: int, labels_N: npt.NDArray[np.int64] | None, test_size: int | float, source: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row indices of train and test in rising order, always the same for the same input.

    Stratified by label where that is possible: every class has two rows and each part has room for every class.
    Raises DataError if one part would be empty.
    """
    n_test = test_size if isinstance(test_size, int) else max(1, round(test_size * n_rows))
    if not 0 < n_test < n_rows:
        raise DataError(f"{source}: expected enough images to split in two, got {n_rows} and a test part of {n_test}")
    stratify = labels_N if labels_N is not None and _can_stratify(labels_N, n_test) else None
    rows = train_test_split(np.arange(n_rows), test_size=n_test, random_state=SPLIT_SEED, stratify=stratify)
    return np.sort(rows[0]), np.sort(rows[1])


def _can_stratify(labels_N: npt.NDArray[np.int64], n_test: int) -> bool:
    counts = np.unique(labels_N, return_counts=True)[1]
    return bool(counts.min() >= 2 and len(counts) <= min(n_test, len(labels_N) - n_test))
