"""Every shipped YAML file builds what it says and takes a step on the CPU, with stand-ins for data that must be fetched."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from neigenmaps.cli import train
from neigenmaps.data import DatasetSplits, ImageStore, ViewLaw
from neigenmaps.data.datasets import DATASETS
from neigenmaps.training import EigenmapCLI

FOLDER = Path(__file__).parent.parent / "configs"
MAIN = sorted(FOLDER.glob("*.yaml"))
OVERLAYS = sorted((FOLDER / "objectives").glob("*.yaml"))
SMALL = ["--model.width=8", "--model.hidden=16", "--data.batch_size=8", "--data.probe_size=8", "--run.ritz_pairs=8"]
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "stl10": (3, 96, 96)}


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
    train(["fit", *files, *SMALL, *options, f"--run.root={folder}", "--run.version=v"])
    return made[0]


def test_there_are_configs() -> None:
    assert {path.stem for path in MAIN} >= {"digits", "mnist", "cifar10"}
    assert {path.stem for path in OVERLAYS} >= {"barlow_twins", "vicreg", "simclr", "spectral_contrastive"}


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
        train(["fit", "--config", str(path), "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    stated = yaml.safe_load(path.read_text())
    lengths = [c["init_args"]["dims"] for c in printed["trainer"]["callbacks"] if c["class_path"].endswith("OnlineKNN")]
    assert len(printed["trainer"]["callbacks"]) == len(stated["trainer"]["callbacks"])
    assert all(max(dims) <= printed["model"]["width"] for dims in lengths)
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
