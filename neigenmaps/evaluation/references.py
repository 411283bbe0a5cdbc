"""Models to compare with: anything that turns the probe set's images into rows of features.

    parse_reference("pixels")                       the images themselves
    parse_reference("pca:32")                       their leading principal components
    parse_reference("laplacian_eigenmap:50")        eigenfunctions of their neighbour graph
    parse_reference("shipped:digits_simclr")            a small model that comes with the package
    parse_reference("path/to/model")                a folder of ours, by its backbone; "path#eigenmap" for another space
    parse_reference("path/to/features.safetensors") a FeatureSet, or an .npz, of a model that cannot run here
    TimmReference("resnet18", weights="resnet18.safetensors", image_size=224)
    ConstructedReference("package.module:make_network", weights="weights.safetensors", arguments={"depth": 20})

Weights are read from safetensors, so that no pickled code runs; the constructor of a ConstructedReference is code that
the user names, imported as any other.
"""

from __future__ import annotations

import importlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from neigenmaps import files
from neigenmaps.data import ImageStore
from neigenmaps.errors import (
    CheckpointError,
    InputError,
    NonFiniteError,
    RowMismatchError,
    ShapeError,
    UnknownNameError,
)
from neigenmaps.evaluation.baselines import flatten_images, principal_components
from neigenmaps.features import FeatureSet, fingerprint_rows
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.nn.encoders import build_backbone, evaluation_mode
from neigenmaps.nn.weights import check_weights
from neigenmaps.spectral import laplacian_eigenbasis, neighbor_graph
from neigenmaps.types import Space

BATCH = 256  # images of one forward pass
SHIPPED = Path("checkpoints") / "reference"  # in a checkout


class Reference(ABC):
    """Something that embeds images; `key` changes whenever its features would."""

    @abstractmethod
    def embed(self, images: ImageStore) -> Tensor:
        """Features (N, F), float32, on the CPU, a row for every image."""

    @abstractmethod
    def key(self) -> str:
        """What the features depend on beside the images: settings, and a digest of weights."""

    def features(self, images: ImageStore) -> FeatureSet:
        """`embed`, checked: a row for every image, all finite.

        Raises:
            ShapeError: another number of rows. NonFiniteError: NaN or infinity, with the first bad row.
        """
        rows_NF = self.embed(images)
        if rows_NF.ndim != 2 or len(rows_NF) != len(images):
            raise ShapeError(f"{self.key()}: expected {len(images)} rows of features, got shape {tuple(rows_NF.shape)}")
        finite_N = torch.isfinite(rows_NF).all(dim=1)
        if not finite_N.all():
            bad = int((~finite_N).nonzero()[0])
            raise NonFiniteError(
                f"{self.key()}: features of image {bad} are NaN or infinite ({int((~finite_N).sum())} rows in all): "
                "look at its weights and preprocessing"
            )
        return FeatureSet(
            rows_NF, fingerprint_rows(images.images_NCHW), images.labels_N, provenance={"key": self.key()}
        )


@dataclass(frozen=True)
class PixelReference(Reference):
    """The images themselves; with n_components, their leading principal components."""

    n_components: int | None = None

    def embed(self, images: ImageStore) -> Tensor:
        pixels_NF = flatten_images(images.images_NCHW)
        if self.n_components is None:
            return pixels_NF
        return principal_components(pixels_NF, n_components=self.n_components)[0]

    def key(self) -> str:
        return "pixels" if self.n_components is None else f"pca:{self.n_components}"


@dataclass(frozen=True)
class LaplacianEigenmapReference(Reference):
    """Smoothest functions on the neighbour graph of the pixels, the constant one left out."""

    n_components: int = 32
    n_neighbors: int = 30

    def embed(self, images: ImageStore) -> Tensor:
        graph = neighbor_graph(flatten_images(images.images_NCHW), min(self.n_neighbors, len(images) - 1))
        return laplacian_eigenbasis(graph, self.n_components + 1).eigenvectors_NK[:, 1:].float()

    def key(self) -> str:
        return f"laplacian_eigenmap:{self.n_components}:{self.n_neighbors}"


