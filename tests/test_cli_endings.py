"""How runs end: refused without a trace, stopped with the command that goes on, resumed with nothing left, measured in one pass."""

import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import CALLBACKS, write_config
from rich.console import Console

from neigenmaps.cli import finish_run, run_folder_line, train
from neigenmaps.features import FeatureSet
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.training import EigenmapModule, ViewsDataModule, read_checkpoint

RUN = Path("runs") / "tiny" / "v"


@pytest.fixture
def interrupts_restored() -> Iterator[None]:
    """Lightning switches Ctrl-C off while it shuts down."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def stop_after(epochs: int, patch: pytest.MonkeyPatch) -> None:
    def stop(module: EigenmapModule) -> None:
        if module.current_epoch == epochs:
            raise KeyboardInterrupt

    patch.setattr(EigenmapModule, "on_train_epoch_start", stop, raising=False)


@pytest.mark.usefixtures("interrupts_restored")
def test_a_stopped_run_says_how_to_go_on(
    config: dict[str, Any], tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(SystemExit) as stopped:
            train(["fit", "--config", write_config(config, tmp_path)])
    said, command = str(stopped.value.code).split("\n")
    assert said == "stopped at step 4; to go on from the last checkpoint:"
    program, script, *arguments = shlex.split(command)
    assert (program, script, arguments[0]) == ("python", "train.py", "fit")
    train(arguments)
    resumed = next(folder for folder in RUN.parent.iterdir() if folder.name != "v")
    ends = [read_checkpoint(folder / "last.ckpt")["state_dict"] for folder in (resumed, finished)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.usefixtures("interrupts_restored")
def test_a_run_stopped_before_its_first_step_leaves_nothing(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(0, monkeypatch)
    (RUN.parent / "another").mkdir(parents=True)
    with pytest.raises(SystemExit, match="no checkpoint has been written yet"):
        train(["fit", "--config", write_config(config, tmp_path)])
    assert [path.name for path in RUN.parent.iterdir()] == ["another"]


def test_an_error_of_the_trainer_leaves_nothing_either(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="val_check_interval"):
        train(["fit", "--config", write_config(config, tmp_path), "--trainer.val_check_interval=100"])
    assert not Path("runs").exists()


@pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty")
def test_a_folder_made_before_is_left(config: dict[str, Any], tmp_path: Path) -> None:
    RUN.mkdir(parents=True)
    (RUN / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="grey images"):
        train(["fit", "--config", write_config(config, tmp_path), "--data.laws=[{hue: 0.1}]"])
    assert (RUN / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["last.ckpt", "epoch=1.ckpt"], ids=["with its order", "killed before it was ordered"])
def test_resuming_a_finished_run(
    config: dict[str, Any], tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments = ["--config", write_config(config, tmp_path), "--run.ritz_pairs=90", f"--ckpt_path={finished / name}"]
    train(["fit", *arguments])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Nothing was left to train: the checkpoint has taken all 8 steps" in printed
    assert "raise --trainer.max_epochs" in printed
    assert "Trained in" not in printed
    assert (RUN / "summary.json").read_text() == (finished / "summary.json").read_text()


def test_code_lengths_beyond_the_width_are_left_out_with_a_note(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["trainer"] |= {"callbacks": CALLBACKS[::-1], "max_epochs": 1, "enable_progress_bar": True}
    with pytest.warns(UserWarning, match=r"OnlineKNN: no code lengths \[99\], as the code has 4 numbers"):
        train(["fit", "--config", write_config(config, tmp_path), "--trainer.callbacks.dims=[3,99]"])
    header = (RUN / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {name for name in header if "knn" in name} == {"eval/knn_3", "eval/knn_full"}
    printed = capsys.readouterr().out
    assert "Ordering the functions" in printed[: printed.index("Trained in")]


def test_the_end_of_a_run_encodes_each_image_once(finished: Path, few_digits: Path, tmp_path: Path) -> None:
    model, data = (
        NeuralEigenmapModel.from_pretrained(finished / "model"),
        ViewsDataModule(str(few_digits), batch_size=16),
    )
    data.setup()
    seen: list[int] = []
    model.backbone.register_forward_hook(lambda backbone, images, features: seen.append(len(features)))
    finish_run(model, data, tmp_path, Console(quiet=True))
    assert sum(seen) == 100
    for name in ("summary.json", "eigenfunctions.png"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    features = FeatureSet.load(tmp_path / "features" / "train.safetensors").embeddings_NF
    assert torch.equal(features, model.encode(data.splits.train.images_NCHW))


def test_the_last_line_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "summary.json").touch()
    assert run_folder_line(tmp_path).endswith("(model/, summary.json, *.png)")
