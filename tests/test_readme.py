"""What the README shows, runs: its Python blocks one after the other, and every command of its `train.py` parses."""

import re
import shlex
from pathlib import Path

import pytest

from neigenmaps.cli import train
from neigenmaps.training import FitRitz

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0] for line in README.splitlines() if line.startswith("python train.py fit")]
SMALL = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--run.ritz_pairs=64", "--run.name=digits"]


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setattr(FitRitz.__init__, "__defaults__", (64, None))  # of the trainers that the blocks make
    train(["fit", "--config", str(ROOT / "configs" / "digits.yaml"), *SMALL])
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        block = re.sub(r"max_epochs=\d+", "max_epochs=1, enable_progress_bar=False", block)
        exec(re.sub(r"max_steps=\d+", "max_steps=5", block), names)
    assert getattr(names["full"], "shape", None) == (397, 128)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "last.ckpt"
    arguments = shlex.split(command.replace("checkpoints/digits/RUN/last.ckpt", str(checkpoint)))[2:]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        train([*arguments, "--print_config"] if "--print_config" not in arguments else arguments)
    assert stopped.value.code in (0, None)
    assert "objective" in capsys.readouterr().out


def test_fit_without_a_config_takes_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit):
        train(["fit", "--model.width=64", "--print_config"], default_config=ROOT / "configs" / "digits.yaml")
    printed = capsys.readouterr().out
    assert "width: 64" in printed
    assert "nesting: octave" in printed
