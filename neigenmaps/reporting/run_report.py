"""From a run folder to `report.html`: what was measured, drawn. Whatever is missing is left out.

report_run("checkpoints/digits/2026-11-21_04-45-32", images)    # images: for the retrieved strips, or None
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neigenmaps.data import DatasetSplits, ImageStore
from neigenmaps.errors import DataError
from neigenmaps.evaluation.alignments import Alignment, read_alignments
from neigenmaps.features import FeatureSet
from neigenmaps.files import whole_file
from neigenmaps.reporting.alignment_figures import plot_alignment
from neigenmaps.reporting.alignment_series import (
    alignment_series,
    interval_of,
    leading_layer,
    measures_of,
    null_series,
    references_of,
)
from neigenmaps.reporting.report import (
    Block,
    Entries,
    Frames,
    Lines,
    Matrix,
    Panel,
    Places,
    Section,
    Series,
    StripRow,
    Strips,
    Table,
    write_report,
)

MEASURE_NAMES = {
    "lfm": "latent functional map, weighted overlap",
    "unbiased_cka": "linear CKA, unbiased",
    "mutual_knn": "mutual nearest neighbours",
    "procrustes": "Procrustes",
}
CURVES = {"train": "training", "eval": "held-out accuracy", "spectrum": "spectrum"}
STRIP_DIMS = (8, 32)
N_QUERIES, N_RETRIEVED = 6, 10


def report_run(run: str | Path, images: DatasetSplits | None = None) -> Path:
    """Write `report.html` into a run folder, and of its alignments `alignment.png` and an entry of `summary.json`.

    DataError when the folder holds nothing that could be shown.
    """
    run = Path(run)
    summary = _json(run / "summary.json")
    alignments = read_alignments(run / "alignment")
    if alignments:
        layer = leading_layer(alignments)
        measure = measures_of(alignments, layer)[0]
        plot_alignment(_curves(alignments, layer, measure), run / "alignment.png", title=MEASURE_NAMES[measure])
        summary["alignment"] = {str(one.step): one.headlines() for one in alignments}
        summary["alignment_intervals"] = {str(one.step): one.bounds() for one in alignments}
        with whole_file(run / "summary.json") as unfinished:
            unfinished.write_text(json.dumps(summary, indent=2) + "\n")
    sections = [
        Section(
            "Alignment", alignment_blocks(alignments, images.test if images is not None else None), _ALIGNMENT_NOTE
        ),
        Section("Code length", length_blocks(summary)),
        Section("Retrieval", retrieval_blocks(run / "features", images)),
        Section("Training", metric_blocks(run / "metrics.csv")),
        Section("Provenance", provenance_blocks(_json(run / "provenance.json"))),
    ]
    if not any(section.blocks for section in sections):
        raise DataError(
            f"expected a run folder in {run}, with metrics.csv, summary.json or alignment/, found none of them"
        )
    path = run / "report.html"
    write_report(
        path, f"{run.parent.name}, {run.name}", "What a training run learned, and what it converged toward.", sections
    )
    return path


_ALIGNMENT_NOTE = (
    "Calibrated by permuting the rows of the probe set: 0 is what unrelated rows give, 1 the best there is. The grey band is two "
    "standard deviations of that null; a coloured one is where the curve would lie in 95 % of cases had other images of the same "
    "kind been embedded (jackknife over folds of the probe set). The first point is the untrained network, which shares the "
    "input's geometry and so lies above 0; the dotted line of each colour keeps its level, and what training adds or takes away "
    "shows against it. Switch the shuffled rows off to look closer."
)
CLOUD = 300  # points of a panel
UNTRAINED, TRAINED = "this run, untrained", "this run"


def alignment_blocks(alignments: Sequence[Alignment], probe: ImageStore | None) -> list[Block]:
    """Curves by measure, the universe, drift, maps through time, all models beside each other, distortion by class."""
    if not alignments:
        return []
    layer = leading_layer(alignments)
    references, measures = references_of(alignments, layer), measures_of(alignments, layer)
    blocks: list[Block] = [
        Lines(MEASURE_NAMES[measure], "step", _curves(alignments, layer, measure)) for measure in measures
    ]
    if universe := _universe_lines(alignments, layer):
        blocks.append(universe)
    if "lfm" in measures and len(alignments) > 1:
        blocks.append(_drift_lines(alignments, layer))
    if places := _places(alignments, layer, probe):
        blocks.append(places)
    if "lfm" in measures:
        blocks += _maps(alignments, layer, references)
        if between := _between(alignments, layer, references):
            blocks.append(between)
        if distortion := _distortion(alignments[-1], layer, references, probe):
            blocks.append(distortion)
    blocks.append(_table(alignments, layer, references, measures))
    return blocks


def _curves(alignments: Sequence[Alignment], layer: str, measure: str) -> list[Series]:
    references = references_of(alignments, layer)
    curves = [alignment_series(alignments, layer, name, measure, name) for name in references]
    return [*curves, null_series(alignments, layer, references, measure)]


def _universe_lines(alignments: Sequence[Alignment], layer: str) -> Lines | None:
    found = [one for one in alignments if layer in one.universe]
    if not found:
        return None
    steps = [one.step for one in found]
    refit = found[-1].facts["settings"].get("refit", False)
    names = {"agreement": "agreement (mean cosine)", "rank1": "Rank-1, mean", "worst_rank1": "Rank-1, worst pair"}
    series = [
        Series(
            text,
            steps,
            [one.universe[layer][name] for one in found],
            *interval_of(found, layer, f"universe/{name}"),
        )
        for name, text in names.items()
    ]
    return Lines(
        "In the universe of the references",
        "step",
        series,
        "Held-out rows; the universe is fitted "
        + ("anew with every checkpoint in it." if refit else "once, without the model."),
    )


def _drift_lines(alignments: Sequence[Alignment], layer: str) -> Lines:
    steps = [one.step for one in alignments]
    before = [one.values[layer].get("previous", {}).get("lfm", {}).get("calibrated") for one in alignments]
    final = [one.likeness(alignments[-1], layer) for one in alignments]
    series = [Series("to the previous checkpoint", steps, before), Series("to the last one", steps, final)]
    note = (
        "Overlap of smooth functions with the run's own checkpoints, calibrated: where it is flat at 1, nothing moves."
    )
    return Lines("Drift", "step", series, note)


def _places(alignments: Sequence[Alignment], layer: str, probe: ImageStore | None) -> Places | None:
    shown = [one for one in alignments if f"{layer}/places" in one.arrays]
    if not shown:
        return None
    rows = shown[-1].arrays["places_rows"]
    keep = torch.linspace(0, len(rows) - 1, min(CLOUD, len(rows))).round().long()
    panels = {TRAINED: torch.stack([one.arrays[f"{layer}/places"][keep] for one in shown])}
    for name in references_of(alignments, layer):
        at = [one.arrays[f"places/{name}"][keep] for one in shown]
        panels[name] = torch.stack(at if any(not torch.equal(one, at[-1]) for one in at) else at[-1:])
    labels_N, names = _classes(probe, len(alignments[-1].basis(layer).eigenvectors_NK))
    note = (
        "Held-out images on the two leading axes of the universe, fitted as above: the same image lies at the same place in every "
        "model that agrees with it."
    )
    steps = [f"step {one.step}" for one in shown]
    return Places("The universe", steps, panels, labels_N[rows[keep]].tolist(), names, note)


def _maps(alignments: Sequence[Alignment], layer: str, references: Sequence[str]) -> list[Block]:
    panels = []
    for name in references:
        maps = [one.arrays[f"{layer}/{name}/functional_map"] for one in alignments]
        size = [min(c_LK.shape[axis] for c_LK in maps) for axis in (0, 1)]  # a gap may come and go
        panels.append(Panel(name, torch.stack([c_LK[: size[0], : size[1]] for c_LK in maps])))
    labels = [f"step {one.step}" for one in alignments]
    note = "Rows: smoothest functions of the reference; columns: of the checkpoint. A clean diagonal means the same functions."
    return [Frames("Functional maps through training", labels, panels, note)]


def _between(alignments: Sequence[Alignment], layer: str, references: Sequence[str]) -> Matrix | None:
    """The run beside its references, and the references beside each other."""
    between = alignments[-1].facts.get("between")
    if not between:
        return None
    first, last = alignments[0], alignments[-1]
    ours = {TRAINED: last} | ({UNTRAINED: first} if first.step == 0 and len(alignments) > 1 else {})
    names = [*ours, *references]

    def likeness(a: str, b: str) -> float:
        if a in ours and b in ours:
            return ours[a].likeness(ours[b], layer)
        if a in ours or b in ours:
            run, reference = (a, b) if a in ours else (b, a)
            return ours[run].values[layer][reference]["lfm"]["calibrated"]
        return float(between[a][b])

    values = [[likeness(a, b) for b in names] for a in names]
    return Matrix(
        "All models beside each other", names, names, values, "Overlap of smooth functions, calibrated.", 0.0, 1.0
    )


def _classes(probe: ImageStore | None, n_rows: int) -> tuple[Tensor, list[str]]:
    """Labels of the probe set's rows and names of the classes; -1 and none where they are not known."""
    probe = None if probe is None else probe.thin(n_rows)
    if probe is None or probe.labels_N is None or len(probe) != n_rows:
        return torch.full((n_rows,), -1), []
    n_classes = int(probe.labels_N.max()) + 1
    return probe.labels_N, [probe.class_names[c] if probe.class_names else str(c) for c in range(n_classes)]


