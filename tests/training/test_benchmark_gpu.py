"""`benchmarks/gpu.py` on a CPU at sizes that mean nothing: every stage runs and writes what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_every_stage_runs_on_a_cpu(tmp_path: Path) -> None:
    stages = ["ceiling", "augmentation", "throughput", "loss", "pretrain"]
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--smoke", "--stages", *stages]
    for _ in range(2):
        subprocess.run(
            [*command, "--out", str(tmp_path / "gpu.json")], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        stages = command[-1:]
        command = [*command[:-5], *stages]
    calls = json.loads((tmp_path / "gpu.json").read_text())["calls"]
    assert [list(call["stages"]) for call in calls] == [
        ["ceiling", "augmentation", "throughput", "loss", "pretrain"],
        ["pretrain"],
    ]
    assert set(calls[0]["stages"]["pretrain"]["accuracy"]["backbone"]) == {"knn", "linear", "knn_by_length"}
    assert set(calls[0]["stages"]["throughput"]["by_precision"]["32-true"]) == {
        "ceiling",
        "neigenmaps",
        "lightly",
        "plain",
    }
    assert all(call["provenance"]["command"] for call in calls)
