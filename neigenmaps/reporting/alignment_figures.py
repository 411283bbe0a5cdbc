"""Pictures of what compares spaces: functional maps, tables over layers, curves of scores, distortion of single rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.reporting import figures
from neigenmaps.reporting.figures import GREY
from neigenmaps.reporting.report import Number, Series

LEGEND_WIDTH = 92  # letters
BLUES, ORDERED = "Blues", "viridis"  # both keep their order in grey
CLASSES = (*figures.COLOURS, "#882255", "#999933", "#888888")  # ten that can be told apart


def plot_functional_maps(maps: Mapping[str, Tensor], path: str | Path, *, columns: int = 6) -> None:
    """Draw |C| of every map (L, K) by name, one picture each on one scale from 0 to 1, and write them to `path` as PNG."""
    for name, c_LK in maps.items():
        _check_matrix(f"map {name!r}", c_LK)
    figure, cells = _grid(len(maps), columns, inches=1.4)
    for axes, (name, c_LK) in zip(cells, maps.items(), strict=True):
        image = axes.imshow(c_LK.detach().abs().cpu().numpy(), cmap=BLUES, vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(image, ax=cells, shrink=0.8, aspect=30, label="|C|")
    figures._write(figure, path)


def plot_layer_tables(
    tables: Mapping[str, Tensor], layers: Sequence[str], path: str | Path, *, columns: int = 4
) -> None:
    """Draw likeness of layers (A, A) by method, and write the tables to `path` as PNG.

    Every table has a scale of its own, from its least to its largest value; a dot marks the best column of each row.
    """
    for name, table_AA in tables.items():
        _check_matrix(f"table {name!r}", table_AA)
        if table_AA.shape != (len(layers), len(layers)):
            raise ShapeError(f"expected tables over {len(layers)} layers, got {tuple(table_AA.shape)} for {name!r}")
    figure, cells = _grid(len(tables), columns, inches=2.1)
    for number, (axes, (name, table_AA)) in enumerate(zip(cells, tables.items(), strict=True)):
        axes.imshow(table_AA.detach().cpu().numpy(), cmap=ORDERED, interpolation="nearest")
        axes.plot(
            table_AA.argmax(dim=1).tolist(), range(len(layers)), "o", color="white", markeredgecolor="black", ms=4
        )
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(len(layers)), layers, fontsize=6, rotation=90)
        axes.set_yticks(range(len(layers)), layers if number % columns == 0 else [""] * len(layers), fontsize=6)
        axes.tick_params(length=0)
    figures._write(figure, path)


def plot_score_curves(
    levels: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    path: str | Path,
    *,
    xlabel: str,
    title: str = "score",
) -> None:
    """Draw scores by name over levels of a disturbance, from 0 to 1, and write them to `path` as PNG."""
    if not curves:
        raise InputError("expected one curve or more, got none: give scores by name")
    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    axes = figure.subplots()
    for style, (name, values) in enumerate(curves.items()):
        if len(values) != len(levels):
            raise ShapeError(f"expected {len(levels)} values, one for each level, got {len(values)} for {name!r}")
        colour, marker = figures._style(style)
        axes.plot(levels, values, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)
    axes.set_ylim(min(0.0, *(min(values) for values in curves.values())), 1.02)
    axes.set_xlabel(xlabel)
    axes.set_title(title, fontsize=10, loc="left")
    figures._plain(axes)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    figures._write(figure, path)


def plot_alignment(curves: Sequence[Series], path: str | Path, *, title: str, xlabel: str = "training step") -> None:
    """Draw alignment through training, bands and starting levels as in the report's charts, and write a PNG."""
    if not curves:
        raise InputError("expected one curve or more, got none: give a Series for each reference")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for style, one in enumerate(curves):
        colour, marker = (GREY, None) if one.dashed else figures._style(style)
        line: dict[str, Any] = {"linestyle": "--", "linewidth": 1.0}
        if not one.dashed:
            line = {"marker": marker, "markersize": 4, "linewidth": 1.6}
        axes.plot(_known(one.x), _known(one.y), color=colour, label=one.name, **line)
        if one.low is not None and one.high is not None:
            axes.fill_between(_known(one.x), _known(one.low), _known(one.high), color=colour, alpha=0.2, linewidth=0)
        if one.level is not None:
            axes.axhline(one.level, color=colour, linestyle=":", linewidth=0.9)
    axes.set_xlabel(xlabel)
    axes.set_title(f"{title}, calibrated", fontsize=10, loc="left")
    figures._plain(axes)
    longest = max(len(one.name) for one in curves)
    figures._legend_below(figure, n_entries=max(1, LEGEND_WIDTH // (longest + 8)))
    figures._write(figure, path)


def plot_anchor_curves(
    panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]],
    path: str | Path,
    *,
    title: str = "mean reciprocal rank",
) -> None:
    """Draw scores over the number of anchors (logarithmic axis), a panel for each pair of spaces, and write a PNG.

    panels: by pair, by method, by number of anchors: the scores of all draws. Mean, with a band of one standard deviation.
    """
    if not panels:
        raise InputError("expected one pair of spaces or more, got none: give scores by pair, method and anchors")
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    for axes, (pair, methods) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for style, (method, by_anchors) in enumerate(methods.items()):
            colour, marker = figures._style(style)
            counts = list(by_anchors)
            means = [statistics.fmean(values) for values in by_anchors.values()]
            half = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in by_anchors.values()]
            axes.plot(counts, means, color=colour, marker=marker, markersize=4, linewidth=1.6, label=method)
            low, high = ([m + sign * h for m, h in zip(means, half, strict=True)] for sign in (-1, 1))
            axes.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("anchors")
        axes.set_title(f"{pair}: {title}", fontsize=10, loc="left")
        figures._plain(axes)
    figures._legend_below(figure, n_entries=2)
    figures._write(figure, path)


