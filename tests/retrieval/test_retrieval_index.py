"""Truncated search against the definition, under every metric, scaling and method; what is refused, and why."""

from typing import Any

import numpy as np
import pytest
import torch

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.retrieval import CodeStore, FunnelSearch, TruncatedIndex, fingerprint_model
from neigenmaps.retrieval import index as module
from neigenmaps.retrieval import shortlist as shortlist_module
from neigenmaps.retrieval.scoring import unit_rows
from oracles import retrieval as oracle

EIGENVALUES = np.arange(1, 13) ** -1.0


def codes(n: int, width: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)


def falling(n: int, width: int = 32, seed: int = 0) -> np.ndarray:
    return codes(n, width, seed) * np.arange(1, width + 1, dtype=np.float32) ** -0.5


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
@pytest.mark.parametrize("scaling", ["unit", "sqrt_eigenvalue"])
@pytest.mark.parametrize("m", [1, 5, 12])
def test_agrees_with_the_definition(metric: str, scaling: str, m: int) -> None:
    gallery, queries = codes(80), codes(6, seed=1)
    index = TruncatedIndex(gallery, m, metric, scaling, eigenvalues=EIGENVALUES)  # type: ignore[arg-type]
    eigenvalues = EIGENVALUES if scaling == "sqrt_eigenvalue" else None
    for method in ("flat", "hnsw"):
        index = TruncatedIndex(gallery, m, metric, scaling, eigenvalues=EIGENVALUES, method=method)  # type: ignore[arg-type]
        scores, rows = index.search(queries, 7)
        expected_scores, expected_rows = oracle.search(queries, gallery, 7, m, metric, eigenvalues)
        np.testing.assert_allclose(scores, expected_scores, rtol=2e-5, atol=2e-6)  # faiss computes in float32
        if m > 1:  # under the cosine of one number all rows tie
            np.testing.assert_array_equal(rows, expected_rows)
        assert scores.shape == rows.shape == (6, 7)
        assert scores.dtype == np.float32


def test_one_query_has_no_axis_of_its_own() -> None:
    index, queries = TruncatedIndex(codes(40), 4), codes(3, seed=1)
    many, one = index.search(queries, 5), index.search(queries[1], 5)
    assert one.scores.shape == one.ids.shape == (5,)
    np.testing.assert_array_equal(one.ids, many.ids[1])
    np.testing.assert_allclose(one.scores, many.scores[1], rtol=1e-6)


@pytest.mark.parametrize("convert", [torch.from_numpy, lambda x: torch.from_numpy(x).double(), np.asfortranarray])
def test_arrays_and_tensors_alike(convert) -> None:  # type: ignore[no-untyped-def]
    expected = TruncatedIndex(codes(40), 4).search(codes(3, seed=1), 5)
    got = TruncatedIndex(convert(codes(40)), 4).search(convert(codes(3, seed=1)), 5)
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_array_equal(got.scores, expected.scores)


def test_queries_may_be_cut_already_and_longer_columns_count_for_nothing() -> None:
    gallery, queries = codes(40), codes(3, seed=1)
    expected = TruncatedIndex(gallery, 4).search(queries, 5)
    cut = TruncatedIndex(gallery, 4).search(queries[:, :4], 5)
    np.testing.assert_array_equal(cut.ids, expected.ids)
    gallery[:, 4:], queries[:, 4:] = 100, -100
    other = TruncatedIndex(gallery, 4).search(queries, 5)
    np.testing.assert_array_equal(other.ids, expected.ids)


def test_scale_and_order_of_rows_change_nothing_under_the_cosine() -> None:
    gallery, queries = codes(60), codes(4, seed=1)
    expected = TruncatedIndex(gallery, 6).search(queries, 5)
    lengths = np.logspace(-30, 30, 60, dtype=np.float32)[:, None]  # squares under- and overflow in float32
    scaled = TruncatedIndex(gallery * lengths, 6).search(queries * np.float32(1e-25), 5)
    np.testing.assert_array_equal(scaled.ids, expected.ids)
    order = np.random.default_rng(2).permutation(60)
    moved = TruncatedIndex(gallery[order], 6, ids=order).search(queries, 5)
    np.testing.assert_array_equal(moved.ids, expected.ids)


