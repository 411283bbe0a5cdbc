"""Pictures: code length against score, the spectrum, and the images at both ends of every eigenfunction.

Only matplotlib's objects are used, never `pyplot`: no window, no global figure list, nothing to close. The colours are
those of Okabe & Ito (2008), which all kinds of colour vision tell apart; markers repeat the distinction in grey. Files
are written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.files import whole_file
from neigenmaps.reporting.spread import TITLES, Curves, Spread, lengths_of, measures_of, spreads
from neigenmaps.reporting.tables import check_eigenvalues

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"
DPI = 150  # a README shows about 900 pixels: the widths below are 8.4 inches or less


def plot_truncation(curves: Curves, path: str | Path, *, levels: Collection[str] = ("raw pixels",)) -> None:
    """Draw every measure that the curves have over code length (base-2 axis), and write them to `path` as PNG.

    Several curves for a method are seeds: mean with a band of one standard deviation. Methods named in `levels` have no
    length to choose; their value at their longest length is a dotted horizontal line.
    """
    measures = measures_of(curves)
    figure = Figure(figsize=(4.2 * len(measures), 3.7), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures)), measures, strict=True):
        by_method = spreads(curves, measure)
        lines = {method: spread for method, spread in by_method.items() if method not in levels}
        for style, (method, by_length) in enumerate(lines.items()):
            _draw_line(axes, by_length, style, method)
        for method, by_length in by_method.items():
            if method in levels:
                _draw_level(axes, by_length, method)
        _length_axis(axes, lengths_of(lines or by_method))
        axes.set_title(TITLES[measure], fontsize=10, loc="left")
        _plain(axes)
    _legend_below(figure, n_entries=len(curves))
    _write(figure, path)


def plot_truncation_panels(
    panels: Mapping[str, Mapping[str, Mapping[int, Spread]]],
    path: str | Path,
    *,
    levels: Collection[str] = (),
    measure: str = "",
) -> None:
    """Draw one measure over code length for several data sets, a panel each, and write them to `path` as PNG.

    panels: spread by title, method and code length. levels: as in `plot_truncation`. measure: its name, beside the first
    panel. Raises InputError without panels.
    """
    if not panels:
        raise InputError("expected one panel or more, got none: give spreads by title, method and code length")
    figure = Figure(figsize=(max(2.1 * len(panels), 6.3), 3.2), layout="constrained")
    for axes, (title, by_method) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        lines = {method: spread for method, spread in by_method.items() if method not in levels}
        for style, (method, by_length) in enumerate(lines.items()):
            _draw_line(axes, by_length, style, method)
        for method in [method for method in by_method if method in levels]:
            _draw_level(axes, by_method[method], method)
        _length_axis(axes, lengths_of(lines or by_method))
        axes.set_title(title, fontsize=10, loc="left")
        _plain(axes)
    figure.axes[0].set_ylabel(measure)
    _legend_below(figure, n_entries=max(len(by_method) for by_method in panels.values()))
    _write(figure, path)


def plot_eigenvalues(eigenvalues: Mapping[str, Tensor], path: str | Path) -> None:
    """Draw eigenvalues (K,) by method over their number (base-2 axis), and write them to `path` as PNG."""
    if not eigenvalues:
        raise InputError("expected one method or more, got none: give eigenvalues by method name")
    figure = Figure(figsize=(5.6, 3.7), layout="constrained")
    axes = figure.subplots()
    for style, (method, values_K) in enumerate(eigenvalues.items()):
        check_eigenvalues(method, values_K)
        number_K = range(1, len(values_K) + 1)
        colour, marker = _style(style)
        few = marker if len(values_K) <= 64 else ""  # more markers than that run together
        axes.plot(number_K, values_K.tolist(), color=colour, marker=few, markersize=3.5, linewidth=1.6, label=method)
    longest = max(len(values_K) for values_K in eigenvalues.values())
    _length_axis(axes, [2**power for power in range(longest.bit_length())])
    axes.set_xlabel("number of the eigenfunction")
    axes.set_title("eigenvalue", fontsize=10, loc="left")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _plain(axes)
    if len(eigenvalues) > 1:
        axes.legend(frameon=False, fontsize=9)
    _write(figure, path)


def plot_eigenfunction_gallery(
    codes_NK: Tensor, images_NCHW: Tensor, path: str | Path, *, n_functions: int = 8, n_images: int = 10
) -> None:
    """Show what every one of the first functions sees: the images at its lowest and at its highest values.

    One row for each of the first `n_functions` (or all, if there are fewer), `n_images` on either side, the most
    extreme outermost. Images are uint8 or floating with 1 or 3 channels; floating images outside [0, 1] are stretched
    to it. The sign of an eigenfunction is free, so that the two sides of a row may change places between runs. Written
    to `path` as PNG.

    Raises:
        ShapeError: codes and images that do not match, or images without 1 or 3 channels.
        InputError: n_functions < 1, or n_images not between 1 and N.
        NonFiniteError: NaN or infinity in the codes.
    """
    _check_gallery(codes_NK, images_NCHW, n_functions, n_images)
    order_NK = codes_NK[:, :n_functions].argsort(dim=0, stable=True)
    low = _mosaic(images_NCHW, order_NK[:n_images].T)
    high = _mosaic(images_NCHW, order_NK[-n_images:].T)

    n_shown = order_NK.shape[1]
    height, width = images_NCHW.shape[2:]
    row_inches = 8.0 / (2 * n_images + 1) * height / width
    figure = Figure(figsize=(8.4, n_shown * row_inches + 0.35), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.05})
    for axes, mosaic_HWC, title in ((left, low, "← lowest values"), (right, high, "highest values →")):
        axes.imshow(mosaic_HWC.numpy(), interpolation="nearest", aspect="equal")
        axes.set_title(title, fontsize=10, loc="left" if axes is left else "right")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    cell = mosaic_HWC.shape[0] / n_shown
    left.set_yticks([(i + 0.5) * cell for i in range(n_shown)], [str(i + 1) for i in range(n_shown)], fontsize=10)
    left.tick_params(length=0)
    left.set_ylabel("eigenfunction", fontsize=10)
    _write(figure, path)


def _draw_line(axes: Axes, by_length: Mapping[int, Spread], style: int, method: str) -> None:
    colour, marker = _style(style)
    dims, mean = list(by_length), [100 * spread.mean for spread in by_length.values()]
    axes.plot(dims, mean, color=colour, marker=marker, markersize=4.5, linewidth=1.8, label=method)
    half = [100 * (spread.std or 0.0) for spread in by_length.values()]
    if any(half):
        low, high = ([m + sign * h for m, h in zip(mean, half, strict=True)] for sign in (-1, 1))
        axes.fill_between(dims, low, high, color=colour, alpha=0.2, linewidth=0)


def _draw_level(axes: Axes, by_length: Mapping[int, Spread], method: str) -> None:
    longest = max(by_length)
    axes.axhline(100 * by_length[longest].mean, color=GREY, linestyle=":", linewidth=1.6, label=f"{method} ({longest})")


def _length_axis(axes: Axes, ticks: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_readable(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.set_xlabel("code length")


def _readable(ticks: Sequence[int]) -> list[float]:
    """Ticks whose labels do not touch: one that the next follows within a third is left out; the last one stays."""
    following = [*ticks[1:], float("inf")]
    return [float(tick) for tick, after in zip(ticks, following, strict=True) if after > 4 / 3 * tick]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)


def _legend_below(figure: Figure, n_entries: int) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(n_entries, 4), frameon=False, fontsize=9)


def _style(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def _mosaic(images_NCHW: Tensor, index_RC: Tensor) -> Tensor:
    """The images at `index_RC` as one RGB picture (H, W, 3) with a white line between them."""
    n_rows, n_columns = index_RC.shape
    images_NCHW = _displayable(images_NCHW, images_NCHW[index_RC.flatten().to(images_NCHW.device)])
    border = max(1, images_NCHW.shape[-1] // 16)
    images_NCHW = F.pad(images_NCHW, (0, border, 0, border), value=1.0)
    tiles = images_NCHW.unflatten(0, (n_rows, n_columns)).permute(0, 3, 1, 4, 2)  # rows, H, columns, W, channels
    return tiles.reshape(n_rows * images_NCHW.shape[2], n_columns * images_NCHW.shape[3], 3)


def _displayable(all_NCHW: Tensor, chosen_NCHW: Tensor) -> Tensor:
    chosen = chosen_NCHW.detach().float().cpu()
    if all_NCHW.dtype == torch.uint8:
        chosen = chosen / 255
    else:
        low, high = (bound.item() for bound in all_NCHW.float().aminmax())
        if low < 0 or high > 1:
            chosen = (chosen - low) / max(high - low, torch.finfo(torch.float32).tiny)
    return chosen.expand(-1, 3, -1, -1)


def _write(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=DPI)


def _check_gallery(codes_NK: Tensor, images_NCHW: Tensor, n_functions: int, n_images: int) -> None:
    if codes_NK.ndim != 2 or images_NCHW.ndim != 4 or len(codes_NK) != len(images_NCHW):
        raise ShapeError(
            f"expected codes (N, K) and images (N, C, H, W), got {tuple(codes_NK.shape)} and "
            f"{tuple(images_NCHW.shape)}: give every image one code"
        )
    if images_NCHW.shape[1] not in (1, 3):
        raise ShapeError(f"expected images with 1 or 3 channels, got {images_NCHW.shape[1]}: choose those to show")
    if n_functions < 1 or not 1 <= n_images <= len(codes_NK):
        raise InputError(
            f"expected n_functions >= 1 and 1 <= n_images <= {len(codes_NK)}, got {n_functions} and {n_images}: "
            "show something, and no image twice on one side"
        )
    if not torch.isfinite(codes_NK).all():
        raise NonFiniteError("expected finite codes, got NaN or infinity: look at the encoder that made them")
