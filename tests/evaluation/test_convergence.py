"""Alignment with references: 1 with itself, 0 when rows are shuffled, unmoved by rotations, and kept in files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted_clouds import N, Planted, cloud
from torch import Tensor

from neigenmaps.data import ImageStore
from neigenmaps.errors import CheckpointError, InputError, NonFiniteError, RowMismatchError, UnknownNameError
from neigenmaps.evaluation.alignments import read_alignment, read_alignments, write_alignment
from neigenmaps.evaluation.convergence import AlignmentSettings, ReferencePanel

SETTINGS = AlignmentSettings(n_eigenvectors=12, n_neighbors=15, n_permutations=99)


@pytest.fixture(scope="module")
def panel(probe: ImageStore) -> ReferencePanel:
    return ReferencePanel({"a": Planted(cloud(1, 30), "a"), "b": Planted(cloud(2, 20), "b")}, probe, SETTINGS)


def test_with_itself_it_is_one(panel: ReferencePanel) -> None:
    alignment = panel.align({"backbone": cloud(1, 30)})
    for measure, facts in alignment.values["backbone"]["a"].items():
        assert facts["calibrated"] == pytest.approx(1.0, abs=1e-5), measure
        assert facts["p"] == pytest.approx(1 / 100)
    assert alignment.universe["backbone"]["rank1_to_a"] == 1.0


def test_related_rows_are_told_from_shuffled_ones(panel: ReferencePanel) -> None:
    related = panel.align({"backbone": cloud(3, 40, noise=0.05)}).values["backbone"]["a"]
    for measure, facts in related.items():
        assert facts["calibrated"] > 0.2, measure
        assert facts["z"] > 10, measure


def test_shuffled_rows_stay_in_the_null_band(panel: ReferencePanel) -> None:
    inside: dict[str, list[bool]] = {}
    for seed in range(20):
        shuffled = cloud(4, 40)[torch.randperm(N, generator=torch.Generator().manual_seed(seed))]
        for measure, facts in panel.align({"backbone": shuffled}).values["backbone"]["a"].items():
            inside.setdefault(measure, []).append(abs(facts["z"]) < 3)
    for measure, held in inside.items():
        assert sum(held) >= 19, measure


def test_a_rotated_reference_changes_nothing(panel: ReferencePanel, probe: ImageStore) -> None:
    turn = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).Q
    turned = (cloud(1, 30).double() @ turn).float()
    other = ReferencePanel({"a": Planted(turned), "b": Planted(cloud(2, 20))}, probe, SETTINGS)
    rows = cloud(3, 40, noise=0.05)
    before, after = (one.align({"backbone": rows}).values["backbone"]["a"] for one in (panel, other))
    for measure, facts in before.items():
        assert after[measure]["calibrated"] == pytest.approx(facts["calibrated"], abs=1e-4), measure


def test_layers_are_named_behind_the_first(panel: ReferencePanel) -> None:
    alignment = panel.align({"backbone": cloud(3, 40), "projector": cloud(4, 8)})
    names = alignment.headlines()
    assert {"a/lfm", "a/lfm/projector", "universe/rank1", "universe/rank1/projector"} <= names.keys()
    assert names["a/lfm"] == alignment.values["backbone"]["a"]["lfm"]["calibrated"]


def test_the_previous_and_the_final_checkpoint(panel: ReferencePanel) -> None:
    first = panel.align({"backbone": cloud(3, 40)}, step=1)
    second = panel.align({"backbone": cloud(3, 40)}, step=2, previous=first)
    third = panel.align({"backbone": cloud(4, 40, noise=0.5)}, step=3, previous=second)
    assert second.values["backbone"]["previous"]["lfm"]["calibrated"] == pytest.approx(1.0, abs=1e-6)
    assert third.values["backbone"]["previous"]["lfm"]["calibrated"] < 0.95
    to_final = [one.likeness(third, "backbone") for one in (first, second, third)]
    assert to_final[0] == to_final[1] < to_final[2] == pytest.approx(1.0, abs=1e-6)


def test_what_belongs_to_references_is_cached(probe: ImageStore, tmp_path: Path) -> None:
    class Once(Planted):
        calls = 0

        def embed(self, images: ImageStore) -> Tensor:
            Once.calls += 1
            return super().embed(images)

    rows = cloud(3, 40)
    panels = [ReferencePanel({"a": Once(cloud(1, 30))}, probe, SETTINGS, cache=tmp_path) for _ in range(2)]
    first, second = (one.align({"backbone": rows}).headlines() for one in panels)
    assert Once.calls == 1
    assert first == second
    ReferencePanel({"a": Once(cloud(1, 30))}, probe.subset(torch.arange(N - 1, -1, -1)), SETTINGS, cache=tmp_path)
    assert Once.calls == 2  # other rows, other file
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="delete it and measure again"):
        ReferencePanel({"a": Once(cloud(1, 30))}, probe, SETTINGS, cache=tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    ReferencePanel({"a": Once(cloud(1, 30))}, probe, SETTINGS, cache=tmp_path)
    assert Once.calls == 3


def test_files_keep_everything(panel: ReferencePanel, tmp_path: Path) -> None:
    first = panel.align({"backbone": cloud(3, 40)}, step=7, epoch=2)
    path = write_alignment(first, tmp_path)
    again = read_alignment(path)
    assert (again.values, again.universe, again.step, again.epoch) == (first.values, first.universe, 7, 2)
    assert all(torch.equal(again.arrays[name], tensor) for name, tensor in first.arrays.items())
    drift = panel.align({"backbone": cloud(3, 40)}, previous=again).values["backbone"]["previous"]["lfm"]
    assert drift["calibrated"] == pytest.approx(1.0, abs=1e-6)
    write_alignment(panel.align({"backbone": cloud(4, 40)}, step=3), tmp_path)
    assert [one.step for one in read_alignments(tmp_path)] == [3, 7]


def test_damaged_and_foreign_files(panel: ReferencePanel, tmp_path: Path) -> None:
    path = write_alignment(panel.align({"backbone": cloud(3, 40)}), tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="measure again"):
        read_alignment(path)


def test_what_cannot_be_measured(panel: ReferencePanel, probe: ImageStore) -> None:
    with pytest.raises(RowMismatchError, match=r"150 rows of backbone, got 149"):
        panel.align({"backbone": cloud(1, 30)[1:]})
    with pytest.raises(NonFiniteError):
        panel.align({"backbone": torch.full((N, 3), float("nan"))})
    with pytest.raises(InputError, match="at least one reference"):
        ReferencePanel({}, probe)
    with pytest.raises(InputError, match="at least 40 images, got 30"):
        ReferencePanel({"a": Planted(cloud(1, 3))}, probe.subset(range(30)), SETTINGS)
    with pytest.raises(UnknownNameError, match="did you mean 'procrustes'"):
        AlignmentSettings(measures=["procrustis"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="at least 2"):
        AlignmentSettings(n_permutations=1)


def test_a_universe_fitted_anew_with_the_checkpoint(panel: ReferencePanel, probe: ImageStore) -> None:
    models = {"a": Planted(cloud(1, 30), "a"), "b": Planted(cloud(2, 20), "b")}
    refitting = ReferencePanel(models, probe, replace(SETTINGS, refit=True))
    layers = {"backbone": cloud(3, 40, noise=0.05)}
    added, refitted = panel.align(layers), refitting.align(layers)
    assert refitted.values == added.values
    assert refitted.universe["backbone"]["rank1"] > 0.4  # chance is 1 / 75
    assert refitted.universe["backbone"] != added.universe["backbone"]
    again = refitting.align(layers)
    assert again.universe == refitted.universe  # the panel's own universe was not touched
    placed = {name: refitted.arrays[f"places/{name}"] for name in ("a", "b")}
    for name, before in placed.items():
        moved = (before - added.arrays[f"places/{name}"]).norm() / before.norm()
        assert 0 < moved < 0.3, name  # another universe, turned to where the references' own was
    assert not refitting.measured(added)
    said = {name: value for name, value in added.facts["settings"].items() if name != "refit"}
    older = replace(added, facts=added.facts | {"settings": said})  # as files from before that say it
    assert panel.measured(older)
    assert not refitting.measured(older)


def test_a_reference_may_be_called_checkpoint(probe: ImageStore) -> None:
    models = {"checkpoint": Planted(cloud(1, 30), "a"), "b": Planted(cloud(2, 20), "b")}
    found = ReferencePanel(models, probe, SETTINGS).align({"backbone": cloud(1, 30)})
    assert found.universe["backbone"]["rank1_to_checkpoint"] == 1.0
