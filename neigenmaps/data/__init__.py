"""Images: a packed uint8 store, data sets by name or folder, augmentation of whole batches on the device."""

from neigenmaps.data.augmentation import BatchAugmentation, apply_augmentation
from neigenmaps.data.datasets import load_splits
from neigenmaps.data.laws import SmallViews, ViewLaw, byol_laws, digits_law, mnist_law, simclr_cifar_law
from neigenmaps.data.packing import StoreWriter, write_store
from neigenmaps.data.parameters import AugmentationParameters, LawAssignment, sample_parameters
from neigenmaps.data.rows import ImageRows, open_rows, read_image
from neigenmaps.data.splits import DatasetSplits
from neigenmaps.data.store import ImageStore, open_store

__all__ = [
    "AugmentationParameters",
    "BatchAugmentation",
    "DatasetSplits",
    "ImageRows",
    "ImageStore",
    "LawAssignment",
    "SmallViews",
    "StoreWriter",
    "ViewLaw",
    "apply_augmentation",
    "byol_laws",
    "digits_law",
    "load_splits",
    "mnist_law",
    "open_rows",
    "open_store",
    "read_image",
    "sample_parameters",
    "simclr_cifar_law",
    "write_store",
]
