"""GPA as an object: planted turns, ranks, weights, wrong and missing rows, newcomers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from neigenmaps.alignment import GCCA, GPA, Procrustes
from neigenmaps.errors import ConvergenceWarning, InputError, NotFittedError, UnknownNameError
from oracles import alignment as oracle
from oracles.geometry_correction import planted as planted_sets
from oracles.planted_alignment import cosines, normal, partly_shared, rank1, rotation, turned


def turn_between(aligner: GPA, source: str, target: str) -> Tensor:
    return aligner.maps_[source].to_FK @ aligner.maps_[target].from_KF


def test_planted_turns_and_cycles() -> None:
    aligner = GPA(standardize="center").fit(turned(100, 7, "abcd"))
    for m, source in enumerate("abcd"):
        for n, target in enumerate("abcd"):
            planted = rotation(7, seed=m + 1).T @ rotation(7, seed=n + 1)
            assert torch.allclose(turn_between(aligner, source, target), planted, atol=1e-10)
    around = turn_between(aligner, "a", "b") @ turn_between(aligner, "b", "c") @ turn_between(aligner, "c", "a")
    assert torch.allclose(around, torch.eye(7, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("standardize", ["scale", "center"])
def test_two_spaces_are_scipys(standardize: str) -> None:
    spaces = turned(80, 9, "ab", noise=1.0)
    aligner = GPA(standardize=standardize).fit(spaces)  # type: ignore[arg-type]
    found = turn_between(aligner, "a", "b")
    found = found / torch.linalg.matrix_norm(found) * 3
    assert np.abs(found.numpy() - oracle.procrustes(spaces["a"].numpy(), spaces["b"].numpy())).max() < 1e-12


def test_zscores_are_the_published_preprocessing() -> None:
    spaces = {name: x * torch.arange(1.0, 6.0) for name, x in turned(90, 5, "ab", noise=0.5).items()}
    scaled = {name: (x - x.mean(0)) / x.std(0, correction=0) for name, x in spaces.items()}
    aligner = GPA(standardize="zscore").fit(spaces)
    turn = oracle.procrustes(scaled["a"].numpy(), scaled["b"].numpy())
    expected = scaled["a"].numpy() @ turn * spaces["b"].std(0, correction=0).numpy() + spaces["b"].mean(0).numpy()
    assert np.allclose(aligner.translate(spaces["a"], source="a", target="b").numpy(), expected, atol=1e-10)


def test_there_and_back_is_the_identity() -> None:
    spaces = {name: x.float() for name, x in partly_shared(200, 12, 4, "abc").items()}
    aligner = GPA().fit(spaces)
    for name, x in spaces.items():
        assert torch.allclose(aligner.inverse_transform(aligner.transform(x, source=name), target=name), x, atol=1e-5)


def test_more_spaces_recover_turns_better_than_pairs_do() -> None:
    spaces = turned(1000, 32, "abcde", noise=1.0)
    planted = rotation(32, seed=1).T @ rotation(32, seed=2)
    joint = turn_between(GPA(standardize="center").fit(spaces), "a", "b")
    pair = Procrustes().fit(spaces).maps_["a", "b"].matrix_FG
    assert (joint - planted).norm() < 0.95 * (pair - planted).norm()


def test_narrow_spaces_are_embedded_isometrically() -> None:
    full = turned(120, 9, "abc", noise=0.2)
    spaces = {"a": full["a"], "b": full["b"][:, :6], "c": full["c"][:, :4]}
    aligner = GPA(standardize="center").fit(spaces)
    for name, x in spaces.items():
        universe = aligner.transform(x, source=name)
        assert torch.allclose(torch.pdist(universe), torch.pdist(x), atol=1e-10)


@pytest.mark.parametrize("shared", [3, 8])
def test_rank_by_simulation_finds_the_shared_directions_and_helps(shared: int) -> None:
    spaces = partly_shared(600, 16, shared, "abcde", noise=0.5)
    train, test = ({name: x[part] for name, x in spaces.items()} for part in (slice(0, 400), slice(400, 600)))
    chosen = GPA("simulation").fit(train)
    assert chosen.n_components_ == shared
    if shared == 8:
        assert rank1(chosen, test).nanmean() > rank1(GPA().fit(train), test).nanmean() + 0.05


def test_gap_to_the_bound_and_history() -> None:
    spaces = turned(200, 8, "abc", noise=1.0)
    aligner = GPA().fit(spaces)
    assert aligner.converged_
    assert 0 < aligner.gap_ < 0.05
    assert aligner.history_[-1] == aligner.objective_ >= aligner.history_[0]
    scaled = [x - x.mean(0) for x in spaces.values()]
    scaled = [x / x.square().sum(1).mean().sqrt() for x in scaled]
    maps = [aligner.maps_[name].to_FK.numpy() for name in spaces]
    maps = [r / np.linalg.norm(r) * 8**0.5 for r in maps]
    assert oracle.agreement(maps, [x.numpy() for x in scaled]) / 200 == pytest.approx(aligner.objective_)


def test_the_bound_is_that_of_what_was_aligned(tmp_path: Path) -> None:
    """Neither newcomers nor files change it; rows that maps do not know of do."""
    spaces = turned(200, 8, "abcd", noise=1.0)
    aligner = GPA(model_weights={"b": 2.0}).fit({name: spaces[name] for name in "abc"})
    scaled = [x - x.mean(0) for x in spaces.values()]
    scaled = [weight * x / x.square().sum(1).mean().sqrt() for weight, x in zip((1, 2, 1), scaled, strict=False)]
    expected = sum(np.linalg.norm(scaled[m].T @ scaled[n] / 200, "nuc") for m in range(3) for n in range(m))
    aligner.save(tmp_path / "before")
    assert aligner.bound_ == pytest.approx(expected, rel=1e-10)
    fresh = GPA.load(tmp_path / "before")
    fresh.add("d", spaces["d"], against={"a": spaces["a"]})
    fresh.save(tmp_path / "after")
    for other in (fresh, GPA.load(tmp_path / "after")):
        assert other.bound_ == pytest.approx(expected, rel=1e-10)
        assert other.gap_ == pytest.approx(aligner.gap_, abs=1e-10)
    assert aligner.partial_fit({name: spaces[name] for name in "abc"}).gap_ == pytest.approx(aligner.gap_, abs=1e-10)
    aligner.partial_fit({name: spaces[name] for name in "abc"}, solve=False)
    with pytest.raises(NotFittedError, match="call refit"):
        _ = aligner.bound_
    assert aligner.refit().bound_ == pytest.approx(expected, rel=1e-10)


def test_running_out_of_sweeps_is_said() -> None:
    with pytest.warns(ConvergenceWarning, match="raise max_sweeps"):
        aligner = GPA(max_sweeps=2).fit(partly_shared(300, 16, 4, "abcd"))
    assert not aligner.converged_


def test_model_weights_go_by_name() -> None:
    spaces = turned(100, 5, "abc", noise=1.5)
    ruled = GPA(model_weights={"a": 1e6}, standardize="center").fit(spaces)
    expected = oracle.procrustes(spaces["b"].numpy(), spaces["a"].numpy())
    assert np.abs(turn_between(ruled, "b", "a").numpy() - expected).max() < 1e-4
    with pytest.raises(UnknownNameError, match="unknown space 'aa'"):
        GPA(model_weights={"aa": 1.0}).fit(spaces)
    with pytest.raises(InputError, match="above 0"):
        GPA(model_weights={"a": 0.0}).fit(spaces)


def with_wrong_rows(spaces: dict[str, Tensor], names: Sequence[str], share: float) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of some spaces permuted, and which rows these are, (N, M)."""
    n_rows = len(next(iter(spaces.values())))
    wrong_NM = torch.zeros(n_rows, len(spaces), dtype=torch.bool)
    spoiled = dict(spaces)
    for m, name in enumerate(spaces):
        if name in names:
            generator = torch.Generator().manual_seed(m)
            rows = torch.randperm(n_rows, generator=generator)[: int(share * n_rows)]
            spoiled[name] = spaces[name].clone()
            spoiled[name][rows] = spaces[name][rows.roll(1)]
            wrong_NM[rows, m] = True
    return spoiled, wrong_NM


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75])
def test_wrong_rows_are_found(share: float) -> None:
    spaces = partly_shared(600, 16, 8, "abcdef", noise=0.5)
    spoiled, wrong_NM = with_wrong_rows(spaces, "ab", share)
    aligner = GPA("simulation", robust=True).fit(spoiled)
    assert aligner.row_trust_ is not None
    assert ((aligner.row_trust_ < 0.5) == wrong_NM).double().mean() > 0.95
    assert GPA().fit(spoiled).row_trust_ is None


