"""Every shipped YAML file builds what it says and takes a step on the CPU, with stand-ins for data that must be fetched."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from neigenmaps.cli import train
from neigenmaps.data import DatasetSplits, ImageStore, ViewLaw
from neigenmaps.data.datasets import DATASETS
from neigenmaps.training import EigenmapCLI

FOLDER = Path(__file__).parent.parent / "configs"
MAIN = sorted(
    path for path in FOLDER.glob("*.yaml") if path.stem != "cora"
)  # nodes: tests/graphs/test_graphs_training.py
OVERLAYS = sorted((FOLDER / "objectives").glob("*.yaml"))
SMALL = ["--model.width=8", "--model.hidden=16", "--data.batch_size=8", "--data.probe_size=8", "--run.ritz_pairs=8"]
SMALL += ["--model.compile=false"]  # which takes half a minute
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "path/to/folder": (3, 16, 16)}


def make_splits(name: str) -> DatasetSplits:
    """16 images of the data set's shape, of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, *SHAPES[name]), generator=generator, dtype=torch.uint8)
    return DatasetSplits(*(ImageStore.from_tensors(part, torch.arange(8) % 2, source=name) for part in images.split(8)))


def run_of(paths: list[Path], folder: Path, patch: pytest.MonkeyPatch) -> EigenmapCLI:
    """One step of the configuration, as the command line builds it."""
    made: list[EigenmapCLI] = []

    class Keeping(EigenmapCLI):
        def __init__(self) -> None:
            made.append(self)
            super().__init__()

    config = {key: value for path in paths for key, value in yaml.safe_load(path.read_text()).items()}
    name = config.get("data", {}).get("dataset")
    patch.setitem(DATASETS, name, lambda root, download: make_splits(name))
    patch.setattr("neigenmaps.cli.EigenmapCLI", Keeping)
    patch.setattr("neigenmaps.cli.finish_run", lambda *given: None)
    patch.setattr(sys, "argv", ["train.py"])
    trainer = ["accelerator=cpu", "precision=32-true", "max_steps=1", "check_val_every_n_epoch=1"]
    quiet = ["enable_progress_bar=false", "logger=false", "enable_checkpointing=false", "callbacks=null"]
    files = [argument for path in paths for argument in ("--config", str(path))]
    options = [f"--trainer.{option}" for option in trainer + quiet]
    if name in SHAPES:
        options += [f"--{part}.image_size={SHAPES[name][1]}" for part in ("model", "data")]
    train(["fit", *files, *SMALL, *options, f"--run.root={folder}", "--run.version=v"])
    return made[0]


def test_there_are_configs() -> None:
    assert {path.stem for path in MAIN} >= {"digits", "mnist", "cifar10", "folder"}
    assert {path.stem for path in OVERLAYS} >= {"barlow_twins", "vicreg", "simclr", "spectral_contrastive"}


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_an_objective_says_how_its_outputs_are_read(path: Path) -> None:
    """Else a rival merged over a config with a row_power would be no longer what its name says."""
    assert "row_power" in yaml.safe_load(path.read_text())["model"]


@pytest.mark.filterwarnings("ignore::neigenmaps.errors.IdentifiabilityWarning")  # 8 functions from 8 images
@pytest.mark.parametrize("path", MAIN, ids=lambda path: path.stem)
def test_a_config_takes_a_step(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = run_of([path], tmp_path, monkeypatch)
    stated = yaml.safe_load(path.read_text())
    assert cli.trainer.global_step == 1
    assert type(cli.model.objective).__name__ == stated["model"]["objective"]["class_path"].rpartition(".")[2]
    assert cli.model.model.config["backbone"] == stated["model"]["backbone"]
    assert int(cli.model.model.ritz_rank) >= 1
    assert len(cli.datamodule.augmentation.laws) == len(stated["data"]["laws"])
    for law, wanted in zip(cli.datamodule.augmentation.laws, stated["data"]["laws"], strict=True):
        assert isinstance(law, ViewLaw)
        for name, value in wanted.items():
            assert getattr(law, name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.filterwarnings("ignore::neigenmaps.errors.IdentifiabilityWarning", "ignore:.*can't be read as images")
@pytest.mark.parametrize("labelled", [True, False])
def test_any_folder_of_images(labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    noise = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "photos" / (f"class{number % 2}" if labelled else ".") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "0.jpg").write_text("no image")
    arguments = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    arguments += [
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        f"--data.dataset={tmp_path / 'photos'}",
    ]
    arguments += [f"--data.cache_dir={tmp_path / 'cache'}", "--data.max_unreadable_share=0.1", "--data.test_share=0.5"]
    arguments += ["--data.image_size=16", "--model.image_size=16", f"--run.root={tmp_path}", "--run.version=v"]
    with pytest.warns(UserWarning, match=r"no code lengths \[32\]" if labelled else "these images have no labels"):
        train(["fit", "--config", str(FOLDER / "folder.yaml"), *SMALL, *arguments])
    run = tmp_path / "folder" / "v"
    assert (run / "unreadable_files.txt").read_text() == "0.jpg\n"
    assert ("eval/knn_full" in (run / "metrics.csv").read_text()) is labelled
    assert ("by_length" in json.loads((run / "summary.json").read_text())) is labelled


@pytest.mark.filterwarnings("ignore::neigenmaps.errors.IdentifiabilityWarning")
@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_an_objective_merges_over_the_default(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = run_of([FOLDER / "digits.yaml", path], tmp_path, monkeypatch)
    stated: dict[str, Any] = yaml.safe_load(path.read_text())
    objective = stated["model"]["objective"]
    assert type(cli.model.objective).__name__ == objective["class_path"].rpartition(".")[2]
    saved = yaml.safe_load(next(tmp_path.rglob("config.yaml")).read_text())
    assert saved["model"]["objective"].get("init_args", {}).items() >= objective.get("init_args", {}).items()
    assert saved["run"]["name"] == stated["run"]["name"] != "digits"
    assert cli.model.model.config["backbone"] == "digits_cnn"


@pytest.mark.parametrize("path", MAIN, ids=lambda path: path.stem)
def test_stated_callbacks_exist(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """`run_of` leaves them out, as its code is too short for their lengths."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        train(["fit", "--config", str(path), "--trainer.callbacks.dims=[4,16]", "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    stated = yaml.safe_load(path.read_text())
    asked, given = (
        [c for c in of["trainer"]["callbacks"] if "OnlineKNN" in c["class_path"]] for of in (stated, printed)
    )
    assert len(printed["trainer"]["callbacks"]) == len(stated["trainer"]["callbacks"])
    assert max(asked[0]["init_args"]["dims"]) <= printed["model"]["width"]
    assert given[0]["init_args"]["dims"] == [4, 16]
    assert printed["model"]["width"] <= printed["data"]["batch_size"]  # else the first step warns


@pytest.mark.parametrize("path", [*MAIN, *OVERLAYS], ids=lambda path: path.stem)
def test_an_unknown_key_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    config = yaml.safe_load(path.read_text())
    config["model"]["widht"] = 3
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stopped:
        train(["fit", "--config", str(FOLDER / "digits.yaml"), "--config", str(tmp_path / "wrong.yaml")])
    assert stopped.value.code == 2
    assert "Did you mean 'model.width'?" in capsys.readouterr().err
