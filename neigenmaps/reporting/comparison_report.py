"""Several runs beside each other and their references, as one page: the tree, similarities, the universe, curves of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from neigenmaps.data import ImageStore
from neigenmaps.evaluation.alignments import Alignment
from neigenmaps.evaluation.model_comparison import ModelComparison
from neigenmaps.reporting.alignment_series import (
    alignment_series,
    leading_layer,
    measures_of,
    null_series,
    references_of,
)
from neigenmaps.reporting.report import Block, Lines, Matrix, Places, Section, Tree, write_report
from neigenmaps.reporting.run_report import CLOUD, MEASURE_NAMES

NOTE = (
    "Calibrated by permuting the rows of the probe set: 0 is what unrelated rows give, 1 the best there is. Models stand in the "
    "order of the tree, in which neighbours are alike."
)
CURVE_NOTE = (
    "Coloured bands: 95 % intervals over the choice of probe images. Grey: two standard deviations of what shuffled rows give. "
    "Dotted: where a run began, untrained. Switch the shuffled rows off to look closer."
)


def report_comparison(
    folder: str | Path, comparison: ModelComparison, histories: Mapping[str, Sequence[Alignment]], probe: ImageStore
) -> Path:
    """Write `comparison.html` into a folder. histories: the alignments of every run with the references, by step."""
    path = Path(folder) / "comparison.html"
    sections = [
        Section("Who is like whom", likeness_blocks(comparison), NOTE),
        Section("One universe", universe_blocks(comparison, probe)),
        Section("Through training", curve_blocks(histories), CURVE_NOTE),
    ]
    runs = f"{len(histories)} runs and {len(comparison.names) - len(histories)} references"
    write_report(path, "Models beside each other", f"{runs}, on {len(probe)} images of {probe.source}.", sections)
    return path


def likeness_blocks(comparison: ModelComparison) -> list[Block]:
    """The tree, and a matrix for every measure."""
    names = [comparison.names[i] for i in comparison.order]
    first = MEASURE_NAMES[next(iter(comparison.similarity))]
    blocks: list[Block] = [
        Tree("Tree of models", comparison.names, comparison.merges, comparison.order, f"Average linkage by: {first}.")
    ]
    for measure, values in comparison.similarity.items():
        ordered = [[values[i][j] for j in comparison.order] for i in comparison.order]
        blocks.append(Matrix(MEASURE_NAMES[measure], names, names, ordered, low=0.0, high=1.0))
    return blocks


def universe_blocks(comparison: ModelComparison, probe: ImageStore) -> list[Block]:
    """Rank-1 from every model to every other, and the held-out rows as every model places them."""
    if comparison.rank1 is None:
        return []
    names = [comparison.names[i] for i in comparison.order]
    rank1 = [[comparison.rank1[i][j] for j in comparison.order] for i in comparison.order]
    note = "Share of held-out images whose nearest one, from the model of the row to that of the column, is the same image."
    rows = comparison.place_rows
    keep = torch.linspace(0, len(rows) - 1, min(CLOUD, len(rows))).round().long()
    panels = {name: comparison.places[name][None, keep] for name in names}
    labels_N = torch.full((len(probe),), -1) if probe.labels_N is None else probe.labels_N
    n_classes = max(0, int(labels_N.max()) + 1)
    classes = [probe.class_names[c] if probe.class_names else str(c) for c in range(n_classes)]
    places = Places("Held-out images", [""], panels, labels_N[rows[keep]].tolist(), classes, "On its two leading axes.")
    return [Matrix("Rank-1 in the universe", names, names, rank1, note, 0.0, 1.0), places]


def curve_blocks(histories: Mapping[str, Sequence[Alignment]]) -> list[Block]:
    """For every reference a chart with a curve for every run, by the first measure, intervals and null."""
    longest = max(map(len, histories.values()), default=0)
    if longest < 2:
        return []
    one_run = next(iter(histories.values()))
    layer = leading_layer(one_run)
    measure = measures_of(one_run, layer)[0]
    blocks: list[Block] = []
    everything = [one for history in histories.values() for one in history]
    for reference in references_of(one_run, layer):
        series = [alignment_series(history, layer, reference, measure, run) for run, history in histories.items()]
        series.append(null_series(everything, layer, [reference], measure))
        blocks.append(Lines(f"{MEASURE_NAMES[measure]}: with {reference}", "step", series))
    return blocks