def _distortion(alignment: Alignment, layer: str, references: Sequence[str], probe: ImageStore | None) -> Matrix | None:
    lost = {name: alignment.arrays[f"{layer}/{name}/distortion"] for name in references}
    labels_N, names = _classes(probe, len(lost[references[0]]))
    classes = [label for label in range(len(names)) if (labels_N == label).any()]
    if not classes:
        return None
    values = [[float(lost[name][labels_N == label].mean()) for name in references] for label in classes]
    note = "How much of each row's share in the smooth functions the map loses, at the last checkpoint; 0 is nothing."
    return Matrix("Distortion by class", [names[label] for label in classes], list(references), values, note, low=0.0)


def _table(alignments: Sequence[Alignment], layer: str, references: Sequence[str], measures: Sequence[str]) -> Table:
    rows: list[list[str | float | int | None]] = []
    for name in references:
        for measure in measures:
            first, last = (one.values[layer][name].get(measure, {}) for one in (alignments[0], alignments[-1]))
            given = (
                (first.get("calibrated"), ".2f"),
                (last.get("calibrated"), ".2f"),
                (last.get("z"), ".0f"),
                (last.get("p"), ".3f"),
            )
            shown = [None if value is None else format(value, digits) for value, digits in given]
            rows.append([f"{name}: {MEASURE_NAMES.get(measure, measure)}", *shown])
    return Table(
        "First and last checkpoint", ["", f"step {alignments[0].step}", f"step {alignments[-1].step}", "z", "p"], rows
    )


