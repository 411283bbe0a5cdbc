"""`neigenmaps align` gives the callback's numbers, goes on where it stopped, and sets runs beside each other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from watched_run import REFERENCES

from neigenmaps.__main__ import main
from neigenmaps.commands.align import named_references
from neigenmaps.errors import CheckpointError, InputError
from neigenmaps.evaluation.alignments import read_alignments
from neigenmaps.evaluation.references import ModelReference, PixelReference
from neigenmaps.training.saved_models import SavedReference, find_runs


def test_the_command_gives_what_the_callback_logged(run: Path, tmp_path: Path) -> None:
    main(["align", str(run), "--out", str(tmp_path)])
    there = {one.step: one.headlines() for one in read_alignments(run / "alignment")}
    here = {one.step: one.headlines() for one in read_alignments(tmp_path / run.name)}
    assert sorted(there) == [0, 5, 10]
    assert sorted(here) == [5, 10]  # nobody saves the untrained network
    for step, values in here.items():
        for name, value in values.items():
            assert value == pytest.approx(there[step][name], abs=1e-6), (step, name)
    assert set(there[5]) - set(here[5]) == {"previous/lfm"}


def test_it_goes_on_where_it_stopped(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    expected = [one.headlines() for one in read_alignments(run / "alignment")]
    (copy / "alignment" / "step=00000010.safetensors").unlink()
    kept = copy / "alignment" / "step=00000005.safetensors"
    before = kept.stat().st_mtime_ns
    main(["align", str(copy)])
    assert kept.stat().st_mtime_ns == before
    found = [one.headlines() for one in read_alignments(copy / "alignment")]
    assert [list(one) for one in found] == [list(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert list(one.values()) == pytest.approx(list(other.values()), abs=1e-6)


def test_other_references_need_a_folder_of_their_own(run: Path) -> None:
    with pytest.raises(SystemExit, match=r"measured on other images, with other references.*--out"):
        main(["align", str(run), "--references", "pixels"])


def test_a_universe_with_the_checkpoints_in_it(run: Path, tmp_path: Path) -> None:
    main(["align", str(run), "--out", str(tmp_path), "--refit"])
    there = {one.step: one for one in read_alignments(run / "alignment")}
    for one in read_alignments(tmp_path / run.name):
        assert one.facts["settings"]["refit"] is True
        assert one.headlines()["pca/lfm"] == pytest.approx(there[one.step].headlines()["pca/lfm"], abs=1e-6)
        assert one.universe != there[one.step].universe
    with pytest.raises(SystemExit, match="other settings"):
        main(["align", str(run), "--refit"])


def test_runs_beside_each_other(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs"
    for name in ("twin a", "twin b"):
        shutil.copytree(run, folder / name)
    main(["align", str(folder), "--out", str(tmp_path / "out"), "--references", "raw=pixels", "pca:8"])
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["models"] == ["twin a", "twin b", "raw", "pca:8"]
    for measure, values in found["similarity"].items():
        table = torch.tensor(values)
        assert table[0, 1] == pytest.approx(1.0, abs=1e-4), measure
        torch.testing.assert_close(table, table.T)
        torch.testing.assert_close(table[0], table[1][[1, 0, 2, 3]], atol=1e-4, rtol=0)
    assert found["rank1"][0][1] == 1.0
    assert found["merges"][0][:2] == [0, 1]  # the twins first
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "Tree of models" in page
    assert "95 % intervals over the choice of probe images" in page
    assert '"shuffled rows"' in page
    assert "2 runs and 2 references, on 56 images" in page
    assert "Comparison of all with all" in capsys.readouterr().out


def test_what_is_found(run: Path, tmp_path: Path) -> None:
    assert [one.step for one in find_runs([run])["v"]] == [5, 10]
    assert [one.step for one in find_runs([run.parent])["v"]] == [5, 10]
    assert [one.path.name for one in find_runs([run / "epoch=0.ckpt"])["v"]] == ["epoch=0.ckpt"]
    assert [one.step for one in find_runs([run / "model"])["model"]] == [0]
    other = Path(shutil.copytree(run, tmp_path / "other" / "v", ignore=shutil.ignore_patterns("*.ckpt")))
    assert set(find_runs([run, other])) == {"tiny/v", "other/v"}
    rows = [one.load().state_dict() for one in (find_runs([other])["v"][0], find_runs([run])["v"][-1])]
    assert all(torch.equal(value, rows[1][name]) for name, value in rows[0].items())
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="found no saved model"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(CheckpointError, match="found no saved model"):
        find_runs([tmp_path / "nowhere"])


def test_references_on_the_command_line(run: Path) -> None:
    found = named_references(["teacher=" + str(run / "model"), "pixels", str(run / "epoch=0.ckpt")])
    kinds = [type(reference) for reference in found.values()]
    assert kinds == [ModelReference, PixelReference, SavedReference]
    assert next(iter(found)) == "teacher"
    with pytest.raises(InputError, match="two references are called 'pixels'"):
        named_references(["pixels", "pixels=pca:3"])
    with pytest.raises(InputError, match="expected a reference"):
        named_references(["teacher=nonsense"])


def test_a_model_alone_needs_images(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    with pytest.raises(SystemExit, match="name them with --probe"):
        main(["align", str(tmp_path / "model")])
    small = ["--n-eigenvectors=8", "--n-permutations=5", "--probe-size=60", "--layers", "projector"]
    main(["align", str(tmp_path / "model"), "--probe", "digits", *small, "--references", *REFERENCES.values()])
    (found,) = read_alignments(tmp_path / "alignment")
    assert set(found.values) == {"projector"}
    assert len(found.basis("projector").eigenvectors_NK) == 60
