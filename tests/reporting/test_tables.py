"""What tables say: means, spreads, the best in bold, and nothing where nothing was measured."""

import io

import pytest
import torch
from rich.console import Console
from rich.table import Table

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.evaluation import TruncationCurve
from neigenmaps.reporting import eigenvalue_table, markdown_table, spreads, truncation_table

DASH = "\N{EN DASH}"
CURVES = {
    "ours": [
        TruncationCurve((2, 4), (0.50, 0.90), (0.4, 0.6)),
        TruncationCurve((2, 4), (0.60, 0.92), (0.4, 0.7)),
    ],
    "PCA [64]": TruncationCurve((2, 4), (0.60, 0.9101), (0.3, 0.5)),
    "raw|pixels": TruncationCurve((8,), (0.95,), (0.8,)),
}


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]  # type: ignore[arg-type]


def test_spread_is_mean_and_sample_deviation() -> None:
    spread = spreads(CURVES, "knn_accuracy")["ours"][2]
    assert spread.mean == pytest.approx(0.55)
    assert spread.std == pytest.approx(0.1 / 2**0.5)
    assert spread.n == 2
    assert spreads(CURVES, "knn_accuracy")["PCA [64]"][2].std is None


def test_truncation_table() -> None:
    table = truncation_table(CURVES)
    assert [column.header for column in table.columns] == ["method", "2", "4", "8"]
    assert cells(table) == [
        ["[italic]kNN accuracy, %[/italic]", "", "", ""],
        ["ours", "55.0 ±7.1", "[bold]91.0 ±1.4[/bold]", DASH],
        ["PCA \\[64]", "[bold]60.0[/bold]", "[bold]91.0[/bold]", DASH],  # printed alike, so both are best
        ["raw|pixels", DASH, DASH, "95.0"],  # no rival, no bold
        ["[italic]retrieval mAP, %[/italic]", "", "", ""],
        ["ours", "[bold]40.0 ±0.0[/bold]", "[bold]65.0 ±7.1[/bold]", DASH],
        ["PCA \\[64]", "30.0", "50.0", DASH],
        ["raw|pixels", DASH, DASH, "80.0"],
    ]


def test_tables_wrap_in_narrow_terminals() -> None:
    console = Console(width=45, file=io.StringIO())
    console.print(truncation_table(CURVES))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "PCA [64]" in text
    assert "±7.1" in text
    assert "55.0 ±7.1" not in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_markdown_table() -> None:
    assert markdown_table(CURVES).replace(DASH, "-") == (
        "| kNN accuracy, % | 2 | 4 | 8 |\n"
        "| --- | --: | --: | --: |\n"
        "| ours | 55.0 ± 7.1 | **91.0 ± 1.4** | - |\n"
        "| PCA [64] | **60.0** | **91.0** | - |\n"
        "| raw\\|pixels | - | - | 95.0 |\n"
    )


def test_one_method_has_no_bold() -> None:
    assert "**" not in markdown_table({"ours": CURVES["ours"]}, measure="retrieval_map")


def test_eigenvalue_table() -> None:
    table = eigenvalue_table({"a": torch.linspace(1, 0.1, 10), "b": torch.tensor([0.5, 0.25])})
    assert [column.header for column in table.columns] == ["number", "1", "2", "4", "8", "10"]
    assert cells(table) == [
        ["a", "1.000", "0.900", "0.700", "0.300", "0.100"],
        ["b", "0.500", "0.250", DASH, DASH, DASH],
    ]
    assert cells(eigenvalue_table(torch.tensor([1.0]))) == [["eigenvalue", "1.000"]]


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="one method"):
        truncation_table({})
    with pytest.raises(InputError, match="for 'ours'"):
        markdown_table({"ours": []})
    with pytest.raises(ShapeError, match="one row"):
        eigenvalue_table(torch.ones(2, 2))
    with pytest.raises(NonFiniteError, match="'a'"):
        eigenvalue_table({"a": torch.tensor([torch.nan])})