def length_blocks(summary: Mapping[str, Any]) -> list[Block]:
    """kNN accuracy and mAP by code length, and the spectrum."""
    blocks: list[Block] = []
    for measure, title in (("knn_accuracy", "kNN accuracy"), ("retrieval_map", "retrieval mAP")):
        curves = summary.get("by_length", {})
        lengths = sorted({m for curve in curves.values() for m in curve["dims"]})
        series = []
        for name, curve in curves.items():
            level = len(curve["dims"]) == 1 < len(lengths)  # it has no length to choose: a line all along
            x, y = ([lengths[0], lengths[-1]], 2 * curve[measure]) if level else (curve["dims"], curve[measure])
            series.append(Series(name, x, y, dashed=level))
        if series:
            blocks.append(Lines(title, "numbers", series, log2=True))
    if eigenvalues := summary.get("eigenvalues"):
        numbers = list(range(1, len(eigenvalues) + 1))
        blocks.append(Lines("Eigenvalues", "function", [Series("ours", numbers, eigenvalues)]))
    return blocks


def metric_blocks(path: Path) -> list[Block]:
    """Every metric of `metrics.csv` but the alignment's, by group."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    blocks: list[Block] = []
    for group, title in CURVES.items():
        names = [name for name in (rows[0] if rows else {}) if name.startswith(f"{group}/")]
        series = []
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            if points:
                steps, values = zip(*points, strict=True)
                series.append(Series(name.split("/", 1)[1], steps, values))
        if group == "spectrum":  # counts and shares have no common axis
            blocks += [Lines(one.name.replace("_", " "), "step", [one]) for one in series]
        elif series:
            blocks.append(Lines(title, "step", series))
    return blocks


def retrieval_blocks(folder: Path, images: DatasetSplits | None) -> list[Block]:
    """What some held-out images retrieve from the training images at several code lengths."""
    if images is None or not (folder / "train.safetensors").is_file() or images.train.labels_N is None:
        return []
    bank, queries = (FeatureSet.load(folder / f"{name}.safetensors") for name in ("train", "test"))
    if len(bank) != len(images.train) or len(queries) != len(images.test) or images.test.labels_N is None:
        return []
    chosen = images.test.thin_rows(N_QUERIES)
    width = bank.embeddings_NF.shape[1]
    dims = [*(m for m in STRIP_DIMS if m < width), width]
    found = {m: nearest(queries.embeddings_NF[chosen, :m], bank.embeddings_NF[:, :m]) for m in dims}
    strips = [
        (images.test.images_NCHW[row], list(_rows(place, int(row), found, images))) for place, row in enumerate(chosen)
    ]
    return [Strips("Nearest training images of held-out ones", strips, "Green: of the same class. First: the query.")]


def _rows(place: int, row: int, found: Mapping[int, Tensor], images: DatasetSplits) -> Iterator[StripRow]:
    assert images.train.labels_N is not None
    assert images.test.labels_N is not None
    for m, index_QK in found.items():
        retrieved = index_QK[place]
        right = (images.train.labels_N[retrieved] == images.test.labels_N[row]).tolist()
        yield StripRow(f"{m} numbers", list(images.train.images_NCHW[retrieved]), right)


def nearest(queries_QF: Tensor, bank_NF: Tensor) -> Tensor:
    """Rows of the bank by falling cosine, (Q, N_RETRIEVED)."""
    unit = torch.nn.functional.normalize
    return (unit(queries_QF) @ unit(bank_NF).T).topk(min(N_RETRIEVED, len(bank_NF)), dim=1).indices


def provenance_blocks(record: Mapping[str, Any]) -> list[Block]:
    flat = {name: value for name, value in record.items() if not isinstance(value, Mapping)}
    flat |= record.get("versions", {})
    return [Entries("What ran", flat)] if flat else []


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    return found if isinstance(found, dict) else {}