@pytest.mark.parametrize(("share", "gain"), [(0.25, 0.06), (0.5, 0.03)])
def test_wrong_rows_are_found_among_few(share: float, gain: float) -> None:
    """Fewer than four rows a column: maps that have seen a wrong row fit it as well as a right one."""
    train, unseen = planted_sets("iso", n_rows=160, n_unseen=200, width=48)
    spoiled, wrong_NM = with_wrong_rows(train, ["m0", "m1", "m2"], share)
    robust = GPA(robust=True).fit(spoiled)
    assert robust.row_trust_ is not None
    assert robust.row_trust_[wrong_NM].mean() < 0.3
    assert robust.row_trust_[~wrong_NM].mean() > 0.8
    assert rank1(robust, unseen).nanmean() > rank1(GPA().fit(spoiled), unseen).nanmean() + gain
    with pytest.raises(InputError, match="at least 16 rows to tell wrong ones"):
        GPA(robust=True).fit({name: x[:15, :3] for name, x in train.items()})


def test_robust_fits_withstand_what_ruins_others() -> None:
    spaces = partly_shared(1000, 16, 8, "abcdefgh", noise=0.5)
    train, test = ({name: x[part] for name, x in spaces.items()} for part in (slice(0, 700), slice(700, 1000)))
    spoiled, _ = with_wrong_rows(train, "abc", 0.75)

    def of_the_spoiled(aligner: GPA | GCCA, rows: dict[str, Tensor]) -> float:
        return float(rank1(aligner.fit(rows), test)[:3, :3].nanmean())

    for make in (GPA, GCCA):
        clean = of_the_spoiled(make("simulation"), train)
        naive = of_the_spoiled(make("simulation"), spoiled)
        robust = of_the_spoiled(make("simulation", robust=True), spoiled)
        assert naive < clean - 0.15
        assert robust > clean - 0.6 * (clean - naive)
        assert of_the_spoiled(make("simulation", robust=True), train) > clean - 0.01


