"""The vote against scikit-learn and by hand, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.evaluation.knn import knn_accuracy, knn_predict


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    bank_NF = torch.randn(150, 6, generator=generator, dtype=torch.float64)
    labels_N = 3 * torch.randint(4, (150,), generator=generator)  # labels need not be 0, 1, 2, ...
    return bank_NF, labels_N, torch.randn(80, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n_neighbors", [1, 10, 150])
def test_agrees_with_scikit_learn_where_the_vote_is_not_tied(problem, n_neighbors: int) -> None:  # type: ignore[no-untyped-def]
    bank, labels, queries = problem
    reference = KNeighborsClassifier(n_neighbors, metric="cosine").fit(bank.numpy(), labels.numpy())
    shares = np.sort(reference.predict_proba(queries.numpy()), axis=1)
    clear = shares[:, -1] > shares[:, -2] + 1e-9
    assert clear.sum() > 30
    got = knn_predict(bank, labels, queries, n_neighbors=n_neighbors, chunk=7).numpy()
    np.testing.assert_array_equal(got[clear], reference.predict(queries.numpy())[clear])


def test_a_tied_vote_goes_to_the_closer_label_then_to_the_smaller() -> None:
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.9, 0.2], [0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.0]])
    assert knn_predict(bank[[0, 2]], torch.tensor([7, 2]), queries, n_neighbors=2).tolist() == [7]
    assert knn_predict(bank[[0, 0]], torch.tensor([7, 2]), queries, n_neighbors=2).tolist() == [2]
    # two against one beats the single closest
    assert knn_predict(bank[:3], torch.tensor([7, 2, 2]), queries, n_neighbors=3).tolist() == [2]


def test_unchanged_by_rotation_scale_chunks_and_order(problem) -> None:  # type: ignore[no-untyped-def]
    bank, labels, queries = problem
    expected = knn_predict(bank, labels, queries)
    rotation = torch.linalg.qr(queries[:6]).Q
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    moved = knn_predict((bank @ rotation)[order] * 5, labels[order], queries @ rotation, chunk=1)
    assert torch.equal(moved, expected)


def test_unlabelled_rows_are_left_out(problem) -> None:  # type: ignore[no-untyped-def]
    bank, labels, queries = problem
    bank_more, labels_more = torch.cat([queries, bank]), torch.cat([torch.full((80,), -1), labels])
    predicted = knn_predict(bank, labels, queries)
    assert torch.equal(knn_predict(bank_more, labels_more, queries), predicted)
    truth = predicted.clone()
    truth[:40] = -1
    truth[40] = predicted[40] + 1
    assert knn_accuracy(bank, labels, queries, truth) == pytest.approx(39 / 40)


def test_wrong_input_is_refused(problem) -> None:  # type: ignore[no-untyped-def]
    bank, labels, queries = problem
    for n_neighbors in (0, 151):
        with pytest.raises(InputError, match="n_neighbors <= 150"):
            knn_predict(bank, labels, queries, n_neighbors=n_neighbors)
    with pytest.raises(InputError, match="n_neighbors <= 0"):
        knn_predict(bank, torch.full((150,), -1), queries)
    with pytest.raises(InputError, match="chunk"):
        knn_predict(bank, labels, queries, chunk=0)
    with pytest.raises(ShapeError, match="one width"):
        knn_predict(bank, labels, queries[:, :3])
    with pytest.raises(NonFiniteError, match="query"):
        knn_predict(bank, labels, queries * torch.nan)
    with pytest.raises(InputError, match="labelled queries"):
        knn_accuracy(bank, labels, queries, torch.full((80,), -1))
    with pytest.raises(ShapeError, match="query"):
        knn_accuracy(bank, labels, queries, labels)
