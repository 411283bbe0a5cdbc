"""The command line: a whole run and its folder, resume, and every way of asking for what does not exist."""

import csv
import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cli_runs import CALLBACKS, refusal, write_config
from pytorch_lightning.cli import LightningCLI

from neigenmaps.cli import train
from neigenmaps.data import DatasetSplits, ImageStore, load_splits
from neigenmaps.errors import CheckpointError, InputError, ShapeError
from neigenmaps.evaluation import knn_accuracy
from neigenmaps.evaluation.comparison import compare_lengths, readings
from neigenmaps.features import FeatureSet
from neigenmaps.functional.ranking import retrieval_map
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.training import read_checkpoint

REPOSITORY = Path(__file__).parent.parent


def test_run_folder(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "provenance.json", "metrics.csv", "last.ckpt", "epoch=0.ckpt", "epoch=1.ckpt"} <= names
    assert {"model", "features", "summary.json"} <= names
    assert {"eigenvalues.png", "eigenfunctions.png", "truncation.png"} <= names
    assert not [name for name in names if "unfinished" in name]
    for image in finished.glob("*.png"):
        assert image.read_bytes().startswith(b"\x89PNG")


def test_records(finished: Path) -> None:
    provenance = json.loads((finished / "provenance.json").read_text())
    assert provenance["seed"] == 1
    assert "--run.ritz_pairs=90" in provenance["command"]
    saved = yaml.safe_load((finished / "config.yaml").read_text())
    assert saved["model"]["width"] == 4
    assert saved["run"]["ritz_pairs"] == 90
    assert saved["data"]["laws"][0]["rotate"] == 10
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["train/loss"]]) == 8
    assert len([row for row in rows if row["eval/knn_2"]]) == 2


def test_summary(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["rank"] == 4
    assert summary["eigenvalues"] == sorted(summary["eigenvalues"], reverse=True)
    ours = summary["by_length"]["ours, after Rayleigh-Ritz"]
    assert ours["dims"] == [2, 4]
    for measure in ("knn_accuracy", "retrieval_map"):
        assert len(ours[measure]) == 2
        assert all(0 <= value <= 1 for value in ours[measure])
    assert {"ours, as trained", "PCA of pixels", "raw pixels"} <= summary["by_length"].keys()


def test_exported_model_and_features(finished: Path, few_digits: Path) -> None:
    model = NeuralEigenmapModel.from_pretrained(finished / "model").eval()
    checkpoint = read_checkpoint(finished / "last.ckpt")
    other = NeuralEigenmapModel(**checkpoint["model_config"]).eval()
    prefix = "model."
    other.load_weights({k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)})
    for name, store in zip(("train", "test"), load_splits(str(few_digits)), strict=True):
        codes = model.encode(store.images_NCHW)
        assert torch.equal(codes, other.encode(store.images_NCHW))
        features = FeatureSet.load(finished / "features" / f"{name}.safetensors")
        assert torch.equal(features.embeddings_NF, codes)
        assert features.row_fingerprint == store.fingerprint
        assert features.eigenvalues_K is not None
        assert torch.equal(features.eigenvalues_K, model.eigenvalues)


def test_curves_of_the_summary(finished: Path, few_digits: Path) -> None:
    """As computed by hand from the features in the run folder."""
    summary = json.loads((finished / "summary.json").read_text())["by_length"]["ours, after Rayleigh-Ritz"]
    bank, queries = (FeatureSet.load(finished / "features" / f"{name}.safetensors") for name in ("train", "test"))
    assert bank.labels_N is not None
    assert queries.labels_N is not None
    for number, m in enumerate(summary["dims"]):
        codes = bank.embeddings_NF[:, :m], queries.embeddings_NF[:, :m]
        accuracy = knn_accuracy(codes[0], bank.labels_N, codes[1], queries.labels_N)
        assert summary["knn_accuracy"][number] == pytest.approx(accuracy)
        found = retrieval_map(codes[1], codes[0], queries.labels_N, bank.labels_N)
        assert summary["retrieval_map"][number] == pytest.approx(found.mean_average_precision)


def test_a_comparison_needs_labels(finished: Path) -> None:
    model = NeuralEigenmapModel.from_pretrained(finished / "model")
    bare = ImageStore.from_tensors(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), source="bare")
    with pytest.raises(InputError, match="needs labels"):
        readings(model, DatasetSplits(bare, bare), (torch.zeros(4, 4), torch.zeros(4, 4)))


