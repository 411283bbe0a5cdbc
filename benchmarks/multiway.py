"""Retrieval from every model to every other on real data: one universe, corrected or not, against pairs and GCCA.

    python benchmarks/multiway.py --data FOLDER                  # all data sets and studies: about 15 minutes of one core
    python benchmarks/multiway.py --data FOLDER --sets mfeat sib200_3 --studies table
    python benchmarks/multiway.py --report                       # tables from results/multiway.json, no fitting

Studies: `table` (all methods, Rank-1 with bootstrap intervals on shared draws of rows), `noise` (25, 50 and 75 % of the
training rows of three models permuted; validation rows stay right), `add` (the last model joins afterwards, against
fitting all), `joining` (one pair of models while others join). Hyper-parameters are chosen on the data set's validation
rows, or else on training rows held out; never on test rows. Writes `results/multiway.json` with
provenance, and `results/multiway.md`.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from multiway_data import SIB_LANGUAGES, MatchedSpaces, cifar_networks, mfeat, multi30k, sib200
from multiway_report import report
from torch import Tensor

from neigenmaps.alignment import (
    GCCA,
    GCPA,
    GPA,
    AbstractAligner,
    Procrustes,
    RetrievalTable,
    any_to_any,
    any_to_any_translated,
    cluster_scores,
    difference,
)
from neigenmaps.errors import ConvergenceWarning
from neigenmaps.files import whole_file
from neigenmaps.functional.pair_ranking import agreement, bootstrap_counts
from neigenmaps.provenance import provenance

Codes = dict[str, Tensor]
Score = Callable[..., RetrievalTable]  # of unseen rows, csls= as in `any_to_any`
Fitted = tuple[Score, Callable[[Codes], Codes], dict[str, Any]]
SHRINKAGES = (0.001, 0.01, 0.1, 0.3)
MLP_STEPS = 400  # of the published 10,000, for time: more could help or harm it
DRAWS = 1000
SETS: dict[str, Callable[[Path], MatchedSpaces]] = {
    "mfeat": lambda folder: mfeat(folder, seed=0),
    "multi30k": lambda folder: multi30k(folder, seed=0),
    "sib200_3": lambda folder: sib200(folder, 0, SIB_LANGUAGES[3]),
    "sib200_5": lambda folder: sib200(folder, 0, SIB_LANGUAGES[5]),
    "sib200_10": lambda folder: sib200(folder, 0, SIB_LANGUAGES[10]),
    "cifar": lambda folder: cifar_networks(folder, n_train=5000),
}
NOISY = {"sib200_5": ("eng_Latn", "spa_Latn", "fra_Latn"), "cifar": ("resnet20", "resnet32", "resnet44")}
ADDING = ("multi30k", "sib200_5", "cifar")
JOINING = {"sib200_10": ("heb_Hebr", "kor_Hang"), "cifar": ("resnet20", "resnet8_mlperf_tiny")}


def published_gcca(train: Codes, _: Codes | None) -> Fitted:
    """What `multiway_alignment.md`, 2.4, describes: z-scores, full shared rank, no ridge, universe z Q_m."""
    mean = {name: x.mean(dim=0) for name, x in train.items()}
    std = {name: x.std(dim=0, unbiased=False) + 1e-8 for name, x in train.items()}
    z = {name: (x - mean[name]) / std[name] for name, x in train.items()}
    bases = {name: torch.linalg.svd(x, full_matrices=False) for name, x in z.items()}
    left = {name: basis.U[:, 1e-10 * basis.S[0] < basis.S] for name, basis in bases.items()}
    rank = min(min(u.shape[1] for u in left.values()), len(next(iter(z.values()))))
    stacked = torch.cat(list(left.values()), dim=1)
    coupling = -stacked.T @ stacked
    ends = torch.tensor([u.shape[1] for u in left.values()]).cumsum(0).tolist()
    blocks = dict(
        zip(left, (slice(end - u.shape[1], end) for end, u in zip(ends, left.values(), strict=True)), strict=True)
    )
    for own in blocks.values():
        coupling[own, own] = (len(left) - 1) * torch.eye(own.stop - own.start, dtype=coupling.dtype)
    phi = torch.linalg.eigh(coupling).eigenvectors[:, :rank]
    maps = {name: bases[name].Vh[: left[name].shape[1]].T @ phi[own] for name, own in blocks.items()}

    def encode(x: Codes) -> Codes:
        return {name: (rows - mean[name]) / std[name] @ maps[name] for name, rows in x.items()}

    return (lambda x, csls=None: any_to_any(encode(x), csls=csls)), encode, {"n_components": rank}


def through_universe(aligner: AbstractAligner, facts: dict[str, Any] | None = None) -> Fitted:
    def encode(x: Codes) -> Codes:
        return {name: aligner.transform(rows, source=name) for name, rows in x.items()}

    return (lambda x, csls=None: any_to_any(encode(x), csls=csls)), encode, facts or {}


def pairwise(train: Codes, _: Codes | None) -> Fitted:
    aligner = Procrustes().fit(train)
    _, encode, facts = through_universe(aligner)
    return (lambda x, csls=None: any_to_any_translated(aligner, x, csls=csls)), encode, facts


def tuned_gcca(train: Codes, validation: Codes | None) -> Fitted:
    part, held = _split(train) if validation is None else (train, validation)
    scores = {
        shrinkage: through_universe(GCCA(shrinkage=shrinkage).fit(part))[0](held).values("rank_1").mean().item()
        for shrinkage in SHRINKAGES
    }
    best = max(scores, key=lambda shrinkage: scores[shrinkage])
    aligner = GCCA(shrinkage=best).fit(train)
    return through_universe(aligner, {"shrinkage": best, "n_components": aligner.n_components_})


def gcpa(corrector: str, **options: Any) -> Callable[[Codes, Codes | None], Fitted]:
    def fit(train: Codes, validation: Codes | None) -> Fitted:
        aligner = GCPA(corrector, **options).fit(train, validation=validation)  # type: ignore[arg-type]
        facts = {name: getattr(aligner, f"{name}_") for name in ("corrector", "ridge", "shrinkage", "scores")}
        return through_universe(aligner, facts | {"drift": aligner.drift_._asdict()})

    return fit


METHODS: dict[str, Callable[[Codes, Codes | None], Fitted]] = {
    "pairwise Procrustes": pairwise,
    "GPA": lambda train, _: through_universe(GPA().fit(train)),
    "GCCA, as published": published_gcca,
    "GCCA, ours, tuned": tuned_gcca,
    "GCPA, published network": gcpa("mlp", gpa=GPA(standardize="zscore"), mlp_max_steps=MLP_STEPS),
    "GCPA, per-model ridge": gcpa("model_ridge"),
    "GCPA, ladder (default)": gcpa("auto"),
}
NOISE_METHODS: dict[str, Callable[[Codes, Codes | None], Fitted]] = {
    "pairwise Procrustes": METHODS["pairwise Procrustes"],
    "GPA": METHODS["GPA"],
    "GPA, robust": lambda train, _: through_universe(GPA(robust=True).fit(train)),
    "GCCA, as published": METHODS["GCCA, as published"],
    "GCCA, ours, shrinkage 0.1": lambda train, _: through_universe(GCCA(shrinkage=0.1).fit(train)),
    "GCPA, published network": METHODS["GCPA, published network"],
    "GCPA, ladder (default)": METHODS["GCPA, ladder (default)"],
    "GCPA, ladder on robust GPA": gcpa("auto", gpa=GPA(robust=True)),
}


def table_study(data: MatchedSpaces) -> dict[str, Any]:
    """Every method's scores, and its distance to the best in Rank-1 on the same draws of test rows."""
    n_rows = len(next(iter(data.test.values())))
    counts = bootstrap_counts(n_rows, DRAWS, torch.Generator().manual_seed(0))
    tables, rows = {}, {}
    for name, fit in METHODS.items():
        score, encode, facts, seconds = _timed(fit, data.train, data.validation)
        tables[name], codes = score(data.test), encode(data.test)
        worst = tables[name].worst_pair("rank_1", counts)
        rows[name] = facts | {
            "fit_cpu_seconds": round(seconds, 2),
            **{measure: tables[name].mean(measure, counts) for measure in ("rank_1", "rank_5", "rank_10", "mrr")},
            "worst_pair": [worst.source, worst.target],
            "worst_rank_1": worst.interval,
            "rank_1_csls": score(data.test, csls=10).values("rank_1").mean().item(),
            "by_gallery_size": tables[name].by_gallery_size([n for n in (50, 100, 200, 500, 1000) if n <= n_rows]),
            "agreement": agreement(torch.stack(list(codes.values())))._asdict(),
        }
        if data.test_labels_N is not None:
            rows[name]["label_map"] = any_to_any(codes, labels=data.test_labels_N).mean("map", counts)
            rows[name]["clusters"] = cluster_scores(codes, data.test_labels_N)._asdict()
        print(f"{data.name}: {name}: Rank-1 {rows[name]['rank_1'].value:.4f}, {seconds:.1f} s", flush=True)
    best = max(tables, key=lambda name: tables[name].values("rank_1").mean().item())
    for name, table in tables.items():
        rows[name]["behind_best"] = difference(tables[best], table, "rank_1", counts)
        rows[name]["above_gpa"] = difference(table, tables["GPA"], "rank_1", counts)
    return {"n_train": len(next(iter(data.train.values()))), "n_test": n_rows, "best": best, "methods": rows}


