"""Ranks between two spaces against the definitions, ties, gallery size, bootstrap, agreement of many spaces."""

import numpy as np
import pytest
import torch

from neigenmaps.errors import InputError, NonFiniteError, RowMismatchError, ShapeError
from neigenmaps.functional.pair_ranking import (
    agreement,
    bootstrap_counts,
    bootstrap_means,
    pair_ranks,
    percentile_interval,
    rank_at_gallery_sizes,
)
from oracles import pair_ranking as oracle


def pair(n: int = 40, width: int = 6, noise: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return tuple(shared + noise * torch.randn(n, width, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("csls", [None, 1, 5])
def test_agrees_with_the_definition(csls: int | None) -> None:
    a, b = pair()
    scores = oracle.cosines(a.numpy(), b.numpy()) if csls is None else oracle.csls(a.numpy(), b.numpy(), csls)
    expected = [oracle.first_rank_and_precision(scores[i], np.arange(40) == i) for i in range(40)]
    got = pair_ranks(a, b, csls=csls, chunk=7)
    assert got.first_rank_Q.tolist() == [rank for rank, _ in expected]
    np.testing.assert_allclose(got.average_precision_Q.numpy(), [value for _, value in expected], rtol=1e-12)
    assert len(set(got.first_rank_Q.tolist())) > 5  # the problem is neither solved nor hopeless


@pytest.mark.parametrize("csls", [None, 3])
def test_ids_make_several_rows_match(csls: int | None) -> None:
    a, b = pair(seed=1)
    generator = torch.Generator().manual_seed(2)
    ids_b = torch.randint(9, (40,), generator=generator)
    ids_a = ids_b[torch.randint(40, (15,), generator=generator)]
    scores = oracle.cosines(a[:15].numpy(), b.numpy())
    if csls is not None:
        scores = oracle.csls(a[:15].numpy(), b.numpy(), csls)
    relevant = ids_a.numpy()[:, None] == ids_b.numpy()
    expected = [oracle.first_rank_and_precision(s, r) for s, r in zip(scores, relevant, strict=True)]
    got = pair_ranks(a[:15], b, query_ids_Q=ids_a, gallery_ids_G=ids_b, csls=csls, chunk=4)
    assert got.first_rank_Q.tolist() == [rank for rank, _ in expected]
    np.testing.assert_allclose(got.average_precision_Q.numpy(), [value for _, value in expected], rtol=1e-12)


def test_ids_of_the_rows_change_nothing() -> None:
    a, b = pair(seed=3)
    for csls in (None, 4):
        plain = pair_ranks(a, b, csls=csls)
        by_id = pair_ranks(a, b, query_ids_Q=torch.arange(40), gallery_ids_G=torch.arange(40), csls=csls)
        assert torch.equal(plain.first_rank_Q, by_id.first_rank_Q)
        torch.testing.assert_close(plain.average_precision_Q, by_id.average_precision_Q, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 257])
def test_copies_count_against_the_method_whatever_the_rounding(dtype: torch.dtype, width: int) -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(1, width, generator=generator).to(dtype) * torch.rand(90, 1, generator=generator).to(dtype)
    assert (pair_ranks(rows, rows, chunk=13).first_rank_Q == 90).all()
    ids = torch.arange(90) // 3
    assert (pair_ranks(rows, rows, query_ids_Q=ids, gallery_ids_G=ids, chunk=13).first_rank_Q == 88).all()


def test_csls_takes_a_hub_away() -> None:
    """Gallery row 0 is near to every query, so that by cosine it beats most matches."""
    generator = torch.Generator().manual_seed(5)
    offset = torch.ones(30)
    queries = torch.randn(200, 30, generator=generator) + 0.7 * offset
    gallery = queries + 1.8 * torch.randn(200, 30, generator=generator)
    gallery[0] = offset
    by_cosine, by_csls = (pair_ranks(queries, gallery, csls=k).first_rank_Q[1:] for k in (None, 10))
    assert (by_csls == 1).sum() > (by_cosine == 1).sum() + 20


def test_order_rotation_and_scale_change_nothing() -> None:
    a, b = pair(seed=6)
    expected = pair_ranks(a, b, csls=5).first_rank_Q
    order = torch.randperm(40, generator=torch.Generator().manual_seed(7))
    assert torch.equal(pair_ranks(a[order], b[order], csls=5).first_rank_Q, expected[order])
    q = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)).Q
    lengths = torch.rand(40, 1, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.1
    assert torch.equal(pair_ranks(a @ q * lengths, 3 * b @ q, csls=5).first_rank_Q, expected)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_gallery_size_by_enumeration(k: int) -> None:
    a, b = pair(n=9, width=3)
    scores = oracle.cosines(a.numpy(), b.numpy())
    sizes = [1, 2, 3, 5, 9]
    got = rank_at_gallery_sizes(pair_ranks(a, b).first_rank_Q, 9, sizes, k=k)
    expected = [[oracle.rank_in_smaller_galleries(scores[i], i, size, k) for size in sizes] for i in range(9)]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


def test_gallery_of_full_size_is_the_rank_itself() -> None:
    ranks = pair_ranks(*pair(n=300, noise=2.0)).first_rank_Q
    for k in (1, 5):
        got = rank_at_gallery_sizes(ranks, 300, [300], k=k)[:, 0]
        torch.testing.assert_close(got, (ranks <= k).double(), rtol=0, atol=1e-10)


def test_bootstrap_covers_the_truth() -> None:
    """95 % intervals of the mean of 200 rows: of 300 of them between 91 and 98 % hold the true mean."""
    generator = torch.Generator().manual_seed(10)
    held = 0
    for _ in range(300):
        values = torch.rand(200, 1, generator=generator, dtype=torch.float64)
        draws = bootstrap_means(values, bootstrap_counts(200, 400, generator))[:, 0]
        interval = percentile_interval(values.mean().item(), draws)
        held += interval.low <= 0.5 <= interval.high
    assert 273 <= held <= 294


def test_bootstrap_draws_are_means_of_resampled_rows() -> None:
    counts = bootstrap_counts(7, 5, torch.Generator().manual_seed(11))
    assert (counts.sum(dim=1) == 7).all()
    assert torch.equal(counts, bootstrap_counts(7, 5, torch.Generator().manual_seed(11)))
    values = torch.arange(14.0).reshape(7, 2)
    for draw, line in zip(bootstrap_means(values, counts), counts, strict=True):
        torch.testing.assert_close(draw, values.repeat_interleave(line.long(), dim=0).double().mean(dim=0))


def test_shared_rows_narrow_the_interval_of_a_difference() -> None:
    generator = torch.Generator().manual_seed(12)
    a = torch.rand(300, 1, generator=generator)
    b = a - 0.02
    counts = bootstrap_counts(300, 500, generator)
    draws = bootstrap_means(a, counts) - bootstrap_means(b, counts)
    assert draws.min() > 0.019


def test_agreement_agrees_with_the_definition() -> None:
    generator = torch.Generator().manual_seed(13)
    codes = torch.randn(4, 25, 5, generator=generator, dtype=torch.float64) + 1
    got = agreement(codes)
    assert got.delta_plus == pytest.approx(oracle.delta_plus(list(codes.numpy())), rel=1e-12)
    assert got.gamma_90 == pytest.approx(oracle.gamma_90(list(codes.numpy())), rel=1e-12)


def test_agreement_of_equal_and_of_unrelated_spaces() -> None:
    codes = torch.randn(1, 4000, 50, generator=torch.Generator().manual_seed(14))
    same = agreement(codes.expand(3, -1, -1) * torch.tensor([1.0, 2.0, 5.0])[:, None, None])
    assert same == pytest.approx((0, 1), abs=1e-6)
    unrelated = agreement(torch.randn(3, 4000, 50, generator=torch.Generator().manual_seed(15)))
    assert unrelated.delta_plus == pytest.approx(1, abs=0.01)


ROWS = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries_QF": torch.ones(4)}, ShapeError, "flatten"),
        ({"queries_QF": torch.ones(4, 2)}, ShapeError, "2 and 3"),
        ({"gallery_GF": torch.ones(0, 3)}, InputError, "at least one gallery"),
        ({"gallery_GF": torch.full((4, 3), torch.nan)}, NonFiniteError, "gallery"),
        ({"queries_QF": torch.ones(5, 3)}, RowMismatchError, "5 and 4"),
        ({"query_ids_Q": torch.arange(4)}, InputError, "pass both"),
        ({"query_ids_Q": torch.arange(3), "gallery_ids_G": torch.arange(4)}, ShapeError, "query ids"),
        ({"query_ids_Q": torch.ones(4), "gallery_ids_G": torch.arange(4)}, InputError, "integer query"),
        ({"query_ids_Q": torch.arange(4) + 1, "gallery_ids_G": torch.arange(4)}, InputError, "1 of 4.*id 4"),
        ({"csls": 0}, InputError, "csls"),
        ({"csls": 5}, InputError, "csls"),
        ({"chunk": 0}, InputError, "chunk"),
    ],
)
def test_wrong_input_is_refused(change, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        pair_ranks(**({"queries_QF": ROWS, "gallery_GF": ROWS} | change))


def test_other_wrong_input_is_refused() -> None:
    ranks = torch.tensor([1, 2])
    for sizes, k, message in (([], 1, "sizes"), ([0], 1, "sizes"), ([6], 1, "sizes"), ([2], 0, "k >= 1")):
        with pytest.raises(InputError, match=message):
            rank_at_gallery_sizes(ranks, 5, sizes, k=k)
    with pytest.raises(InputError, match="ranks between 1 and 1"):
        rank_at_gallery_sizes(ranks, 1, [1])
    with pytest.raises(InputError, match="one row and one draw"):
        bootstrap_counts(0, 3, torch.Generator())
    with pytest.raises(RowMismatchError, match="same rows"):
        bootstrap_means(ROWS, torch.ones(2, 5))
    with pytest.raises(InputError, match="level"):
        percentile_interval(0.5, torch.zeros(3), level=1.0)
    with pytest.raises(ShapeError, match="two or more"):
        agreement(torch.ones(1, 4, 3))
    with pytest.raises(NonFiniteError):
        agreement(torch.full((2, 4, 3), torch.inf))
