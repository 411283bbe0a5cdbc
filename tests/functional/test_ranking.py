"""Retrieval scores against the definition and scikit-learn, and the symmetries they must have."""

import pytest
import torch
from sklearn.metrics import average_precision_score

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.ranking import (
    average_precision,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    retrieval_map,
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
