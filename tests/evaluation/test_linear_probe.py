"""The probe against scikit-learn on real digits; the ridge never sees the queries."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from neigenmaps.errors import InputError
from neigenmaps.evaluation.linear_probe import fit_linear_probe, linear_probe_accuracy
from neigenmaps.evaluation.threads import SMALL, few_threads


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    data = load_digits()
    x, y = torch.tensor(data.data), torch.tensor(data.target)
    return x[:600], y[:600], x[600:900], y[600:900]


def test_agrees_with_scikit_learn(digits) -> None:  # type: ignore[no-untyped-def]
    bank, labels, queries, _ = digits
    l2 = 0.05
    probe = fit_linear_probe(bank, 3 * labels, l2=l2)
    scaler = StandardScaler().fit(bank.numpy())
    # scikit-learn minimises C * sum of losses + ||W||^2 / 2
    reference = LogisticRegression(C=1 / (l2 * len(bank)), tol=1e-8, max_iter=2000)
    reference.fit(scaler.transform(bank.numpy()), labels.numpy())
    np.testing.assert_allclose(probe.weight_FC.numpy(), reference.coef_.T, atol=1e-4)
    expected = 3 * reference.predict(scaler.transform(queries.numpy()))
    np.testing.assert_array_equal(probe.predict(queries).numpy(), expected)


def test_digits_are_nearly_linear_and_the_result_repeats(digits) -> None:  # type: ignore[no-untyped-def]
    accuracy = linear_probe_accuracy(*digits, l2_grid=(1e-3, 1e-1))
    assert accuracy > 0.88
    assert linear_probe_accuracy(*digits, l2_grid=(1e-3, 1e-1)) == accuracy


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(digits, mode) -> None:  # type: ignore[no-untyped-def]
    expected = linear_probe_accuracy(*digits, l2_grid=(0.1,))
    with mode():  # Lightning validates in inference mode
        assert linear_probe_accuracy(*(tensor + 0 for tensor in digits), l2_grid=(0.1,)) == expected


def test_the_better_ridge_is_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(400) % 4 == 0).long()  # a huge ridge leaves the bias alone, which knows the larger class
    codes = torch.randn(400, 20, generator=generator)
    codes[:, 0] += 3 * labels
    sides = codes[:300], labels[:300], codes[300:], labels[300:]
    sensible = linear_probe_accuracy(*sides, l2_grid=(1e-2,))
    assert sensible > linear_probe_accuracy(*sides, l2_grid=(1e6,))
    assert linear_probe_accuracy(*sides, l2_grid=(1e6, 1e-2)) == sensible


def test_unlabelled_rows_and_constant_columns_do_no_harm(digits) -> None:  # type: ignore[no-untyped-def]
    bank, labels, queries, query_labels = digits
    expected = linear_probe_accuracy(*digits, l2_grid=(0.1,))
    more = torch.cat([bank, 100 * bank[:9]]), torch.cat([labels, torch.full((9,), -1)])
    assert linear_probe_accuracy(*more, queries, query_labels, l2_grid=(0.1,)) == expected


def test_wrong_input_is_refused(digits) -> None:  # type: ignore[no-untyped-def]
    bank, labels, queries, query_labels = digits
    for grid in ((), (-1.0,)):
        with pytest.raises(InputError, match="l2_grid"):
            linear_probe_accuracy(*digits, l2_grid=grid)
    with pytest.raises(InputError, match="held-out"):
        linear_probe_accuracy(*digits, held_out=1.0)
    with pytest.raises(InputError, match="labelled bank"):
        linear_probe_accuracy(bank, torch.full((600,), -1), queries, query_labels)
    with pytest.raises(InputError, match="labelled query"):
        linear_probe_accuracy(bank, labels, queries, torch.full((300,), -1))


def test_where_a_fit_begins_changes_nothing_but_time() -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(120, 7, generator=generator, dtype=torch.float64), torch.arange(120) % 4
    x[:, 0] += y
    alone = fit_linear_probe(x, y, l2=1e-2)
    for other in (
        fit_linear_probe(x, y, l2=1.0),
        fit_linear_probe(x, y % 2, l2=1.0),
        fit_linear_probe(x[:, :3], y, l2=1.0),
    ):
        begun = fit_linear_probe(x, y, l2=1e-2, start=other)
        torch.testing.assert_close(begun.weight_FC, alone.weight_FC, rtol=0, atol=1e-4)
        assert torch.equal(begun.predict(x), alone.predict(x))


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with few_threads(SMALL - 1):
        assert torch.get_num_threads() == 1
    with pytest.raises(ZeroDivisionError), few_threads(SMALL - 1):
        raise ZeroDivisionError
    with few_threads(SMALL):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_columns_in_their_own_proportions() -> None:
    """Few labels, two columns that tell the classes apart and 40 small ones of noise, which standardising would blow up."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(200)
    x = torch.randn(400, 42, generator=generator)
    x[:, :2] += 2.5 * (2 * labels[:, None] - 1)
    x[:, 2:] *= 0.01
    bank = torch.randperm(400, generator=generator)[:20]
    rest = torch.ones(400, dtype=torch.bool).index_fill(0, bank, value=False)
    each, together = (
        linear_probe_accuracy(x[bank], labels[bank], x[rest], labels[rest], l2_grid=[0.1], proportions=proportions)
        for proportions in (False, True)
    )
    assert together >= 0.99
    assert each < together
    alike = (x - x.mean(0)) / x.std(0, correction=0)  # columns of one size: both are the same
    probes = [fit_linear_probe(alike, labels, l2=0.1, proportions=proportions) for proportions in (False, True)]
    torch.testing.assert_close(probes[0].weight_FC, probes[1].weight_FC)
    larger = fit_linear_probe(1000 * x, labels, l2=0.1, proportions=True)
    assert torch.equal(larger.predict(1000 * x), fit_linear_probe(x, labels, l2=0.1, proportions=True).predict(x))