def test_incomplete_rows_are_worth_having() -> None:
    """All pairs that are there, against the rows that every space has."""
    planted = rotation(8, seed=1).T @ rotation(8, seed=2)
    all_pairs, complete_only = [], []
    for seed in range(5):
        spaces = turned(400, 8, "abcd", noise=0.3)
        generator = torch.Generator().manual_seed(seed)
        masks = {name: torch.rand(400, generator=generator) > 0.4 for name in "abc"}
        complete = masks["a"] & masks["b"] & masks["c"]
        fits = (
            GPA(standardize="center").fit(spaces, masks=masks),
            GPA(standardize="center").fit({name: x[complete] for name, x in spaces.items()}),
        )
        for errors, aligner in zip((all_pairs, complete_only), fits, strict=True):
            errors.append(float((turn_between(aligner, "a", "b") - planted).norm()))
    assert np.mean(all_pairs) < 0.85 * np.mean(complete_only)


def test_spaces_that_share_no_rows_are_joined_through_a_third() -> None:
    spaces = turned(400, 6, "abc", noise=0.1)
    first = torch.arange(400) < 200
    aligner = GPA(standardize="center").fit(spaces, masks={"a": first, "b": ~first})
    planted = rotation(6, seed=1).T @ rotation(6, seed=2)
    assert (turn_between(aligner, "a", "b") - planted).norm() < 0.1
    with pytest.raises(InputError, match="pairwise maps need them"):
        Procrustes().fit(spaces, masks={"a": first, "b": ~first})


