"""kill -9, SIGTERM, torn files and files of other runs: nothing is lost, and what is resumed equals what never stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_runs import write_config

from neigenmaps.cli import train
from neigenmaps.errors import CheckpointError
from neigenmaps.training import EigenmapModule, read_checkpoint
from neigenmaps.training.checkpoints import WholeCheckpointIO, last_good_checkpoint

RUNS = Path("runs") / "tiny"
PARENT = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch, finished: Path) -> None:  # after `finished`, which draws them
    monkeypatch.setattr("neigenmaps.cli.finish_run", lambda *given: None)


def signalled(data: Path, folder: Path, *, epochs: int, signals: int, kind: str) -> dict[str, Any]:
    command = [
        sys.executable,
        str(PARENT / "kill_while_training.py"),
        str(folder),
        str(data),
        str(epochs),
        str(signals),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, kind], capture_output=True, text=True, check=False, env=env, timeout=1800)
    assert done.returncode == 0, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(counts)  # with pytest -s: the figures of the README
    assert counts["signals"] == signals
    assert counts["finished"] == counts["equal"] >= 1
    assert counts["skipped"] == []  # no kill left a torn file
    return counts


@pytest.mark.slow
def test_resume_after_two_kills(few_digits: Path, tmp_path: Path) -> None:
    counts = signalled(few_digits, tmp_path, epochs=3, signals=2, kind="KILL")
    assert counts["codes"] == [-signal.SIGKILL] * 2


@pytest.mark.slow
def test_resume_after_twenty_kills(few_digits: Path, tmp_path: Path) -> None:
    counts = signalled(few_digits, tmp_path, epochs=12, signals=20, kind="KILL")
    assert counts["codes"] == [-signal.SIGKILL] * 20
    assert len(set(counts["steps"])) >= 5  # within epochs and between them


@pytest.mark.slow
def test_resume_after_twenty_terminations(few_digits: Path, tmp_path: Path) -> None:
    counts = signalled(few_digits, tmp_path, epochs=12, signals=20, kind="TERM")
    # before Lightning listens and after training, the signal ends a process as it ends any other
    assert set(counts["codes"]) <= {128 + signal.SIGTERM, -signal.SIGTERM}
    assert counts["codes"].count(128 + signal.SIGTERM) >= 5


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = (read_checkpoint(folder / "last.ckpt")["state_dict"] for folder in (a, b))
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


TERMINATED, STOPPED = (signal.SIGTERM, "terminated"), (signal.SIGINT, "stopped")


@pytest.mark.parametrize(
    ("where", "step", "cause"),
    [
        ("on_train_batch_start", 2, TERMINATED),
        ("on_train_batch_end", 6, TERMINATED),
        ("validation_step", 4, TERMINATED),
        ("on_train_batch_start", 2, STOPPED),
    ],
    ids=["before a step", "in an epoch", "in the validation", "Ctrl-C"],
)
def test_sigterm_and_an_interrupt_save_and_end(
    config: dict[str, Any],
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
    step: int,
    cause: tuple[signal.Signals, str],
) -> None:
    original, listener = getattr(EigenmapModule, where), signal.getsignal(signal.SIGINT)

    def interrupted(module: EigenmapModule, *given: Any, **named: Any) -> Any:
        if module.global_step == step:
            os.kill(os.getpid(), cause[0])
        return original(module, *given, **named)

    config["run"] |= {"save_every_n_epochs": 100, "ritz_pairs": 90}
    del config["run"]["version"]
    config["resume"] = "auto"
    path = write_config(config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(EigenmapModule, where, interrupted)
        patch.setenv("NEIGENMAPS_RUN_STAMP", "first")
        with pytest.raises(SystemExit) as stopped:
            train(["fit", "--config", path])
    assert stopped.value.code == 128 + cause[0]
    assert signal.getsignal(signal.SIGINT) is listener
    saved = read_checkpoint(RUNS / "first" / "last.ckpt")["global_step"]
    assert saved == step + (where == "on_train_batch_start")
    assert f"{cause[1]} at step {saved}; to go on from the last checkpoint:\npython" in capsys.readouterr().err
    monkeypatch.setenv("NEIGENMAPS_RUN_STAMP", "second")
    train(["fit", "--config", path])
    assert f"Going on from {RUNS.absolute() / 'first' / 'last.ckpt'} (step {saved})." in capsys.readouterr().out
    assert same_weights(RUNS / "second", finished)


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A folder of runs with the one that was finished."""
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(finished, folder / "old", copy_function=shutil.copy2)
    return folder


def refused(path: Path, runs: Path) -> str:
    """What is said of a file that was written last."""
    os.utime(path)
    found = last_good_checkpoint(runs, lambda path, contents: None)
    assert found.path is not None
    assert found.path != path
    assert len(found.skipped) == 1
    assert str(path) in found.skipped[0]
    return found.skipped[0]