def test_a_comparison_thins_images_and_outputs_alike(finished: Path, few_digits: Path) -> None:
    model = NeuralEigenmapModel.from_pretrained(finished / "model")
    splits = load_splits(str(few_digits))
    train, test = (model.encode(store.images_NCHW, space="projector") for store in splits)
    found = compare_lengths(readings(model, splits, (train, test), max_bank=50, max_queries=20))
    thin = DatasetSplits(splits.train.thin(50), splits.test.thin(20))
    outputs = train[splits.train.thin_rows(50)], test[splits.test.thin_rows(20)]
    again = compare_lengths(readings(model, thin, outputs))
    assert found == again
    with pytest.raises(ShapeError, match=r"outputs of \[70, 30\] images, got \[69, 30\]"):
        readings(model, splits, (train[1:], test))


def test_thinning() -> None:
    store = ImageStore.from_tensors(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), source="numbers")
    assert store.thin(10) is store
    assert store.thin(4).images_NCHW.flatten().tolist() == [0, 3, 6, 9]


def test_checkpoints_hold_nothing_pickled(finished: Path) -> None:
    for path in finished.glob("*.ckpt"):
        assert read_checkpoint(path)["model_config"]["width"] == 4


def test_resume(config: dict[str, Any], tmp_path: Path, finished: Path) -> None:
    train(["fit", "--config", write_config(config, tmp_path), "--ckpt_path", str(finished / "epoch=0.ckpt")])
    ends = [read_checkpoint(folder / "last.ckpt") for folder in (finished, tmp_path / "runs" / "tiny" / "v")]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 8
    assert all(torch.equal(value, ends[1]["state_dict"][name]) for name, value in ends[0]["state_dict"].items())
    assert ends[0]["state_dict"]["model.ritz_rank"] == 4


def test_checkpoints_do_not_wait_for_a_validation(config: dict[str, Any], tmp_path: Path) -> None:
    config["trainer"]["check_val_every_n_epoch"] = 10
    train(["fit", "--config", write_config(config, tmp_path)])
    written = {path.name for path in (tmp_path / "runs" / "tiny" / "v").glob("*.ckpt")}
    assert written == {"last.ckpt", "epoch=0.ckpt", "epoch=1.ckpt"}