def test_a_newcomer_without_noise_is_as_good_as_a_refit() -> None:
    spaces = turned(150, 8, "abcde")
    aligner = GPA(standardize="center").fit({name: spaces[name] for name in "abcd"})
    assert aligner.add("e", spaces["e"]).rank1 == 1
    planted = rotation(8, seed=5).T @ rotation(8, seed=1)
    assert torch.allclose(turn_between(aligner, "e", "a"), planted, atol=1e-10)
    aligner.refit()
    assert torch.allclose(turn_between(aligner, "e", "a"), planted, atol=1e-10)


def test_with_noise_adding_is_nearly_a_refit() -> None:
    spaces = turned(1200, 16, "abcdef", noise=1.0)
    train, test = ({name: x[part] for name, x in spaces.items()} for part in (slice(0, 800), slice(800, 1200)))
    aligner = GPA().fit({name: train[name] for name in "abcde"})
    aligner.add("f", train["f"])
    added = rank1(aligner, test)[5].nanmean()
    assert abs(added - rank1(aligner.refit(), test)[5].nanmean()) < 0.01


def test_fewer_rows_than_columns_and_more_spaces_than_rows() -> None:
    few = {name: x[:6] for name, x in turned(40, 12, "abcdefgh").items()}
    aligner = GPA(standardize="center").fit(few)
    assert torch.allclose(aligner.translate(few["a"], source="a", target="h"), few["h"], atol=1e-8)
    with pytest.raises(InputError, match="at least 25 rows"):
        GPA("simulation").fit(few)


def test_constant_and_duplicate_columns_are_harmless() -> None:
    spaces = turned(100, 5, "abc", noise=0.2)
    padded = {name: torch.cat([x, x[:, :1], torch.full((100, 1), 3.0)], dim=1) for name, x in spaces.items()}
    for standardize in ("scale", "zscore"):
        aligner = GPA(standardize=standardize).fit(padded)  # type: ignore[arg-type]
        back = aligner.translate(padded["a"], source="a", target="b")
        assert torch.isfinite(back).all()
        assert (back - padded["b"]).square().mean() < 0.5


def test_float32_rows_give_float64s_answer() -> None:
    spaces = turned(200, 8, "abc", noise=1.0)
    single = {name: x.float() for name, x in spaces.items()}
    expected = cosines(GPA().fit(spaces), spaces, "a", "b")
    assert torch.allclose(cosines(GPA().fit(single), single, "a", "b").double(), expected, atol=1e-4)


def test_unknown_choices_are_named() -> None:
    spaces = turned(50, 4, "ab")
    with pytest.raises(InputError, match="standardize"):
        GPA(standardize="whiten").fit(spaces)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'simulation'"):
        GPA("simulate").fit(spaces)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="largest width"):
        GPA(5).fit(spaces)


def test_memory_does_not_grow_with_rows() -> None:
    """What is kept besides the caller's own rows has the size of D x D."""
    sizes = []
    for n_rows in (100, 3000):
        aligner = GPA().fit(turned(n_rows, 5, "abc", noise=0.1))
        tensors, _ = aligner._state()
        sizes.append(sum(tensor.numel() for tensor in tensors.values()))
    assert sizes[0] == sizes[1]
    rows = normal(50, 5, seed=0)
    aligner = GPA().fit([rows, rows.clone()])
    assert aligner._rows is not None
    assert aligner._rows.spaces[0].data_ptr() == rows.data_ptr()


def test_a_newcomer_hears_every_space_at_its_standardised_size() -> None:
    spaces = turned(200, 6, "abcd", noise=1.0)
    loud = {**spaces, "b": 100 * spaces["b"]}
    found = []
    for some in (spaces, loud):
        aligner = GPA(tolerance=1e-14).fit({name: some[name] for name in "abc"})
        aligner.add("d", some["d"])
        found.append(aligner.translate(some["d"], source="d", target="a"))
    assert torch.allclose(found[0], found[1], atol=1e-6)