def test_faults_in_files_are_named_and_skipped(runs: Path) -> None:
    path = runs / "old" / "last.ckpt"
    content = path.read_bytes()
    for length in (len(content) // 2, 30_000):  # torch tells of these in two ways
        path.write_bytes(content[:length])
        assert "truncated" in refused(path, runs)
    path.write_bytes(b"")
    assert "cannot be read" in refused(path, runs)
    weights = read_checkpoint(runs / "old" / "epoch=0.ckpt")
    torch.save(weights, path)
    content = path.read_bytes()
    place = content.index(weights["state_dict"]["model.projector.0.weight"].numpy().tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    torch.load(path, weights_only=True)  # which does not look
    assert "the checksum of" in refused(path, runs)
    torch.save({"state_dict": {}}, path)
    assert "not one of neigenmaps" in refused(path, runs)
    shutil.copy(runs / "old" / "epoch=0.ckpt", runs / "old" / ".last.7.unfinished.ckpt")
    assert "not one of neigenmaps" in refused(path, runs)


def test_resume_finds_nothing(tmp_path: Path) -> None:
    assert last_good_checkpoint(tmp_path / "nowhere", lambda path, contents: None) == (None, 0, ())


def test_resume_takes_the_newest_good_one(runs: Path) -> None:
    for seconds, name in ((100, "epoch=0.ckpt"), (200, "last.ckpt"), (200, "epoch=1.ckpt")):
        os.utime(runs / "old" / name, (seconds, seconds))
    found = last_good_checkpoint(runs, lambda path, contents: None)
    assert (found.path, found.step, found.skipped) == (runs / "old" / "last.ckpt", 8, ())

    def only_first(path: Path, contents: dict[str, Any]) -> None:
        if contents["global_step"] != 4:
            raise CheckpointError("too late")

    found = last_good_checkpoint(runs, only_first)
    assert (found.path, found.step) == (runs / "old" / "epoch=0.ckpt", 4)
    assert found.skipped == tuple(f"{runs / 'old' / name}: too late" for name in ("last.ckpt", "epoch=1.ckpt"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed_everything": 2}, "trained with other settings: seed_everything"),
        ({"model": {"lr": 0.02}}, "trained with other settings: model.lr"),
        ({"model": {"width": 5}}, "the checkpoint holds another model: width is 4 there and 5 here"),
        ({"data": {"batch_size": 17}}, "trained with other settings: data.batch_size"),
        ({"run": {"ema_decay": 0.5}}, "trained with other settings: run.ema_decay"),
        ({"trainer": {"max_epochs": 3}, "data": {"resident": True}}, None),
    ],
    ids=["seed", "learning rate", "model", "batch size", "averaging", "only longer"],
)
def test_resume_auto_keeps_to_runs_of_the_same_settings(
    config: dict[str, Any],
    tmp_path: Path,
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    said: str | None,
) -> None:
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    record = runs / "old" / "config.yaml"
    assert "  compile: false\n" in record.read_text()
    record.write_text(record.read_text().replace("  compile: false\n", ""))  # of before there was this setting
    config["run"]["version"] = None
    monkeypatch.setenv("NEIGENMAPS_RUN_STAMP", "new")
    train(["fit", "--config", write_config(config, tmp_path), "--resume=auto", "--trainer.callbacks=null"])
    printed = capsys.readouterr().out
    if said is None:
        assert f"Going on from {runs / 'old' / 'last.ckpt'} (step 8)." in printed
        assert "trainer.max_epochs was 2 and is 3: the learning rate goes on" in " ".join(printed.split())
        assert read_checkpoint(runs / "new" / "last.ckpt")["global_step"] == 12
    else:
        assert f"No checkpoint to go on from in {runs}: starting anew." in printed
        for name in ("last", "epoch=0", "epoch=1"):
            assert f"Skipped: {runs / 'old' / name}.ckpt: {said}" in printed


def test_a_given_checkpoint_of_other_settings_goes_on_and_says_so(
    config: dict[str, Any], tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["run"]["version"] = "new"
    command = ["fit", "--config", write_config(config, tmp_path), f"--ckpt_path={runs / 'old' / 'epoch=0.ckpt'}"]
    changes = ["--model.lr=0.02", "--data.batch_size=17", "--trainer.max_steps=9", "--trainer.callbacks=null"]
    train([*command, *changes])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Trained so far with other settings: model.lr, data.batch_size." in printed
    assert "trainer.max_steps was -1 and is 9: the learning rate goes on" in printed
    rates = [
        group["initial_lr"]
        for group in read_checkpoint(runs / "new" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    ]
    assert set(rates) == {config["model"]["lr"]}  # as the line says: the checkpoint's


def test_resume_auto_wants_to_know_the_settings(
    config: dict[str, Any], tmp_path: Path, runs: Path, capsys: Any
) -> None:
    (runs / "old" / "config.yaml").unlink()
    config["trainer"] |= {"max_steps": 1, "callbacks": None}
    train(["fit", "--config", write_config(config, tmp_path), "--resume=auto"])
    assert "no config.yaml beside it" in capsys.readouterr().out


def test_resume_is_never_a_guess(
    config: dict[str, Any], tmp_path: Path, runs: Path, finished: Path, capsys: Any
) -> None:
    """A path that is given wins over the search."""
    arguments = ["--resume=auto", f"--ckpt_path={finished / 'epoch=0.ckpt'}"]
    train(["fit", "--config", write_config(config, tmp_path), *arguments])
    assert "Going on from" not in capsys.readouterr().out
    assert same_weights(tmp_path / "runs" / "tiny" / "v", finished)
    assert yaml.safe_load((runs / "v" / "config.yaml").read_text())["resume"] == "auto"


def test_checkpoints_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"model_config": {}, "a": torch.ones(2)}, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="local object"):
        WholeCheckpointIO().save_checkpoint({"a": torch.zeros(10_000), "b": lambda: None}, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(path)["a"].tolist() == [1, 1]


def test_the_command_line_writes_whole_checkpoints(config: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    written: list[str] = []
    save = WholeCheckpointIO.save_checkpoint

    def noted(self: WholeCheckpointIO, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        written.append(Path(path).name)
        save(self, checkpoint, path)

    monkeypatch.setattr(WholeCheckpointIO, "save_checkpoint", noted)
    config["trainer"]["callbacks"] = None
    train(["fit", "--config", write_config(config, tmp_path), "--run.save_every_n_steps=3"])
    assert written == ["last.ckpt", "epoch=0.ckpt", "last.ckpt", "epoch=1.ckpt", "last.ckpt"]
