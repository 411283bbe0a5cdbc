"""Data sets by name or path, as packed uint8 images in a train and a test part.

    digits                                 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn: no download
    mnist fashion_mnist cifar10 cifar100   through torchvision, from `root`
    stl10                                  as above; train holds 5,000 labelled images, then 100,000 with label -1
    some/file.npz                          arrays, see `neigenmaps.data.arrays`
    some/folder, some/shard.tar            image files, or WebDataset shards, see `neigenmaps.data.folders`

A label of -1 means unlabelled, everywhere. A name in this list wins over a folder of that name: write ./mnist for the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets as tv_datasets

from neigenmaps.data.arrays import load_npz, resize_and_crop
from neigenmaps.data.folders import load_folder
from neigenmaps.data.splits import DatasetSplits, split_rows
from neigenmaps.data.store import ImageStore
from neigenmaps.errors import DataError, InputError, UnknownNameError

DIGITS_TEST_ROWS = 397
DIGITS_WHITE = 16  # the digits count ink in 4 x 4 cells: 0 .. 16
Loader = Callable[[Path, bool], DatasetSplits]  # (root, download)


def load_splits(
    name: str,
    *,
    root: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    cache_dir: str | Path | None = None,
    test_share: float = 0.2,
    max_unreadable_share: float = 0.01,
) -> DatasetSplits:
    """The train and test part of the data set `name`, a known name or a path.

    `root` and `download` concern torchvision's data sets; `cache_dir` and `max_unreadable_share` folders of images and of
    shards; `test_share` what comes without a split of its own. `image_size` makes the images square (shorter side
    resized, centre kept); None keeps them, except in folders, where it stands for 64.

    Raises UnknownNameError for a name that is neither known nor a path, DataError if the data can't be used, InputError for
    an argument outside its range.
    """
    _check_arguments(image_size, test_share, max_unreadable_share)
    if name in DATASETS:
        return _resized(DATASETS[name](Path(root), download), image_size)
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".tar"):
        return load_folder(
            path,
            image_size=image_size,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            test_share=test_share,
            max_unreadable_share=max_unreadable_share,
        )
    if path.is_file() and path.suffix == ".npz":
        return load_npz(path, image_size=image_size, test_share=test_share)
    if path.exists():
        raise DataError(f"{path}: expected a folder of images, a .tar or an .npz file, got another kind of file")
    if path.suffix or os.sep in name or "/" in name:
        raise DataError(
            f"{path} does not exist; expected a folder of images or tar shards, an .npz file, or one of {sorted(DATASETS)}"
        )
    raise UnknownNameError("data set", name, DATASETS)


def _digits(root: Path, download: bool) -> DatasetSplits:
    bunch = load_digits()
    images_NCHW = torch.from_numpy(np.rint(bunch.images * 255 / DIGITS_WHITE).astype(np.uint8))[:, None]
    labels_N = torch.from_numpy(bunch.target.astype(np.int64))
    names = tuple(str(name) for name in bunch.target_names)
    train, test = split_rows(len(labels_N), labels_N.numpy(), DIGITS_TEST_ROWS, "digits")
    return DatasetSplits(
        ImageStore.from_tensors(images_NCHW[train], labels_N[train], class_names=names, source="digits/train"),
        ImageStore.from_tensors(images_NCHW[test], labels_N[test], class_names=names, source="digits/test"),
    )


def _mnist_like(kind: type[tv_datasets.MNIST], name: str, root: Path, download: bool) -> DatasetSplits:
    def part(train: bool) -> ImageStore:
        raw = _open_torchvision(name, root, lambda: kind(root, train=train, download=download))
        return _named(name, train, raw.data[:, None], raw.targets, raw.classes)

    return DatasetSplits(part(True), part(False))


def _cifar(kind: type[tv_datasets.CIFAR10], name: str, root: Path, download: bool) -> DatasetSplits:
    def part(train: bool) -> ImageStore:
        raw = _open_torchvision(name, root, lambda: kind(root, train=train, download=download))
        images_NCHW = torch.from_numpy(raw.data).permute(0, 3, 1, 2).contiguous()
        return _named(name, train, images_NCHW, torch.tensor(raw.targets), raw.classes)

    return DatasetSplits(part(True), part(False))


def _stl10(root: Path, download: bool) -> DatasetSplits:
    def part(train: bool) -> ImageStore:
        split = "train+unlabeled" if train else "test"
        raw = _open_torchvision("stl10", root, lambda: tv_datasets.STL10(root, split=split, download=download))
        images_NCHW = torch.from_numpy(np.ascontiguousarray(raw.data))  # stored column by column, so a transposed view
        classes = getattr(raw, "classes", [])  # torchvision takes them from a file that may be missing
        return _named("stl10", train, images_NCHW, torch.from_numpy(raw.labels.astype(np.int64)), classes)

    return DatasetSplits(part(True), part(False))


DATASETS: dict[str, Loader] = {
    "digits": _digits,
    "mnist": partial(_mnist_like, tv_datasets.MNIST, "mnist"),
    "fashion_mnist": partial(_mnist_like, tv_datasets.FashionMNIST, "fashion_mnist"),
    "cifar10": partial(_cifar, tv_datasets.CIFAR10, "cifar10"),
    "cifar100": partial(_cifar, tv_datasets.CIFAR100, "cifar100"),
    "stl10": _stl10,
}


def _open_torchvision(name: str, root: Path, make: Callable[[], Any]) -> Any:
    try:
        return make()
    # RuntimeError: missing, or md5 differs; OSError: network or disk; the others: MNIST files cut short
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise DataError(
            f"{name}: can't be loaded from {root.resolve()} ({error}). Pass download=True (configuration key "
            "`data.download: true`), or place the data set's files there"
        ) from error


def _named(name: str, train: bool, images_NCHW: Tensor, labels_N: Tensor, classes: list[str]) -> ImageStore:
    source = f"{name}/{'train' if train else 'test'}"
    return ImageStore.from_tensors(images_NCHW, labels_N.long(), class_names=classes, source=source)


def _resized(splits: DatasetSplits, image_size: int | None) -> DatasetSplits:
    return DatasetSplits(*(_resized_store(store, image_size) for store in splits))


def _resized_store(store: ImageStore, image_size: int | None) -> ImageStore:
    if image_size is None or store.images_NCHW.shape[-2:] == (image_size, image_size):
        return store
    images_NCHW = resize_and_crop(store.images_NCHW, image_size)
    return ImageStore.from_tensors(
        images_NCHW, store.labels_N, class_names=store.class_names, source=f"{store.source} at {image_size} px"
    )


def _check_arguments(image_size: int | None, test_share: float, max_unreadable_share: float) -> None:
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size: expected a number of pixels >= 1 or None, got {image_size}")
    if not 0 < test_share < 1:
        raise InputError(f"test_share: expected a share within (0, 1), got {test_share}")
    if not 0 <= max_unreadable_share <= 1:
        raise InputError(f"max_unreadable_share: expected a share within [0, 1], got {max_unreadable_share}")
