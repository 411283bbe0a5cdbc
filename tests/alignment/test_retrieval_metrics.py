"""Tables over all ordered pairs: shares by hand, worst pairs, intervals on shared rows, gallery size, clusters."""

import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from neigenmaps.alignment import GPA, Procrustes, any_to_any, any_to_any_translated, cluster_scores, difference
from neigenmaps.errors import InputError, RowMismatchError, ShapeError, UnknownNameError
from neigenmaps.functional.pair_ranking import bootstrap_counts, pair_ranks
from oracles.planted_alignment import normal, turned

COUNTS = bootstrap_counts(120, 400, torch.Generator().manual_seed(0))


@pytest.fixture
def codes() -> dict[str, Tensor]:
    shared, noises = normal(120, 6, seed=0), {"a": 0.3, "b": 0.8, "c": 1.6}
    return {name: shared + noise * normal(120, 6, seed=m + 1) for m, (name, noise) in enumerate(noises.items())}


def test_every_ordered_pair_is_ranked_once(codes: dict[str, Tensor]) -> None:
    table = any_to_any(codes)
    assert table.pairs == (("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b"))
    assert table.n_rows == 120
    for place, (source, target) in enumerate(table.pairs):
        ranks = pair_ranks(codes[source], codes[target]).first_rank_Q
        assert torch.equal(table.first_rank_NP[:, place], ranks)
        for k in (1, 5, 10):
            expected = (ranks <= k).double().mean().item()
            assert table.by_pair(f"rank_{k}")[source, target] == pytest.approx(expected)  # type: ignore[arg-type]
        assert table.by_pair("mrr")[source, target] == pytest.approx((1 / ranks.double()).mean().item())
        assert table.by_pair("map") == pytest.approx(table.by_pair("mrr"))


def test_spaces_of_two_precisions_are_compared(codes: dict[str, Tensor]) -> None:
    name = next(iter(codes))
    mixed = codes | {name: codes[name].to(torch.float32 if codes[name].dtype == torch.float64 else torch.float64)}
    assert any_to_any(mixed).by_pair("rank_1") == any_to_any(codes).by_pair("rank_1")


def test_mean_and_worst_pair_with_their_intervals(codes: dict[str, Tensor]) -> None:
    table = any_to_any(codes)
    by_pair = table.by_pair("rank_1")
    mean, worst = table.mean("rank_1", COUNTS), table.worst_pair("rank_1", COUNTS)
    assert mean.value == pytest.approx(sum(by_pair.values()) / 6)
    assert mean.low < mean.value < mean.high
    assert (worst.source, worst.target) == min(by_pair, key=lambda pair: by_pair[pair])
    assert worst.interval.value == pytest.approx(min(by_pair.values()))
    assert worst.interval.high < mean.low


def test_differences_are_taken_on_the_same_draws(codes: dict[str, Tensor]) -> None:
    table, noisier = any_to_any(codes), any_to_any(codes | {"a": codes["a"] + 1.5 * normal(120, 6, seed=9)})
    found = difference(table, noisier, "rank_1", COUNTS)
    assert found.low > 0
    assert found.value == pytest.approx(table.mean("rank_1", COUNTS).value - noisier.mean("rank_1", COUNTS).value)
    assert difference(table, table, "mrr", COUNTS) == (0, 0, 0)
    apart = [table.mean("rank_1", COUNTS), noisier.mean("rank_1", COUNTS)]
    assert found.high - found.low < (apart[0].high - apart[0].low) + (apart[1].high - apart[1].low)


def test_labels_make_rows_of_a_class_match(codes: dict[str, Tensor]) -> None:
    labels = torch.arange(120) % 4
    table = any_to_any(codes, labels=labels)
    expected = pair_ranks(codes["b"], codes["c"], query_ids_Q=labels, gallery_ids_G=labels)
    place = table.pairs.index(("b", "c"))
    assert torch.equal(table.average_precision_NP[:, place], expected.average_precision_Q)
    assert table.by_pair("rank_1")["b", "c"] > any_to_any(codes).by_pair("rank_1")["b", "c"]
    with pytest.raises(InputError, match="leave labels out"):
        table.by_gallery_size([10])


def test_csls_reaches_the_ranks(codes: dict[str, Tensor]) -> None:
    table = any_to_any(codes, csls=5)
    assert torch.equal(table.first_rank_NP[:, 0], pair_ranks(codes["a"], codes["b"], csls=5).first_rank_Q)


def test_smaller_galleries_are_easier_as_drawn_ones_are(codes: dict[str, Tensor]) -> None:
    sizes = [2, 30, 120]
    found = any_to_any(codes).by_gallery_size(sizes)
    assert found[2] > found[30] > found[120] == pytest.approx(any_to_any(codes).values("rank_1").mean().item())
    generator, drawn = torch.Generator().manual_seed(1), []
    for _ in range(60):
        rows = torch.randperm(120, generator=generator)[:30]
        drawn.append(any_to_any({name: x[rows] for name, x in codes.items()}).values("rank_1").mean().item())
    assert sum(drawn) / 60 == pytest.approx(found[30], abs=0.02)


def test_translated_spaces_are_compared_in_the_targets_coordinates() -> None:
    spaces = turned(150, 8, "abc", noise=0.2)
    train, unseen = ({name: x[part] for name, x in spaces.items()} for part in (slice(100), slice(100, 150)))
    pairwise = any_to_any_translated(Procrustes().fit(train), unseen)
    assert pairwise.values("rank_1").mean() > 0.8
    gpa = GPA().fit(train)
    universe = any_to_any({name: gpa.transform(x, source=name) for name, x in unseen.items()})
    through = any_to_any_translated(gpa, unseen)
    assert through.values("rank_1").mean().item() == pytest.approx(universe.values("rank_1").mean().item(), abs=0.05)


def test_clusters_are_scored_against_labels() -> None:
    labels = torch.arange(90) % 3
    centres = 4 * torch.eye(3, 5, dtype=torch.float64)
    codes = {name: centres[labels] + 0.2 * normal(90, 5, seed=m) for m, name in enumerate("ab")}
    exact = cluster_scores(codes, labels)
    assert exact.ari == (1,) * 5
    assert exact.nmi == pytest.approx((1,) * 5)
    noise = cluster_scores({name: normal(90, 5, seed=m + 5) for m, name in enumerate("ab")}, labels, seeds=[3])
    assert abs(noise.ari[0]) < 0.1
    halves = cluster_scores(codes, labels, n_clusters=2, seeds=[0])
    truth = labels.repeat(2)
    merged = truth.clamp(min=1)  # two of the three equally distant clusters in one, whichever they are
    assert halves.ari[0] == pytest.approx(adjusted_rand_score(truth, merged))
    assert halves.nmi[0] == pytest.approx(normalized_mutual_info_score(truth, merged))


def test_wrong_input_is_refused(codes: dict[str, Tensor]) -> None:
    table = any_to_any(codes)
    with pytest.raises(UnknownNameError, match="did you mean 'rank_1'"):
        table.values("rank1")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="one width"):
        any_to_any(codes | {"c": codes["c"][:, :3]})
    with pytest.raises(RowMismatchError, match="one test set"):
        difference(table, any_to_any({name: codes[name] for name in "ab"}), "rank_1", COUNTS)
    with pytest.raises(ShapeError, match="labels"):
        cluster_scores(codes, torch.arange(7))
