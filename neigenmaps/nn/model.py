"""The model people keep: images in, ordered eigenfunctions out, cut to any length."""

import contextlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neigenmaps.errors import CheckpointError, InputError, NonFiniteError, NotFittedError, ShapeError
from neigenmaps.files import file_digest, whole_file
from neigenmaps.freed_memory import freed_memory_kept
from neigenmaps.functional.rayleigh_ritz import RitzResult
from neigenmaps.nn.encoders import build_backbone, build_projector, evaluation_mode, feature_width
from neigenmaps.nn.weights import check_weights
from neigenmaps.types import Scaling, Space, Stem

MANY_IMAGES = 64  # to keep memory for fewer takes longer than it saves


class Outputs(NamedTuple):
    """features: (B, F) before the projector. codes: (B, K) the projector's raw outputs, as the objective sees them."""

    features: Tensor
    codes: Tensor


class NeuralEigenmapModel(nn.Module):
    """Backbone, projector, and the rotation that puts the learned functions in exact order.

    `forward` is what training calls. `encode` is what everybody else calls: it applies the rotation found by
    Rayleigh-Ritz,

        phi(x) = (f(x) - mean) @ rotation        falling eigenvalues, so that `dims=m` is the best code of m numbers

    in_chans, image_size: of the images it will see, which are square. width: K, how many functions.
    hidden: width of the projector's hidden layer. row_power: sum of squares of every image's outputs (`of_row_power`; None: any).
    pixel_mean, pixel_std: per channel, on [0, 1]; one number serves all channels.
    """

    ritz_rotation: Tensor
    ritz_mean: Tensor
    eigenvalues: Tensor
    ritz_rank: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: str = "digits_cnn",
        *,
        stem: Stem = "default",
        in_chans: int = 1,
        image_size: int = 8,
        width: int = 128,
        hidden: int = 512,
        row_power: float | None = None,
        pixel_mean: Sequence[float] = (0.5,),
        pixel_std: Sequence[float] = (0.5,),
        backbone_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if width < 1 or hidden < 1:
            raise InputError(f"expected a width and a hidden width of at least 1, got {width} and {hidden}")
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "stem": stem,
            "in_chans": in_chans,
            "image_size": image_size,
            "width": width,
            "hidden": hidden,
            "row_power": row_power,
            "pixel_mean": list(pixel_mean),
            "pixel_std": list(pixel_std),
            "backbone_options": dict(backbone_options or {}),
        }
        self.backbone = build_backbone(backbone, stem=stem, in_chans=in_chans, options=backbone_options)
        self.num_features = feature_width(self.backbone, in_chans, image_size)
        self.projector = build_projector(self.num_features, hidden, width, row_power)
        self.register_buffer("pixel_mean", _per_channel("pixel_mean", pixel_mean, in_chans))
        if not min(pixel_std) > 0:
            raise InputError(f"pixel_std: expected numbers above 0, got {list(pixel_std)}")
        self.register_buffer("pixel_std", _per_channel("pixel_std", pixel_std, in_chans))
        self.register_buffer("ritz_rotation", torch.zeros(width, width))
        self.register_buffer("ritz_mean", torch.zeros(width))
        self.register_buffer("eigenvalues", torch.zeros(width))
        self.register_buffer("ritz_rank", torch.zeros((), dtype=torch.int64))

    def forward(self, images_BCHW: Tensor) -> Outputs:
        """Images as float in [0, 1], or uint8; several views of a batch belong into one call, to share BatchNorm statistics."""
        features = self.backbone(self._normalised(images_BCHW))
        return Outputs(features, self.projector(features))

    def set_ritz(self, ritz: RitzResult) -> None:
        """Store the rotation that orders the outputs; directions beyond its rank become zero."""
        width, rank = self.ritz_rotation.shape[0], ritz.rank
        if ritz.rotation.shape != (width, rank):
            raise ShapeError(f"expected a rotation of shape ({width}, {rank}), got {tuple(ritz.rotation.shape)}")
        self.ritz_rotation.zero_()[:, :rank] = ritz.rotation
        self.eigenvalues.zero_()[:rank] = ritz.eigenvalues
        self.ritz_mean.copy_(ritz.mean)
        self.ritz_rank.fill_(rank)

    def encode(
        self,
        images: Tensor | np.ndarray,
        dims: int | None = None,
        space: Space = "eigenmap",
        *,
        scaling: Scaling = "sqrt_eigenvalue",
        batch_size: int = 512,
        truncate_dim: int | None = None,
    ) -> Tensor:
        """Codes of images, without augmentation, in evaluation mode: (N, C, H, W) -> (N, dims) on the model's device.

        images: uint8, or float in [0, 1]; tensor or array. dims: the first so many numbers; all of them when None.
        truncate_dim: `dims` under the name that sentence-transformers gives it.
        space: "eigenmap" the ordered eigenfunctions, "projector" the raw outputs, "backbone" the features before the
        projector. scaling: of eigenmap codes: "sqrt_eigenvalue" makes inner products the kernel truncated at `dims`,
        "unit" gives every function variance 1.
        Errors: NotFittedError before Rayleigh-Ritz has run; ShapeError, NonFiniteError, InputError for what is not
        images. Images of another size than in training are refused, not resized: convolutions would take them, and
        give codes of another scale of detail.
        """
        if dims is not None and truncate_dim is not None:
            raise InputError(f"dims and truncate_dim mean the same, got {dims} and {truncate_dim}: give one of them")
        images = self._checked(_as_tensor(images))
        dims = self._checked_dims(truncate_dim if dims is None else dims, space)
        if batch_size < 1:
            raise InputError(f"expected a batch_size of at least 1, got {batch_size}")
        keeping = freed_memory_kept(self.pixel_mean.device) if len(images) >= MANY_IMAGES else contextlib.nullcontext()
        with evaluation_mode(self), keeping:
            return torch.cat([self._encode_batch(part, space, scaling)[:, :dims] for part in images.split(batch_size)])

    def order(
        self, codes_NK: Tensor, dims: int | None = None, *, scaling: Scaling = "sqrt_eigenvalue", batch_size: int = 512
    ) -> Tensor:
        """The projector's raw outputs as ordered eigenfunctions, (N, K) -> (N, dims): what `encode` gives for the same images.

        One pass of `encode(images, space="projector")` so serves both spaces, and all lengths and scalings.
        Errors: NotFittedError before Rayleigh-Ritz has run; ShapeError for another width; InputError for dims.
        """
        width = int(self.config["width"])
        if codes_NK.ndim != 2 or codes_NK.shape[1] != width:
            raise ShapeError(f"expected the projector's outputs (N, {width}), got {tuple(codes_NK.shape)}")
        dims = self._checked_dims(dims, "eigenmap")
        parts = codes_NK.to(self.ritz_rotation.device).split(batch_size)
        return torch.cat([self._ordered(part, scaling)[:, :dims] for part in parts])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors`, and `config.json` with its checksum, into a folder, each whole or not at all."""
        folder = Path(folder)
        with whole_file(folder / "model.safetensors") as weights, whole_file(folder / "config.json") as config:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, weights)
            record = {"neigenmaps": self.config, "sha256": file_digest(weights)}
            config.write_text(json.dumps(record, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The model of a folder written by `save_pretrained`; runs no pickled code.

        CheckpointError when it does not fit, or when its weights are not those that were saved (older folders have no checksum).
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / "config.json").read_text())
            config = dict(record["neigenmaps"])
            state = load_file(folder / "model.safetensors")
            digest = file_digest(folder / "model.safetensors")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"expected a folder with config.json and model.safetensors written by save_pretrained in {folder}: {error}"
            ) from error
        if record.get("sha256", digest) != digest:
            raise CheckpointError(
                f"the weights in {folder / 'model.safetensors'} are not those that were saved with its config.json: damaged, "
                "or replaced; copy both files again"
            )
        try:
            model = cls(**config)
        except (InputError, TypeError) as error:
            raise CheckpointError(f"{folder / 'config.json'} describes no model of this version: {error}") from error
        model.load_weights(state)
        return model

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load a state dict; CheckpointError lists missing, unexpected and misshapen entries."""
        check_weights(self, state, "these weights belong to another model")
        self.load_state_dict(dict(state))

    def _encode_batch(self, images_BCHW: Tensor, space: Space, scaling: Scaling) -> Tensor:
        images_BCHW = images_BCHW.to(self.pixel_mean.device)
        outputs = self(images_BCHW if images_BCHW.dtype == torch.uint8 else images_BCHW.to(self.pixel_mean.dtype))
        if space == "backbone":
            return outputs.features.float()
        if space == "projector":
            return outputs.codes.float()
        return self._ordered(outputs.codes, scaling)

    def _ordered(self, codes_NK: Tensor, scaling: Scaling) -> Tensor:
        codes = (codes_NK.float() - self.ritz_mean) @ self.ritz_rotation
        if scaling == "unit":
            return codes
        if scaling == "sqrt_eigenvalue":
            return codes * self.eigenvalues.clamp_min(0).sqrt()
        raise InputError(f"scaling must be 'unit' or 'sqrt_eigenvalue', got {scaling!r}")

    def _checked_dims(self, dims: int | None, space: Space) -> int:
        available = self.available_dims(space)
        dims = available if dims is None else dims
        if not 1 <= dims <= available:
            raise InputError(f"expected dims between 1 and {available} for space {space!r}, got {dims}")
        return dims

    def available_dims(self, space: Space = "eigenmap") -> int:
        """How long codes can be. NotFittedError for "eigenmap" before Rayleigh-Ritz has run; InputError for another space."""
        if space == "backbone":
            return self.num_features
        if space == "projector":
            return int(self.config["width"])
        if space != "eigenmap":
            raise InputError(f"space must be 'eigenmap', 'projector' or 'backbone', got {space!r}")
        if self.ritz_rank == 0:
            raise NotFittedError(
                "this model's functions have not been put in order yet: train it to the end, or call "
                "neigenmaps.training.fit_ritz; space='projector' gives the raw outputs"
            )
        return int(self.ritz_rank)

    def _checked(self, images: Tensor) -> Tensor:
        channels = int(self.config["in_chans"])
        if images.ndim != 4 or images.shape[1] != channels or images.shape[0] == 0:
            raise ShapeError(f"expected images of shape (N, {channels}, H, W) with N > 0, got {tuple(images.shape)}")
        size = int(self.config["image_size"])
        if images.shape[2:] != (size, size):
            raise ShapeError(
                f"expected images of {size}x{size} pixels, as in training, got {images.shape[2]}x{images.shape[3]}: resize "
                f"them, for instance with neigenmaps.data.load_splits(..., image_size={size})"
            )
        if images.dtype == torch.uint8:
            return images
        if not images.is_floating_point():
            raise InputError(f"expected images as uint8, or float in [0, 1], got {images.dtype}")
        if not torch.isfinite(images).all():
            raise NonFiniteError("expected finite images, got NaN or infinity")
        if images.min() < -1e-3 or images.max() > 1 + 1e-3:
            raise InputError(
                f"expected float images in [0, 1], got values from {images.min():.3g} to {images.max():.3g}: "
                "divide by 255, or pass uint8"
            )
        return images

    def _normalised(self, images_BCHW: Tensor) -> Tensor:
        if images_BCHW.dtype == torch.uint8:
            images_BCHW = images_BCHW.to(self.pixel_mean.dtype) / 255
        return (images_BCHW - self.pixel_mean) / self.pixel_std


def _as_tensor(images: Tensor | np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The given NumPy array is not writ"
        )  # nothing here writes into images
        return torch.as_tensor(images)


def _per_channel(name: str, values: Sequence[float], channels: int) -> Tensor:
    if len(values) not in (1, channels):
        raise InputError(f"{name}: expected 1 or {channels} numbers, got {len(values)}")
    return torch.tensor(values, dtype=torch.float32).expand(channels).clone()[:, None, None]
