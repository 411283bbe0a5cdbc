"""Tables of results for the terminal (rich) and for a README (Markdown). All scores are in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from neigenmaps.errors import NonFiniteError, ShapeError
from neigenmaps.reporting.spread import TITLES, Curves, Measure, Spread, lengths_of, measures_of, spreads

MISSING = "\N{EN DASH}"


def truncation_table(curves: Curves, *, measures: Sequence[Measure] | None = None) -> Table:
    """Methods by code length, one block for every measure (all that were taken); the best of a column is bold.

    Several curves for a method are seeds, shown as mean ± standard deviation. A length that a method was not measured
    at shows an en dash.
    """
    summary = {measure: spreads(curves, measure) for measure in measures or measures_of(curves)}
    dims = sorted({d for by_method in summary.values() for d in lengths_of(by_method)})
    table = Table(title="By code length", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for d in dims:
        table.add_column(str(d), justify="right")  # wraps at the ± in a narrow terminal
    for measure, by_method in summary.items():
        table.add_row(f"[italic]{TITLES[measure]}[/italic]")
        for method, cells in _rows(by_method, dims, bold=("[bold]", "[/bold]")):
            table.add_row(_literal(method), *(cell.replace("± ", "±") for cell in cells))
        table.add_section()
    return table


def markdown_table(curves: Curves, *, measure: Measure = "knn_accuracy") -> str:
    """The block of one measure as a Markdown table, ending in a newline; the best of a column is bold."""
    by_method = spreads(curves, measure)
    dims = lengths_of(by_method)
    lines = [[TITLES[measure], *map(str, dims)], ["---"] + ["--:"] * len(dims)]
    lines += [[method.replace("|", "\\|"), *cells] for method, cells in _rows(by_method, dims, bold=("**", "**"))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def eigenvalue_table(eigenvalues: Tensor | Mapping[str, Tensor]) -> Table:
    """Eigenvalues number 1, 2, 4, 8, ... and the last, one row for every method."""
    by_method = {"eigenvalue": eigenvalues} if isinstance(eigenvalues, Tensor) else dict(eigenvalues)
    for method, values_K in by_method.items():
        check_eigenvalues(method, values_K)
    indices = sorted({i for values_K in by_method.values() for i in _landmarks(len(values_K))})
    table = Table(title="Eigenvalues", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("number", no_wrap=True)
    for i in indices:
        table.add_column(str(i), justify="right", no_wrap=True)
    for method, values_K in by_method.items():
        cells = [f"{values_K[i - 1].item():.3f}" if i <= len(values_K) else MISSING for i in indices]
        table.add_row(_literal(method), *cells)
    return table


def check_eigenvalues(method: str, values_K: Tensor) -> None:
    """Raise ShapeError or NonFiniteError unless the eigenvalues are one finite, non-empty row."""
    if values_K.ndim != 1 or len(values_K) == 0:
        raise ShapeError(f"expected eigenvalues (K,) for {method!r}, got {tuple(values_K.shape)}: pass one row")
    if not torch.isfinite(values_K).all():
        raise NonFiniteError(f"expected finite eigenvalues for {method!r}, got NaN or infinity: the run has diverged")


def _rows(
    by_method: Mapping[str, Mapping[int, Spread]], dims: Sequence[int], bold: tuple[str, str]
) -> list[tuple[str, list[str]]]:
    best = {d: _best([by_length[d] for by_length in by_method.values() if d in by_length]) for d in dims}

    def cell(spread: Spread | None, d: int) -> str:
        if spread is None:
            return MISSING
        return spread.percent().join(bold) if _shown(spread) == best[d] else spread.percent()

    return [(method, [cell(by_length.get(d), d) for d in dims]) for method, by_length in by_method.items()]


def _best(column: Sequence[Spread]) -> float | None:
    """The value to print in bold; None where there is no rival."""
    return max(map(_shown, column)) if len(column) > 1 else None


def _shown(spread: Spread) -> float:
    """The mean as printed: two methods that print the same number are both best."""
    return round(100 * spread.mean, 1)


def _landmarks(n: int) -> list[int]:
    return [2**power for power in range(n.bit_length()) if 2**power < n] + [n]


def _literal(text: str) -> str:
    return text.replace("[", "\\[")  # rich reads [name] as a style