def noise_study(
    data: MatchedSpaces, wrong: tuple[str, ...], methods: list[str], earlier: dict[str, Any]
) -> dict[str, Any]:
    """Rank-1 over all pairs, over pairs of the wrong models, and of the worst pair; test rows stay right.

    earlier: by share and method, results that stand where a method isn't among `methods`.
    """
    result: dict[str, Any] = {}
    for share in (0.25, 0.5, 0.75):
        generator = torch.Generator().manual_seed(1)
        train = {name: permuted(x, share, generator) if name in wrong else x for name, x in data.train.items()}
        result[str(share)] = dict(earlier.get(str(share), {}))
        for method in methods:
            fit = NOISE_METHODS[method]
            score, _, facts, _ = _timed(fit, train, data.validation)
            by_pair = score(data.test).by_pair("rank_1")
            inside = [value for pair, value in by_pair.items() if set(pair) <= set(wrong)]
            result[str(share)][method] = {
                "all": sum(by_pair.values()) / len(by_pair),
                "wrong_models": sum(inside) / len(inside),
                "worst": min(by_pair.values()),
                "corrector": facts.get("corrector"),
            }
            print(f"{data.name}, {share:.0%} wrong: {method}: {result[str(share)][method]}", flush=True)
    return {"models": wrong, "shares": result}


