"""The funnel against its definition and against exhaustive search; the shortlist against sorting everything."""

import numpy as np
import pytest

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.retrieval import CodeStore, FunnelSearch, TruncatedIndex
from neigenmaps.retrieval import shortlist as shortlist_module
from neigenmaps.retrieval.funnel import _cheapest
from neigenmaps.retrieval.shortlist import shortlist
from oracles import retrieval as oracle


def falling(n: int, width: int = 32, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)
    return rows * np.arange(1, width + 1, dtype=np.float32) ** -0.5


@pytest.mark.parametrize(
    ("stages", "shortlists"), [((4, 32), (20,)), ((2, 8, 24), (40, 10)), ((1, 2, 4, 8), (30, 30, 9))]
)
def test_agrees_with_the_definition(stages: tuple[int, ...], shortlists: tuple[int, ...]) -> None:
    gallery, queries = falling(150), falling(5, seed=1)
    scores, rows = FunnelSearch(gallery, stages, shortlists=shortlists).search(queries, 6)
    expected_scores, expected_rows = oracle.funnel(queries, gallery, 6, list(stages), list(shortlists))
    if stages[0] > 1:  # the cosine of one number ties
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(scores, expected_scores, rtol=2e-5, atol=2e-6)
    assert rows.shape == (5, 6)


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
@pytest.mark.parametrize("scaling", ["unit", "sqrt_eigenvalue"])
def test_shortlists_of_everything_make_it_exhaustive(metric: str, scaling: str) -> None:
    gallery, queries = np.random.default_rng(0).standard_normal((200, 32), dtype=np.float32), falling(5, seed=1)
    eigenvalues = np.arange(1, 33) ** -1.0
    funnel = FunnelSearch(
        gallery,
        (4, 12, 32),
        shortlists=(200, 200),
        metric=metric,
        scaling=scaling,
        eigenvalues=eigenvalues,  # type: ignore[arg-type]
    )
    expected = TruncatedIndex(gallery, None, metric, scaling, eigenvalues=eigenvalues).search(queries, 9)  # type: ignore[arg-type]
    got = funnel.search(queries, 9)
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-5)
    assert funnel.recall(queries, 9) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(("n_queries", "shortlists"), [(1, (40, 9)), (40, (40, 9)), (1, (180, 60)), (40, (180, 60))])
