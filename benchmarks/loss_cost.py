"""What a loss costs beside the network: time and memory of value and gradient, k = 512, 2,048 and 8,192, against lightly's losses.

    python benchmarks/loss_cost.py                     # 3 rounds: about 6 minutes on one core, 3 GB
    python benchmarks/loss_cost.py --device cuda --batches 4096 4096 4096

The yardstick is one Gram product z^T z with its gradient, 6 B k^2 operations, timed in the same rounds. Memory: the peak resident
set of a fresh process during the call (on a GPU: the allocator's) less the two views it was given, in units of these two views.
Methods alternate within a round; seconds are CPU time of one thread, or time between two synchronisations of the GPU.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neigenmaps.files import whole_file
from neigenmaps.nn import BarlowTwins, NestedLowRank, NeuralEigenmap, VICReg
from neigenmaps.provenance import provenance


def gram(z1: Tensor, z2: Tensor) -> Tensor:
    return (z1.T @ z1).sum()


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one Gram product": gram,
    "nested low-rank, sequential": lambda z1, z2: NestedLowRank("sequential")(z1, z2).loss,
    "nested low-rank, octave": lambda z1, z2: NestedLowRank("octave")(z1, z2).loss,
    "neural eigenmap, constant": lambda z1, z2: NeuralEigenmap()(z1, z2).loss,
    "lightly Barlow Twins": lambda z1, z2: BarlowTwins().loss(z1, z2),  # lightly's own module
    "lightly VICReg": lambda z1, z2: VICReg().loss(z1, z2),
}


def views(batch: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    z1, z2 = torch.randn(2, batch, width, generator=torch.Generator().manual_seed(0)).to(device)
    return z1.requires_grad_(), z2.requires_grad_()


def seconds(name: str, pair: tuple[Tensor, Tensor], repeats: int) -> float:
    """Of one value with its gradient."""
    on_gpu = pair[0].is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    started = clock()
    for _ in range(repeats):
        METHODS[name](*pair).backward()
        for z in pair:
            z.grad = None
    if on_gpu:
        torch.cuda.synchronize()
    return (clock() - started) / repeats


def memory(name: str, width: int, batch: int, device: str) -> float:
    """Bytes beyond the two views, over the bytes of the two views."""
    if device == "cuda":  # whose allocator counts
        return _memory(name, batch, width, device)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_memory, (name, batch, width, device))


def _memory(name: str, batch: int, width: int, device: str) -> float:
    torch.set_num_threads(1)
    METHODS[name](*views(8, 16, device)).backward()  # libraries
    pair = views(batch, width, device)
    held = 2 * pair[0].nbytes
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        METHODS[name](*pair).backward()
        return (torch.cuda.max_memory_allocated() - before) / held
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _status("VmRSS")
    METHODS[name](*pair).backward()
    return (_status("VmHWM") - before) / held


def _status(name: str) -> int:
    """A line of this process's memory figures, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 4096, 4096], help="one for each width")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loss_cost.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "provenance": provenance(0, device=torch.device(arguments.device)),
        "arguments": {name: value for name, value in vars(arguments).items() if name != "out"},
        "by_width": {},
    }
    sizes = list(zip(arguments.widths, arguments.batches, strict=True))
    # first of all, as children of a process that has freed much would be given it without a new page
    held = {(name, *size): memory(name, *size, arguments.device) for size in sizes for name in arguments.methods}
    for width, batch in sizes:
        pair = views(batch, width, arguments.device)
        repeats = min(20, max(1, round(2e10 / (6 * batch * width**2))))
        found: dict[str, list[float]] = {name: [] for name in arguments.methods}
        for number in range(arguments.rounds + 1):
            for name, values in found.items():
                spent = seconds(name, pair, repeats)
                values += [spent] if number else []  # the first round warms up
        row = {}
        for name, values in found.items():
            ratios = [a / b for a, b in zip(values, found["one Gram product"], strict=True)]
            row[name] = {
                "seconds": round(statistics.median(values), 4),
                "of_one_gram_product": round(statistics.median(ratios), 3),
                "range": [round(min(ratios), 3), round(max(ratios), 3)],
                "memory_of_two_views": round(held[name, width, batch], 2),
            }
            print(f"k {width}, B {batch}: {name:28} {row[name]}", flush=True)
        record["by_width"][width] = {"batch": batch, "n": arguments.rounds, "methods": row}
    with whole_file(arguments.out) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
