"""Two machines, as two launchers of torchrun on one, train bit for bit what one machine does with two processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_runs import make_config, write_config
from test_training_alignment_ddp import free_port
from test_training_resume import assert_equal_states

from neigenmaps.training import read_checkpoint

SCRIPT = Path(__file__).parents[2] / "train.py"
WORLD = 2


def last_checkpoint(folder: Path, data: Path, launchers: list[list[str]], **trainer: Any) -> dict[str, Any]:
    """Of a run that all launchers take part in, each a machine."""
    folder.mkdir()
    config = make_config(data, folder)
    config["trainer"] |= trainer | {
        "strategy": "ddp",
        "callbacks": [{"class_path": "neigenmaps.training.CollapseGuard"}],
    }
    path = write_config(config, folder)
    commands = [[*launcher, str(SCRIPT), "fit", "--config", path] for launcher in launchers]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(one, env=environment, stderr=subprocess.PIPE, text=True) for one in commands]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return read_checkpoint(folder / "runs" / "tiny" / "v" / "last.ckpt")


@pytest.mark.slow
@pytest.mark.ddp
def test_ddp_of_two_machines_equals_two_processes(tmp_path: Path, few_digits: Path) -> None:
    """70 rows and batches of 16: the last 6 rows of an epoch are left out on both."""
    endpoint = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--rdzv_id", tmp_path.name]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        str(WORLD),
        "--nproc_per_node",
        "1",
        *endpoint,
    ]
    machines = last_checkpoint(tmp_path / "machines", few_digits, [torchrun] * WORLD, devices=1, num_nodes=WORLD)
    processes = last_checkpoint(tmp_path / "processes", few_digits, [[sys.executable]], devices=WORLD)
    assert machines["global_step"] == processes["global_step"] == 2 * 4
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal_states(machines[part], processes[part])
