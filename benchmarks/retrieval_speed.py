"""Funnel and truncated search against exhaustive faiss at full length: queries per second at equal recall, and memory.

    python benchmarks/retrieval_speed.py --decays 1.0                     # 1,000,000 codes of 512: some five minutes on one core
    python benchmarks/retrieval_speed.py --decays 2.0 --append            # another spectrum, beside it
    python benchmarks/retrieval_speed.py --decays --data FOLDER --append  # real features, tiled with noise

Random codes have independent Gaussian numbers of variance j^-decay: the hardest gallery of that spectrum, since nothing clusters.
Queries are drawn like the gallery. Real features stand in their principal axes: MNIST's 70,000 images by pixels, Multi30k's
29,000 English captions by TF-IDF and SVD, which has next to no decay (--rows 100000 is enough to see that no funnel pays). All
search the same codes by cosine, in this process, in turn, after a warm-up; times are of the CPU (one thread: set
OMP_NUM_THREADS=1) and of the clock. Shortlists are calibrated on other queries than those reported. Memory is what a fresh
process holds of its own (RssAnon) after loading and searching; pages of the memory-mapped file that the search touched are
listed beside it, since the system may drop these. "exhaustive, in blocks" is
our own search at full length, whose products are numpy's: what is won by that alone.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from multiway_data import embed_text, read_captions
from numpy.typing import NDArray

from neigenmaps.files import whole_file
from neigenmaps.provenance import provenance
from neigenmaps.retrieval import CodeStore, FunnelSearch, TruncatedIndex

K_RESULTS = 10
STAGES = (16, 64)
Search = Callable[[NDArray[np.float32]], NDArray[Any]]


def random_codes(n_rows: int, width: int, decay: float, seed: int) -> NDArray[np.float32]:
    codes = np.random.default_rng(seed).standard_normal((n_rows, width), dtype=np.float32)
    codes *= np.arange(1, width + 1, dtype=np.float32) ** np.float32(-decay / 2)
    return codes


def mnist_pixels(folder: Path, width: int, seed: int) -> NDArray[np.float32]:
    images = np.load(folder / "mnist" / "mnist.npz")
    pixels = np.concatenate([images["x_train"], images["x_test"]]).reshape(70_000, -1)
    return np.asarray(pixels / 255, np.float32)


def captions(folder: Path, width: int, seed: int) -> NDArray[np.float32]:
    (embedded,) = embed_text([read_captions(folder)["train"]["en"]], "word", seed, width)
    return embedded.numpy().astype(np.float32)


FEATURES = {"MNIST pixels": mnist_pixels, "Multi30k captions": captions}


def drawn(
    decay: float, n_rows: int, width: int, n_queries: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return random_codes(n_rows, width, decay, seed), random_codes(n_queries, width, decay, seed + 1)


def tiled(
    read: Callable[[Path, int, int], NDArray[np.float32]],
    folder: Path,
    n_rows: int,
    width: int,
    n_queries: int,
    seed: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Gallery: rows in their first principal axes, repeated with noise of half their own scatter. Held-out rows as queries."""
    rows = read(folder, width, seed)
    rows -= rows.mean(axis=0)
    _, axes = np.linalg.eigh(rows.T @ rows)
    rows = rows @ axes[:, ::-1][:, :width]
    generator = np.random.default_rng(seed)
    rows = rows[generator.permutation(len(rows))]
    queries, bank = rows[:n_queries], rows[n_queries:]
    gallery = bank[np.arange(n_rows) % len(bank)]
    gallery += generator.standard_normal(gallery.shape, dtype=np.float32) * (0.5 * rows.std(axis=0))
    return gallery, queries


