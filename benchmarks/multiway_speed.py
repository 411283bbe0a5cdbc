"""GPA, GCCA and GCPA against the published algorithms and cca-zoo, five planted spaces: time, quality, memory.

    OMP_NUM_THREADS=1 python benchmarks/multiway_speed.py                      # all sizes: about an hour of one core
    OMP_NUM_THREADS=1 python benchmarks/multiway_speed.py --sizes 2000x128 --no-memory --append
    OMP_NUM_THREADS=1 python benchmarks/multiway_speed.py --contests --streams --append   # the memory of streams alone
    python benchmarks/multiway_speed.py --report                               # the tables again, no fitting

The published GPA and GCPA are written from their description (`multiway_alignment.md` in the project's notes; arXiv
2602.06205): z-scores, maps begun at Gaussian matrices, 100 rounds in which every map becomes the polar factor of its
cross-product with the mean of all, float32 on the rows; then one gated network trained toward the mean direction. All
methods get the same float32 rows and run in this process, in turn, after a warm-up.

objective: sum over pairs of <Z_m R_m, Z_n R_n> / N, Z the z-scored rows, higher is better; for GCCA the first K values of
the summed squared correlations. Where one training of the network takes longer than `--network-seconds`, 40 steps are
timed and counted as often as the published stopping rule asks for at least: a lower bound, marked so. Peak memory is that
of a fresh process each, less that of one which only makes the rows; a stream makes its rows batch by batch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cca_zoo import linear
from multiway_report import markdown
from torch import Tensor

from neigenmaps.alignment import GCCA, GCPA, GPA, AbstractAligner, any_to_any
from neigenmaps.files import whole_file
from neigenmaps.functional.mlp_correction import fit_mlp_correction
from neigenmaps.provenance import provenance

N_SPACES, N_UNSEEN = 5, 1000
ROUNDS, TOLERANCE = 100, 1e-8
TIMED_STEPS = 40  # a round of steps with the check that ends it; two rounds below 40,960 rows
LARGEST_BATCH = 4096  # of the published network; checks are rarer and more patient from as many held-out rows
Spaces = dict[str, Tensor]
Encode = Callable[[Spaces], Spaces]


@dataclass(frozen=True)
class Seconds:
    wall: float
    cpu: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(self.wall * factor, self.cpu * factor)


def now() -> Seconds:
    return Seconds(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class Fitted:
    """Maps into the universe, and what else there is to report. more: what a fit takes beyond what was run for it."""

    encode: Encode
    facts: dict[str, Any] = field(default_factory=dict)
    more: Seconds = Seconds(0.0, 0.0)


class Universe:
    """Rows of any number, batch by batch: shared content, noise of each space's own, a turn of each space.

    iso: all directions shared, as much noise as content. lowrank: a quarter of the directions shared, content and noise of
    variance 1/j along axes of their own.
    """

    def __init__(self, kind: str, width: int) -> None:
        self.kind, self.width = kind, width
        generator = torch.Generator().manual_seed(1)
        turns = [torch.linalg.qr(torch.randn(width, width, generator=generator)).Q for _ in range(2 * N_SPACES)]
        self.turns, self.axes = turns[:N_SPACES], turns[N_SPACES:]
        falling_F = torch.arange(1, width + 1).float().rsqrt()
        self.noise_F = torch.ones(width) if kind == "iso" else 0.6 * falling_F
        self.content_F = torch.ones(width) if kind == "iso" else falling_F * (torch.arange(width) < width // 4)

    def rows(self, n_rows: int, generator: torch.Generator) -> Spaces:
        shared_NF = torch.randn(n_rows, self.width, generator=generator) * self.content_F
        spaces = {}
        for m, (turn_FF, axes_FF) in enumerate(zip(self.turns, self.axes, strict=True)):
            noise_NF = torch.randn(n_rows, self.width, generator=generator) * self.noise_F
            spaces[f"m{m}"] = (shared_NF + noise_NF @ axes_FF) @ turn_FF
        return spaces


def z_scores(train: Spaces) -> Encode:
    mean = {name: x.mean(dim=0) for name, x in train.items()}
    std = {name: x.std(dim=0, unbiased=False) + 1e-8 for name, x in train.items()}
    return lambda spaces: {name: (x - mean[name]) / std[name] for name, x in spaces.items()}


def published_gpa(train: Spaces, seed: int) -> Fitted:
    standardize = z_scores(train)
    z = list(standardize(train).values())
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(x.shape[1], x.shape[1], generator=generator) for x in z]
    mean_NF = torch.stack([x @ turn for x, turn in zip(z, maps, strict=True)]).mean(dim=0)
    for _ in range(ROUNDS):
        for m, x in enumerate(z):
            left, _, right = torch.linalg.svd(x.T @ mean_NF)
            maps[m] = left @ right
        before_NF, mean_NF = mean_NF, sum(x @ turn for x, turn in zip(z, maps, strict=True)) / len(z)
        moved = float((mean_NF - before_NF).norm() / before_NF.norm())
        if moved < TOLERANCE:
            break

    def encode(spaces: Spaces) -> Spaces:
        return {name: x @ turn for (name, x), turn in zip(standardize(spaces).items(), maps, strict=True)}

    return Fitted(encode, {"moved_in_last_round": moved})


class PublishedGCPA:
    """The network behind the published GPA, which is fitted once for both contests; its time counts in both."""

    def __init__(self, network_seconds: float) -> None:
        self.network_seconds = network_seconds
        self.train: Spaces = {}
        self.gpa, self.gpa_seconds = Fitted(dict), Seconds(0.0, 0.0)

    def fit_gpa(self, train: Spaces, seed: int) -> Fitted:
        started = now()
        self.gpa = published_gpa(train, seed)
        self.train, self.gpa_seconds = train, now() - started
        return self.gpa

    def fit(self, train: Spaces, seed: int) -> Fitted:
        known = self.train is train
        if not known:
            self.fit_gpa(train, seed)
        before = self.gpa_seconds if known else Seconds(0.0, 0.0)
        u_MNK = torch.stack(list(self.gpa.encode(train).values()))
        started = now()
        fit_mlp_correction(u_MNK, generator=torch.Generator().manual_seed(seed), max_steps=TIMED_STEPS)
        spent = now() - started
        fewest = 100 * 40 if u_MNK.shape[1] // 10 >= LARGEST_BATCH else 50 * 20  # patience in checks, steps between
        rest = spent * (fewest / TIMED_STEPS - 1)
        if rest.cpu > self.network_seconds:
            return Fitted(self.gpa.encode, {"steps": fewest, "estimated": True}, before + rest)
        fit = fit_mlp_correction(u_MNK, generator=torch.Generator().manual_seed(seed))

        def encode(spaces: Spaces) -> Spaces:
            return {name: fit.correction(u_NK) for name, u_NK in self.gpa.encode(spaces).items()}

        return Fitted(encode, {"steps": fit.n_steps, "estimated": False}, before - spent)


def through(aligner: AbstractAligner, **facts: Any) -> Fitted:
    return Fitted(
        lambda spaces: {name: aligner.transform(x, source=name) for name, x in spaces.items()},
        facts | {"components": aligner.n_components_},
    )


def our_gpa(tolerance: float) -> Callable[[Spaces, int], Fitted]:
    def fit(train: Spaces, _: int) -> Fitted:
        aligner = GPA(standardize="zscore", tolerance=tolerance).fit(train)
        return through(aligner, sweeps=len(aligner.history_) - 1, converged=aligner.converged_)

    return fit


def our_gcpa(train: Spaces, seed: int) -> Fitted:
    aligner = GCPA(random_state=seed).fit(train)
    return through(aligner, corrector=aligner.corrector_)


def our_gcca(train: Spaces, _: int) -> Fitted:
    width = next(iter(train.values())).shape[1]
    return through(GCCA(width // 4, shrinkage=0.0, weighting="none").fit(train))


def rival(kind: type[linear.GCCA] | type[linear.MCCA]) -> Callable[[Spaces, int], Fitted]:
    def fit(train: Spaces, _: int) -> Fitted:
        width = next(iter(train.values())).shape[1]
        model = kind(width // 4).fit([x.double().numpy() for x in train.values()])

        def encode(spaces: Spaces) -> Spaces:
            codes = model.transform([x.double().numpy() for x in spaces.values()])
            return {name: torch.from_numpy(code) for name, code in zip(spaces, codes, strict=True)}

        return Fitted(encode, {"components": width // 4})

    return fit


def methods(network_seconds: float) -> dict[str, dict[str, Callable[[Spaces, int], Fitted]]]:
    """By contest: ours first, then its rivals."""
    published = PublishedGCPA(network_seconds)
    return {
        "GPA": {
            "neigenmaps": our_gpa(2e-6),
            "neigenmaps, tolerance 1e-4": our_gpa(1e-4),
            "published, 100 rounds": published.fit_gpa,
        },
        "GCCA": {"neigenmaps": our_gcca, "cca-zoo GCCA": rival(linear.GCCA), "cca-zoo MCCA": rival(linear.MCCA)},
        "GCPA": {"neigenmaps": our_gcpa, "published, network": published.fit},
    }


def agreement(codes: Spaces) -> float:
    """sum over pairs of <U_m, U_n> / N."""
    total_NK = sum(u_NK.double() for u_NK in codes.values())
    own = sum(float(u_NK.double().square().sum()) for u_NK in codes.values())
    return (float(total_NK.square().sum()) - own) / 2 / len(total_NK)


def shared_variance(codes: Spaces) -> float:
    """Leading K eigenvalues of the sum of the projections onto the spaces' components: K M when all agree wholly."""
    bases = [torch.linalg.qr(u_NK.double() - u_NK.double().mean(dim=0)).Q for u_NK in codes.values()]
    return float(torch.linalg.svdvals(torch.cat(bases, dim=1))[: bases[0].shape[1]].square().sum())