def test_either_way_of_searching_gives_the_same(
    n_queries: int, shortlists: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long shortlist is worth it for one query, not for many; here both ways find the same, so neither is seen from outside."""
    gallery = falling(300) * np.repeat([1, 0.01], [4, 28]).astype(np.float32)
    funnel = FunnelSearch(gallery, (4, 12, 32), shortlists=shortlists, metric="inner_product")
    ways: list[bool] = []
    pays = FunnelSearch._pays
    monkeypatch.setattr(FunnelSearch, "_pays", lambda self, *given: ways.append(pays(self, *given)) or ways[-1])
    found = funnel.search(falling(n_queries, seed=1), 5)
    assert ways == [n_queries == 1 or shortlists == (40, 9)]
    truth = TruncatedIndex(gallery, metric="inner_product").search(falling(n_queries, seed=1), 5)
    np.testing.assert_array_equal(found.ids, truth.ids)
    np.testing.assert_allclose(found.scores, truth.scores, rtol=1e-5)


def test_a_single_query_ids_and_removed_rows() -> None:
    gallery = falling(300)
    ids = [f"{i}.png" for i in range(300)]
    funnel = FunnelSearch(gallery, (8, 32), ids=ids)
    one, many = funnel.search(gallery[7], 4), funnel.search(gallery[:9], 4)
    assert one.ids.shape == one.scores.shape == (4,)
    assert one.ids[0] == "7.png"
    np.testing.assert_array_equal(one.ids, many.ids[7])
    funnel.store.remove(["7.png"])
    assert funnel.search(gallery[7], 4).ids.tolist()[:2] != one.ids.tolist()[:2]
    assert "7.png" not in funnel.search(gallery[7], 299).ids
    funnel.store.add(gallery[7:8], ids=["again.png"])
    assert funnel.search(gallery[7], 4).ids[0] == "again.png"
    assert len(funnel) == 300


def test_recall_is_that_of_its_own_results() -> None:
    gallery, queries = falling(3_000), falling(60, seed=1)
    funnel = FunnelSearch(gallery, (4, 32), shortlists=(60,))
    found, truth = funnel.search(queries, 10).ids, TruncatedIndex(gallery).search(queries, 10).ids
    shares = np.array([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)])
    got = funnel.recall(queries, 10)
    assert got.mean == pytest.approx(shares.mean())
    assert got.mean < 0.9
    assert got.worst == shares.min()
    assert got.standard_error == pytest.approx(shares.std(ddof=1) / np.sqrt(60))
    assert np.isnan(funnel.recall(queries[0], 10).standard_error)


@pytest.mark.parametrize("target", [0.8, 0.95, 0.99])
def test_calibration_reaches_its_target_and_not_by_far(target: float) -> None:
    gallery, queries = falling(4_000), falling(150, seed=1)
    funnel = FunnelSearch(gallery, (4, 12, 32)).calibrate(queries, 10, target=target)
    assert funnel.recall(queries, 10).mean >= target
    assert funnel.shortlists is not None
    shorter = [max(10, size // 2) for size in funnel.shortlists]
    assert FunnelSearch(gallery, (4, 12, 32), shortlists=shorter).recall(queries, 10).mean < target
    others = falling(150, seed=2)  # drawn alike, so that recall differs by chance only
    assert funnel.recall(others, 10).mean > target - 4 * funnel.recall(others, 10).standard_error


def test_calibration_loses_no_more_than_allowed_and_where_it_is_cheap() -> None:
    positions = np.random.default_rng(0).pareto(0.7, (300, 2)).astype(np.int64) + 1
    lengths = np.array([12, 32])
    shortlists = _cheapest(positions, lengths, may_lose=9)
    assert (positions <= shortlists).all(axis=1).sum() >= 291
    for first in range(10):  # giving up so many in the first stage, the rest in the second
        kept = positions[np.argsort(positions[:, 0])[: 300 - first]]
        split = np.array([kept[:, 0].max(), np.sort(kept[:, 1])[-1 - (9 - first)]])
        assert lengths @ shortlists <= lengths @ split
    np.testing.assert_array_equal(_cheapest(positions, lengths, may_lose=0), positions.max(axis=0))


def test_default_shortlists_grow_with_k() -> None:
    funnel = FunnelSearch(falling(5_000), (4, 12, 32))
    assert funnel._shortlists_for(10) == [1_000, 100]
    assert funnel._shortlists_for(100) == [5_000, 1_000]  # no more than there are


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"stages": (8,)}, InputError, "two or more rising stages"),
        ({"stages": (8, 8)}, InputError, "two or more rising stages"),
        ({"stages": (0, 8)}, InputError, "two or more rising stages"),
        ({"stages": (8, 33)}, InputError, r"within 1..32, got \(8, 33\)"),
        ({"shortlists": (5, 5)}, InputError, "1 falling shortlists"),
        ({"shortlists": (0,)}, InputError, "1 falling shortlists"),
        ({"codes": falling(0)}, InputError, "non-empty"),
        ({"metric": "euclid"}, InputError, "cosine"),
    ],
)
def test_wrong_funnels_are_refused(change, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        FunnelSearch(**({"codes": falling(20), "stages": (4, 32)} | change))


def test_wrong_queries_are_refused() -> None:
    funnel = FunnelSearch(CodeStore(falling(20), fingerprint="a"), (4, 16))
    with pytest.raises(InputError, match="k <= 20"):
        funnel.search(falling(1), 21)
    with pytest.raises(ShapeError, match="width 32, got 4"):
        funnel.search(falling(1)[:, :4], 2)
    funnel.search(falling(1)[:, :16], 2)
    with pytest.raises(NonFiniteError, match="query"):
        funnel.search(np.full(32, np.nan), 2)
    with pytest.raises(InputError, match="one model"):
        funnel.search(falling(1), 2, fingerprint="b")
    with pytest.raises(InputError, match="between 0 and 1"):
        funnel.calibrate(falling(3), 2, target=1)


@pytest.mark.parametrize("n_best", [1, 10, 400, 900])
def test_shortlist_holds_the_best(n_best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist_module, "SAMPLED_AT_LEAST", 200)
    monkeypatch.setattr(shortlist_module, "BLOCK_ROWS", 500)
    monkeypatch.setattr(shortlist_module, "BLOCK_QUERIES", 3)
    gallery, queries = falling(7_300, 5), falling(10, 5, seed=1)
    got = np.sort(shortlist(gallery, queries, n_best), axis=1)
    expected = np.sort(np.argsort(-(queries @ gallery.T), axis=1)[:, :n_best], axis=1)
    np.testing.assert_array_equal(got, expected)


def test_shortlist_survives_a_sample_that_misleads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows sampled are the best there are: every threshold is too high, and the search goes on without."""
    monkeypatch.setattr(shortlist_module, "SAMPLED_AT_LEAST", 200)
    gallery, queries = falling(9_000, 5), falling(4, 5, seed=1)
    n_sampled = 9_000 // shortlist_module.SAMPLED_SHARE
    gallery[np.linspace(0, 8_999, n_sampled).astype(np.int64)] *= 50
    got = np.sort(shortlist(gallery, queries, 300), axis=1)
    expected = np.sort(np.argsort(-(queries @ gallery.T), axis=1)[:, :300], axis=1)
    np.testing.assert_array_equal(got, expected)


def test_shortlist_of_equal_rows_is_full() -> None:
    got = shortlist(np.ones((40_000, 3), np.float32), np.ones((2, 3), np.float32), 700)
    assert all(len(set(row)) == 700 for row in got.tolist())
