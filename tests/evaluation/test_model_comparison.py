"""All models with all: planted families stand together in the tree, and tables are what a pair gives alone."""

import pytest
import torch
from planted_clouds import N, Planted, cloud

from neigenmaps.data import ImageStore
from neigenmaps.errors import InputError
from neigenmaps.evaluation.convergence import AlignmentSettings, ReferencePanel
from neigenmaps.evaluation.model_comparison import ModelComparison, compare_models

SETTINGS = AlignmentSettings(n_eigenvectors=12, n_neighbors=15, n_permutations=19)


@pytest.fixture(scope="module")
def panel(probe: ImageStore) -> ReferencePanel:
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(9))
    models = {"a1": cloud(1, 30), "b1": cloud(1, 30)[shuffled], "a2": cloud(2, 30), "b2": cloud(3, 20)[shuffled]}
    return ReferencePanel({name: Planted(rows, name) for name, rows in models.items()}, probe, SETTINGS)


@pytest.fixture(scope="module")
def comparison(panel: ReferencePanel) -> ModelComparison:
    return compare_models(panel)


def test_families_stand_together(comparison: ModelComparison) -> None:
    assert {frozenset(map(int, row[:2])) for row in comparison.merges[:2]} == {frozenset({0, 2}), frozenset({1, 3})}
    order = [comparison.names[i][0] for i in comparison.order]
    assert order in (["a", "a", "b", "b"], ["b", "b", "a", "a"])
    assert comparison.merges[2][2] == pytest.approx(1.0, abs=0.15)  # families share nothing
    assert comparison.rank1 is not None
    assert comparison.rank1[0][0] == 1.0
    assert comparison.rank1[0][2] > 5 * comparison.rank1[0][1]


def test_tables_are_symmetric_and_say_what_a_pair_gives(panel: ReferencePanel, comparison: ModelComparison) -> None:
    for measure, values in comparison.similarity.items():
        table = torch.tensor(values)
        assert torch.equal(table, table.T), measure
        assert torch.equal(table.diagonal(), torch.ones(4)), measure
    against_b2 = panel.align({"x": panel.features["a2"]}).values["x"]["b2"]
    for measure, facts in against_b2.items():
        assert comparison.similarity[measure][2][3] == pytest.approx(facts["calibrated"], abs=1e-6), measure


def test_what_it_says_in_json(comparison: ModelComparison) -> None:
    found = comparison.as_dict()
    assert found["models"] == ["a1", "b1", "a2", "b2"]
    assert set(found["similarity"]) == {"lfm", "unbiased_cka", "mutual_knn", "procrustes"}
    assert {len(places) for places in comparison.places.values()} == {len(comparison.place_rows)} == {N // 2}


def test_what_cannot_be_compared(probe: ImageStore) -> None:
    one = ReferencePanel({"a": Planted(cloud(1, 30), "a")}, probe, SETTINGS)
    with pytest.raises(InputError, match="at least two models"):
        compare_models(one)
    bare = AlignmentSettings(methods=["gcpa"], measures=[], n_eigenvectors=12, n_neighbors=15)
    two = {"a": Planted(cloud(1, 30), "a"), "b": Planted(cloud(2, 30), "b")}
    with pytest.raises(InputError, match="method lfm or a measure"):
        compare_models(ReferencePanel(two, probe, bare))