def permuted(x_NF: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A random `share` of the rows, permuted among themselves."""
    picked = torch.randperm(len(x_NF), generator=generator)[: int(share * len(x_NF))]
    x_NF = x_NF.clone()
    x_NF[picked] = x_NF[picked[torch.randperm(len(picked), generator=generator)]]
    return x_NF


def add_study(data: MatchedSpaces) -> dict[str, Any]:
    """Rank-1 of the pairs with the newcomer: added to a universe of the others, or learned together with them."""
    *known, newcomer = data.train
    before = {name: data.train[name] for name in known}
    result = {}
    for method, make in (("GPA", GPA), ("GCCA", GCCA), ("GCPA", GCPA)):
        fit = {"validation": data.validation} if method == "GCPA" else {}
        kept = {"validation": {name: data.validation[name] for name in known}} if fit and data.validation else {}
        added = make().fit(before, **kept)
        certificate = added.add(newcomer, data.train[newcomer])
        tables = [through_universe(aligner)[0](data.test) for aligner in (added, make().fit(data.train, **fit))]
        scores = [[value for pair, value in table.by_pair("rank_1").items() if newcomer in pair] for table in tables]
        result[method] = {
            "added": sum(scores[0]) / len(scores[0]),
            "fitted_together": sum(scores[1]) / len(scores[1]),
            "certificate": certificate._asdict(),
        }
        print(f"{data.name}, adding {newcomer}: {method}: {result[method]}", flush=True)
    return {"newcomer": newcomer, "methods": result}


def joining_study(data: MatchedSpaces, pair: tuple[str, str]) -> dict[str, Any]:
    """Rank-1 of one pair, both directions, by how many models are in the universe."""
    others = [name for name in data.train if name not in pair]
    result: dict[str, list[float]] = {"GPA": [], "GCCA": [], "GCPA": []}
    sizes = list(range(2, len(data.train) + 1))
    for size in sizes:
        names = [*pair, *others[: size - 2]]
        train = {name: data.train[name] for name in names}
        held = {"validation": {name: data.validation[name] for name in names}} if data.validation else {}
        for method, aligner in (
            ("GPA", GPA().fit(train)),
            ("GCCA", GCCA().fit(train)),
            ("GCPA", GCPA().fit(train, **held)),
        ):
            table = through_universe(aligner)[0]({name: data.test[name] for name in pair})
            result[method].append(table.values("rank_1").mean().item())
        print(f"{data.name}, {pair}, {size} models: {[values[-1] for values in result.values()]}", flush=True)
    return {"pair": pair, "n_models": sizes, "rank_1": result}


def _timed(fit: Callable[[Codes, Codes | None], Fitted], train: Codes, validation: Codes | None) -> tuple[Any, ...]:
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = fit(train, validation)
    return *fitted, time.process_time() - started


def _split(train: Codes) -> tuple[Codes, Codes]:
    order = torch.randperm(len(next(iter(train.values()))), generator=torch.Generator().manual_seed(0))
    held, part = order[: len(order) // 5], order[len(order) // 5 :]
    return {name: x[part] for name, x in train.items()}, {name: x[held] for name, x in train.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--studies", nargs="+", default=["table", "noise", "add", "joining"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "multiway.json")
    parser.add_argument("--noise-methods", nargs="+", default=list(NOISE_METHODS), choices=list(NOISE_METHODS))
    parser.add_argument("--append", action="store_true", help="keep what is already in the file --out")
    parser.add_argument("--report", action="store_true", help="only the tables, from the file --out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.report:
        if arguments.data is None:
            parser.error("--data FOLDER is needed to fit")
        record = json.loads(arguments.out.read_text()) if arguments.append else {"runs": []}
        runs = {run["set"]: run for run in record["runs"]}
        for name in arguments.sets:
            data = SETS[name](arguments.data)
            run = runs.setdefault(name, {"set": name})
            if "table" in arguments.studies:
                run |= {"data": data.name} | provenance(0)
                run["table"] = table_study(data)
            if "noise" in arguments.studies and name in NOISY:
                earlier = run.get("noise", {})
                noise = noise_study(data, NOISY[name], arguments.noise_methods, earlier.get("shares", {}))
                again = dict.fromkeys(arguments.noise_methods, provenance(0))
                run["noise"] = noise | {"measured": earlier.get("measured", {}) | again}
            if "add" in arguments.studies and name in ADDING:
                run["add"] = add_study(data)
            if "joining" in arguments.studies and name in JOINING:
                run["joining"] = joining_study(data, JOINING[name])
            with whole_file(arguments.out) as path:  # after each set: an hour's work survives an interruption
                path.write_text(json.dumps({"runs": list(runs.values())}, indent=1) + "\n")
    with whole_file(arguments.out.with_suffix(".md")) as path:
        path.write_text(report(json.loads(arguments.out.read_text())))


if __name__ == "__main__":
    main()
