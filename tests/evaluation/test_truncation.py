"""The curve is the two measures on slices, and finds where planted information sits."""

import json

import pytest
import torch

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.evaluation import TruncationCurve, code_lengths, knn_accuracy, truncation_curve
from neigenmaps.functional.ranking import retrieval_map


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two classes that differ in columns 2 and 3 alone."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(300, 8, generator=generator)
    labels = torch.arange(300) % 2
    codes[:, 2:4] += 6 * (2 * labels[:, None] - 1)
    codes[:, 4:] *= 4
    return codes[:200], labels[:200], codes[200:], labels[200:]


def test_the_curve_is_both_measures_on_slices(problem) -> None:  # type: ignore[no-untyped-def]
    bank, bank_labels, queries, query_labels = problem
    curve = truncation_curve(*problem, dims=[2, 5], n_neighbors=3)
    assert curve.dims == (2, 5)
    for i, d in enumerate(curve.dims):
        accuracy = knn_accuracy(bank[:, :d], bank_labels, queries[:, :d], query_labels, n_neighbors=3)
        assert curve.knn_accuracy[i] == accuracy
        expected = retrieval_map(queries[:, :d], bank[:, :d], query_labels, bank_labels).mean_average_precision
        assert curve.retrieval_map[i] == expected


def test_information_shows_where_it_sits(problem) -> None:  # type: ignore[no-untyped-def]
    curve = truncation_curve(*problem, dims=[2, 4, 8])
    assert curve.knn_accuracy[0] < 0.65
    assert min(curve.knn_accuracy[1:]) > 0.95
    assert curve.retrieval_map[0] < 0.6
    assert curve.retrieval_map[1] > curve.retrieval_map[2] > 0.7  # later columns are noise here


def test_json_and_back(problem) -> None:  # type: ignore[no-untyped-def]
    curve = truncation_curve(*problem, dims=code_lengths(8))
    assert TruncationCurve(**{k: tuple(v) for k, v in json.loads(json.dumps(curve.as_dict())).items()}) == curve


@pytest.mark.parametrize(
    ("width", "expected"),
    [(1, [1]), (2, [2]), (3, [2, 3]), (8, [2, 4, 8]), (100, [2, 4, 8, 16, 32, 64, 100])],
)
def test_code_lengths(width: int, expected: list[int]) -> None:
    assert code_lengths(width) == expected


@pytest.mark.parametrize("dims", [[], [0, 2], [2, 9]])
def test_wrong_lengths_are_refused(problem, dims: list[int]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="code width 8"):
        truncation_curve(*problem, dims=dims)


def test_wrong_curves_are_refused() -> None:
    with pytest.raises(ShapeError, match="every length"):
        TruncationCurve((1, 2), (0.5,), (0.5, 0.5))
    with pytest.raises(InputError, match="1 or more"):
        code_lengths(0)
