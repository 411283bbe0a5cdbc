"""Retrieval scores against the definition and scikit-learn, and the symmetries they must have."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional import ranking
from neigenmaps.functional.ranking import (
    average_precision,
    average_precision_at_r,
    mean_average_precision,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    retrieval_map,
    retrieval_report,
    sort_relevance,
)
from oracles import ranking as oracle


@pytest.fixture
def problem() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "query_codes_QF": torch.randn(23, 5, generator=generator, dtype=torch.float64),
        "gallery_codes_NF": torch.randn(60, 5, generator=generator, dtype=torch.float64),
        "query_labels_Q": torch.randint(5, (23,), generator=generator),  # label 4 has no relevant item
        "gallery_labels_N": torch.randint(4, (60,), generator=generator),
    }


def random_orthogonal(width: int) -> torch.Tensor:
    square = torch.randn(width, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.linalg.qr(square).Q


def test_agrees_with_the_definition(problem: dict[str, torch.Tensor]) -> None:
    got = retrieval_map(**problem, chunk=7)
    expected, n_without = oracle.mean_average_precision(*(tensor.tolist() for tensor in problem.values()))
    assert got.n_without_relevant == n_without > 0
    assert got.mean_average_precision == pytest.approx(expected, rel=1e-12)
    assert (got.average_precision_Q[problem["query_labels_Q"] == 4] == 0).all()


def test_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(2)
    scores_QN = torch.randn(20, 100, generator=generator, dtype=torch.float64)
    relevant_QN = torch.rand(20, 100, generator=generator) < 0.2
    got_Q = average_precision(sort_relevance(scores_QN, relevant_QN))
    expected = [average_precision_score(r.numpy(), s.numpy()) for r, s in zip(relevant_QN, scores_QN, strict=True)]
    torch.testing.assert_close(got_Q, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_ties_agree_with_the_definition() -> None:
    generator = torch.Generator().manual_seed(3)
    scores_QN = torch.randint(4, (30, 25), generator=generator).double()
    relevant_QN = torch.rand(30, 25, generator=generator) < 0.4
    got_Q = average_precision(sort_relevance(scores_QN, relevant_QN))
    expected = [oracle.average_precision(s, r) for s, r in zip(scores_QN.tolist(), relevant_QN.tolist(), strict=True)]
    torch.testing.assert_close(got_Q, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_collapsed_code_earns_the_worst_value() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    scores = retrieval_map(torch.zeros(4, 3), torch.zeros(4, 3), labels, labels)
    assert scores.mean_average_precision == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_small_example_by_hand() -> None:
    relevant_QN = torch.tensor([[True, False, True, False], [False, False, False, False]])
    assert average_precision(relevant_QN).tolist() == pytest.approx([(1 + 2 / 3) / 2, 0])
    assert precision_at_k(relevant_QN, 3).tolist() == pytest.approx([2 / 3, 0])
    assert recall_at_k(relevant_QN, 2).tolist() == [0.5, 0]
    assert reciprocal_rank(relevant_QN).tolist() == [1, 0]
    assert reciprocal_rank(torch.tensor([[False, False, True, True]])).tolist() == pytest.approx([1 / 3])


@pytest.mark.parametrize("rising", [lambda s: s - 10, lambda s: s.exp(), lambda s: s**3], ids=["shift", "exp", "cube"])
def test_unchanged_by_rising_maps_of_the_score(rising) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(4)
    scores_QN = torch.randn(10, 50, generator=generator, dtype=torch.float64)
    relevant_QN = torch.rand(10, 50, generator=generator) < 0.3
    expected = average_precision(sort_relevance(scores_QN, relevant_QN))
    assert torch.equal(average_precision(sort_relevance(rising(scores_QN), relevant_QN)), expected)


def test_unchanged_by_rotation_scale_chunks_and_order(problem: dict[str, torch.Tensor]) -> None:
    expected = retrieval_map(**problem).mean_average_precision
    rotation = random_orthogonal(5)
    turned = problem | {
        "query_codes_QF": 3 * problem["query_codes_QF"] @ rotation,
        "gallery_codes_NF": problem["gallery_codes_NF"] @ rotation,
    }
    assert retrieval_map(**turned).mean_average_precision == pytest.approx(expected, rel=1e-12)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    shuffled = problem | {name: problem[name][order] for name in ("gallery_codes_NF", "gallery_labels_N")}
    assert retrieval_map(**shuffled, chunk=1).mean_average_precision == pytest.approx(expected, rel=1e-12)


def test_inner_product_sees_the_norm() -> None:
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    labels = torch.tensor([0]), torch.tensor([0, 1])
    assert retrieval_map(query, gallery, *labels).mean_average_precision == 1
    assert retrieval_map(query, gallery, *labels, metric="inner_product").mean_average_precision == 0.5


def test_unlabelled_rows_are_left_out() -> None:
    codes = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    scores = retrieval_map(codes[:2], codes, torch.tensor([0, -1]), torch.tensor([-1, 0, 1]))
    assert scores.mean_average_precision == 1
    assert scores.n_without_relevant == 1


def test_half_precision_makes_no_false_ties() -> None:
    generator = torch.Generator().manual_seed(6)
    codes = torch.randn(200, 32, generator=generator).bfloat16()
    labels = torch.arange(200) % 10
    expected = retrieval_map(codes[:20].float(), codes[20:].float(), labels[:20], labels[20:])
    assert retrieval_map(codes[:20], codes[20:], labels[:20], labels[20:])[0] == expected[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_codes_QF": torch.full((23, 5), torch.nan)}, NonFiniteError, "query"),
        ({"gallery_codes_NF": torch.full((60, 5), torch.inf)}, NonFiniteError, "gallery"),
        ({"query_codes_QF": torch.ones(23, 6)}, ShapeError, "6 and 5"),
        ({"query_codes_QF": torch.ones(23)}, ShapeError, "flatten"),
        ({"query_labels_Q": torch.zeros(22, dtype=torch.long)}, ShapeError, "22"),
        ({"query_labels_Q": torch.zeros(23)}, InputError, "integer"),
        ({"query_labels_Q": torch.full((23,), 9)}, InputError, "share no label"),
        ({"gallery_codes_NF": torch.ones(0, 5), "gallery_labels_N": torch.ones(0).long()}, InputError, "at least one"),
        ({"gallery_labels_N": torch.full((60,), -1)}, InputError, "labelled rows"),
        ({"metric": "euclid"}, InputError, "cosine"),
        ({"chunk": 0}, InputError, "chunk"),
    ],
)
def test_wrong_input_is_refused(problem, change, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        retrieval_map(**(problem | change))


def test_wrong_relevance_is_refused() -> None:
    relevant = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ShapeError, match="one row per query"):
        average_precision(relevant[0])
    with pytest.raises(InputError, match="boolean"):
        average_precision(relevant.float())
    with pytest.raises(ShapeError, match="every pair"):
        sort_relevance(torch.ones(2, 4), relevant)
    for k in (0, 4):
        with pytest.raises(InputError, match=f"k={k}"):
            recall_at_k(relevant, k)
        with pytest.raises(InputError, match=f"k={k}"):
            precision_at_k(relevant, k)


def several_labels(seed: int, rows: int, classes: int = 6) -> torch.Tensor:
    """(N, C) boolean; some rows have none."""
    return torch.rand(rows, classes, generator=torch.Generator().manual_seed(seed)) < 0.2


def cosines(problem: dict[str, torch.Tensor]) -> list[list[float]]:
    queries, gallery = problem["query_codes_QF"].tolist(), problem["gallery_codes_NF"].tolist()
    return [[oracle.cosine(query, item) for item in gallery] for query in queries]


@pytest.mark.parametrize("k", [1, 7, 60])
def test_report_agrees_with_the_definitions(problem: dict[str, torch.Tensor], k: int) -> None:
    got = retrieval_report(**problem, k=k, chunk=7)
    shared = (problem["query_labels_Q"][:, None] == problem["gallery_labels_N"]).int().tolist()
    for name, expected in oracle.report(cosines(problem), shared, k).items():
        assert getattr(got, name) == pytest.approx(expected, rel=1e-12), name
    assert got.k == k
    assert got.n_without_relevant == int((problem["query_labels_Q"] == 4).sum()) > 0
    assert got.mean_average_precision == retrieval_map(**problem).mean_average_precision
    assert got.mean_average_precision == mean_average_precision(*problem.values())


def test_several_labels_per_row_agree_with_the_definitions(problem: dict[str, torch.Tensor]) -> None:
    labels = {"query_labels_Q": several_labels(0, 23), "gallery_labels_N": several_labels(1, 60)}
    got = retrieval_report(**(problem | labels), k=9)
    shared = (labels["query_labels_Q"].int() @ labels["gallery_labels_N"].int().T).tolist()
    assert max(max(row) for row in shared) > 1  # so that NDCG sees more than hit or miss
    for name, expected in oracle.report(cosines(problem), shared, 9).items():
        assert getattr(got, name) == pytest.approx(expected, rel=1e-12), name
    assert got.n_without_relevant == sum(not any(row) for row in shared) > 0
    one_hot = {name: torch.nn.functional.one_hot(problem[name], 5).bool() for name in labels}
    assert retrieval_report(**(problem | one_hot)) == retrieval_report(**problem)


@pytest.mark.parametrize("top", [1, 5, 60])
def test_the_published_convention_by_name(problem: dict[str, torch.Tensor], top: int) -> None:
    labels = {"query_labels_Q": several_labels(0, 23), "gallery_labels_N": several_labels(1, 60)}
    shared = (labels["query_labels_Q"].int() @ labels["gallery_labels_N"].int().T).tolist()
    got = mean_average_precision(*(problem | labels).values(), cutoff=top, convention="retrieved_only")
    assert got == pytest.approx(oracle.published_map(cosines(problem), shared, top), rel=1e-12)


def test_the_published_convention_flatters() -> None:
    one_hit_of_three = torch.tensor([[True, False, False, True, True]])
    assert average_precision(one_hit_of_three, cutoff=2, convention="retrieved_only").item() == 1
    assert average_precision(one_hit_of_three, cutoff=2).item() == 0.5
    assert (
        average_precision(one_hit_of_three[:, :2], cutoff=2).item() == 1
    )  # a single item can be perfect in two places


def test_cutoffs_agree_with_the_definition() -> None:
    relevant_QN = torch.rand(20, 30, generator=torch.Generator().manual_seed(7)) < 0.3
    for cutoff in (1, 4, 30):
        for convention in ("all_relevant", "retrieved_only"):
            got = average_precision(relevant_QN, cutoff=cutoff, convention=convention)
            expected = [
                oracle.cut_average_precision(row, cutoff, convention == "retrieved_only")
                for row in relevant_QN.int().tolist()
            ]
            torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(average_precision(relevant_QN, cutoff=30), average_precision(relevant_QN))


def test_small_examples_of_map_at_r_and_ndcg_by_hand() -> None:
    relevant_QN = torch.tensor([[True, False, True, False], [False, False, False, False]])
    assert average_precision_at_r(relevant_QN).tolist() == [0.5, 0]  # R = 2: the first two places only
    ideal = 1 + 1 / math.log2(3)
    assert ndcg_at_k(relevant_QN, 4).tolist() == pytest.approx([(1 + 0.5) / ideal, 0])
    assert ndcg_at_k(torch.tensor([[1.0, 3.0]]), 2).tolist() == pytest.approx(
        [(1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_both_ways_of_sorting_agree_with_the_definition(dtype: torch.dtype) -> None:
    """float64 sorts twice, all else by one key of score and gain; signs, ties, infinities and the two zeros included."""
    generator = torch.Generator().manual_seed(8)
    scores_QN = (torch.randn(40, 50, generator=generator) * 2).round().to(dtype)
    scores_QN[:, 0], scores_QN[:, 1], scores_QN[:, 2] = torch.inf, -torch.inf, -0.0
    for gains_QN in (
        torch.rand(40, 50, generator=generator) < 0.4,
        torch.randint(5, (40, 50), generator=generator),
        torch.randint(2, (40, 50), generator=generator) * (2**31 - 1),
    ):
        got = sort_relevance(scores_QN, gains_QN)
        assert got.dtype == gains_QN.dtype
        rows = zip(scores_QN.tolist(), gains_QN.tolist(), strict=True)
        assert got.tolist() == [oracle.in_order(scores, gains) for scores, gains in rows]


def test_ten_thousand_rows_of_every_size_sort_like_the_definition() -> None:
    generator = torch.Generator().manual_seed(9)
    scores_QN = torch.randn(2, 10_000, generator=generator) * 10 ** torch.linspace(-40, 38, 10_000)
    relevant_QN = torch.rand(2, 10_000, generator=generator) < 0.5
    expected = [oracle.in_order(s, r) for s, r in zip(scores_QN.tolist(), relevant_QN.tolist(), strict=True)]
    assert sort_relevance(scores_QN, relevant_QN).tolist() == expected


def test_small_blocks_change_nothing(problem: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = retrieval_report(**problem)
    monkeypatch.setattr(ranking, "LARGEST_SORT", 130)  # two queries at a time
    assert retrieval_report(**problem) == expected
    monkeypatch.setattr(ranking, "LARGEST_SCORES", 200)  # three queries scored at a time
    assert retrieval_report(**problem) == pytest.approx(expected, rel=1e-12)


def test_arrays_serve_as_well_as_tensors(problem: dict[str, torch.Tensor]) -> None:
    arrays = {name: value.numpy() for name, value in problem.items()}
    assert retrieval_map(**arrays)[0] == retrieval_map(**problem)[0]  # type: ignore[arg-type]


def test_wrong_gains_scores_and_conventions_are_refused(problem: dict[str, torch.Tensor]) -> None:
    relevant = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(InputError, match="boolean relevance or integer gains"):
        sort_relevance(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(InputError, match="at least 0"):
        sort_relevance(torch.ones(2, 3), -torch.ones(2, 3).long())
    with pytest.raises(NonFiniteError, match="NaN"):
        sort_relevance(torch.full((2, 3), torch.nan), relevant)
    with pytest.raises(InputError, match="finite gains of at least 0"):
        ndcg_at_k(torch.tensor([[1.0, -1.0]]), 1)
    with pytest.raises(InputError, match="k=4"):
        ndcg_at_k(relevant, 4)
    with pytest.raises(InputError, match="cutoff=4"):
        average_precision(relevant, cutoff=4)
    with pytest.raises(InputError, match="'retrieved_only', got 'theirs'"):
        average_precision(relevant, convention="theirs")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'retrieved_only', got 'theirs'"):
        retrieval_map(**problem, convention="theirs")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="same classes"):
        retrieval_map(**(problem | {"query_labels_Q": several_labels(0, 23)}))
    with pytest.raises(InputError, match="k=61"):
        retrieval_report(**problem, k=61)
