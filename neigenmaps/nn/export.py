"""A trained model for those who do not have this package: its backbone for timm, and images to codes as ONNX."""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from neigenmaps.errors import InputError
from neigenmaps.files import whole_file
from neigenmaps.nn.encoders import evaluation_mode
from neigenmaps.nn.model import NeuralEigenmapModel
from neigenmaps.types import Scaling

OPSET = 18
OURS_FOR_TIMM = "neigenmaps_digits_cnn", "neigenmaps_cifar_stem"  # in neigenmaps.nn.timm_models


def export_timm(model: NeuralEigenmapModel, folder: str | Path) -> None:
    """The backbone as timm's `model.safetensors` and `config.json`: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    It wants images normalised by the `mean` and `std` of its `pretrained_cfg`, and returns `encode(..., space="backbone")`.
    `digits_cnn` and the stem for small images are not timm's: `import neigenmaps.nn.timm_models` first.
    """
    folder, config = Path(folder), model.config
    arguments: dict[str, Any] = {"in_chans": config["in_chans"], **config["backbone_options"]}
    architecture = str(config["backbone"])
    if architecture == "digits_cnn":
        architecture = OURS_FOR_TIMM[0]
    elif config["stem"] == "cifar":
        architecture, arguments["network"] = OURS_FOR_TIMM[1], architecture
    size, channels = config["image_size"], config["in_chans"]
    described = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [channels, size, size],
            "mean": model.pixel_mean.flatten().tolist(),
            "std": model.pixel_std.flatten().tolist(),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": 0,
        },
    }
    state = {name: value.cpu().contiguous() for name, value in model.backbone.state_dict().items()}
    with whole_file(folder / "model.safetensors") as weights, whole_file(folder / "config.json") as text:
        save_file(state, weights, metadata={"format": "pt"})
        text.write_text(json.dumps(described, indent=2) + "\n")


def export_onnx(
    model: NeuralEigenmapModel, path: str | Path, *, dims: int | None = None, scaling: Scaling = "sqrt_eigenvalue"
) -> None:
    """`encode(images, dims)` as one ONNX file: input `images`, float32 (batch, C, H, W) in [0, 1]; output `codes` (batch, dims).

    Weights and the numbers of Rayleigh-Ritz are inside. Needs onnxscript (`pip install 'neigenmaps[export]'`): InputError
    without. NotFittedError before Rayleigh-Ritz has run; InputError for dims.
    """
    path, available = Path(path), model.available_dims()
    dims = available if dims is None else dims
    if not 1 <= dims <= available:
        raise InputError(f"expected dims between 1 and {available}, the model's functions, got {dims}")
    if not can_export_onnx():
        raise InputError("an ONNX file needs the package onnxscript: pip install 'neigenmaps[export]'")
    size = int(model.config["image_size"])
    # two images: the exporter takes a batch of one for a constant
    example = torch.zeros(2, int(model.config["in_chans"]), size, size, device=model.pixel_mean.device)
    network = _ImagesToCodes(model, dims, scaling)
    with evaluation_mode(network), warnings.catch_warnings(), whole_file(path) as unfinished:
        warnings.simplefilter("ignore")  # of the exporter, about its own internals
        torch.onnx.export(
            network,
            (example,),
            unfinished,
            input_names=["images"],
            output_names=["codes"],
            dynamic_shapes={"images_BCHW": {0: "batch"}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def can_export_onnx() -> bool:
    return importlib.util.find_spec("onnxscript") is not None


class _ImagesToCodes(nn.Module):
    def __init__(self, model: NeuralEigenmapModel, dims: int, scaling: Scaling) -> None:
        super().__init__()
        self.model, self.dims, self.scaling = model, dims, scaling

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.model._ordered(self.model(images_BCHW).codes, self.scaling)[:, : self.dims]
