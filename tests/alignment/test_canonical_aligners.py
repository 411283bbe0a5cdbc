"""CCA and GCCA as objects: ranks, weights, newcomers, the continuum to Procrustes."""

import numpy as np
import pytest
import torch

from neigenmaps.alignment import CCA, GCCA, GPA
from neigenmaps.errors import InputError, UnknownNameError
from oracles import alignment as oracle
from oracles.planted_alignment import cosines, normal, partly_shared, rank1, turned


def halves(n_train: int, **options: object) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    spaces = partly_shared(n_train + 200, 16, 6, "abcde", **options)  # type: ignore[arg-type]
    return {n: x[:n_train] for n, x in spaces.items()}, {n: x[n_train:] for n, x in spaces.items()}


@pytest.mark.parametrize("rule", ["simulation", "permutation", "heldout"])
def test_every_rule_finds_the_planted_rank(rule: str) -> None:
    train, _ = halves(500, noise=0.7)
    assert GCCA(rule).fit(train).n_components_ == 6  # type: ignore[arg-type]


def test_none_keeps_what_correlates_at_all() -> None:
    train, _ = halves(500, noise=0.7)
    aligner = GCCA(None).fit(train)
    assert aligner.n_components_ > 6
    assert (aligner.correlations_K_ > 0).all()
    assert (aligner.correlations_K_.diff() <= 1e-3).all()


def test_weights_and_rank_are_what_retrieval_gains_from() -> None:
    train, test = halves(500, noise=0.7)
    scores = {
        "plain, all": rank1(GCCA(16, weighting="none").fit(train), test).nanmean(),
        "weighted, all": rank1(GCCA(None).fit(train), test).nanmean(),
        "weighted, chosen": rank1(GCCA().fit(train), test).nanmean(),
        "gpa": rank1(GPA().fit(train), test).nanmean(),
    }
    assert scores["plain, all"] + 0.1 < scores["weighted, all"] < scores["weighted, chosen"] + 0.01
    assert scores["gpa"] + 0.1 < scores["weighted, chosen"]


def test_bending_an_input_changes_nothing_without_shrinkage() -> None:
    train, _ = halves(300)
    bent = {**train, "c": train["c"] @ normal(16, 16, seed=3) + 7}
    expected = cosines(GCCA(6, shrinkage=0.0).fit(train), train, "a", "c")
    assert torch.allclose(cosines(GCCA(6, shrinkage=0.0).fit(bent), bent, "a", "c"), expected, atol=1e-8)


def test_two_spaces_from_cca_to_procrustes() -> None:
    spaces = turned(100, 6, "ab", noise=0.7)
    aligner = CCA(6, shrinkage=0.0).fit(spaces)
    expected = oracle.canonical_correlations(spaces["a"].numpy(), spaces["b"].numpy())
    assert np.abs(aligner.correlations_K_.numpy() - expected).max() < 1e-10
    across = CCA(6, shrinkage=1.0).fit(spaces)
    moved = across.translate(spaces["a"], source="a", target="b") - spaces["b"].mean(0)
    turn = oracle.procrustes(spaces["a"].numpy(), spaces["b"].numpy())
    factor = (spaces["b"].var() / spaces["a"].var()).sqrt()
    straight = (spaces["a"] - spaces["a"].mean(0)) @ torch.from_numpy(turn)
    assert torch.allclose(moved / moved.norm(), straight / straight.norm(), atol=1e-10)
    assert (moved.norm() / straight.norm()).item() == pytest.approx(float(factor), rel=0.05)
    weighed = CCA(6, weighting="correlation").fit(spaces)
    assert torch.equal(weighed.weights_K_, weighed.correlations_K_)


def test_the_way_back_is_the_best_reconstruction() -> None:
    train, _ = halves(300)
    for aligner in (GCCA().fit(train), GCCA(4, weighting="none").fit(train)):
        universe = aligner.transform(train["b"], source="b")
        back = aligner.inverse_transform(universe, target="b")
        design = (universe - universe.mean(0)).numpy()
        rows = (train["b"] - train["b"].mean(0)).numpy()
        best = design @ np.linalg.lstsq(design, rows, rcond=None)[0] + train["b"].mean(0).numpy()
        assert np.allclose(back.numpy(), best, atol=1e-8)


@pytest.mark.parametrize("shrinkage", [0.0, 0.2])
def test_a_copy_that_joins_gets_its_twins_map(shrinkage: float) -> None:
    train, _ = halves(300)
    aligner = GCCA(6, shrinkage=shrinkage).fit(train)
    aligner.add("twin", train["c"])
    assert torch.allclose(aligner.maps_["twin"].to_FK, aligner.maps_["c"].to_FK, atol=1e-10)
    assert torch.allclose(aligner.maps_["twin"].from_KF, aligner.maps_["c"].from_KF, atol=1e-10)


def test_too_few_rows_are_refused_with_the_way_out() -> None:
    few = {name: x[:15] for name, x in halves(100)[0].items()}
    with pytest.raises(InputError, match="raise shrinkage"):
        GCCA(4, shrinkage=0.0).fit(few)
    with pytest.raises(InputError, match="at least 33 rows"):
        GCCA().fit(few)
    with pytest.raises(InputError, match="at least 20 rows"):
        GCCA("heldout").fit(few)
    assert GCCA(4, shrinkage=0.2).fit(few).n_components_ == 4


def test_unknown_choices_are_named() -> None:
    train, _ = halves(100)
    with pytest.raises(UnknownNameError, match="did you mean 'permutation'"):
        GCCA("permutations").fit(train)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="weighting"):
        GCCA(weighting="sigma").fit(train)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shrinkage between"):
        GCCA(shrinkage=2.0).fit(train)
    with pytest.raises(InputError, match="use GCCA"):
        CCA().fit(train)


@pytest.mark.parametrize("rule", ["permutation", "heldout"])
def test_rules_over_rows_cannot_stream(rule: str) -> None:
    with pytest.raises(InputError, match="needs the rows"):
        GCCA(rule).partial_fit(halves(100)[0])  # type: ignore[arg-type]
