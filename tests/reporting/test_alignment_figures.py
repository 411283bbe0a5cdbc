"""Pictures of maps, tables, curves and distortion: drawn whole, with the numbers they were given, or refused."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.reporting.alignment_figures import (
    plot_alignment,
    plot_distortion,
    plot_functional_maps,
    plot_layer_tables,
    plot_matched_spaces,
    plot_score_curves,
    plot_universe,
)
from neigenmaps.reporting.report import Series


def assert_png(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert matplotlib.image.imread(path).std() > 0.02


def test_maps_show_their_magnitudes(tmp_path: Path, drawn: list[Figure]) -> None:
    maps = {f"level {i}": torch.diag(torch.linspace(1, -1, 5)) for i in range(4)}
    plot_functional_maps(maps, tmp_path / "maps.png", columns=3)
    assert_png(tmp_path / "maps.png")
    shown = [axes for axes in drawn[0].axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in shown] == list(maps)
    np.testing.assert_allclose(shown[0].images[0].get_array(), maps["level 0"].abs())
    assert shown[0].images[0].get_clim() == (0, 1)


def test_tables_mark_the_best_of_each_row(tmp_path: Path, drawn: list[Figure]) -> None:
    table = torch.tensor([[0.9, 0.1], [0.8, 0.7]])
    plot_layer_tables({"a": table, "b": table.T}, ["one", "two"], tmp_path / "tables.png")
    assert_png(tmp_path / "tables.png")
    assert list(drawn[0].axes[0].lines[0].get_xdata()) == [0, 0]
    assert list(drawn[0].axes[1].lines[0].get_xdata()) == [0, 1]


def test_curves(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_score_curves([0, 1, 2], {"a": [1, 0.5, -0.1], "b": [1, 0.9, 0.8]}, tmp_path / "curves.png", xlabel="noise")
    assert_png(tmp_path / "curves.png")
    axes = drawn[0].axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1, 0.5, -0.1])
    assert axes.get_ylim()[0] <= -0.1
    assert axes.get_xlabel() == "noise"


def test_distorted_rows_are_drawn_last(tmp_path: Path, drawn: list[Figure]) -> None:
    places = torch.tensor([[0.0, 0], [1, 0], [2, 0]])
    plot_distortion(places, torch.tensor([0.1, 0.9, 0.2]), torch.tensor([0.0, 0.0, 1.0]), tmp_path / "rows.png")
    assert_png(tmp_path / "rows.png")
    points = drawn[0].axes[0].collections[0]
    np.testing.assert_allclose(points.get_array(), [0.1, 0.2, 0.9])
    np.testing.assert_allclose(points.get_offsets()[:, 0], [0, 2, 1])


def test_matched_spaces_colour_y_by_its_matches(tmp_path: Path, drawn: list[Figure]) -> None:
    places, match = torch.arange(8.0).view(4, 2), torch.tensor([2, 0, 1, 3])
    path, right = tmp_path / "spaces.png", torch.tensor([True, True, False, True])
    plot_matched_spaces(places, places, torch.eye(3), match, torch.tensor([0, 1, 2, 3]), path, right_N=right)
    assert_png(path)
    x_colours, y_colours = (drawn[0].axes[number].collections[0].get_facecolors() for number in (0, 2))
    np.testing.assert_allclose(y_colours[match], x_colours)
    lines = [artist for artist in drawn[0].artists if isinstance(artist, ConnectionPatch)]
    assert [line.get_linestyle() for line in lines] == ["solid", "solid", "--", "solid"]
    with pytest.raises(ShapeError, match="a match and a class"):
        plot_matched_spaces(places, places, torch.eye(3), match[:2], match, path)


def test_a_universe_joins_the_places_of_every_row(tmp_path: Path, drawn: list[Figure]) -> None:
    generator, path = torch.Generator().manual_seed(0), tmp_path / "universe.png"
    before = {name: torch.randn(6, 2, generator=generator) for name in "abc"}
    after = {name: torch.arange(12.0).view(6, 2) + m for m, name in enumerate("abc")}
    agreement, classes = {"a": 0.5, "b": 0.25, "c": 1.0}, torch.tensor([0, 0, 1, 1, 2, 12])
    plot_universe(before, after, agreement, classes, path, n_lines=3)
    assert_png(path)
    left, middle, right = drawn[0].axes
    assert [bar.get_width() for bar in right.patches] == [1.0, 0.25, 0.5]
    assert [label.get_text() for label in right.get_yticklabels()] == ["c", "b", "a"]
    for axes, places in ((left, before), (middle, after)):
        assert len(axes.lines) == 3 * 3
        for m, place in enumerate(places.values()):
            np.testing.assert_allclose(axes.collections[m].get_offsets(), place, rtol=1e-6)
            for line, row in zip(axes.lines[m::3], (0, 2, 4), strict=True):
                mean = torch.stack(list(places.values()))[:, row].double().mean(dim=0)
                np.testing.assert_allclose(line.get_xydata(), torch.stack([mean, place[row].double()]), atol=1e-6)
    colours = left.collections[0].get_facecolors()
    assert (colours[0] == colours[1]).all()
    assert (colours[0] != colours[2]).any()
    for arguments, error, message in (
        (({}, {}, {}), InputError, "the same models"),
        ((before, after, {"a": 1.0}), InputError, "the same models"),
        ((before, after | {"b": after["b"][:, :1]}, agreement), ShapeError, "of 'b', got"),
        ((before | {"c": before["c"] * torch.nan}, after, agreement), NonFiniteError, "'c'"),
    ):
        with pytest.raises(error, match=message):
            plot_universe(*arguments, classes, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    path, square = tmp_path / "no.png", torch.eye(2)
    with pytest.raises(InputError, match="one matrix"):
        plot_functional_maps({}, path)
    with pytest.raises(ShapeError, match="a matrix"):
        plot_functional_maps({"a": torch.ones(3)}, path)
    with pytest.raises(NonFiniteError, match="'a'"):
        plot_functional_maps({"a": square / 0}, path)
    with pytest.raises(ShapeError, match="over 3 layers"):
        plot_layer_tables({"a": square}, ["x", "y", "z"], path)
    with pytest.raises(InputError, match="one curve"):
        plot_score_curves([0], {}, path, xlabel="x")
    with pytest.raises(ShapeError, match="one for each level"):
        plot_score_curves([0, 1], {"a": [1]}, path, xlabel="x")
    with pytest.raises(ShapeError, match="every row a place"):
        plot_distortion(torch.ones(3, 2), torch.ones(3), torch.ones(2), path)
    assert list(tmp_path.iterdir()) == []


def test_alignment_curves_with_bands_levels_and_gaps(tmp_path: Path, drawn: list[Figure]) -> None:
    curves = [
        Series("a network", [0, 10, 20], [0.4, None, 0.7], level=0.4),
        Series("shuffled rows", [0, 20], [0.0, 0.0], low=[-0.1, -0.1], high=[0.1, 0.1], dashed=True),
    ]
    plot_alignment(curves, tmp_path / "alignment.png", title="overlap")
    assert_png(tmp_path / "alignment.png")
    curve, level, null = drawn[0].axes[0].get_lines()
    np.testing.assert_array_equal(curve.get_ydata(), [0.4, np.nan, 0.7])
    assert set(level.get_ydata()) == {0.4}
    assert null.get_linestyle() == "--"
    (band,) = drawn[0].axes[0].collections
    assert band.get_paths()[0].get_extents().y1 == 0.1
    with pytest.raises(InputError, match="one curve or more"):
        plot_alignment([], tmp_path / "none.png", title="overlap")