def plot_distortion(
    places_N2: Tensor,
    distortion_x: Tensor,
    distortion_y: Tensor,
    path: str | Path,
    *,
    names: tuple[str, str] = ("X", "Y"),
) -> None:
    """Draw what a map loses of every row (N,), in either space, at places in a plane (N, 2); written to `path` as PNG.

    Rows that lose most are drawn last, so that no kept row hides them. The places are the caller's choice: two
    eigenfunctions, two principal components.
    """
    if places_N2.ndim != 2 or places_N2.shape[1] != 2 or not len(places_N2) == len(distortion_x) == len(distortion_y):
        raise ShapeError(
            f"expected places (N, 2) and two distortions (N,), got {tuple(places_N2.shape)}, {tuple(distortion_x.shape)} "
            f"and {tuple(distortion_y.shape)}: give every row a place"
        )
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    cells = figure.subplots(1, 2)
    for axes, lost_N, name in zip(cells, (distortion_x, distortion_y), names, strict=True):
        order_N = lost_N.argsort()
        at_N2, lost = places_N2[order_N].detach().cpu(), lost_N[order_N].detach().cpu()
        points = axes.scatter(*at_N2.T.tolist(), c=lost.tolist(), cmap=ORDERED, vmin=0, vmax=1, s=6, linewidths=0)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(GREY)
    figure.colorbar(points, ax=cells, label="share of the row that is lost", shrink=0.9)
    figures._write(figure, path)


def _grid(n: int, columns: int, inches: float) -> tuple[Figure, list]:
    if n == 0:
        raise InputError("expected one matrix or more, got none: give them by name")
    width, height = min(n, columns), math.ceil(n / columns)
    figure = Figure(figsize=(width * inches + 0.8, height * (inches + 0.3)), layout="constrained")
    cells = figure.subplots(height, width, squeeze=False).flatten().tolist()
    for axes in cells[n:]:
        axes.set_visible(False)
    return figure, cells[:n]


