"""A panel for every data set, with its own methods and lengths."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from neigenmaps.errors import InputError
from neigenmaps.reporting import Spread, figures, plot_truncation_panels


def test_panels_show_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    write = figures._write
    monkeypatch.setattr(figures, "_write", lambda figure, path: (drawn.append(figure), write(figure, path)))
    ours = {2: Spread(0.5, 0.1, 3), 8: Spread(0.7, None, 1)}
    whole = {"ours": ours, "hidden": {256: Spread(0.8, None, 1)}}
    both = {"cora": whole, "actor": {"ours": ours}}
    plot_truncation_panels(both, tmp_path / "panels.png", levels=["hidden"], measure="accuracy %")
    assert (tmp_path / "panels.png").read_bytes().startswith(b"\x89PNG")
    cora, actor = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in (cora, actor)] == ["cora", "actor"]
    assert [axes.get_ylabel() for axes in (cora, actor)] == ["accuracy %", ""]
    np.testing.assert_allclose(cora.lines[0].get_xydata(), [[2, 50], [8, 70]])
    np.testing.assert_allclose(cora.lines[1].get_ydata(), [80, 80])
    assert len(actor.lines) == 1
    assert len(cora.collections) == 1
    with pytest.raises(InputError, match="none"):
        plot_truncation_panels({}, tmp_path / "none.png")
