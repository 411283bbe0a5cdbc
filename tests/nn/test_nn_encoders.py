"""Backbones by name: their widths, stems and options; and the names and options that nobody has."""

import contextlib
import io
import shlex

import pytest
import torch
from torch import nn

from neigenmaps.errors import InputError, UnknownNameError
from neigenmaps.nn import NeuralEigenmapModel, build_backbone, build_projector
from neigenmaps.nn.encoders import feature_width


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16), (1, 9)])
def test_digits_cnn(channels: int, size: int) -> None:
    backbone = build_backbone("digits_cnn", in_chans=channels)
    assert backbone(torch.rand(3, channels, size, size)).shape == (3, 512)
    assert feature_width(backbone, channels, size) == backbone.num_features == 512


def spatial_size(backbone: nn.Module, images: torch.Tensor) -> int:
    with torch.no_grad():
        return backbone.eval().forward_features(images).shape[-1]  # type: ignore[operator,no-any-return]


def test_resnet_stems() -> None:
    images = torch.rand(2, 1, 32, 32)
    published = build_backbone("resnet18", in_chans=1)
    small = build_backbone("resnet18", in_chans=1, stem="cifar")
    assert spatial_size(published, images) == 1  # stride 32
    assert spatial_size(small, images) == 4  # stride 8: neither the first stride nor the pooling
    assert small.conv1.weight.shape == (64, 1, 3, 3)
    assert small(images).shape == (2, 512)
    assert feature_width(small, 1, 32) == 512


def test_vision_transformer_with_options() -> None:
    backbone = build_backbone("vit_tiny_patch16_224", options={"img_size": 8, "patch_size": 4, "depth": 1})
    assert backbone(torch.rand(2, 3, 8, 8)).shape == (2, 192)
    assert backbone.patch_embed.num_patches == 4


def test_the_global_generator_decides_the_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        weights.append(build_backbone("resnet18", stem="cifar").conv1.weight)
    assert torch.equal(*weights)


def test_measuring_the_width_leaves_the_mode() -> None:
    backbone = build_backbone("digits_cnn", in_chans=1).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    feature_width(backbone, 1, 8)
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_unknown_backbone_suggests_a_known_one() -> None:
    with pytest.raises(UnknownNameError, match=r"resnet81.*did you mean 'resnet"):
        build_backbone("resnet81")


def test_unknown_backbone_without_a_near_one_says_how_to_list_them() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown backbone 'zzzzzz': list all \d+ with `python -c ") as refused:
        build_backbone("zzzzzz")
    assert len(str(refused.value)) < 200
    command = shlex.split(str(refused.value).split("`")[1])[2]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(command, {})
    assert "resnet18" in printed.getvalue().splitlines()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_tiny_patch16_224", {"stem": "cifar"}, "stem 'cifar'.*img_size"),
        ("resnet18", {"options": {"img_sise": 32}}, "does not take the options.*img_sise"),
        ("digits_cnn", {"stem": "cifar"}, "digits_cnn has one form"),
        ("digits_cnn", {"options": {"depth": 3}}, "digits_cnn has one form"),
    ],
)
def test_stems_and_options_that_a_network_lacks(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_backbone(name, **arguments)  # type: ignore[arg-type]


def test_a_backbone_must_give_vectors() -> None:
    with pytest.raises(InputError, match=r"expected a backbone that returns \(B, F\)"):
        NeuralEigenmapModel("resnet18", in_chans=3, image_size=32, backbone_options={"global_pool": ""})


def test_projector() -> None:
    projector = build_projector(7, 11, 3)
    assert [type(layer) for layer in projector] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert projector(torch.rand(4, 7)).shape == (4, 3)


def test_a_projector_whose_rows_have_one_length() -> None:
    torch.manual_seed(0)
    free = build_projector(7, 11, 3).eval()
    projector = build_projector(7, 11, 3, row_power=2.5).eval()
    projector.load_state_dict(free.state_dict())  # nothing more is learned
    rows = torch.rand(4, 7)
    wanted = free(rows) * (2.5 / free(rows).square().sum(1, keepdim=True)).sqrt()
    torch.testing.assert_close(projector(rows), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        powers = projector(rows).square().sum(1)
    torch.testing.assert_close(powers, torch.full((4,), 2.5))  # float32, exact


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf")])
def test_a_row_power_is_above_zero(power: float) -> None:
    with pytest.raises(InputError, match="row_power must be above 0 and finite"):
        NeuralEigenmapModel(row_power=power)
