"""What leaves the package gives the same numbers elsewhere: timm, ONNX, scikit-learn, `encode` under another name."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import neigenmaps.nn.timm_models  # noqa: F401  makes our names known to timm
from neigenmaps.errors import CheckpointError, InputError, NotFittedError, ShapeError
from neigenmaps.functional.rayleigh_ritz import RitzResult
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.nn import export as module
from neigenmaps.nn.export import export_onnx, export_timm
from neigenmaps.nn.transformer import EigenmapTransformer

IMAGES = torch.randint(0, 256, (7, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = np.array([0, 1, 0, 1, 0, 1, 1])


def make_model(**changes: Any) -> NeuralEigenmapModel:
    torch.manual_seed(0)
    model = NeuralEigenmapModel(**{"width": 6, "hidden": 8, **changes})
    with torch.no_grad():
        model(
            torch.rand(16, model.config["in_chans"], *2 * [model.config["image_size"]])
        )  # BatchNorm has seen something
    model.set_ritz(RitzResult(torch.linspace(0.9, 0.2, 5), torch.randn(6, 5), torch.randn(6), 5))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> NeuralEigenmapModel:
    return make_model()


NETWORKS = [
    {},
    {
        "backbone": "resnet10t",
        "in_chans": 3,
        "image_size": 32,
        "pixel_mean": [0.4, 0.5, 0.6],
        "pixel_std": [0.2, 0.3, 0.2],
    },
    {"backbone": "resnet18", "stem": "cifar", "in_chans": 3, "image_size": 16},
    {"backbone": "vit_tiny_patch16_224", "image_size": 16, "backbone_options": {"img_size": 16, "patch_size": 8}},
]


@pytest.mark.parametrize("changes", NETWORKS, ids=lambda c: f"{c.get('backbone')} {c.get('stem', '')}")
def test_timm_loads_the_backbone(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = make_model(**changes)
    export_timm(model, tmp_path)
    backbone = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(3, model.config["in_chans"], *2 * [model.config["image_size"]])
    mean, std = (torch.tensor(backbone.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        features = backbone((images - mean) / std)
    torch.testing.assert_close(features, model.encode(images, space="backbone"), rtol=1e-5, atol=1e-5)
    assert backbone.pretrained_cfg["input_size"] == tuple(images.shape[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_an_export_for_timm_is_not_taken_for_a_model_of_ours(tmp_path: Path, model: NeuralEigenmapModel) -> None:
    export_timm(model, tmp_path)
    with pytest.raises(CheckpointError, match="written by save_pretrained"):
        NeuralEigenmapModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("scaling", "row_power"),
    [("sqrt_eigenvalue", 3.0), pytest.param("unit", None, marks=pytest.mark.slow)],
)
def test_onnx_gives_the_codes_for_any_batch(tmp_path: Path, scaling: Any, row_power: float | None) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = make_model(row_power=row_power)
    modes = [part.training for part in model.modules()]
    export_onnx(model, tmp_path / "m.onnx", dims=3, scaling=scaling)
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for n_images in (1, 7):
        images = IMAGES[:n_images].float() / 255
        found = session.run(["codes"], {"images": images.numpy()})[0]
        np.testing.assert_allclose(found, model.encode(images, 3, scaling=scaling).numpy(), rtol=1e-5, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert [part.training for part in model.modules()] == modes


def test_onnx_is_refused_before_work_starts(
    tmp_path: Path, model: NeuralEigenmapModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="dims between 1 and 5"):
        export_onnx(model, tmp_path / "m.onnx", dims=6)
    with pytest.raises(NotFittedError, match="put in order"):
        export_onnx(NeuralEigenmapModel(width=6, hidden=8), tmp_path / "m.onnx")
    monkeypatch.setattr(module, "can_export_onnx", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'neigenmaps\[export\]'"):
        export_onnx(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_truncate_dim_is_dims(model: NeuralEigenmapModel) -> None:
    assert (model.encode(IMAGES, truncate_dim=2) == model.encode(IMAGES, dims=2)).all()
    with pytest.raises(InputError, match="mean the same, got 2 and 3"):
        model.encode(IMAGES, 2, truncate_dim=3)
    with pytest.raises(InputError, match="dims between 1 and 5"):
        model.encode(IMAGES, truncate_dim=6)


def test_transformer_keeps_scikit_learns_contract(tmp_path: Path, model: NeuralEigenmapModel) -> None:
    model.save_pretrained(tmp_path / "model")
    step = EigenmapTransformer(tmp_path / "model", truncate_dim=2)
    with pytest.raises(NotFittedError, match="call fit first"):
        step.transform(IMAGES)
    codes = step.fit_transform(IMAGES)
    np.testing.assert_array_equal(codes, model.encode(IMAGES, 2).numpy())
    assert step.get_feature_names_out().tolist() == ["eigenfunction1", "eigenfunction2"]
    np.testing.assert_array_equal(step.transform(IMAGES.flatten(1).numpy()), codes)
    assert clone(step).get_params() == step.get_params()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(step)).transform(IMAGES), codes)
    with pytest.raises(ShapeError, match=r"rows of 64 pixels, got \(7, 65\)"):
        step.transform(np.zeros((7, 65), np.uint8))


def test_transformer_in_a_pipeline_whose_length_is_searched(model: NeuralEigenmapModel) -> None:
    pipeline = make_pipeline(EigenmapTransformer(model), LogisticRegression())
    grid = {"eigenmaptransformer__truncate_dim": [1, 5]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(IMAGES.numpy(), LABELS)
    best = search.best_params_["eigenmaptransformer__truncate_dim"]
    codes = model.encode(IMAGES, best).numpy()
    np.testing.assert_array_equal(
        search.predict(IMAGES.numpy()), LogisticRegression().fit(codes, LABELS).predict(codes)
    )


def test_config_for_timm_is_plain_json(tmp_path: Path, model: NeuralEigenmapModel) -> None:
    export_timm(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_features"] == model.num_features
    assert config["model_args"] == {"in_chans": 1}