@pytest.mark.parametrize("k", [1, 10, 400])
def test_many_queries_at_once_find_what_each_finds_alone(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist_module, "SAMPLED_AT_LEAST", 100)
    index, queries = TruncatedIndex(falling(5_000), 6, metric="inner_product"), falling(40, seed=1)
    index.remove([5, 4_000])
    together = index.search(queries, k)
    alone = [index.search(query, k) for query in queries]
    np.testing.assert_allclose(together.scores, [one.scores for one in alone], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(together.ids[:, :1], [one.ids[:1] for one in alone])
    assert np.mean([np.isin(a.ids, b).mean() for a, b in zip(alone, together.ids, strict=True)]) > 0.9999


def test_zero_codes_have_cosine_zero() -> None:
    gallery = np.concatenate([codes(5), np.zeros((1, 12), np.float32)])
    for method in ("flat", "hnsw"):
        scores, ids = TruncatedIndex(gallery, method=method).search(codes(2, seed=1), 6)  # type: ignore[arg-type]
        assert (scores[ids == 5] == 0).all()
        assert (TruncatedIndex(gallery, method=method).search(np.zeros(12), 6).scores == 0).all()  # type: ignore[arg-type]
    np.testing.assert_array_equal(unit_rows(np.zeros((2, 3), np.float32)), 0)


@pytest.mark.parametrize(
    "ids", [np.arange(40) * 7 - 100, [f"photos/{i}.jpg" for i in range(40)], torch.arange(40) + 2**40]
)
def test_ids_of_the_users_own(ids) -> None:  # type: ignore[no-untyped-def]
    _, rows = TruncatedIndex(codes(40), 4).search(codes(3, seed=1), 5)
    _, found = TruncatedIndex(codes(40), 4, ids=ids).search(codes(3, seed=1), 5)
    np.testing.assert_array_equal(found, np.asarray(ids)[rows])


@pytest.mark.parametrize("method", ["flat", "hnsw", "ivf_pq"])
def test_rows_added_and_removed_equal_a_new_index(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IVF_PQ_LEAST", 300)
    monkeypatch.setattr(module, "REFINED", 1000)  # all rows are candidates, so that the approximate methods are exact
    monkeypatch.setattr(module, "PROBED_SHARE", 1)
    gallery, queries = falling(600), falling(4, seed=1)
    index = TruncatedIndex(gallery[:400], 8, method=method)  # type: ignore[arg-type]
    index.search(queries, 3)
    index.add(gallery[400:500])
    index.remove(np.arange(0, 100, 2))
    index.search(queries, 3)
    index.add(gallery[500:], ids=np.arange(500, 600))
    index.remove([3, 599])
    left = np.setdiff1d(np.arange(599), [*range(0, 100, 2), 3])
    fresh = TruncatedIndex(gallery[left], 8, ids=left)
    got, expected = index.search(queries, 20), fresh.search(queries, 20)
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-5)
    assert len(index) == len(left)
    index.remove(left[10:])  # more than half, which builds it anew
    assert sorted(index.search(queries[0], 10).ids) == left[:10].tolist()
    index.add(gallery[:1], ids=[0])  # an id may return
    assert 0 in index.search(queries[0], 11).ids


def test_indexes_over_one_store_see_each_others_changes() -> None:
    long = TruncatedIndex(codes(40))
    short = long.truncated(3)
    assert short.store is long.store
    query = codes(1, seed=5)
    short.add(query, ids=[1000])
    assert long.search(query, 1).ids.tolist() == [[1000]]
    long.remove([1000])
    assert 1000 not in short.search(query, 40).ids


@pytest.mark.parametrize(("method", "least"), [("flat", 1.0), ("hnsw", 0.99), ("ivf_pq", 0.8)])
def test_recall_of_every_method(method: str, least: float) -> None:
    gallery = falling(10_000 if method == "ivf_pq" else 3_000, 8)
    index = TruncatedIndex(gallery, method=method)  # type: ignore[arg-type]
    queries = falling(50, 8, seed=1)
    assert least <= index.recall(queries, 10) <= 1
    _, truth = TruncatedIndex(gallery, method="flat").search(queries, 10)
    _, found = index.search(queries, 10)
    assert index.recall(queries, 10) == pytest.approx(
        np.mean([np.isin(t, f) for t, f in zip(truth, found, strict=True)])
    )


def test_a_walk_that_meets_too_few_rows_is_completed() -> None:
    gallery = codes(300)
    index = TruncatedIndex(gallery, method="hnsw")
    index.remove(np.arange(100))  # fewer than half: the graph stays, and the walk skips them
    result = index.search(codes(3, seed=1), 200)
    assert (np.sort(result.ids, axis=1) == np.arange(100, 300)).all()


def test_auto_is_exact_until_half_a_gibibyte() -> None:
    chosen = [module._chosen_method("auto", n, 64) for n in (10, 2_000_000, 2**21, 2**21 + 1)]
    assert chosen == ["flat", "flat", "flat", "ivf_pq"]


def test_fingerprints_of_models() -> None:
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    mark = fingerprint_model(model)
    assert mark == fingerprint_model(model) != fingerprint_model(other)
    index = TruncatedIndex(codes(20), 4, fingerprint=mark)
    index.search(codes(1), 3, fingerprint=mark)
    index.search(codes(1), 3)
    with pytest.raises(InputError, match="encode both with one model"):
        index.search(codes(1), 3, fingerprint=fingerprint_model(other))
    with pytest.raises(InputError, match="encode both with one model"):
        index.add(codes(1), fingerprint=fingerprint_model(other))
    with pytest.raises(InputError, match="without"):
        fingerprint_model(torch.nn.ReLU())
    other.load_state_dict(model.state_dict())
    assert fingerprint_model(other) == mark


def test_scaling_twice_is_refused() -> None:
    """Codes that encode() scaled by the eigenvalues already would be scaled to their squares."""
    eigenvalues = np.linspace(0.9, 0.01, 12)
    unit = codes(200)
    scaled = unit * np.sqrt(eigenvalues).astype(np.float32)
    by_index = TruncatedIndex(unit, 8, scaling="sqrt_eigenvalue", eigenvalues=eigenvalues).search(unit[:5], 4)
    by_hand = TruncatedIndex(scaled, 8, eigenvalues=eigenvalues).search(scaled[:5], 4)
    np.testing.assert_array_equal(by_index.ids, by_hand.ids)
    with pytest.raises(InputError, match="as variance already"):
        TruncatedIndex(scaled, 8, scaling="sqrt_eigenvalue", eigenvalues=eigenvalues)


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_diffusion_multiplies_by_powers_of_eigenvalues(metric: str) -> None:
    gallery, queries, eigenvalues = (
        codes(80),
        codes(6, seed=1),
        np.linspace(0.02, 0.001, 12),
    )  # high powers almost vanish
    for scaling, diffusion in (("unit", 3.0), ("sqrt_eigenvalue", 2.5)):
        index = TruncatedIndex(gallery, 12, metric, scaling, diffusion=diffusion, eigenvalues=eigenvalues)  # type: ignore[arg-type]
        scores, rows = index.truncated(7).search(queries, 5)
        # the oracle multiplies by square roots
        expected_scores, expected_rows = oracle.search(queries, gallery, 5, 7, metric, eigenvalues**6)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(scores, expected_scores, rtol=2e-5, atol=0 if metric == "inner_product" else 2e-6)
        funnel = FunnelSearch(
            gallery,
            (3, 7),
            shortlists=(80,),
            metric=metric,  # type: ignore[arg-type]
            scaling=scaling,  # type: ignore[arg-type]
            diffusion=diffusion,
            eigenvalues=eigenvalues,
        )
        np.testing.assert_array_equal(funnel.search(queries, 5).ids, expected_rows)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"codes": codes(0)}, InputError, "non-empty gallery"),
        ({"codes": codes(5)[0]}, ShapeError, r"\(N, K\)"),
        ({"codes": np.full((4, 3), np.nan)}, NonFiniteError, "first in row 0"),
        ({"codes": codes(5) > 0}, InputError, "real gallery codes"),
        ({"truncate_dim": 0}, InputError, "1 <= truncate_dim <= 12"),
        ({"truncate_dim": 13}, InputError, "got 13"),
        ({"metric": "euclid"}, InputError, "'cosine' or 'inner_product'"),
        ({"scaling": "kernel"}, InputError, "'unit' or 'sqrt_eigenvalue'"),
        ({"scaling": "sqrt_eigenvalue"}, InputError, "need eigenvalues"),
        ({"diffusion": 2.0}, InputError, "diffusion need eigenvalues"),
        ({"diffusion": -1.0, "eigenvalues": np.ones(12)}, InputError, "at least 0, got -1"),
        ({"diffusion": np.nan, "eigenvalues": np.ones(12)}, InputError, "at least 0, got nan"),
        ({"eigenvalues": np.ones(3)}, ShapeError, r"eigenvalues \(12,\)"),
        ({"eigenvalues": np.full(12, np.nan)}, NonFiniteError, "eigenvalues"),
        ({"method": "tree"}, InputError, "'ivf_pq', got 'tree'"),
        ({"method": "ivf_pq"}, InputError, "at least 9984 rows"),
        ({"ids": [1, 1, 2, 3, 4]}, InputError, "1 repeated, first"),
        ({"ids": [1, 2]}, ShapeError, r"ids \(5,\)"),
        ({"ids": [0.5, 1, 2, 3, 4]}, InputError, "integers or strings"),
    ],
)
def test_wrong_galleries_are_refused(change, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        TruncatedIndex(**({"codes": codes(5)} | change))


@pytest.mark.parametrize(
    ("queries", "k", "error", "message"),
    [
        (codes(2, 11), 3, ShapeError, "width 12, got 11"),
        (codes(2)[None], 3, ShapeError, "query codes"),
        (codes(0), 3, InputError, "non-empty query"),
        (np.full((2, 12), np.inf), 3, NonFiniteError, "query codes"),
        (codes(2), 6, InputError, "k <= 5"),
        (codes(2), 0, InputError, "k=0"),
        (codes(2), None, InputError, "a whole k"),
        (codes(2), "3", InputError, "a whole k"),
        (codes(2), 2.5, InputError, "a whole k"),
        (None, 3, InputError, "a tensor or array .*, got NoneType"),
        ([0.0] * 12, 3, InputError, "a tensor or array .*, got list"),
    ],
)
def test_wrong_queries_are_refused(queries: Any, k: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        TruncatedIndex(codes(5), 4).search(queries, k)


def test_an_index_is_saved_to_a_path_alone() -> None:
    with pytest.raises(InputError, match="expected the path of a file to write, got None"):
        TruncatedIndex(codes(5), 4).save(None)  # type: ignore[arg-type]


def test_wrong_changes_are_refused_and_change_nothing() -> None:
    index = TruncatedIndex(codes(5), 4)
    before = index.search(codes(1), 5)
    for given, error, message in [
        ({"codes": codes(2, 11)}, ShapeError, "width 12"),
        ({"codes": codes(2), "ids": [4, 9]}, InputError, "1 ids are in use, first"),
        ({"codes": codes(2), "ids": ["a", "b"]}, InputError, "one kind of id"),
        ({"codes": codes(2), "ids": [8, 8]}, InputError, "repeated"),
        ({"codes": np.full((1, 12), np.nan)}, NonFiniteError, "added codes"),
    ]:
        with pytest.raises(error, match=message):
            index.add(**given)
    with pytest.raises(InputError, match="1 ids are not in the store, first"):
        index.remove([2, 77])
    after = index.search(codes(1), 5)
    np.testing.assert_array_equal(after.ids, before.ids)
    texts = TruncatedIndex(codes(2), ids=["a", "b"])
    with pytest.raises(InputError, match="ids are strings"):
        texts.add(codes(1))
    with pytest.raises(InputError, match="in the CodeStore"):
        TruncatedIndex(CodeStore(codes(2)), ids=[1, 2])


def test_an_emptied_index_says_so() -> None:
    index = TruncatedIndex(codes(3), 4)
    index.remove([0, 1, 2])
    with pytest.raises(InputError, match="number of rows in the index, got k=1"):
        index.search(codes(1), 1)
    with pytest.raises(InputError, match="every row has been removed"):
        index.truncated(2)
    index.add(codes(1, seed=3))
    assert index.search(codes(1), 1).ids.tolist() == [[3]]