def measured(searches: dict[str, Search], queries: NDArray[np.float32], rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds per query, alternating: median and range over rounds, for a batch and for one query at a time."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in searches}
    for round_number in range(rounds + 1):
        for name, search in searches.items():
            for kind, batches in (("batch", [queries]), ("single", list(queries[:20]))):
                clock, cpu = time.perf_counter(), time.process_time()
                for batch in batches:
                    search(batch)
                spent = time.process_time() - cpu, time.perf_counter() - clock
                n_queries = sum(1 if batch.ndim == 1 else len(batch) for batch in batches)
                if round_number:  # the first warms up
                    for unit, seconds in zip(("cpu", "clock"), spent, strict=True):
                        times[name].setdefault(f"{kind}_{unit}_ms", []).append(1e3 * seconds / n_queries)
    return {
        name: {
            kind: {
                "median": round(statistics.median(values), 4),
                "range": [round(min(values), 4), round(max(values), 4)],
            }
            for kind, values in by_kind.items()
        }
        for name, by_kind in times.items()
    }


def build(name: str, store: CodeStore, shortlists: tuple[int, ...]) -> TruncatedIndex | FunnelSearch:
    if name.startswith("funnel"):
        return FunnelSearch(store, (*STAGES, store.width), shortlists=shortlists)
    return TruncatedIndex(store, store.width if name == "exhaustive" else int(name.split()[1]), method="flat")


def memory_of(name: str, path: str, queries: NDArray[np.float32], shortlists: tuple[int, ...]) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory, (name, path, queries, shortlists))


def _memory(name: str, path: str, queries: NDArray[np.float32], shortlists: tuple[int, ...]) -> dict[str, float]:
    torch.set_num_threads(1)
    small = np.eye(64, dtype=np.float32)
    TruncatedIndex(small).search(small, 1)  # libraries, counted in neither
    before = _resident()
    index = build(name, CodeStore.load(path, verify=False), shortlists)
    built = _resident()
    index.search(queries, K_RESULTS)
    after = _resident()
    return {
        "own_mb": round(max(built["RssAnon"], after["RssAnon"]) - before["RssAnon"]),
        "mapped_mb_by_searching": round(after["RssFile"] - built["RssFile"]),
    }


def _resident() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}


def compare(
    path: str, others: NDArray[np.float32], queries: NDArray[np.float32], arguments: argparse.Namespace
) -> dict[str, Any]:
    """path: of the saved codes. others: queries to calibrate with."""
    started = time.perf_counter()
    store = CodeStore.load(path)
    verified = time.perf_counter() - started
    width = store.width
    funnel = FunnelSearch(store, (*STAGES, width)).calibrate(others, K_RESULTS, target=arguments.target)
    assert funnel.shortlists is not None
    names = ["exhaustive", "funnel", *(f"truncated {m}" for m in arguments.lengths if m < width)]
    memory = {name: memory_of(name, path, queries, funnel.shortlists) for name in names}
    indexes = {name: build(name, store, funnel.shortlists) for name in names}
    searches: dict[str, Search] = {
        name: (lambda some, index=index: index.search(some, K_RESULTS).ids) for name, index in indexes.items()
    }
    full = indexes["exhaustive"]
    assert isinstance(full, TruncatedIndex)
    rows_N = np.arange(store.n_rows)
    searches = {
        "exhaustive": lambda some: rows_N[
            full.faiss_index.search(full.scorer.comparable(np.atleast_2d(some)), K_RESULTS)[1]
        ]
    } | {("exhaustive, in blocks" if name == "exhaustive" else name): search for name, search in searches.items()}
    memory["exhaustive, in blocks"] = memory["exhaustive"]
    times = measured(searches, queries, arguments.rounds)
    truth = searches["exhaustive"](queries)
    rows: dict[str, dict[str, Any]] = {}
    for name, search in searches.items():
        share = np.array([np.isin(t, f).mean() for t, f in zip(truth, search(queries), strict=True)])
        own = {
            "recall@10": round(float(share.mean()), 4),
            "recall@10_standard_error": round(float(share.std(ddof=1) / np.sqrt(len(share))), 4),
            **times[name],
            **memory[name],
        }
        reference = rows.get("exhaustive", own)
        own["times_as_fast"] = {kind: round(reference[kind]["median"] / own[kind]["median"], 1) for kind in times[name]}
        own["share_of_memory"] = round(own["own_mb"] / reference["own_mb"], 4)
        rows[name] = own
        print(name, json.dumps(own), flush=True)
    return {
        "rows": store.n_rows,
        "width": width,
        "stages": [*STAGES, width],
        "shortlists": funnel.shortlists,
        "calibration_target": arguments.target,
        "load_and_verify_seconds": round(verified, 1),
        "n_queries": len(queries),
        "rounds": arguments.rounds,
        "methods": rows,
    }


