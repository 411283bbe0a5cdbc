"""Suggested lengths: planted answers, the curve recomputed, the interval's coverage, and every refusal."""

import numpy as np
import pytest
import torch

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.ranking import Metric, mean_average_precision
from neigenmaps.retrieval import suggest_dim
from neigenmaps.retrieval.lengths import _share_reached, _shortest


def planted(n: int, informative: int, width: int, seed: int, noise: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """Classes are the sign patterns of the first `informative` numbers; the rest is faint noise."""
    generator = np.random.default_rng(seed)
    signs = generator.integers(2, size=(n, informative)) * 2 - 1
    codes = generator.standard_normal((n, width), dtype=np.float32) * np.float32(noise)
    codes[:, :informative] += signs
    return codes, signs @ 2 ** np.arange(informative)


@pytest.mark.parametrize("informative", [2, 4])
def test_a_planted_length_is_found_with_and_without_labels(informative: int) -> None:
    codes, labels = planted(600, informative, 16, seed=0)
    found = suggest_dim(codes, labels + 2**informative)
    assert found.dim == informative
    assert found.interval == (informative, informative)
    assert found.dim_by_eigenvalues == informative
    assert found.quality_L[-1] == pytest.approx(1)
    assert found.lengths_L == (1, 2, 3, 4, 6, 8, 11, 16)
    assert found.n_queries == 120


def test_without_labels_the_full_code_judges_the_neighbours() -> None:
    generator = np.random.default_rng(1)
    codes = generator.standard_normal((500, 16), dtype=np.float32)
    codes[:, 6:] *= 1e-4
    found = suggest_dim(codes, target=0.95, lengths=[2, 5, 6, 7])
    assert (found.dim, found.interval) == (6, (6, 6))
    assert found.lengths_L == (2, 5, 6, 7, 16)
    assert found.quality_L[-1] == pytest.approx(1)
    assert found.quality_L[0] < 0.7


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_the_curve_without_labels_is_the_gain_in_similarity(metric: Metric) -> None:
    codes = np.random.default_rng(3).standard_normal((200, 6)) * np.arange(6, 0, -1)
    mu_K = np.array([0.9, 0.8, 0.5, 0.3, 0.2, -0.1])
    found = suggest_dim(
        codes,
        eigenvalues=mu_K,
        diffusion=0.5,
        lengths=[2, 3, 5],  # by the cosine of one number all rows are tied
        metric=metric,
        generator=torch.Generator().manual_seed(5),
    )
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5)).numpy()
    scaled = codes * np.sqrt(mu_K.clip(0) / 0.9)

    def similarities(m: int) -> np.ndarray:
        cut = scaled[:, :m]
        unit = cut / np.linalg.norm(cut, axis=1, keepdims=True) if metric == "cosine" else cut
        return unit[order[:40]] @ unit[order[40:]].T

    full = similarities(6)

    def gain(m: int) -> float:
        nearest = np.argsort(-similarities(m), axis=1)[:, :10]
        return float((np.take_along_axis(full, nearest, axis=1).mean(axis=1) - full.mean(axis=1)).mean())

    assert found.quality_L == pytest.approx([gain(m) / gain(6) for m in found.lengths_L], abs=1e-5)


@pytest.mark.parametrize("true", [4, 8, 16])
def test_functions_beyond_the_true_ones_are_not_asked_for(true: int) -> None:
    """Codes of `encode`'s default scaling: variance mu, of which the true ones hold .9 to .5 and 64 of noise .004 or .1 each."""
    generator = np.random.default_rng(true)
    for noise, diffusion, target in ((0.004, 0, 0.95), (0.1, 2, 0.99)):
        mu_K = np.concatenate([np.linspace(0.9, 0.5, true), np.full(64, noise)])
        codes = generator.standard_normal((1_500, len(mu_K))) * np.sqrt(mu_K)
        found = suggest_dim(codes, target=target, diffusion=diffusion, eigenvalues=mu_K)
        assert 0.65 * true <= found.dim <= 1.42 * true


def test_where_long_codes_retrieve_worse_the_best_length_is_the_measure() -> None:
    codes, labels = planted(600, 4, 64, seed=4, noise=1.0)
    found = suggest_dim(codes, labels + 16)
    at = dict(zip(found.lengths_L, found.quality_L, strict=True))
    assert found.dim == 4
    assert at[2] > 0.99 * at[64]  # by the measure of the full code, 2 or less would do
    assert at[4] > 1.5 * at[64]


def test_rows_all_alike_need_one_number() -> None:
    found = suggest_dim(np.ones((100, 4)))
    assert found.dim == 1
    assert found.quality_L == (1, 1, 1, 1)