def score(contest: str, fitted: Fitted, train: Spaces, unseen: Spaces) -> dict[str, Any]:
    some = {name: x[:2000] for name, x in train.items()} if contest == "GCCA" else train
    value = {"GPA": agreement, "GCCA": shared_variance}.get(contest)
    found = {"rank_1": any_to_any(fitted.encode(unseen)).values("rank_1").mean().item()}
    return found | fitted.facts | ({"objective": value(fitted.encode(some))} if value else {})


def compare(kind: str, n_rows: int, width: int, contests: list[str], repeats: int, seconds: float) -> dict[str, Any]:
    universe = Universe(kind, width)
    table = methods(seconds)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {method: [] for method in table[name]} for name in contests
    }
    for seed in range(repeats):
        generator = torch.Generator().manual_seed(100 + seed)
        train, unseen = universe.rows(n_rows, generator), universe.rows(N_UNSEEN, generator)
        for contest in contests:
            for method in list(table[contest])[:: 1 if seed % 2 == 0 else -1]:
                started = now()
                fitted = table[contest][method](train, seed)
                spent = now() - started + fitted.more
                run = {"seconds": round(spent.wall, 3), "cpu": round(spent.cpu, 3)}
                runs[contest][method].append(run | score(contest, fitted, train, unseen))
                print(kind, n_rows, width, contest, method, runs[contest][method][-1], flush=True)
    return runs