def test_validate(config: dict[str, Any], tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(config, tmp_path)
    train(["validate", "--config", path, "--ckpt_path", str(finished / "last.ckpt")])
    assert "knn_2" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_validate_needs_a_checkpoint(config: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    code, message = refusal(["validate", "--config", write_config(config, tmp_path)], capsys)
    assert (code, "add --ckpt_path checkpoints/<name>/<date-time>/last.ckpt" in message) == (1, True)


def test_print_config(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train(["fit", "--config", write_config(config, tmp_path), "--model.width=3", "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["width"] == 3
    assert printed["model"]["hidden"] == 8
    assert printed["data"]["batch_size"] == 16
    assert not Path("runs").exists()


def test_later_configs_and_arguments_win(config: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    path = write_config(config, tmp_path)
    overlay = str(REPOSITORY / "configs" / "objectives" / "barlow_twins.yaml")
    with pytest.raises(SystemExit):
        train(["fit", "--config", path, "--config", overlay, "--trainer.max_epochs=10", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["objective"]["class_path"] == "neigenmaps.nn.BarlowTwins"
    assert printed["model"]["objective"]["init_args"] == {"lambda_param": 0.02}
    assert printed["model"]["width"] == 4
    assert printed["trainer"]["max_epochs"] == 10


def test_unlabelled_images(config: dict[str, Any], tmp_path: Path, few_digits: Path) -> None:
    np.savez(tmp_path / "bare.npz", images=np.load(few_digits)["x_train"])
    config["data"]["dataset"] = str(tmp_path / "bare.npz")
    config["trainer"]["callbacks"] = CALLBACKS[1:]
    config["trainer"]["max_epochs"] = 1
    train(["fit", "--config", write_config(config, tmp_path)])
    folder = tmp_path / "runs" / "tiny" / "v"
    assert "by_length" not in json.loads((folder / "summary.json").read_text())
    assert not (folder / "truncation.png").exists()
    assert (folder / "eigenvalues.png").exists()


@pytest.mark.parametrize(
    ("where", "key", "suggestion"),
    [
        (["trainer"], "max_epoch", "trainer.max_epochs"),
        (["model"], "backbon", "model.backbone"),
        (["data"], "batchsize", "data.batch_size"),
        (["run"], "versoin", "run.version"),
        ([], "seed_everythin", "seed_everything"),
        (["model", "objective", "init_args"], "nestin", "nesting"),
        (["trainer", "callbacks", 0, "init_args"], "dim", "dims"),
        (["data", "laws", 0], "rotat", "rotate"),
        (["data", "small_views", "laws", 0], "rotat", "rotate"),
    ],
)
def test_unknown_keys_in_a_file(
    config: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: list[str | int],
    key: str,
    suggestion: str,
) -> None:
    config["model"]["objective"]["init_args"] = {}
    config["data"]["small_views"] = {"size": 6, "laws": [{"rotate": 10}]}
    place: Any = config
    for step in where:
        place = place[step]
    place[key] = 1
    code, message = refusal(["fit", "--config", write_config(config, tmp_path)], capsys)
    assert code == 2
    assert key in message
    assert f"Did you mean '{suggestion}'?" in message
    assert message.count("Did you mean") == 1
    assert message.count("\n") == 2


def test_a_wrong_choice_in_a_file(config: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    config["model"]["objective"]["init_args"] = {"nesting": "octav"}
    code, message = refusal(["fit", "--config", write_config(config, tmp_path)], capsys)
    assert code == 2
    expected = "model.objective.nesting: expected 'sequential', 'joint', 'octave', got 'octav'\nDid you mean 'octave'?"
    assert message == f"error: {expected}\n"


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [
        ("--trainer.max_epoch=1", "trainer.max_epochs"),  # no abbreviations either
        ("--model.backbon=resnet18", "model.backbone"),
        ("--data.batchsize=3", "data.batch_size"),
        ("--ckpt_pth=last.ckpt", "ckpt_path"),
        ("--model.objective.init_args.nestin=joint", "nesting"),
        ("--model.objective=neigenmaps.nn.NestedLowRan", "NestedLowRank"),
        ("--model.objective=VICRegg", "VICReg"),
        ("--model.objective=vicreg", "VICReg"),
        ("--model.objective.nesting=octav", "octave"),
        ("--trainer.callbacks+=OnlineKN", "OnlineKNN"),
        ("--trainer.precision=bf17", "bf16"),
    ],
)
def test_unknown_keys_on_the_command_line(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, suggestion: str
) -> None:
    code, message = refusal(["fit", "--config", write_config(config, tmp_path), argument], capsys)
    assert code == 2
    assert f"Did you mean '{suggestion}'?" in message
    assert message.count("\n") == 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.width=wide", "model.width: expected int, got 'wide'"),
        ("--model.stem=cifa", "cifar"),
        ("--model.optimizer=sgd", "model.optimizer: expected 'adamw', 'lars', got 'sgd'"),
        ("--trainer.max_epochs=many", "trainer.max_epochs: expected int, got 'many'"),
        ("--data.laws=[{rotate: far}]", "data.laws.rotate: expected float, got 'far'"),
        ("--model.objective=nowhere.VICReg", "model.objective: nowhere.VICReg: No module named 'nowhere'"),
        ("--model.objective=Adam", "model.objective: unknown class 'Adam'"),
        ("--config=nowhere.yaml", "nowhere.yaml"),
        ("--nothing_like_it=1", "nothing_like_it"),
    ],
)
def test_values_of_the_wrong_kind(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    code, printed = refusal(["fit", "--config", write_config(config, tmp_path), argument], capsys)
    assert code == 2
    assert message in printed
    assert printed.count("\n") <= 2


def test_unknown_subcommand(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["fitt"], ["test"], []):
        code, message = refusal(arguments, capsys)
        assert code == 2
        assert "fit" in message


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data.dataset=digit", "unknown data set 'digit': did you mean 'digits'?"),
        ("--data.dataset=no/such/folder", "no/such/folder does not exist"),
        ("--data.dataset=empty", "empty"),
        ("--data.batch_size=71", "batch_size 71 exceeds the 70 training images"),
        ("--model.backbone=resnet81", "unknown backbone 'resnet81': did you mean 'resnet"),
        ("--model.backbone=zzzzzz", "timm.list_models()"),
        ("--data.laws=null", "expected a law that changes images"),
        ("--trainer.sync_batchnorm=true", "trainer.sync_batchnorm: expected GPUs"),
        ("--data.laws=[{hue: 0.1}]", "grey images"),  # seen at the first step only
        ("--model.image_size=9", "have 8x8 pixels, the model expects 9x9"),
        ("--model.width=0", "at least 1, got 0"),
        ("--model.in_chans=3", "set model.in_chans to 1"),
        ("--model.warmup=2", "warmup as a share"),
        ("--model.lr=-1", "expected lr above 0"),
        ("--run.ritz_pairs=1", "at least 2 pairs, got 1"),
        ("--trainer.accelerator=abacus", "accelerator"),
    ],
)
def test_values_that_cannot_work(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    code, printed = refusal(["fit", "--config", write_config(config, tmp_path), argument], capsys)
    assert code == 1
    assert message in printed
    assert len(printed) < 400


def test_a_folder_that_holds_a_run(config: dict[str, Any], tmp_path: Path, finished: Path, capsys: Any) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    arguments = ["--config", write_config(config, tmp_path), f"--run.root={finished.parent.parent}"]
    code, printed = refusal(["fit", *arguments], capsys)
    assert (code, "already holds a run: choose another run.version" in printed) == (1, True)
    train(["validate", *arguments, f"--ckpt_path={finished / 'last.ckpt'}"])  # a logger would delete metrics.csv
    assert {path.name: path.stat().st_mtime_ns for path in finished.iterdir()} == before


class Malicious:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def make_bad_checkpoint(kind: str, finished: Path, folder: Path) -> Path:
    path, good = folder / "bad.ckpt", finished / "last.ckpt"
    if kind == "garbage":
        path.write_bytes(bytes(range(256)) * 8)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[:-2000])
    elif kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model_config": Malicious(folder / "executed")}))
    elif kind == "hidden pickle":  # beside everything that a checkpoint needs
        torch.save(torch.load(good, weights_only=True) | {"extra": Malicious(folder / "executed")}, path)
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "garbage", "empty", "truncated", "folder", "foreign", "pickle", "hidden pickle"]
)
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_bad_checkpoints(
    config: dict[str, Any], tmp_path: Path, finished: Path, capsys: Any, kind: str, verb: str
) -> None:
    path = make_bad_checkpoint(kind, finished, tmp_path)
    code, message = refusal([verb, "--config", write_config(config, tmp_path), "--ckpt_path", str(path)], capsys)
    assert code == 1
    assert "bad.ckpt" in message
    assert "weights_only" not in message  # torch recommends to switch it off
    assert len(message) < 400
    assert not (tmp_path / "executed").exists()
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_the_malicious_pickle_would_work(tmp_path: Path) -> None:
    """Else the test above shows nothing."""
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_lightning_reads_weights_only(
    config: dict[str, Any], tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The trainer opens the file a second time; it must not run what our own check would have refused."""
    path = make_bad_checkpoint("hidden pickle", finished, tmp_path)
    good = read_checkpoint(finished / "last.ckpt")
    monkeypatch.setattr("neigenmaps.training.cli.read_checkpoint", lambda path: good)  # our check looks away,
    monkeypatch.setattr(
        LightningCLI, "_parse_ckpt_path", lambda cli: None, raising=False
    )  # and that of its command line
    for options in (["--run.version=a"], ["--run.version=b", "--weights_only=false"]):
        with pytest.raises((pickle.UnpicklingError, SystemExit)):
            train([verb, "--config", write_config(config, tmp_path), f"--ckpt_path={path}", *options])
        assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_width(config: dict[str, Any], tmp_path: Path, finished: Path, capsys: Any) -> None:
    arguments = ["--config", write_config(config, tmp_path), "--model.width=5", f"--ckpt_path={finished / 'last.ckpt'}"]
    code, message = refusal(["fit", *arguments], capsys)
    assert (code, "width is 4 there and 5 here" in message) == (1, True)


def test_a_checkpoint_of_another_optimizer(config: dict[str, Any], tmp_path: Path, finished: Path, capsys: Any) -> None:
    last = finished / "last.ckpt"
    arguments = ["--config", write_config(config, tmp_path), "--model.optimizer=lars", f"--ckpt_path={last}"]
    code, message = refusal(["fit", *arguments], capsys)
    assert (code, "trained with optimizer 'adamw'" in message, "set model.optimizer to adamw" in message) == (
        1,
        True,
        True,
    )
    train(["validate", *arguments])  # which has no use for it


def test_train_py_finds_its_config_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments: the digits, whatever the working directory. Stopped before it trains."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr("neigenmaps.cli.EigenmapCLI", lambda: sys.exit(" ".join(sys.argv)))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")
    assert stopped.value.code == f"{REPOSITORY / 'train.py'} fit --config {REPOSITORY / 'configs' / 'digits.yaml'}"
    assert (REPOSITORY / "configs" / "digits.yaml").is_file()


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_make_one_run(config: dict[str, Any], tmp_path: Path) -> None:
    """In processes of their own, because Lightning starts the second by the command line of the first."""
    config["trainer"] |= {"devices": 2, "max_epochs": 1}
    command = [sys.executable, str(REPOSITORY / "train.py"), "fit", "--config", write_config(config, tmp_path)]
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("NEIGENMAPS_", "LOCAL_", "PYTEST_"))
    }
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=env | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny" / "v"
    assert (folder / "provenance.json").exists()
    contents = read_checkpoint(folder / "last.ckpt")
    assert contents["global_step"] == 4
    model = NeuralEigenmapModel.from_pretrained(folder / "model")
    assert torch.equal(model.ritz_rotation, contents["state_dict"]["model.ritz_rotation"])
    assert "sync_dist" not in done.stderr
