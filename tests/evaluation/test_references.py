"""References: the right rows, through the right preprocessing, or a clear refusal."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from neigenmaps.data import ImageStore
from neigenmaps.errors import (
    CheckpointError,
    InputError,
    NonFiniteError,
    RowMismatchError,
    ShapeError,
    UnknownNameError,
)
from neigenmaps.evaluation import references
from neigenmaps.evaluation.references import (
    ConstructedReference,
    FeatureReference,
    LaplacianEigenmapReference,
    ModelReference,
    PixelReference,
    Reference,
    TimmReference,
    parse_reference,
    shipped_model,
)
from neigenmaps.features import FeatureSet, fingerprint_rows
from neigenmaps.nn import NeuralEigenmapModel


def small_network(width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 5)
    )


def not_a_network() -> int:
    return 3


HERE = __name__
SHIPPED_DIGITS = ("digits_supervised", "digits_simclr", "digits_barlow_twins")


@pytest.fixture
def images() -> ImageStore:
    pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageStore.from_tensors(pixels, torch.arange(40) % 4, source="planted")


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_file(small_network().state_dict(), tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def test_pixels_are_the_pixels_and_pca_keeps_their_leading_variance(images: ImageStore) -> None:
    pixels = PixelReference().embed(images)
    torch.testing.assert_close(pixels, images.images_NCHW.flatten(1).float() / 255)
    centred = (pixels - pixels.mean(0)).double()
    expected = torch.linalg.svdvals(centred)[:3].square().sum()
    torch.testing.assert_close(PixelReference(3).embed(images).double().square().sum(), expected, rtol=1e-5, atol=0)


def test_laplacian_eigenmap_leaves_the_first_function_out(images: ImageStore) -> None:
    functions = LaplacianEigenmapReference(5, 10).embed(images)
    assert functions.shape == (40, 5)
    assert functions.std(0).min() > 1e-3


def test_a_folder_of_ours_gives_what_encode_gives(images: ImageStore, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NeuralEigenmapModel(width=6, hidden=8)
    model.save_pretrained(tmp_path / "run" / "model")
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        reference = parse_reference(f"{folder}#projector")
        assert torch.equal(reference.embed(images), model.encode(images.images_NCHW, space="projector"))
    assert ModelReference(str(tmp_path / "run")).key() != ModelReference(str(tmp_path / "run"), "projector").key()


def test_a_constructed_network_sees_images_as_it_was_told(images: ImageStore, weights: str) -> None:
    reference = ConstructedReference(
        f"{HERE}:small_network", weights=weights, image_size=12, pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 0.6, 0.7)
    )
    torch.manual_seed(0)
    network = small_network().eval()
    pixels = images.images_NCHW.float().div(255).repeat(1, 3, 1, 1)
    pixels = F.interpolate(pixels, (12, 12), mode="bilinear", antialias=True)
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.6), (0.3, 0.7))):
        pixels[:, channel] = (pixels[:, channel] - mean) / std
    with torch.no_grad():
        torch.testing.assert_close(reference.embed(images), network(pixels), rtol=1e-5, atol=1e-6)


def test_the_output_of_a_submodule(images: ImageStore, weights: str) -> None:
    reference = ConstructedReference(f"{HERE}:small_network", weights=weights, output="2")
    assert reference.embed(images).shape == (40, 16)
    with pytest.raises(UnknownNameError, match="submodule '9'"):
        ConstructedReference(f"{HERE}:small_network", weights=weights, output="9").embed(images)


def test_a_timm_network_by_local_weights(images: ImageStore, tmp_path: Path) -> None:
    reference = TimmReference("test_resnet", weights=str(tmp_path / "w.safetensors"), image_size=32)
    save_file(reference.build().state_dict(), tmp_path / "w.safetensors")
    features = reference.features(images)
    assert len(features) == 40
    assert features.row_fingerprint == fingerprint_rows(images.images_NCHW)
    assert torch.equal(features.embeddings_NF, reference.embed(images))  # evaluation mode: nothing random, no drift


def test_weights_that_do_not_fit_are_listed(images: ImageStore, weights: str) -> None:
    with pytest.raises(CheckpointError, match=r"weights of another network.*0\.weight has shape \(4, 3, 3, 3\)"):
        ConstructedReference(f"{HERE}:small_network", weights=weights, arguments={"width": 7}).embed(images)


@pytest.mark.parametrize("name", ["no_such_module:x", f"{__name__}:missing", f"{__name__}:HERE", "nonsense", ":x"])
def test_constructors_that_do_not_exist(images: ImageStore, weights: str, name: str) -> None:
    with pytest.raises(InputError, match="expected"):
        ConstructedReference(name, weights=weights).embed(images)


def test_a_constructor_that_makes_no_network(images: ImageStore, weights: str) -> None:
    with pytest.raises(InputError, match=r"torch\.nn\.Module, got int"):
        ConstructedReference(f"{HERE}:not_a_network", weights=weights).embed(images)


def test_missing_or_foreign_weights(images: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="safetensors"):
        ConstructedReference(f"{HERE}:small_network", weights=str(tmp_path / "none.safetensors")).embed(images)
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="safetensors"):
        ConstructedReference(f"{HERE}:small_network", weights=str(tmp_path / "torn.safetensors")).embed(images)


def test_channels_that_do_not_fit(weights: str) -> None:
    two = ImageStore.from_tensors(torch.zeros(3, 2, 8, 8, dtype=torch.uint8), source="planted")
    with pytest.raises(ShapeError, match="2 channels"):
        ConstructedReference(f"{HERE}:small_network", weights=weights).embed(two)


def test_saved_features_and_their_rows(images: ImageStore, tmp_path: Path) -> None:
    rows = torch.randn(40, 3)
    FeatureSet(rows, fingerprint_rows(images.images_NCHW)).save(tmp_path / "f.safetensors")
    np.savez(tmp_path / "f.npz", embeddings=rows.numpy(), row_fingerprint=fingerprint_rows(images.images_NCHW))
    for name in ("f.safetensors", "f.npz"):
        assert torch.equal(parse_reference(str(tmp_path / name)).embed(images), rows)
    turned = images.subset(torch.arange(39, -1, -1))
    for name in ("f.safetensors", "f.npz"):
        with pytest.raises(RowMismatchError, match="in another order"):
            FeatureReference(str(tmp_path / name)).embed(turned)


def test_features_that_do_not_say_their_rows(images: ImageStore, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", embeddings=np.zeros((40, 3)))
    with pytest.raises(RowMismatchError, match="trust_rows"):
        FeatureReference(str(tmp_path / "f.npz")).embed(images)
    assert FeatureReference(str(tmp_path / "f.npz"), trust_rows=True).features(images).embeddings_NF.shape == (40, 3)
    np.savez(tmp_path / "short.npz", embeddings=np.zeros((39, 3)))
    with pytest.raises(ShapeError, match="40 rows"):
        FeatureReference(str(tmp_path / "short.npz"), trust_rows=True).features(images)


@pytest.mark.parametrize("arrays", [{"other": np.zeros(3)}, {"embeddings": np.array([object()])}])
def test_npz_without_embeddings_or_with_pickles(images: ImageStore, tmp_path: Path, arrays: dict) -> None:
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(CheckpointError, match="array 'embeddings'"):
        FeatureReference(str(tmp_path / "f.npz")).embed(images)


def test_not_a_number_is_named_by_its_row(images: ImageStore) -> None:
    class Broken(Reference):
        def embed(self, images: ImageStore) -> torch.Tensor:
            rows = torch.zeros(40, 2)
            rows[7, 1] = float("nan")
            return rows

        def key(self) -> str:
            return "broken"

    with pytest.raises(NonFiniteError, match="broken: features of image 7"):
        Broken().features(images)


@pytest.mark.parametrize("text", ["pixel", "pca:", "pca:0", "pca:x", "no/such/folder", "no/such/file.npz"])
def test_texts_that_are_no_reference(text: str) -> None:
    with pytest.raises(InputError, match="expected a reference"):
        parse_reference(text)


def test_an_unknown_space_after_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'eigenmaps'"):
        parse_reference(f"{tmp_path}#eigenmaps")


def test_short_texts() -> None:
    assert parse_reference("pixels") == PixelReference()
    assert parse_reference("pca:7") == PixelReference(7)
    assert parse_reference("laplacian_eigenmap:7") == LaplacianEigenmapReference(7)


def test_shipped_models(images: ImageStore) -> None:
    folders = {name: Path(shipped_model(name)) for name in SHIPPED_DIGITS}
    for name, folder in folders.items():
        reference = parse_reference(f"shipped:{name}")
        assert reference == ModelReference(str(folder))
        assert reference.features(images).embeddings_NF.shape == (40, 64)
        assert (folder / "model.safetensors").stat().st_size < 1_000_000
    assert parse_reference("shipped:digits_simclr#projector") == ModelReference(
        str(folders["digits_simclr"]), "projector"
    )
    recorded = json.loads((folders["digits_simclr"].parent / "provenance.json").read_text())["knn_accuracy"]
    assert set(recorded) == set(SHIPPED_DIGITS)
    assert min(recorded.values()) > 0.9


def test_shipped_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CheckpointError, match=r"called 'digits_simclear'; there are .*digits_simclr.*run from a checkout"
    ):
        parse_reference("shipped:digits_simclear")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(references, "__file__", str(tmp_path / "neigenmaps" / "evaluation" / "references.py"))
    monkeypatch.setattr("sys.argv", [str(tmp_path / "train.py")])
    with pytest.raises(CheckpointError, match=r"there is no checkpoints/reference beside the package or the script"):
        parse_reference("shipped:digits_simclr")
    beside = tmp_path / "checkpoints" / "reference" / "digits_simclr"
    beside.mkdir(parents=True)
    (beside / "config.json").write_text("{}")
    assert parse_reference("shipped:digits_simclr") == ModelReference(str(beside))
