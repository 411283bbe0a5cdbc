"""What CollapseGuard costs: CPU seconds of training with and without it, on digits and beside a ResNet-18 step.

    python benchmarks/guard_cost.py                  # 20 rounds: about 8 CPU minutes; writes results/guard_cost.json

    runs     digits as in configs/digits.yaml, without and with the guard by turns: the difference, by round
    inside   the CPU time within the guard's own hooks, over that of the run: the same cost, but for what Lightning takes to call
             them and the flag that the fused optimiser reads, and without the noise of two runs
    resnet   the hooks in a ResNet-18 with a 3x3 stem, --resnet_batch images a step. What they do depends on the batch in one Gram
             product of its codes only, so that at 1,024 images a step they weigh less

Sixty steps a run: two copies of weights and optimiser among them, as many as in any sixty steps and one for the start.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from quiet import quiet_trainer
from train_throughput import NoOrder, of_network

from neigenmaps.data import digits_law, simclr_cifar_law
from neigenmaps.files import whole_file
from neigenmaps.nn import NestedLowRank
from neigenmaps.provenance import provenance
from neigenmaps.training import CollapseGuard, EigenmapModule, ViewsDataModule

ROOT = Path(__file__).parent.parent
HOOKS = ("on_train_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")


class TimedGuard(CollapseGuard):
    """CPU seconds inside each hook."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = dict.fromkeys(HOOKS, 0.0)
        for name in HOOKS:
            setattr(self, name, self._timed(name, getattr(self, name)))

    def _timed(self, name: str, hook: Any) -> Any:
        def call(*given: Any) -> None:
            started = time.process_time()
            hook(*given)
            self.inside[name] += time.process_time() - started

        return call


class Stopwatch(pl.Callback):
    """CPU seconds from before the first batch to after the last; first in the list, so that the guard's start is within."""

    def on_train_start(self, *given: Any) -> None:
        self.started = time.process_time()

    def on_train_end(self, *given: Any) -> None:
        self.seconds = time.process_time() - self.started


def fit(module: EigenmapModule, data: ViewsDataModule, guard: CollapseGuard | None, steps: int) -> float:
    watch = Stopwatch()
    trainer = quiet_trainer(
        max_steps=steps,
        callbacks=[watch, *([] if guard is None else [guard]), NoOrder()],
    )
    trainer.fit(module, datamodule=data)
    return watch.seconds


def digits(guard: CollapseGuard | None, seed: int, steps: int) -> float:
    recipe = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    torch.manual_seed(seed)
    module = EigenmapModule(**recipe["model"] | {"objective": NestedLowRank("octave")})
    return fit(module, ViewsDataModule("digits", [digits_law()], recipe["data"]["batch_size"], seed=seed), guard, steps)


def resnet(batch: int, steps: int, folder: str) -> dict[str, Any]:
    path = Path(folder) / "noise.npz"
    images = np.random.default_rng(0).integers(0, 256, (4 * batch, 32, 32, 3), dtype=np.uint8)
    np.savez(path, x_train=images, x_test=images[:8])
    module = EigenmapModule("resnet18", **of_network("resnet18"), channels_last=True)
    data = ViewsDataModule(str(path), [simclr_cifar_law()], batch, cache_dir=folder)
    guard = TimedGuard()
    guard.every = 50  # as in epochs of 100 steps and more; here no epoch is as long
    spent = fit(module, data, guard, steps)
    hooks = sum(guard.inside.values())
    step = (spent - hooks) / steps
    return {
        "batch": batch,
        "steps": steps,
        "step_cpu_seconds": step,
        "inside_cpu_seconds_per_step": hooks / steps,
        "by_hook": guard.inside,
        "percent": 100 * hooks / steps / step,
        "percent_at_1024_images": 100 * hooks / steps / (step * 1024 / batch),
    }


def spread(values: list[float]) -> dict[str, float]:
    quarter = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "lower_quartile": quarter[0], "upper_quartile": quarter[2]}


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--resnet_batch", type=int, default=32)
    parser.add_argument("--resnet_steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "guard_cost.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    digits(TimedGuard(), 0, arguments.steps)  # loads everything
    rounds = []
    for number in range(arguments.rounds):
        guard = TimedGuard()
        calls = {"without": lambda: digits(None, number, arguments.steps)}  # noqa: B023
        calls |= {"with": lambda: digits(guard, number, arguments.steps)}  # noqa: B023
        order = list(calls) if number % 2 else list(calls)[::-1]
        row = {name: calls[name]() for name in order}
        row |= {"inside": sum(guard.inside.values()), "by_hook": guard.inside}
        rounds.append(row)
        print({name: value for name, value in row.items() if name != "by_hook"}, flush=True)
    found: dict[str, Any] = {
        "provenance": provenance(0),
        "digits": {
            "n": arguments.rounds,
            "steps": arguments.steps,
            "percent_between_runs": spread([100 * (row["with"] / row["without"] - 1) for row in rounds]),
            "percent_inside": spread([100 * row["inside"] / (row["with"] - row["inside"]) for row in rounds]),
            "rounds": rounds,
        },
    }
    if arguments.resnet_steps:
        with tempfile.TemporaryDirectory() as folder:
            found["resnet"] = resnet(arguments.resnet_batch, arguments.resnet_steps, folder)
    with whole_file(arguments.out) as path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"digits": found["digits"] | {"rounds": "..."}, "resnet": found.get("resnet")}, indent=1))


if __name__ == "__main__":
    main()
