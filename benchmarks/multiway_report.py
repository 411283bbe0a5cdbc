"""Markdown tables from what `multiway.py` measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEADER = ["method", "Rank-1", "best minus it", "Rank-5", "MRR = mAP", "worst pair", "Rank-1, CSLS"]
LABELLED = ["mAP by label", "ARI", "NMI"]


def report(record: dict[str, Any]) -> str:
    """In bold: the best Rank-1, and those whose distance to it has 0 in its interval."""
    lines = ["# Any-to-any retrieval among matched spaces\n"]
    for run in record["runs"]:
        lines += [f"## {run['data']}\n", *methods_table(run["table"])]
        if "noise" in run:
            lines += noise_table(run["noise"])
        if "add" in run:
            lines += add_table(run["add"])
        if "joining" in run:
            lines += joining_table(run["joining"])
    return "\n".join(lines)


def methods_table(table: dict[str, Any]) -> list[str]:
    labelled = any("label_map" in row for row in table["methods"].values())
    rows = []
    for name, row in table["methods"].items():
        rank_1 = interval(row["rank_1"])
        cells = [
            name,
            f"**{rank_1}**" if row["behind_best"][1] <= 0 else rank_1,
            interval(row["behind_best"]),
            percent(row["rank_5"][0]),
            percent(row["mrr"][0]),
            interval(row["worst_rank_1"]),
            percent(row["rank_1_csls"]),
        ]
        if labelled:
            cells += [percent(row["label_map"][0])]
            cells += [f"{sum(row['clusters'][key]) / len(row['clusters'][key]):.3f}" for key in ("ari", "nmi")]
        chosen = [str(row[key]) for key in ("corrector", "ridge", "shrinkage") if row.get(key) is not None]
        rows.append([*cells, ", ".join(chosen), f"{row['fit_cpu_seconds']:.1f}"])
    head = HEADER + (LABELLED if labelled else []) + ["chosen", "CPU s"]
    size = f"n = {table['n_train']} rows to learn from, {table['n_test']} test rows"
    return [f"{size}; %, 95 % bootstrap intervals over test rows, draws shared.\n", *markdown(head, rows)]


def noise_table(noise: dict[str, Any]) -> list[str]:
    shares = noise["shares"]
    rows = [
        [
            method,
            *(
                f"{percent(scores[method]['all'])} / {percent(scores[method]['wrong_models'])}"
                for scores in shares.values()
            ),
        ]
        for method in next(iter(shares.values()))
    ]
    head = ["method", *(f"{float(share):.0%} wrong" for share in shares)]
    title = f"Training rows of {', '.join(noise['models'])} permuted; Rank-1, %: all pairs / these models' pairs.\n"
    return [title, *markdown(head, rows)]


def add_table(add: dict[str, Any]) -> list[str]:
    rows = []
    for method, row in add["methods"].items():
        held = row["certificate"]
        certificate = f"{percent(held['rank1'])}, {held['agreement']:.3f}, {held['p_value']:.3f}"
        rows.append([method, percent(row["added"]), percent(row["fitted_together"]), certificate])
    head = ["method", "added", "fitted together", "certificate: Rank-1, cosine, p"]
    return [f"{add['newcomer']} joins the others; Rank-1 of its pairs, %.\n", *markdown(head, rows)]


def joining_table(joining: dict[str, Any]) -> list[str]:
    rows = [[method, *map(percent, values)] for method, values in joining["rank_1"].items()]
    head = ["method", *(f"{n} models" for n in joining["n_models"])]
    return [f"Rank-1 of {' and '.join(joining['pair'])}, %, by models in the universe.\n", *markdown(head, rows)]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def interval(values: Sequence[float]) -> str:
    value, low, high = map(percent, values)
    return f"{value} [{low}, {high}]"
