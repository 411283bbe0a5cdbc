"""Intervals over the choice of probe images: fold by fold what measuring anew gives, and as often right as they say."""

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_clouds import N, Planted, cloud
from safetensors import SafetensorError
from torch import Tensor

from neigenmaps.alignment import lfm_similarity, similarity_basis, similarity_graph, storage
from neigenmaps.data import ImageStore
from neigenmaps.errors import AlignmentWarning
from neigenmaps.evaluation.alignments import read_alignment, write_alignment
from neigenmaps.evaluation.convergence import AlignmentSettings, ReferencePanel
from neigenmaps.evaluation.fold_intervals import (
    N_FOLDS,
    T_975,
    FoldSpace,
    functions_without,
    jackknife_interval,
    kept_without,
    means_without,
    probe_folds,
)
from neigenmaps.functional.similarity import linear_cka, mutual_knn, procrustes_distance

SETTINGS = AlignmentSettings(n_eigenvectors=12, n_permutations=9)


def space_of(rows_NF: Tensor, seed: int = 0) -> FoldSpace:
    folds = probe_folds(len(rows_NF), seed)
    graph = similarity_graph(rows_NF)
    smooth = functions_without(graph, similarity_basis(graph, n_eigenvectors=12), folds)
    return FoldSpace.of(rows_NF, rows_NF[:, :8], smooth, folds)


def test_every_row_is_left_out_once() -> None:
    folds = probe_folds(43, 0)
    assert sorted(torch.cat(list(folds)).tolist()) == list(range(43))
    assert {len(rows) for rows in folds} == {4, 5}
    assert kept_without(torch.tensor([0, 3]), 5).tolist() == [1, 2, 4]


def test_of_a_mean_it_is_the_usual_interval() -> None:
    values = torch.randn(70, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    folds = probe_folds(70, 0)
    of_folds = [float(values[rows].mean()) for rows in folds]
    half = T_975 * statistics.stdev(of_folds) / N_FOLDS**0.5
    low, high = jackknife_interval(0.2, means_without(values, folds)[:, 0])
    assert (low, high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))


@pytest.mark.parametrize("width", [12, 300])  # fewer columns than rows, and more
def test_without_a_fold_is_what_the_other_rows_give(width: int) -> None:
    a, b = cloud(1, 30, noise=0.2), cloud(2, width, noise=0.3)
    first, second = space_of(a), space_of(b)
    kept = [kept_without(rows, N) for rows in first.folds]
    for name, measure in {
        "unbiased_cka": lambda x, y: linear_cka(x, y, unbiased=True),
        "mutual_knn": mutual_knn,
        "procrustes": lambda x, y: procrustes_distance(x[:, :8], y[:, :8]),
    }.items():
        anew = [float(measure(a[rows], b[rows]).value) for rows in kept]
        assert getattr(first, name)(second).tolist() == pytest.approx(anew, abs=2e-6), name
    lfm = [lfm_similarity(a[rows], b[rows], n_eigenvectors=12, n_permutations=0).score for rows in kept]
    found = first.lfm(second)
    assert 0.6 < float(found.std()) / statistics.stdev(lfm) < 1.7  # a first step of perturbation, no new graph
    assert float(found.mean()) == pytest.approx(statistics.fmean(lfm), abs=0.03)


def test_every_headline_of_a_measure_lies_within(probe: ImageStore, tmp_path: Path) -> None:
    models = {"a": Planted(cloud(1, 30), "a"), "b": Planted(cloud(2, 20), "b")}
    panels = [ReferencePanel(models, probe, SETTINGS, cache=tmp_path / "cache") for _ in range(2)]
    layers = {"backbone": cloud(1, 30), "projector": cloud(3, 40, noise=0.1)}
    first, again = (panel.align(layers) for panel in panels)
    headlines, bounds = first.headlines(), first.bounds()
    assert {"a/lfm", "b/procrustes/projector", "universe/rank1", "universe/rank1_to_b/projector"} <= bounds.keys()
    for name, (low, high) in bounds.items():
        assert low <= headlines[name] + 1e-6, name
        assert high >= headlines[name] - 1e-6, name
        assert high <= 1, name
    assert bounds["a/lfm"] == pytest.approx((1.0, 1.0), abs=1e-5)  # the same space, whatever the images
    assert bounds["a/lfm/projector"][1] - bounds["a/lfm/projector"][0] > 0.01
    assert again.bounds() == bounds  # the second panel read its references from the cache
    assert read_alignment(write_alignment(first, tmp_path)).intervals == first.intervals


def test_a_full_disk_costs_the_cache_not_the_panel(
    probe: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(storage, "save_file", fill)
    with pytest.warns(AlignmentWarning, match=r"could not be written .*No space left.*prepared again next time"):
        panel = ReferencePanel({"a": Planted(cloud(1, 30))}, probe, SETTINGS, cache=tmp_path)
    assert panel.align({"backbone": cloud(1, 30)}).headlines()["a/lfm"] == pytest.approx(1.0, abs=1e-6)
    assert list(tmp_path.iterdir()) == []


def planted_sets(n_rows: int, n_sets: int) -> list[tuple[Tensor, Tensor]]:
    """Independent sets of one population, each seen by the same two noisy maps."""
    fixed = torch.Generator().manual_seed(1234)
    centres, maps = (
        2 * torch.randn(5, 6, generator=fixed),
        [torch.randn(6, w, generator=fixed) / 6**0.5 for w in (40, 30)],
    )
    sets = []
    for seed in range(n_sets):
        generator = torch.Generator().manual_seed(seed)
        latent = centres[torch.randint(5, (n_rows,), generator=generator)]
        latent = latent + torch.randn(n_rows, 6, generator=generator)
        seen = [torch.tanh(latent @ one) for one in maps]
        sets.append(tuple(rows + 0.5 * torch.randn(rows.shape, generator=generator) for rows in seen))
    return sets  # type: ignore[return-value]


@pytest.mark.slow
def test_they_hold_the_truth_as_often_as_they_say() -> None:
    """60 probe sets of 200: the truth is the mean over them, and for CKA, which no size moves, its value on 20,000 rows."""
    inside: dict[str, list[bool]] = {}
    found = []
    for x, y in planted_sets(200, 60):
        images = torch.arange(400, dtype=torch.int16).view(torch.uint8).view(200, 1, 2, 2)
        panel = ReferencePanel({"y": Planted(y)}, ImageStore.from_tensors(images, source="planted"), SETTINGS)
        alignment = panel.align({"x": x})
        found.append((alignment.headlines(), alignment.bounds()))
    truth = {name: statistics.fmean(values[name] for values, _ in found) for name in found[0][0]}
    (large,) = planted_sets(20_000, 1)
    truth["y/unbiased_cka"] = float(linear_cka(*large, unbiased=True).value)
    for _, bounds in found:
        for name, (low, high) in bounds.items():
            inside.setdefault(name, []).append(low <= truth[name] <= high)
    share = {name: statistics.fmean(held) for name, held in inside.items()}
    print(share)
    assert min(share.values()) >= 0.85
    assert statistics.fmean(share.values()) >= 0.9
