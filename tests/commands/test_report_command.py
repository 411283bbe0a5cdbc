"""`neigenmaps report`: the page out of the folder's files, with images where they can be read."""

import json
import re
import shutil
from pathlib import Path

import pytest

from neigenmaps.__main__ import main


def blocks_of(page: Path) -> dict[str, dict]:
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return {block["title"]: block for section in json.loads(found[1])["sections"] for block in section["blocks"]}


def test_the_page_is_made_anew_as_it_was(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "tiny" / "v"))
    for name in ("report.html", "alignment.png"):
        (copy / name).unlink()
    main(["report", str(copy)])
    assert (copy / "report.html").read_text() == (run / "report.html").read_text()
    assert (copy / "alignment.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((copy / "summary.json").read_text()) == json.loads((run / "summary.json").read_text())


def test_what_the_alignments_say(run: Path) -> None:
    blocks = blocks_of(run / "report.html")
    lfm = blocks["latent functional map, weighted overlap"]["series"]
    assert [one["name"] for one in lfm] == ["pca", "pixels", "shuffled rows"]
    assert lfm[0]["x"] == [0, 5, 10]
    bounds = json.loads((run / "summary.json").read_text())["alignment_intervals"]
    assert [lfm[0]["low"], lfm[0]["high"]] == [
        [bounds[step]["pca/lfm"][end] for step in ("0", "5", "10")] for end in (0, 1)
    ]
    assert blocks["In the universe of the references"]["series"][1]["low"][-1] == bounds["10"]["universe/rank1"][0]
    assert lfm[0]["level"] == lfm[0]["y"][0]  # the untrained network
    drift = {one["name"]: one["y"] for one in blocks["Drift"]["series"]}
    assert drift["to the previous checkpoint"][0] is None
    assert drift["to the last one"][-1] == pytest.approx(1.0, abs=1e-6)
    assert drift["to the last one"][1] == pytest.approx(drift["to the previous checkpoint"][2], abs=1e-6)
    universe = blocks["The universe"]
    assert [panel["name"] for panel in universe["panels"]] == ["this run", "pca", "pixels"]
    assert [len(panel["frames"]) for panel in universe["panels"]] == [3, 1, 1]
    assert len(universe["classes"]) == 28  # the half that the universe is not fitted on
    models = blocks["All models beside each other"]
    assert models["rows"] == ["this run", "this run, untrained", "pca", "pixels"]
    for i, row in enumerate(models["values"]):
        assert row[i] == pytest.approx(1.0, abs=1e-6)
        assert row == [pytest.approx(other[i], abs=1e-6) for other in models["values"]]


def test_without_images_and_without_anything(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "v", ignore=shutil.ignore_patterns("config.yaml")))
    main(["report", str(copy)])
    assert "has no config.yaml: the page shows no images" in capsys.readouterr().out
    assert blocks_of(copy / "report.html")["The universe"]["classes"] == [-1] * 28
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"expected a run folder in .*empty"):
        main(["report", str(tmp_path / "empty")])