@dataclass(frozen=True)
class ModelReference(Reference):
    """A model of ours: a folder written by `save_pretrained`, or a run folder that holds one in `model/`."""

    folder: str
    space: Space = "backbone"

    def embed(self, images: ImageStore) -> Tensor:
        return NeuralEigenmapModel.from_pretrained(self._folder()).encode(images.images_NCHW, space=self.space).cpu()

    def key(self) -> str:
        return f"model:{self.space}:{file_digest(self._folder() / 'model.safetensors')}"

    def _folder(self) -> Path:
        folder = Path(self.folder)
        return folder / "model" if (folder / "model" / "config.json").is_file() else folder


@dataclass(frozen=True)
class FeatureReference(Reference):
    """Features that were saved: a FeatureSet, or an .npz with `embeddings` and `row_fingerprint`, which is optional.

    Rows are compared by fingerprint. An .npz without one can only be held to the number of rows; `trust_rows` says that
    the order is known to be right.
    """

    path: str
    trust_rows: bool = False

    def embed(self, images: ImageStore) -> Tensor:
        rows_NF, fingerprint = self._read()
        if fingerprint is None and not self.trust_rows:
            raise RowMismatchError(
                f"{self.path} does not say which rows it holds: add an entry row_fingerprint "
                "(neigenmaps.features.fingerprint_rows of the images), or set trust_rows if their order is surely the same"
            )
        if fingerprint is not None and fingerprint != fingerprint_rows(images.images_NCHW):
            raise RowMismatchError(
                f"{self.path} holds features of other images, or in another order, than the probe set of {len(images)} "
                "images: embed the probe set anew"
            )
        return rows_NF

    def key(self) -> str:
        return f"features:{file_digest(Path(self.path))}"

    def _read(self) -> tuple[Tensor, str | None]:
        path = Path(self.path)
        if path.suffix != ".npz":
            saved = FeatureSet.load(path)
            return saved.embeddings_NF.float(), saved.row_fingerprint
        try:
            with np.load(path, allow_pickle=False) as file:
                rows_NF = torch.from_numpy(np.asarray(file["embeddings"], dtype=np.float32))
                return rows_NF, str(file["row_fingerprint"]) if "row_fingerprint" in file else None
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"expected an .npz with an array 'embeddings' (N, F) in {path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class NetworkReference(Reference):
    """A network with weights in a safetensors file, and what has to be done to images before it sees them.

    image_size: side that images are resized to (bilinear, antialiased); None leaves them. pixel_mean, pixel_std: per
    channel, on [0, 1]. Images with one channel are repeated for networks whose pixel_mean has three.
    output: name of a submodule whose output is taken instead of the network's.
    """

    weights: str
    image_size: int | None = None
    pixel_mean: Sequence[float] = (0.485, 0.456, 0.406)
    pixel_std: Sequence[float] = (0.229, 0.224, 0.225)
    output: str | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with random weights: (B, C, H, W) -> (B, F)."""

    def embed(self, images: ImageStore) -> Tensor:
        network = self.build()
        state = _weights(self.weights)
        complaint = f"{self.weights} holds weights of another network"
        check_weights(network, state, complaint, optional="num_batches_tracked")
        network.load_state_dict(state, strict=False)
        parts: list[Tensor] = []
        tapped = self._output_of(network)
        hook = tapped.register_forward_hook(lambda module, given, output: parts.append(output.flatten(1).float()))
        with evaluation_mode(network), hook:
            for images_BCHW in images.images_NCHW.split(BATCH):
                network(self.preprocess(images_BCHW))
        return torch.cat(parts)

    def _output_of(self, network: nn.Module) -> nn.Module:
        modules = dict(network.named_modules())
        if self.output is None:
            return network
        if self.output not in modules:
            raise UnknownNameError("submodule", self.output, filter(None, modules))
        return modules[self.output]

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """uint8 -> normalised float32, as the network was trained to see them."""
        channels = len(self.pixel_mean)
        pixels = images_BCHW.float() / 255
        if pixels.shape[1] == 1 and channels > 1:
            pixels = pixels.expand(-1, channels, -1, -1)
        if pixels.shape[1] != channels or len(self.pixel_std) != channels:
            raise ShapeError(
                f"{self.key()}: expected pixel_mean and pixel_std for {pixels.shape[1]} channels, got {channels} and "
                f"{len(self.pixel_std)}"
            )
        if self.image_size is not None and pixels.shape[2:] != (self.image_size, self.image_size):
            pixels = F.interpolate(pixels, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(list(values))[:, None, None] for values in (self.pixel_mean, self.pixel_std))
        return (pixels - mean) / std

    def key(self) -> str:
        settings = {name: value for name, value in asdict(self).items() if name != "weights"}
        return f"{type(self).__name__}:{json.dumps(settings, sort_keys=True)}:{file_digest(Path(self.weights))}"


@dataclass(frozen=True)
class TimmReference(NetworkReference):
    """Any of timm's networks, without its head, by weights on disk."""

    backbone: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        return build_backbone(self.backbone, in_chans=len(self.pixel_mean), options=self.options)


