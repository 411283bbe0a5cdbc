"""Run by a test: train by the command line, get a signal on the way, go on by `--resume auto`; again and again.

    python kill_while_training.py FOLDER DATA EPOCHS SIGNALS KILL|TERM

Children are forked, so that each costs no imports. Each is signalled at a random moment of a measured run (its start and its
end included) until there have been SIGNALS of them; a child that comes to its end is compared with the run that never was
signalled: weights, optimiser, exported model. Prints JSON: how many runs ended, how many of these are equal bit for bit, at which
steps the resumed ones went on, what was skipped, and the exit codes of children that caught a SIGTERM.
"""

import contextlib
import json
import logging
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from neigenmaps import cli
from neigenmaps.training import read_checkpoint

torch.set_num_threads(1)
SAVED_EVERY = 3  # of 4 steps an epoch, so that checkpoints lie within epochs too


def configuration(root: Path, data: Path, epochs: int) -> dict[str, Any]:
    callbacks = ["CollapseGuard", "SpectrumMonitor"]
    return {
        "seed_everything": 1,
        "resume": "auto",
        "run": {"root": str(root), "name": "tiny", "save_every_n_steps": SAVED_EVERY, "ritz_pairs": 100},
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "devices": 1,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "callbacks": [{"class_path": f"neigenmaps.training.{name}"} for name in callbacks],
        },
        "model": {"width": 4, "hidden": 8, "lr": 0.01},
        "data": {"dataset": str(data), "batch_size": 16, "laws": [{"rotate": 10, "noise": 0.1}]},
    }


def run_in_child(config: Path, number: int, log: Path, delay: float | None, kind: signal.Signals) -> int:
    """Exit code of the child; negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        os.environ["NEIGENMAPS_RUN_STAMP"] = f"run{number:03}"  # folders are named by the second
        code = 1
        with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                cli.train(["fit", "--config", str(config)])
                code = 0
            except SystemExit as stopped:
                code = stopped.code if isinstance(stopped.code, int) else 1
                print(stopped.code)
            finally:
                file.flush()
                os._exit(code)
    if delay is not None:
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, kind)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def newest(root: Path) -> dict[str, Any]:
    """What training left behind: all of the last checkpoint that says how training would go on, and the exported model."""
    folder = max((root / "tiny").iterdir())
    # a run that found everything done and in order writes no checkpoint of its own
    contents = read_checkpoint(max((root / "tiny").glob("*/last.ckpt")))
    kept = {name: contents[name] for name in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")}
    return kept | {"model": (folder / "model" / "model.safetensors").read_bytes()}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def main() -> None:
    folder, data = map(Path, sys.argv[1:3])
    epochs, signals = map(int, sys.argv[3:5])
    kind = signal.Signals[f"SIG{sys.argv[5]}"]
    warnings.simplefilter("ignore")
    logging.disable()
    cli.finish_run = lambda model, data, run, console: model.save_pretrained(run / "model")  # no pictures
    draw = random.Random(0)

    def configured(name: str) -> tuple[Path, Path]:
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(configuration(folder / name, data, epochs)))
        return path, folder / name

    config, root = configured("whole")
    log = folder / "log.txt"
    started = time.perf_counter()
    assert run_in_child(config, 0, log, None, kind) == 0, log.read_text()
    seconds = time.perf_counter() - started
    whole = newest(root)
    count = {"signals": 0, "finished": 0, "equal": 0}
    codes: list[int] = []
    log.write_text("")
    number = 0
    while count["signals"] < signals:
        config, root = configured(f"trial{count['finished']}")
        number += 1
        code = run_in_child(config, number, log, draw.uniform(0, 1.05 * seconds), kind)
        if code != 0:
            codes.append(code)
            count["signals"] += 1
        if code != 0 and count["signals"] == signals:
            number += 1
            code = run_in_child(config, number, log, None, kind)
            assert code == 0, log.read_text()
        if code == 0:
            count["finished"] += 1
            count["equal"] += equal(whole, newest(root))
    said = log.read_text().splitlines()
    steps = [int(line.split("(step ")[1].rstrip(").")) for line in said if line.startswith("Going on from")]
    skipped = [line for line in said if line.startswith("Skipped")]
    print(json.dumps(count | {"codes": codes, "steps": steps, "skipped": skipped, "seconds": round(seconds, 2)}))


if __name__ == "__main__":
    main()