def test_the_curve_is_the_mean_average_precision_of_the_split() -> None:
    codes, labels = planted(300, 3, 8, seed=2, noise=0.8)
    labels = labels + 8
    found = suggest_dim(codes, labels, generator=torch.Generator().manual_seed(5))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    queries, rest = order[:60], order[60:]
    for m, quality in zip(found.lengths_L, found.quality_L, strict=True):
        rows, truth = torch.from_numpy(codes)[:, :m], torch.from_numpy(labels)
        expected = mean_average_precision(rows[queries], rows[rest], truth[queries], truth[rest])
        assert quality == pytest.approx(expected, rel=1e-12)
    enough = 0.99 * max(found.quality_L)
    first = next(m for m, q in zip(found.lengths_L, found.quality_L, strict=True) if q >= enough)
    assert found.dim == first


def test_the_interval_widens_with_fewer_queries_and_covers_the_large_sample_answer() -> None:
    def suggested(seed: int, max_queries: int) -> tuple[int, tuple[int, int]]:
        generator = np.random.default_rng(seed)
        codes = generator.standard_normal((2_000, 32), dtype=np.float32) * np.arange(1, 33, dtype=np.float32) ** -0.5
        found = suggest_dim(codes, target=0.95, lengths=range(8, 30), max_queries=max_queries, n_resamples=200)
        return found.dim, found.interval

    large = suggested(0, 400)[0]
    few, many = [suggested(seed, 20)[1] for seed in range(1, 11)], suggested(1, 400)[1]
    widths = [high - low for low, high in few]
    assert np.mean(widths) > many[1] - many[0]
    covered = sum(low <= large <= high for low, high in few)
    assert covered >= 7  # of 10 at 95 %: fewer has probability 0.001


def test_several_labels_and_unlabelled_rows() -> None:
    codes, labels = planted(400, 2, 8, seed=3)
    labels = labels + 4
    several = torch.nn.functional.one_hot(torch.from_numpy(labels - labels.min())).bool()
    assert suggest_dim(codes, several).quality_L == suggest_dim(codes, labels).quality_L
    labels[::3] = -1
    found = suggest_dim(codes, labels)
    assert found.dim == 2
    assert found.n_queries < 80
    assert found.quality_L[-1] == pytest.approx(1)


def test_eigenvalues_are_summed_until_the_target() -> None:
    codes, labels = planted(200, 2, 4, seed=4)
    assert suggest_dim(codes, labels + 4, 0.7, eigenvalues=torch.tensor([0.5, 0.2, 0.2, 0.1])).dim_by_eigenvalues == 2
    assert _share_reached(np.array([0.5, 0.2, 0.2, 0.1]), 0.71) == 3
    assert _share_reached(np.array([1.0, -1.0]), 0.99) == 1
    assert _shortest(np.array([0.5, 0.99, 0.2, 1.0]), (1, 2, 3, 4), 0.99) == 2
    assert (
        _shortest(np.array([0.6, 1.0, 0.5]), (1, 2, 3), 0.99) == 2
    )  # the best length is the measure, not the full one


def test_same_generator_same_answer_and_inputs_untouched() -> None:
    codes, labels = planted(300, 3, 8, seed=2, noise=0.8)
    before = codes.copy()
    assert suggest_dim(codes, labels + 8) == suggest_dim(torch.from_numpy(codes), torch.from_numpy(labels + 8))
    np.testing.assert_array_equal(codes, before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"codes": np.ones((99, 4))}, InputError, "at least 100 codes and 20 queries, got 99"),
        ({"max_queries": 19}, InputError, "max_queries=19"),
        ({"target": 1.0}, InputError, "target between 0 and 1"),
        ({"diffusion": -1}, InputError, "diffusion of at least 0, got -1"),
        ({"diffusion": 4.0}, InputError, "diffusion needs eigenvalues"),
        ({"confidence": 0}, InputError, "confidence between 0 and 1"),
        ({"n_resamples": 0}, InputError, "n_resamples >= 1"),
        ({"lengths": [0, 2]}, InputError, r"within 1..4, the code width, got \[0, 2\]"),
        ({"eigenvalues": np.ones(3)}, ShapeError, r"eigenvalues \(4,\)"),
        ({"labels": np.arange(5)}, ShapeError, "each of 100 codes, got 5"),
        ({"labels": np.arange(100)}, InputError, "share no label"),
        ({"codes": np.full((100, 4), np.nan)}, NonFiniteError, "given codes"),
        ({"codes": np.ones(100)}, ShapeError, "given codes"),
    ],
)
def test_wrong_input_is_refused(change, error, message) -> None:  # type: ignore[no-untyped-def]
    given = {"codes": np.random.default_rng(0).standard_normal((100, 4)), "labels": np.arange(100) % 3}
    with pytest.raises(error, match=message):
        suggest_dim(**(given | change))
