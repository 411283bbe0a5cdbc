"""What tests of the command line share: a tiny configuration, and commands that must fail."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from neigenmaps.cli import train

CALLBACKS = [
    {"class_path": "neigenmaps.training.OnlineKNN", "init_args": {"dims": [2]}},
    {"class_path": "neigenmaps.training.SpectrumMonitor"},
]


def make_config(data: Path, folder: Path) -> dict[str, Any]:
    return {
        "seed_everything": 1,
        "run": {
            "root": str(folder / "runs"),
            "name": "tiny",
            "version": "v",
            "save_every_n_epochs": 1,
            "keep_every_n_epochs": 1,
            "ritz_pairs": 100,
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "callbacks": copy.deepcopy(CALLBACKS),
        },
        "model": {"width": 4, "hidden": 8, "lr": 0.01, "objective": {"class_path": "neigenmaps.nn.NestedLowRank"}},
        "data": {"dataset": str(data), "batch_size": 16, "laws": [{"rotate": 10, "noise": 0.1}]},
    }


def write_config(config: dict[str, Any], folder: Path) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and message of a command that must not run, and must leave nothing behind."""
    code, message = failure(arguments, capsys)
    assert not Path("runs").exists()
    return code, message


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and message of a command that ends with an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train(arguments)
    code, printed = stopped.value.code, capsys.readouterr()
    message = printed.err + (code if isinstance(code, str) else "")
    assert message.lstrip().startswith("error: ")
    assert "Traceback" not in message
    assert "usage:" not in message
    return (1, message) if isinstance(code, str) else (int(code or 0), message)