@dataclass(frozen=True)
class ConstructedReference(NetworkReference):
    """A network made by a callable of the user's own, named as "package.module:callable"."""

    constructor: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        network = _import_callable(self.constructor)(**self.arguments)
        if not isinstance(network, nn.Module):
            raise InputError(f"expected {self.constructor} to make a torch.nn.Module, got {type(network).__name__}")
        return network


def parse_reference(text: str) -> Reference:
    """A reference by a short text: see the head of this module. InputError when nothing fits."""
    kind, _, number = text.partition(":")
    if kind in ("pca", "laplacian_eigenmap") and number.isdigit() and int(number) > 0:
        return PixelReference(int(number)) if kind == "pca" else LaplacianEigenmapReference(int(number))
    if text == "pixels":
        return PixelReference()
    path, _, space = (shipped_model(number) if kind == "shipped" else text).partition("#")
    if Path(path).suffix in (".safetensors", ".npz") and Path(path).is_file():
        return FeatureReference(path)
    if Path(path).is_dir():
        if space and space not in get_args(Space):
            raise InputError(f"expected a space {', '.join(get_args(Space))} after '#', got {space!r} in {text!r}")
        return ModelReference(path, cast(Space, space or "backbone"))
    raise InputError(
        "expected a reference 'pixels', 'pca:N', 'laplacian_eigenmap:N', 'shipped:NAME', a model folder, or a .safetensors or "
        f".npz file of features, got {text!r}, which is none of these or does not exist; for other networks use TimmReference "
        "or ConstructedReference by class_path"
    )


def shipped_model(name: str) -> str:
    """Folder of a small model that comes with the package: in an installed one, or in a checkout.

    CheckpointError names those that are there.
    """
    package = Path(__file__).parent.parent
    folders = [
        package / "reference_models",
        package.parent / SHIPPED,
        SHIPPED,
        Path(sys.argv[0]).resolve().parent / SHIPPED,
    ]
    found = {one.parent.name: one.parent for folder in folders for one in folder.glob("*/config.json")}
    bare, mark, space = name.partition("#")
    if bare not in found:
        there = (
            f"there are {', '.join(sorted(found))}"
            if found
            else f"there is no {SHIPPED} beside the package or the script"
        )
        raise CheckpointError(
            f"expected a shipped model called {bare!r}; {there}: run from a checkout, or train them with "
            "`python benchmarks/reference_models.py`, or leave the reference out"
        )
    return f"{found[bare]}{mark}{space}"


def _weights(path: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"expected weights as a safetensors file in {path}: {error}") from error


def file_digest(path: Path) -> str:
    """Sixteen digits that change with the file's contents. CheckpointError when there is no file."""
    if not path.is_file():
        raise CheckpointError(f"expected a file at {path}, found none: a reference needs its weights or features")
    return files.file_digest(path)[:16]


def _import_callable(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"expected a constructor as 'package.module:callable', got {name!r}: {error}") from error
    if not callable(found):
        raise InputError(f"expected {name!r} to be callable, got {type(found).__name__}")
    return found
