"""Data sets that come as arrays in an `.npz` file, and the resizing of images that are already in memory."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from neigenmaps.data.splits import DatasetSplits, split_rows
from neigenmaps.data.store import ImageStore
from neigenmaps.errors import DataError, NonFiniteError

PART_KEYS = (  # images and labels of train, then of test
    (("train_images", "train_labels"), ("test_images", "test_labels")),
    (("x_train", "y_train"), ("x_test", "y_test")),  # Keras' mnist.npz
)
CHANNELS = (1, 3)
RESIZE_ROWS = 1024  # bounds the memory of a resize


def load_npz(path: Path, *, image_size: int | None, test_share: float) -> DatasetSplits:
    """Splits from `images` and optional `labels`, or from explicit train and test arrays (`PART_KEYS`).

    Images are uint8, or floating point in [0, 1], of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3. Labels are
    integers, -1 for a row without one. Raises DataError for anything else, NonFiniteError for NaN or infinity.
    """
    arrays = _read(path)
    for (train_images, train_labels), (test_images, test_labels) in PART_KEYS:
        if train_images in arrays and test_images in arrays:
            return DatasetSplits(
                _store(arrays, train_images, train_labels, f"{path}/{train_images}", image_size),
                _store(arrays, test_images, test_labels, f"{path}/{test_images}", image_size),
            )
    if "images" not in arrays:
        raise DataError(
            f"{path}: expected `images` (and `labels`), or train_images and test_images, or x_train and x_test; "
            f"got {', '.join(sorted(arrays)) or 'nothing'}"
        )
    whole = _store(arrays, "images", "labels", str(path), image_size)
    labels_N = None if whole.labels_N is None else whole.labels_N.numpy()
    train, test = split_rows(len(whole), labels_N, test_share, str(path))
    return DatasetSplits(whole.subset(torch.from_numpy(train)), whole.subset(torch.from_numpy(test)))


def resize_and_crop(images_NCHW: Tensor, size: int) -> Tensor:
    """Shorter side to `size` (bicubic, antialiased), then the centre square; uint8 stays uint8."""
    if images_NCHW.shape[-2:] == (size, size):
        return images_NCHW
    height, width = images_NCHW.shape[-2:]
    shorter = min(height, width)
    new_size = [max(size, round(height * size / shorter)), max(size, round(width * size / shorter))]
    parts = [
        tv.center_crop(tv.resize(part, new_size, interpolation=InterpolationMode.BICUBIC, antialias=True), [size, size])
        for part in images_NCHW.split(RESIZE_ROWS)
    ]
    return torch.cat(parts)


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as file:  # opened here, because numpy leaves it open when the archive is damaged
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                archive = {"a single array": archive}  # the caller names what it found and what it expected
            return {key: archive[key] for key in archive}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, ValueError) as error:  # ValueError: pickled objects
        raise DataError(f"{path}: no readable .npz file without pickled objects ({error}). Save it again") from error


def _store(
    arrays: Mapping[str, npt.NDArray[Any]], images_key: str, labels_key: str, source: str, image_size: int | None
) -> ImageStore:
    images_NCHW = torch.from_numpy(_as_bytes(_channels_first(arrays[images_key], source), source))
    if image_size is not None and images_NCHW.numel():
        images_NCHW = resize_and_crop(images_NCHW, image_size)
    labels_N = _as_labels(arrays[labels_key], source) if labels_key in arrays else None
    return ImageStore.from_tensors(images_NCHW, labels_N, source=source)


def _channels_first(images: npt.NDArray[Any], source: str) -> npt.NDArray[Any]:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        first, last = images.shape[1] in CHANNELS, images.shape[3] in CHANNELS
        if first and last:
            raise DataError(
                f"{source}: either axis 1 or axis 3 of {images.shape} could hold the channels. Store (N, H, W)"
            )
        if first:
            return images
        if last:
            return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise DataError(f"{source}: expected (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3, got {images.shape}")


def _as_bytes(images: npt.NDArray[Any], source: str) -> npt.NDArray[np.uint8]:
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{source}: expected uint8 images, or floating point ones in [0, 1], got {images.dtype}")
    if not np.isfinite(images).all():
        raise NonFiniteError(f"{source}: expected finite images, got NaN or infinity. Repair or drop those rows")
    if images.size and (images.min() < 0 or images.max() > 1):
        raise DataError(
            f"{source}: expected values in [0, 1], got {images.min()} .. {images.max()}. Scale, or store uint8"
        )
    return np.rint(images * 255).astype(np.uint8)


def _as_labels(labels: npt.NDArray[Any], source: str) -> Tensor:
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{source}: expected integer labels, got {labels.dtype}. Number the classes from 0")
    if labels.ndim == 2 and labels.shape[1] == 1:  # MedMNIST
        labels = labels[:, 0]
    return torch.from_numpy(labels.astype(np.int64))
