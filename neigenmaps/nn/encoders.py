"""Backbones by name: every timm model, and a small network for 8x8 digits; the projector on top of them."""

import contextlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn

from neigenmaps.errors import InputError, UnknownNameError
from neigenmaps.functional.eigenmap import check_row_power, of_row_power
from neigenmaps.types import Stem

LIST_BACKBONES = "import timm; print(*timm.list_models(), sep=chr(10))"


class DigitsCNN(nn.Module):
    """Four 3x3 convolutions for images of 8x8 to 16x16 pixels: (B, C, H, W) -> (B, 512).

    The last 2x2 grid is kept, not averaged: where a stroke lies is what tells digits apart.
    """

    num_features = 512

    def __init__(self, in_chans: int = 1) -> None:
        super().__init__()
        widths = (in_chans, 32, 64, 128, 128)
        blocks: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            blocks += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if number == 1:
                blocks.append(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.blocks(images_BCHW)


def build_backbone(
    name: str, *, stem: Stem = "default", in_chans: int = 3, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """A network (B, C, H, W) -> (B, F) with attribute `num_features` = F, and random weights.

    name: `digits_cnn`, or any of `timm.list_models()`. stem: "cifar" for timm's ResNets on images of 32 to 64 pixels.
    options: further arguments of `timm.create_model`, such as {"img_size": 32, "patch_size": 4} for a vision
    transformer. Errors: UnknownNameError for a name nobody knows; InputError for a stem or option that the network
    does not have.
    """
    if name == "digits_cnn":
        if stem != "default" or options:
            raise InputError("digits_cnn has one form: expected stem 'default' and no backbone_options")
        return DigitsCNN(in_chans)
    if not timm.is_model(name):
        known = ["digits_cnn", *timm.list_models()]
        raise UnknownNameError(
            "backbone", name, known, listing=f"list all {len(known)} with `python -c {LIST_BACKBONES!r}`"
        )
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_chans, **dict(options or {}))
    except TypeError as error:
        raise InputError(f"backbone {name!r} does not take the options {dict(options or {})}: {error}") from error
    if stem == "cifar":
        _shrink_stem(backbone, name)
    return backbone


def _shrink_stem(backbone: nn.Module, name: str) -> None:
    conv = getattr(backbone, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not hasattr(backbone, "maxpool"):
        raise InputError(
            f"stem 'cifar' replaces the first convolution and pooling of a ResNet, which {name!r} does not have: "
            "use stem 'default' (for transformers set backbone_options to a smaller img_size and patch_size)"
        )
    backbone.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; afterwards every part has its own mode back (a frozen backbone stays frozen)."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def feature_width(backbone: nn.Module, in_chans: int, image_size: int) -> int:
    """F, measured: some timm heads give another width than `num_features` says."""
    with evaluation_mode(backbone):
        like = next(backbone.parameters(), torch.empty(0))
        features = backbone(like.new_zeros(1, in_chans, image_size, image_size))
    if features.ndim != 2:
        raise InputError(f"expected a backbone that returns (B, F), got shape {tuple(features.shape)}")
    return int(features.shape[1])


class RowPower(nn.Module):
    """`of_row_power`: rows of one length. InputError for a power that is not finite and above 0."""

    def __init__(self, row_power: float) -> None:
        super().__init__()
        self.row_power = check_row_power(row_power)

    def forward(self, z_BK: Tensor) -> Tensor:
        return of_row_power(z_BK, self.row_power)

    def extra_repr(self) -> str:
        return str(self.row_power)


def build_projector(in_features: int, hidden: int, width: int, row_power: float | None = None) -> nn.Sequential:
    """Linear-BN-ReLU-Linear, (B, F) -> (B, K), then `RowPower` if there is one.

    The last layer has no norm of its own: the objective sets the scale of each output.
    """
    last = [] if row_power is None else [RowPower(row_power)]
    return nn.Sequential(
        nn.Linear(in_features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, width),
        *last,
    )
