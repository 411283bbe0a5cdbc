"""The model people keep: codes, their lengths and scales, bad images, and the way to the disk and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neigenmaps.errors import CheckpointError, InputError, NonFiniteError, NotFittedError, ShapeError
from neigenmaps.functional.rayleigh_ritz import RitzResult, rayleigh_ritz
from neigenmaps.nn import NeuralEigenmapModel

WIDTH = 6
IMAGES = torch.randint(0, 256, (11, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def make_model(width: int = WIDTH, seed: int = 0, **changes: Any) -> NeuralEigenmapModel:
    torch.manual_seed(seed)
    return NeuralEigenmapModel(width=width, hidden=16, **changes).eval()


def make_ritz(width: int = WIDTH, rank: int = WIDTH) -> RitzResult:
    generator = torch.Generator().manual_seed(1)
    eigenvalues = torch.linspace(0.9, 0.2, rank, dtype=torch.float64)
    rotation = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    return RitzResult(eigenvalues, rotation, torch.randn(width, generator=generator, dtype=torch.float64), rank)


@pytest.fixture(scope="module")
def fitted() -> NeuralEigenmapModel:
    model = make_model()
    model.set_ritz(make_ritz())
    return model


def test_spaces(fitted: NeuralEigenmapModel) -> None:
    with torch.no_grad():
        outputs = fitted(IMAGES)
    ritz = make_ritz()
    unit = (outputs.codes - ritz.mean.float()) @ ritz.rotation.float()
    torch.testing.assert_close(fitted.encode(IMAGES, space="backbone"), outputs.features)
    torch.testing.assert_close(fitted.encode(IMAGES, space="projector"), outputs.codes)
    torch.testing.assert_close(fitted.encode(IMAGES, scaling="unit"), unit, rtol=1e-5, atol=1e-5)
    scaled = unit * ritz.eigenvalues.float().sqrt()
    torch.testing.assert_close(fitted.encode(IMAGES), scaled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("space", "width"), [("eigenmap", WIDTH), ("projector", WIDTH), ("backbone", 512)])
def test_a_short_code_is_the_prefix_of_the_full_one(fitted: NeuralEigenmapModel, space: Any, width: int) -> None:
    full = fitted.encode(IMAGES, space=space)
    assert full.shape == (11, width)
    for dims in (1, 3, width):
        assert torch.equal(fitted.encode(IMAGES, dims, space), full[:, :dims])
    for dims in (0, -1, width + 1):
        with pytest.raises(InputError, match=f"dims between 1 and {width}.*got {dims}"):
            fitted.encode(IMAGES, dims, space)


def test_one_pass_serves_every_length_and_scaling(fitted: NeuralEigenmapModel) -> None:
    raw = fitted.encode(IMAGES, space="projector")
    for dims, scaling in ((None, "sqrt_eigenvalue"), (3, "sqrt_eigenvalue"), (None, "unit"), (2, "unit")):
        assert torch.equal(fitted.order(raw, dims, scaling=scaling), fitted.encode(IMAGES, dims, scaling=scaling))  # type: ignore[arg-type]
    assert torch.equal(fitted.order(raw, batch_size=4), fitted.encode(IMAGES, batch_size=4))
    with pytest.raises(ShapeError, match=r"outputs \(N, 6\), got \(11, 5\)"):
        fitted.order(raw[:, :5])
    with pytest.raises(InputError, match="dims between 1 and 6"):
        fitted.order(raw, 7)
    with pytest.raises(NotFittedError, match="put in order"):
        make_model().order(raw)


def test_images_of_another_size_are_refused(fitted: NeuralEigenmapModel) -> None:
    for shape in ((16, 16), (8, 9)):
        with pytest.raises(ShapeError, match=rf"8x8 pixels, as in training, got {shape[0]}x{shape[1]}: resize them"):
            fitted.encode(torch.zeros(2, 1, *shape))


def test_images_as_bytes_floats_or_arrays(fitted: NeuralEigenmapModel) -> None:
    codes = fitted.encode(IMAGES)
    assert torch.equal(fitted.encode(IMAGES.float() / 255), codes)
    assert torch.equal(fitted.encode(IMAGES.numpy()), codes)
    torch.testing.assert_close(fitted.encode((IMAGES.double() / 255).numpy()), codes)
    torch.testing.assert_close(fitted.encode((IMAGES.float() / 255).half()), codes, rtol=1e-2, atol=1e-2)
    read_only = IMAGES.numpy().copy()
    read_only.flags.writeable = False
    assert torch.equal(fitted.encode(read_only), codes)


def test_batch_size_does_not_matter(fitted: NeuralEigenmapModel) -> None:
    codes = fitted.encode(IMAGES)
    for batch_size in (1, 4, 11):
        torch.testing.assert_close(fitted.encode(IMAGES, batch_size=batch_size), codes, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="batch_size"):
        fitted.encode(IMAGES, batch_size=0)


@pytest.mark.parametrize("training", [True, False])
def test_encoding_leaves_no_trace(training: bool) -> None:
    model = make_model()
    model.set_ritz(make_ritz())
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not model.encode(IMAGES).requires_grad
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError):
        model.encode(IMAGES, scaling="none")  # type: ignore[arg-type]
    assert model.training is training


def test_parts_keep_their_modes() -> None:
    """A frozen backbone in evaluation mode must not come out of `encode` training."""
    model = make_model().train()
    model.backbone.eval()
    model.encode(IMAGES, space="projector")
    assert model.training
    assert model.projector.training
    assert not model.backbone.training


def test_both_views_in_one_pass_share_statistics() -> None:
    model = make_model().train()
    together = model(torch.cat([IMAGES, IMAGES.flip(3)])).codes
    apart = torch.cat([model(IMAGES).codes, model(IMAGES.flip(3)).codes])
    assert not torch.allclose(together, apart, atol=1e-3)
    torch.testing.assert_close(model(torch.cat([IMAGES, IMAGES])).codes[:11], model(IMAGES).codes, rtol=1e-4, atol=1e-5)


def test_pixel_statistics_are_taken_off() -> None:
    plain, shifted = (make_model(pixel_mean=[mean], pixel_std=[std]) for mean, std in ((0.0, 1.0), (0.25, 0.5)))
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shifted(images).codes, plain((images - 0.25) / 0.5).codes)
    assert make_model(in_chans=3, pixel_mean=[0.1, 0.2, 0.3]).pixel_std.shape == (3, 1, 1)


@pytest.mark.parametrize("rank", [1, 4])
def test_a_rank_below_the_width(rank: int) -> None:
    model = make_model()
    model.set_ritz(make_ritz())
    model.set_ritz(make_ritz(rank=rank))  # nothing of the first remains
    assert model.encode(IMAGES).shape == (11, rank)
    assert torch.equal(model.eigenvalues[rank:], torch.zeros(WIDTH - rank))
    assert torch.equal(model.ritz_rotation[:, rank:], torch.zeros(WIDTH, WIDTH - rank))
    with pytest.raises(InputError, match=f"between 1 and {rank}"):
        model.encode(IMAGES, rank + 1)


def test_rotation_of_another_width() -> None:
    with pytest.raises(ShapeError, match=r"expected a rotation of shape \(6, 5\), got \(5, 5\)"):
        make_model().set_ritz(make_ritz(width=5, rank=5))


def test_inner_products_are_the_kernel() -> None:
    """Codes scaled by sqrt(eigenvalue) have their eigenvalue as second moment on the fitted rows."""
    model = make_model(width=3)
    images = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy = (images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    model.set_ritz(rayleigh_ritz(*(model.encode(x, space="projector") for x in (images, noisy))))
    codes = torch.cat([model.encode(images), model.encode(noisy)]).double()
    torch.testing.assert_close(codes.T @ codes / len(codes), model.eigenvalues.double().diag(), rtol=1e-2, atol=1e-3)


def test_codes_need_an_order_first() -> None:
    model = make_model()
    with pytest.raises(NotFittedError, match=r"fit_ritz.*space='projector'"):
        model.encode(IMAGES)
    assert model.encode(IMAGES, space="projector").shape == (11, WIDTH)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8), ShapeError, r"\(N, 1, H, W\).*\(2, 3, 8, 8\)"),
        (torch.zeros(1, 8, 8), ShapeError, r"got \(1, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), ShapeError, "N > 0"),
        (torch.full((2, 1, 8, 8), torch.nan), NonFiniteError, "NaN"),
        (torch.full((2, 1, 8, 8), torch.inf), NonFiniteError, "infinity"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), InputError, "got torch.int64"),
        (torch.full((2, 1, 8, 8), 255.0), InputError, "divide by 255"),
        (torch.full((2, 1, 8, 8), -0.5), InputError, "values from -0.5"),
    ],
    ids=["channels", "axes", "empty", "nan", "infinite", "integers", "not divided", "negative"],
)
def test_what_is_no_image(fitted: NeuralEigenmapModel, images: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fitted.encode(images)


def test_names_that_do_not_exist(fitted: NeuralEigenmapModel) -> None:
    with pytest.raises(InputError, match=r"space must be .* got 'eigenmaps'"):
        fitted.encode(IMAGES, space="eigenmaps")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"scaling must be .* got 'full'"):
        fitted.encode(IMAGES, scaling="full")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "at least 1, got 0"),
        ({"in_chans": 3, "pixel_mean": [0.1, 0.2]}, "pixel_mean: expected 1 or 3 numbers, got 2"),
        ({"pixel_std": [0.0]}, "pixel_std: expected numbers above 0"),
    ],
)
def test_hyper_parameters_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model(**changes)


def test_outputs_of_one_length_are_the_functions_everywhere(tmp_path: Path) -> None:
    """What the loss sees, what `encode` gives and what Rayleigh-Ritz orders are the same rows; a saved model keeps them."""
    model = make_model(row_power=2.0)
    rows = model.encode(IMAGES, space="projector")
    torch.testing.assert_close(rows.square().sum(1), torch.full((11,), 2.0))
    with torch.no_grad():
        torch.testing.assert_close(rows, model(IMAGES).codes)
    model.set_ritz(make_ritz())
    torch.testing.assert_close(model.encode(IMAGES), model.order(rows))
    model.save_pretrained(tmp_path)
    assert torch.equal(NeuralEigenmapModel.from_pretrained(tmp_path).eval().encode(IMAGES), model.encode(IMAGES))


def test_round_trip_is_exact(tmp_path: Path, fitted: NeuralEigenmapModel) -> None:
    fitted.save_pretrained(tmp_path / "deep" / "model")
    assert {path.name for path in (tmp_path / "deep" / "model").iterdir()} == {"model.safetensors", "config.json"}
    loaded = NeuralEigenmapModel.from_pretrained(tmp_path / "deep" / "model").eval()
    assert loaded.config == fitted.config
    assert torch.equal(loaded.encode(IMAGES), fitted.encode(IMAGES))
    mine, theirs = fitted.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)


def test_round_trip_of_a_channels_last_backbone(tmp_path: Path) -> None:
    model = make_model()
    model.backbone = model.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.save_pretrained(tmp_path)
    loaded = NeuralEigenmapModel.from_pretrained(tmp_path).eval()
    codes = [one.encode(IMAGES, space="projector") for one in (model, loaded)]
    torch.testing.assert_close(*codes, rtol=1e-5, atol=1e-5)


def break_nothing(folder: Path) -> None: ...


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def garble_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{")


def foreign_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["resnet18"]}')


def listed_config(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["neigenmaps"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def widen(folder: Path) -> None:
    change_config(folder, width=WIDTH + 1)


def rename(folder: Path) -> None:
    change_config(folder, backbone="digits_cnm")


def invent(folder: Path) -> None:
    change_config(folder, depth=3)


def mistype(folder: Path) -> None:
    change_config(folder, width="wide")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "expected a folder with config.json"),
        (garble_weights, "expected a folder with config.json"),
        (flip_a_bit, "not those that were saved"),
        (remove_weights, "model.safetensors"),
        (garble_config, "config.json"),
        (foreign_config, "config.json"),
        (listed_config, "config.json"),
        (widen, r"another model \(.* entries differ\).*eigenvalues has shape \(6,\), expected \(7,\)"),
        (rename, "digits_cnm"),
        (invent, "depth"),
        (mistype, "wide|config.json"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, fitted: NeuralEigenmapModel, harm: Any, message: str) -> None:
    fitted.save_pretrained(tmp_path)
    harm(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        NeuralEigenmapModel.from_pretrained(tmp_path)


def test_a_folder_of_before_there_were_checksums(tmp_path: Path, fitted: NeuralEigenmapModel) -> None:
    fitted.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"neigenmaps": json.loads(path.read_text())["neigenmaps"]}))
    assert NeuralEigenmapModel.from_pretrained(tmp_path).config == fitted.config


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        NeuralEigenmapModel.from_pretrained(tmp_path / "nowhere")


def test_weights_with_entries_too_few_and_too_many(fitted: NeuralEigenmapModel) -> None:
    state = fitted.state_dict()
    del state["eigenvalues"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"2 entries differ\): missing eigenvalues; unexpected extra"):
        fitted.load_weights(state)


def test_an_interrupted_save_leaves_the_old_model(
    tmp_path: Path, fitted: NeuralEigenmapModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half_a_file(tensors: dict[str, Tensor], path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("neigenmaps.nn.model.save_file", half_a_file)
    other = make_model(width=3, seed=9)
    with pytest.raises(OSError, match="disk full"):
        other.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_numbers_of_the_order_are_learned_state(fitted: NeuralEigenmapModel) -> None:
    state = fitted.state_dict()
    assert {"ritz_rotation", "ritz_mean", "eigenvalues", "ritz_rank"} <= state.keys()
    assert isinstance(fitted, nn.Module)
    assert np.array_equal(state["eigenvalues"].numpy(), make_ritz().eigenvalues.float().numpy())
