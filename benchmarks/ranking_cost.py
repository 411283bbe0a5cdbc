"""What a mean average precision costs: Q queries against a gallery of N, memory and time; torchmetrics where that fits.

    python benchmarks/ranking_cost.py                  # Q = 10,000, N = 100,000, 512 numbers: some minutes on one core

Memory: the peak resident set of a fresh process during the call, less what it held before; the codes themselves
(Q + N) x width x 4 bytes are listed beside it. torchmetrics wants one row for each pair of query and item, so it is run on
fewer queries (`--rival-queries`), alternating with ours on the same ones; its memory grows with Q x N. Its RetrievalMAP
counts items with a score of 0 or less as irrelevant, so it is given scores shifted to above 0; then both averages must
agree.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalMAP

from neigenmaps.files import whole_file
from neigenmaps.functional.ranking import mean_average_precision
from neigenmaps.provenance import provenance


def problem(
    n_queries: int, n_gallery: int, width: int, classes: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes around one centre per class, with labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    sets = []
    for n in (n_queries, n_gallery):
        labels = torch.randint(classes, (n,), generator=generator)
        sets.append((centres[labels].add_(torch.randn(n, width, generator=generator), alpha=4), labels))
    return sets[0][0], sets[1][0], sets[0][1], sets[1][1]


def torchmetrics_map(queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> float:
    cosine = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(gallery).T
    target = query_labels[:, None] == gallery_labels
    which = torch.arange(len(queries))[:, None].expand_as(cosine)
    return float(RetrievalMAP()((cosine + 2).reshape(-1), target.reshape(-1), which.reshape(-1)))


METHODS = {"neigenmaps": mean_average_precision, "torchmetrics": torchmetrics_map}


def in_fresh_process(name: str, *sizes: int) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (name, *sizes))


def _measured(name: str, *sizes: int) -> dict[str, float]:
    torch.set_num_threads(1)
    data = problem(*sizes)
    METHODS[name](*problem(16, 64, 8, 2, 0))  # libraries
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = status("VmRSS")
    clock, cpu = time.perf_counter(), time.process_time()
    value = METHODS[name](*data)
    spent = time.process_time() - cpu, time.perf_counter() - clock
    peak = status("VmHWM")
    return {
        "map": value,
        "cpu_seconds": round(spent[0], 2),
        "clock_seconds": round(spent[1], 2),
        "mb_beyond_what_it_held": round(peak - before),
        "peak_mb_of_the_process": round(peak),
    }


COLUMNS = {
    "map": "mAP",
    "cpu_seconds": "CPU s",
    "clock_seconds": "clock s",
    "mb_beyond_what_it_held": "MiB beyond the codes",
}


def report(record: dict[str, Any], path: Path) -> None:
    """A Markdown table."""
    given, all_queries, ran = record["arguments"], record["all queries"], record["provenance"]
    lines = ["# What a mean average precision costs\n", f"{ran['device']}, one thread; `{ran['command']}`.\n"]
    lines.append(f"| queries x gallery | method | {' | '.join(COLUMNS.values())} |")
    lines.append(f"| --- | --- |{' --: |' * len(COLUMNS)}")
    size = f"{given['rival_queries']:,} x {given['gallery']:,} (n = {given['rounds']})"
    for name, found in record["few queries"].items():
        spread = (found[column] for column in COLUMNS)
        cells = (f"{one['median']:.6g} ({one['range'][0]:.6g} to {one['range'][1]:.6g})" for one in spread)
        lines.append(f"| {size} | {name} | {' | '.join(cells)} |")
    cells = (f"{all_queries[column]:.6g}" for column in COLUMNS)
    lines.append(f"| {given['queries']:,} x {given['gallery']:,} (n = 1) | neigenmaps | {' | '.join(cells)} |")
    lines.append(f"\nMedian (range). The codes themselves take {all_queries['codes_mb']} MiB.\n")
    with whole_file(path) as unfinished:
        unfinished.write_text("\n".join(lines))


def status(name: str) -> float:
    """A line of this process's memory figures, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rival-queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ranking_cost.json")
    arguments = parser.parse_args()
    sizes = arguments.gallery, arguments.width, arguments.classes, arguments.seed
    record: dict[str, Any] = {"provenance": provenance(arguments.seed), "arguments": vars(arguments) | {"out": None}}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for _ in range(arguments.rounds):
        for name, found in rounds.items():
            found.append(in_fresh_process(name, arguments.rival_queries, *sizes))
    record["few queries"] = {
        name: {
            key: {"median": statistics.median(values), "range": [min(values), max(values)]}
            for key in found[0]
            for values in ([row[key] for row in found],)
        }
        for name, found in rounds.items()
    }
    print(json.dumps(record["few queries"], indent=1), flush=True)
    record["all queries"] = in_fresh_process("neigenmaps", arguments.queries, *sizes)
    record["all queries"]["codes_mb"] = (arguments.queries + arguments.gallery) * arguments.width * 4 >> 20
    print(json.dumps(record["all queries"], indent=1), flush=True)
    with whole_file(arguments.out) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    report(record, arguments.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