def _known(values: Sequence[Number]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _check_matrix(what: str, matrix: Tensor) -> None:
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ShapeError(f"expected {what} to be a matrix, got {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise NonFiniteError(f"expected a finite {what}, got NaN or infinity")


def plot_matched_spaces(
    places_x_N2: Tensor,
    places_y_M2: Tensor,
    functional_map_LK: Tensor,
    y_row_of_x_N: Tensor,
    classes_N: Tensor,
    path: str | Path,
    *,
    right_N: Tensor | None = None,
    n_lines: int = 60,
) -> None:
    """Draw space X, the functional map, and space Y with lines from rows of X to the rows of Y found for them.

    places: where every row is drawn, such as two leading principal components. classes_N: colours of X's rows, carried to
    Y by the match. right_N: whether a match is true; lines of wrong ones are dashed. n_lines: matches drawn, evenly spread.
    """
    n_rows = len(places_x_N2)
    if places_x_N2.shape != (n_rows, 2) or places_y_M2.ndim != 2 or places_y_M2.shape[1] != 2:
        raise ShapeError(
            f"expected places (N, 2) and (M, 2), got {tuple(places_x_N2.shape)}, {tuple(places_y_M2.shape)}"
        )
    if y_row_of_x_N.shape != (n_rows,) or classes_N.shape != (n_rows,):
        raise ShapeError(f"expected a match and a class for each of {n_rows} rows of X")
    _check_matrix("functional map", functional_map_LK)
    figure = Figure(figsize=(10.2, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 0.8, 1))
    colours = ["#BBBBBB"] * len(places_y_M2)
    shades = [figures.COLOURS[int(c) % len(figures.COLOURS)] for c in classes_N]
    for row, match in enumerate(y_row_of_x_N.tolist()):
        colours[match] = shades[row]
    for axes, places, shade, title in (
        (left, places_x_N2, shades, "space X"),
        (right, places_y_M2, colours, "space Y, coloured by its matches"),
    ):
        axes.scatter(places[:, 0].tolist(), places[:, 1].tolist(), c=shade, s=5, linewidths=0)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    limit = float(functional_map_LK.abs().max())
    middle.imshow(functional_map_LK.tolist(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    middle.set_title("functional map C", fontsize=10)
    middle.set_xlabel("smooth functions on X", fontsize=8)
    middle.set_ylabel("smooth functions on Y", fontsize=8)
    middle.set_xticks([])
    middle.set_yticks([])
    for row in range(0, n_rows, max(1, n_rows // n_lines)):
        match = int(y_row_of_x_N[row])
        true = right_N is None or bool(right_N[row])
        (x0, y0), (x1, y1) = places_x_N2[row].tolist(), places_y_M2[match].tolist()
        look = {"color": shades[row], "alpha": 0.35} if true else {"color": "#000000", "linestyle": "--"}
        line = ConnectionPatch(
            (x0, y0), (x1, y1), "data", "data", axesA=left, axesB=right, linewidth=0.5, zorder=0, **look
        )
        figure.add_artist(line)
    figures._write(figure, path)


def plot_universe(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    agreement: Mapping[str, float],
    classes_N: Tensor,
    path: str | Path,
    *,
    n_lines: int = 60,
) -> None:
    """Draw the rows of every model at their places (N, 2) before alignment and in the universe, and write a PNG.

    One marker for each model, colours by class, lines from the mean of a row's places to each of them, for n_lines rows
    evenly spread. agreement: by model, how well it agrees with the others, as bars from 0 to 1.
    """
    if not before or before.keys() != after.keys() or before.keys() != agreement.keys():
        raise InputError(
            f"expected the same models before, after and in agreement, got {', '.join(before) or 'none'}; "
            f"{', '.join(after) or 'none'}; {', '.join(agreement) or 'none'}: give every model all three"
        )
    for name, places in (*before.items(), *after.items()):
        if places.shape != (len(classes_N), 2):
            raise ShapeError(f"expected places ({len(classes_N)}, 2) of {name!r}, got {tuple(places.shape)}")
        if not places.isfinite().all():
            raise NonFiniteError(f"expected finite places of {name!r}, got NaN or infinity: look at its maps")
    figure = Figure(figsize=(10.2, 4.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.55))
    shades = [CLASSES[int(c) % len(CLASSES)] for c in classes_N]
    for axes, models, title in ((left, before, "every model by itself"), (middle, after, "in one universe")):
        places_MN2 = torch.stack([place_N2.detach().double().cpu() for place_N2 in models.values()])
        for row in range(0, len(classes_N), max(1, len(classes_N) // n_lines)):
            ends_M2, mean_2 = places_MN2[:, row], places_MN2[:, row].mean(dim=0)
            for end_2 in ends_M2:
                axes.plot(*torch.stack([mean_2, end_2]).T.tolist(), color=shades[row], linewidth=0.6, alpha=0.6)
        for number, place_N2 in enumerate(places_MN2):
            marker = figures._style(number)[1]
            axes.scatter(*place_N2.T.tolist(), c=shades, marker=marker, s=7, linewidths=0, alpha=0.75)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    names = list(agreement)[::-1]
    right.barh(names, [agreement[name] for name in names], color=GREY, height=0.5)
    for height, name in enumerate(names):
        marker = figures._style(len(names) - 1 - height)[1]
        right.plot(0.05, height, marker, color="white", markersize=6, markeredgewidth=0)
        right.text(agreement[name] + 0.02, height, f"{agreement[name]:.2f}", va="center", fontsize=8)
    right.set_xlim(0, 1.12)
    right.set_xticks([0, 0.5, 1])
    right.set_title("agreement with the others", fontsize=10)
    right.spines[["top", "right", "left"]].set_visible(False)
    right.tick_params(axis="y", length=0)
    figures._write(figure, path)
