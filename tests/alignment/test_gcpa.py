"""GCPA: what the ladder wins and never loses, how a rung is chosen, the way back, newcomers, files, errors."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.alignment import GCPA, GPA, AbstractAligner, LinearMap, any_to_any
from neigenmaps.errors import CheckpointError, InputError, NotFittedError, ShapeError, UnknownNameError
from oracles.geometry_correction import planted
from oracles.planted_alignment import normal, rotation, turned

LINEAR = ["none", "diagonal", "shared_ridge", "model_ridge", "agreement"]
Spaces = dict[str, Tensor]


def rank1(aligner: AbstractAligner, spaces: Spaces) -> float:
    codes = {name: aligner.transform(x, source=name) for name, x in spaces.items()}
    return any_to_any(codes).values("rank_1").mean().item()


@pytest.fixture(scope="module")
def gap() -> tuple[Spaces, Spaces]:
    return planted("gap")


@pytest.fixture(scope="module")
def small() -> Spaces:
    return planted("lowrank", n_models=4, n_rows=120, n_unseen=1, width=8)[0]


def test_a_mask_of_two_rows_is_named_and_not_the_encoder(small: Spaces) -> None:
    """Held-out folds leave one of them."""
    mask = torch.arange(len(small["m0"])) < 2
    with pytest.raises(InputError, match="'m0' that vary, got equal ones: too few under its mask"):
        GCPA().fit(small, masks={"m0": mask})


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_corrected_where_nothing_is_wrong(seed: int) -> None:
    train, unseen = planted("iso", seed=seed)
    corrected, plain = GCPA().fit(train), GPA().fit(train)
    assert rank1(corrected, unseen) >= rank1(plain, unseen) - 0.005
    assert corrected.corrector_ == "none"
    assert corrected.drift_ == (0, 0, 0)
    for name, x in unseen.items():
        assert torch.equal(corrected.transform(x, source=name), plain.transform(x, source=name))


@pytest.mark.parametrize(("kind", "least"), [("lowrank", 0.2), ("gap", 0.5), ("warp", 0.1), ("clusters", 0.0)])
def test_the_ladder_beats_gpa_and_the_network_where_directions_disagree(kind: str, least: float) -> None:
    train, unseen = planted(kind)
    ladder = GCPA().fit(train)
    assert ladder.corrector_ != "none"
    assert rank1(ladder, unseen) >= rank1(ladder.gpa_, unseen) + least
    assert rank1(ladder, unseen) >= rank1(GCPA("mlp", mlp_max_steps=100).fit(train), unseen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "width"), [("iso", 128), ("lowrank", 128), ("gap", 128), ("clusters", 64), ("warp", 64)]
)
def test_published_sizes_beside_the_published_network(kind: str, width: int) -> None:
    """N = 2,000, 5 models: the ladder is at least as good as the network at its published length, and as GPA."""
    train, unseen = planted(kind, n_rows=2000, n_unseen=1000, width=width)
    ladder, network = GCPA().fit(train), GCPA("mlp").fit(train)
    found = {"GPA": rank1(ladder.gpa_, unseen), "ladder": rank1(ladder, unseen), "network": rank1(network, unseen)}
    assert found["ladder"] >= found["GPA"] - 0.005, found
    assert found["ladder"] >= found["network"], found


def test_a_shared_map_cannot_mend_what_each_model_bends_its_own_way() -> None:
    train, unseen = planted("warp")
    own, shared = (rank1(GCPA(rung, ridge=0.1).fit(train), unseen) for rung in ("model_ridge", "shared_ridge"))
    assert own > shared + 0.05


def test_the_network_helps_in_a_gap_and_keeps_lengths(gap: tuple[Spaces, Spaces]) -> None:
    train, unseen = gap
    network = GCPA("mlp", mlp_max_steps=200).fit(train)
    assert rank1(network, unseen) > rank1(network.gpa_, unseen) + 0.2
    x = unseen["m0"]
    plain = network.gpa_.transform(x, source="m0")
    torch.testing.assert_close(network.transform(x, source="m0").norm(dim=1), plain.norm(dim=1))


@pytest.mark.parametrize("rung", LINEAR)
def test_linear_corrections_have_a_way_back(rung: str, gap: tuple[Spaces, Spaces]) -> None:
    train, unseen = gap
    aligner = GCPA(rung, ridge=0.01, shrinkage=0.01).fit(train)  # type: ignore[arg-type]
    for name, x in unseen.items():
        back = aligner.inverse_transform(aligner.transform(x, source=name), target=name)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
        single = aligner.inverse_transform(aligner.transform(x.float(), source=name), target=name)
        torch.testing.assert_close(single, x.float(), rtol=0, atol=1e-4)


def test_the_way_back_of_the_network_is_that_of_its_gpa(small: Spaces) -> None:
    network = GCPA("mlp", mlp_max_steps=20).fit(small)
    u = network.transform(small["m0"], source="m0")
    torch.testing.assert_close(
        network.inverse_transform(u, target="m1"), network.gpa_.inverse_transform(u, target="m1")
    )


@pytest.mark.parametrize("kind", ["iso", "lowrank", "gap", "clusters", "warp"])
def test_values_are_as_near_as_those_of_a_map_for_every_pair(kind: str) -> None:
    train, unseen = planted(kind, n_models=6)
    newcomer = train.pop("m5")
    aligner, pairwise = GCPA().fit(train), LinearMap().fit(train)
    for some in (aligner, pairwise):
        some.add("m5", newcomer)

    def error(found: Tensor, target: str) -> float:
        y = unseen[target]
        return float((found - y).square().sum() / y.square().sum())

    pairs = [("m0", "m1"), ("m2", "m0"), ("m3", "m5"), ("m5", "m2")]
    ours, theirs = (
        sum(error(some.translate(unseen[a], source=a, target=b), b) for a, b in pairs) for some in (aligner, pairwise)
    )
    assert ours < 1.02 * theirs
    there = aligner.transform(unseen["m0"], source="m0")
    undone = sum(error(aligner.inverse_transform(there, target=b), b) for b in ("m1", "m2"))
    assert undone > 1.2 * sum(error(aligner.translate(unseen["m0"], source="m0", target=b), b) for b in ("m1", "m2"))
    assert torch.equal(aligner.translate(unseen["m0"], source="m0", target="m0"), unseen["m0"])


def test_translation_with_missing_rows_is_the_regression_of_the_rows_there_are(small: Spaces) -> None:
    """Two spaces: the decoder of one is a ridge of its rows on the other's codes."""
    spaces = {name: x - x.mean(0) for name, x in small.items() if name in ("m0", "m1")}
    aligner = GCPA("none", gpa=GPA(standardize="center")).fit(spaces)
    v, u = (aligner.transform(spaces[name], source=name) for name in spaces)
    penalty = 1e-3 * v.square().sum() / 8
    stacked = torch.cat([v, penalty.sqrt() * torch.eye(8, dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, torch.cat([u, penalty.sqrt() * torch.eye(8, dtype=torch.float64)])).solution
    torch.testing.assert_close(aligner.decoders_["m1"], expected, rtol=0, atol=1e-10)
    twice = {"m0": torch.cat([spaces["m0"], spaces["m0"]]), "m1": torch.cat([spaces["m1"], 9 + spaces["m1"]])}
    have = torch.arange(240) < 120  # m1 lacks the second half, which tells nothing new of m0
    masked = GCPA("none", gpa=GPA(standardize="center")).fit(twice, masks={"m1": have})
    found, same = (some.translate(spaces["m0"], source="m0", target="m1") for some in (masked, aligner))
    torch.testing.assert_close(found, same, rtol=0, atol=1e-8)


def test_drift_is_that_of_the_rows_fitted(small: Spaces) -> None:
    aligner = GCPA("model_ridge").fit(small)
    cosines = [
        F.cosine_similarity(aligner.transform(x, source=name), aligner.gpa_.transform(x, source=name), dim=1)
        for name, x in small.items()
    ]
    assert aligner.drift_.mean == pytest.approx(1 - torch.cat(cosines).mean().item(), rel=1e-10)
    assert 0 < aligner.drift_.median < aligner.drift_.p95


@pytest.mark.parametrize("rung", ["auto", "agreement"])
def test_turning_an_input_changes_no_cosine(rung: str, small: Spaces) -> None:
    def cosines(spaces: Spaces) -> Tensor:
        aligner = GCPA(rung, gpa=GPA(tolerance=1e-13)).fit(spaces)  # type: ignore[arg-type]
        codes = [F.normalize(aligner.transform(x, source=name), dim=1) for name, x in spaces.items()]
        return codes[0] @ codes[1].T

    moved = small | {"m1": 3 * small["m1"] @ rotation(8, seed=3) + 5}
    torch.testing.assert_close(cosines(moved), cosines(small), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rung", ["auto", "mlp"])
def test_the_same_seed_gives_the_same_bits_and_no_other_draw_is_touched(rung: str, small: Spaces) -> None:
    state = torch.random.get_rng_state()
    first, second = (GCPA(rung, mlp_max_steps=25).fit(small) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(torch.random.get_rng_state(), state)
    x = small["m2"]
    assert torch.equal(first.transform(x, source="m2"), second.transform(x, source="m2"))
    assert first.scores_ == second.scores_


def test_scores_are_held_out(small: Spaces) -> None:
    """Spaces without anything in common: on rows it has seen a weak ridge finds the match of many, on others of few."""
    noise = {name: normal(60, 30, seed=m) for m, name in enumerate("abc")}
    aligner = GCPA(ridge=1e-3, shrinkage=1e-3).fit(noise, doubt_above=1.0)
    assert rank1(GCPA("model_ridge", ridge=1e-3).fit(noise, doubt_above=1.0), noise) > 0.8
    assert max(aligner.scores_.values()) < 0.25
    assert aligner.corrector_ == "none"
    assert set(aligner.scores_) == set(LINEAR)
    assert GCPA("diagonal").fit(small).scores_ == {}


def test_validation_rows_take_the_place_of_folds(gap: tuple[Spaces, Spaces]) -> None:
    train, unseen = gap
    few = {name: unseen[name] for name in ("m1", "m3")}
    aligner = GCPA().fit(train, validation=few)
    assert aligner.corrector_ != "none"
    shuffled = few | {"m3": few["m3"].flip(0)}
    assert GCPA().fit(train, validation=shuffled).corrector_ == "none"
    backwards = GCPA().fit(train, validation=dict(reversed(few.items())))
    assert backwards.scores_ == pytest.approx(aligner.scores_)
    assert aligner.scores_["model_ridge"] > aligner.scores_["shared_ridge"]
    with pytest.raises(UnknownNameError, match="m9"):
        GCPA().fit(train, validation={"m1": unseen["m1"], "m9": unseen["m1"]})
    with pytest.raises(ShapeError, match="width 32"):
        GCPA().fit(train, validation={"m1": unseen["m1"], "m3": unseen["m3"][:, :5]})


@pytest.mark.parametrize("rung", [*LINEAR, "mlp"])
def test_a_newcomer_leaves_every_map_as_it_was(rung: str) -> None:
    train, unseen = planted("lowrank", n_models=4)
    known = {name: train[name] for name in ("m0", "m1", "m2")}
    aligner = GCPA(rung, ridge=0.1, shrinkage=0.1, mlp_max_steps=40).fit(known)  # type: ignore[arg-type]
    before = {name: aligner.transform(x, source=name) for name, x in unseen.items() if name in known}
    between = {
        (source, target): aligner.translate(unseen[source], source=source, target=target)
        for source in known
        for target in known
    }
    certificate = aligner.add("m3", train["m3"])
    assert certificate.p_value == 1 / 200
    for name, codes in before.items():
        assert torch.equal(aligner.transform(unseen[name], source=name), codes)
    for source in known:
        for target in known:
            found = aligner.translate(unseen[source], source=source, target=target)
            assert torch.equal(found, between[source, target])
    added = rank1(aligner, unseen)
    assert added == pytest.approx(rank1(aligner.refit(), unseen), abs=0.05)
    assert aligner.names_ == ("m0", "m1", "m2", "m3")


def test_a_copy_of_a_known_space_joins_where_it_is(gap: tuple[Spaces, Spaces]) -> None:
    """Nearly: its own correction agrees with m2 as well, that of m2 with the others only."""
    train, unseen = gap
    turn = rotation(32, seed=4)
    aligner = GCPA("agreement", ridge=0.01, shrinkage=0.1).fit(train)
    aligner.add("copy", train["m2"] @ turn)
    codes = aligner.transform(unseen["m2"], source="m2")
    copies = aligner.transform(unseen["m2"] @ turn, source="copy")
    assert F.cosine_similarity(copies, codes, dim=1).mean() > 0.98
    assert copies.norm().item() == pytest.approx(codes.norm().item(), rel=0.1)


def test_missing_rows_are_not_read(small: Spaces) -> None:
    mask = torch.ones(120, dtype=torch.bool)
    mask[100:] = False
    masks = {"m0": mask, "m1": ~mask | (torch.arange(120) < 60)}
    results = []
    for filler in (0.0, 1e6):
        spaces = {name: x.clone() for name, x in small.items()}
        spaces["m0"][~mask] = filler
        aligner = GCPA().fit(spaces, masks=masks)
        results.append(aligner.transform(small["m0"][:5], source="m0"))
    assert torch.equal(*results)


def test_wrong_rows_weigh_less_on_a_robust_gpa() -> None:
    train, unseen = planted("lowrank", n_models=6, n_rows=800)
    for m, name in enumerate(("m0", "m1", "m2")):
        wrong = torch.randperm(800, generator=torch.Generator().manual_seed(m))[:400]
        train[name] = train[name].clone()
        train[name][wrong] = train[name][wrong.roll(1)]
    robust = GCPA("model_ridge", gpa=GPA(robust=True), ridge=0.01).fit(train)
    plain = GCPA("model_ridge", ridge=0.01).fit(train)
    assert rank1(robust, unseen) > rank1(plain, unseen)


@pytest.mark.parametrize("rung", ["auto", *LINEAR, "mlp"])
def test_files_bring_back_every_bit(rung: str, small: Spaces, tmp_path: Path) -> None:
    aligner = GCPA(rung, gpa=GPA(6), ridge=0.1, shrinkage=0.1, mlp_max_steps=20).fit(small)  # type: ignore[arg-type]
    aligner.save(tmp_path / "gcpa")
    loaded = GCPA.load(tmp_path / "gcpa")
    for name, x in small.items():
        assert torch.equal(loaded.transform(x, source=name), aligner.transform(x, source=name))
        assert torch.equal(
            loaded.translate(x, source=name, target="m1"), aligner.translate(x, source=name, target="m1")
        )
    for field in ("corrector_", "ridge_", "shrinkage_", "scores_", "drift_", "n_components_"):
        assert getattr(loaded, field) == getattr(aligner, field)
    assert loaded.add("new", small["m0"], against={"m0": small["m0"], "m1": small["m1"]}).rank1 > 0.3
    with pytest.raises(NotFittedError, match="call fit"):
        loaded.refit()
    assert loaded.gpa is not None
    assert loaded.gpa.n_components == 6
    with pytest.raises(CheckpointError, match="load it as what it is"):
        GPA.load(tmp_path / "gcpa")


def test_wrong_use_is_refused(small: Spaces) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'shared_ridge'"):
        GCPA("sharedridge").fit(small)  # type: ignore[arg-type]
    for options, message in (({"folds": 1}, "folds"), ({"ridge": 0.0}, "ridge"), ({"shrinkage": -1.0}, "shrinkage")):
        with pytest.raises(InputError, match=message):
            GCPA(**options).fit(small)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 8 rows"):
        GCPA().fit(turned(7, 2, "ab"))
    with pytest.raises(NotFittedError):
        GCPA().transform(small["m0"], source="m0")