def peak_megabytes(kind: str, n_rows: int, width: int, contest: str, method: str) -> int:
    """Above the rows and the libraries. `contest` "stream": rows are made and counted in batches of 1,000."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (kind, n_rows, width, contest, method))


def _peak(kind: str, n_rows: int, width: int, contest: str, method: str) -> int:
    torch.set_num_threads(1)
    universe, generator = Universe(kind, width), torch.Generator().manual_seed(100)
    if contest == "stream":
        universe.rows(1000, generator)
        before = _high_water()
        aligner = GPA(standardize="zscore")
        for _ in range(n_rows // 1000):
            aligner.partial_fit(universe.rows(1000, generator), solve=False)
        aligner.refit()
    else:
        train = universe.rows(n_rows, generator)
        before = _high_water()
        methods(0.0)[contest][method](train, 0)
    return _high_water() - before


def _high_water() -> int:
    status = Path("/proc/self/status").read_text()  # a fresh process inherits getrusage's maximum from its parent
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def report(record: dict[str, Any]) -> str:
    lines = [
        "# Time of multi-way alignment\n",
        "Five spaces; median [least, most] of the CPU seconds of a fit on one thread; Rank-1 on 1,000 unseen rows. ≥: only "
        "the published GPA and 40 steps of the network were run, the rest counted as `benchmarks/multiway_speed.py` says, "
        "and Rank-1 is that of its GPA.\n",
    ]
    for contest in ("GPA", "GCCA", "GCPA"):
        rows = []
        for result in record["results"]:
            if contest not in result["runs"]:
                continue
            by_method = result["runs"][contest]
            own = statistics.median(run["cpu"] for run in by_method["neigenmaps"])
            for method, runs in by_method.items():
                cpu = [run["cpu"] for run in runs]
                middle = statistics.median(cpu)
                mark = "≥ " if runs[0].get("estimated") else ""
                objective = [run["objective"] for run in runs if "objective" in run]
                memory = (result["peak_megabytes"] or {}).get(f"{contest}, {method}")
                rows.append(
                    [
                        f"{result['kind']}, {result['rows']:,} x {result['width']}",
                        method,
                        str(len(runs)),
                        f"{mark}{middle:.2f} [{min(cpu):.2f}, {max(cpu):.2f}]",
                        "" if method.startswith("neigenmaps") else f"{mark}{middle / own:.1f}",
                        f"{statistics.median(objective):.4f}" if objective else "",
                        f"{100 * statistics.median(run['rank_1'] for run in runs):.1f}",
                        "" if memory is None else str(memory),
                    ]
                )
        head = ["data, N x d", "method", "n", "CPU s", "ours faster by", "objective", "Rank-1 %", "MB above the rows"]
        if contest == "GCPA":
            head.pop(5)
            rows = [[*row[:5], *row[6:]] for row in rows]
        lines += [f"## {contest}\n", *markdown(head, rows)]
    streams = [[f"{s['rows']:,} x {s['width']}", str(s["peak_megabytes"])] for s in record.get("streams", [])]
    lines += ["## Streams\n", "`GPA.partial_fit` in batches of 1,000 rows that are made as they are needed.\n"]
    lines += markdown(["N x d", "MB above the first batch"], streams)
    return "\n".join(lines)


def forget(record: dict[str, Any], kind: str, n_rows: int, width: int, contests: list[str]) -> None:
    """Drop what was measured of these contests before."""
    for result in record["results"]:
        if (result["kind"], result["rows"], result["width"]) == (kind, n_rows, width):
            result["runs"] = {name: runs for name, runs in result["runs"].items() if name not in contests}
    record["results"] = [result for result in record["results"] if result["runs"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["2000x128", "50000x128", "2000x768", "50000x768"])
    parser.add_argument("--kinds", nargs="+", default=["iso", "lowrank"], choices=["iso", "lowrank"])
    parser.add_argument("--contests", nargs="*", default=["GPA", "GCCA", "GCPA"], choices=["GPA", "GCCA", "GCPA"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--network-seconds", type=float, default=120.0)
    parser.add_argument("--no-memory", action="store_true", help="leave out the further runs that measure memory")
    parser.add_argument("--streams", action="store_true", help="measure the memory of streams")
    parser.add_argument("--append", action="store_true", help="keep what else is already in the file --out")
    parser.add_argument("--report", action="store_true", help="only the tables, from the file --out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "multiway_speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = arguments.append or arguments.report
    record: dict[str, Any] = json.loads(arguments.out.read_text()) if kept else {"results": [], "streams": []}
    if not arguments.report:
        for method in (method for contest in methods(0.0).values() for method in contest.values()):
            method(Universe("iso", 16).rows(300, torch.Generator().manual_seed(0)), 0)
        sizes = [tuple(int(number) for number in size.split("x")) for size in arguments.sizes]
        for n_rows, width in sizes:
            for kind in arguments.kinds if arguments.contests else []:
                runs = compare(kind, n_rows, width, arguments.contests, arguments.repeats, arguments.network_seconds)
                memory = None
                if not arguments.no_memory:
                    memory = {
                        f"{contest}, {method}": peak_megabytes(kind, n_rows, width, contest, method)
                        for contest in runs
                        for method in runs[contest]
                    }
                forget(record, kind, n_rows, width, arguments.contests)
                result = {"kind": kind, "rows": n_rows, "width": width, "runs": runs, "peak_megabytes": memory}
                record["results"].append(result | {"threads": torch.get_num_threads()} | provenance(arguments.repeats))
                with whole_file(arguments.out) as path:
                    path.write_text(json.dumps(record, indent=1) + "\n")
        if arguments.streams:
            record["streams"] = [
                {
                    "rows": n_rows,
                    "width": width,
                    "peak_megabytes": peak_megabytes("iso", n_rows, width, "stream", ""),
                }
                for n_rows, width in sizes
            ]
            with whole_file(arguments.out) as path:
                path.write_text(json.dumps(record, indent=1) + "\n")
    with whole_file(arguments.out.with_suffix(".md")) as path:
        path.write_text(report(record))


if __name__ == "__main__":
    main()