COLUMNS = (
    "method",
    "recall@10",
    "batch, CPU ms a query",
    "times as fast: batch, single",
    "own MiB",
    "share",
    "mapped MiB",
)


def report(record: dict[str, Any], path: Path) -> None:
    """A Markdown table for each gallery."""
    lines = ["# Search among codes: speed at equal recall, and memory\n"]
    lines.append(
        f"{record['provenance']['device']}, one thread; `{record['provenance']['command']}`. Times: median (range).\n"
    )
    for name, gallery in record["galleries"].items():
        size = f"{gallery['rows']:,} codes of {gallery['width']}, {gallery['n_queries']} queries, {gallery['rounds']} rounds"
        lines.append(f"**{name}**: {size}, stages {gallery['stages']}, shortlists {gallery['shortlists']}\n")
        lines += [f"| {' | '.join(COLUMNS)} |", f"| --- |{' --: |' * (len(COLUMNS) - 1)}"]
        for method, row in gallery["methods"].items():
            batch, faster = row["batch_cpu_ms"], row["times_as_fast"]
            cells = (
                method,
                f"{row['recall@10']:.4f} ± {row['recall@10_standard_error']:.4f}",
                f"{batch['median']:.3g} ({batch['range'][0]:.3g} to {batch['range'][1]:.3g})",
                f"{faster['batch_cpu_ms']}, {faster['single_cpu_ms']}",
                f"{row['own_mb']:,}",
                f"{row['share_of_memory']:.3f}",
                f"{row['mapped_mb_by_searching']:,}",
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    with whole_file(path) as unfinished:
        unfinished.write_text("\n".join(lines))


def galleries(
    arguments: argparse.Namespace,
) -> Iterator[tuple[str, Callable[[], tuple[NDArray[np.float32], NDArray[np.float32]]]]]:
    """Names, and what makes the gallery with held-out queries: of these every other calibrates."""
    n_rows, width, n_queries, seed = arguments.rows, arguments.width, 2 * arguments.queries, arguments.seed
    for decay in arguments.decays:
        yield (
            f"random, variance j^-{decay}",
            partial(drawn, decay, n_rows, width, n_queries, seed),
        )
    for name in arguments.features if arguments.data else []:
        yield (
            f"{name}, tiled with noise",
            partial(tiled, FEATURES[name], arguments.data, n_rows, width, n_queries, seed),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--decays", type=float, nargs="*", default=[1.0, 2.0])
    parser.add_argument("--data", type=Path, default=None, help="folder with mnist/ and text/")
    parser.add_argument("--features", nargs="+", choices=list(FEATURES), default=list(FEATURES), help="with --data")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64])
    parser.add_argument("--queries", type=int, default=256, help="from 256 on faiss takes its fast path")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.997, help="recall at which shortlists are calibrated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "retrieval_speed.json")
    parser.add_argument("--append", action="store_true", help="keep the galleries already in the file --out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    earlier = json.loads(arguments.out.read_text())["galleries"] if arguments.append else {}
    record: dict[str, Any] = {"provenance": provenance(arguments.seed), "galleries": earlier}
    for name, make in galleries(arguments):
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "codes.safetensors")
            gallery, held_out = make()
            CodeStore(gallery).save(path)
            del gallery
            record["galleries"][name] = compare(path, held_out[::2], held_out[1::2], arguments)
        with whole_file(arguments.out) as path_out:
            path_out.write_text(json.dumps(record, indent=1) + "\n")
        report(record, arguments.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
