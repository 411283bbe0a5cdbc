"""The permutation null: its p values, its tables over layers, chance level; and every refusal."""

from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, RowMismatchError, ShapeError
from neigenmaps.functional import similarity as sim


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "measure",
    [
        sim.LinearCKA(),
        sim.LinearCKA(True),
        sim.RBFCKA(unbiased=True),
        sim.MinibatchCKA(8),
        sim.CCA(),
        sim.PWCCA(),
        sim.ProcrustesDistance(),
        sim.RSA(),
        sim.RelativeSimilarity((0, 1, 2, 3)),
    ],
    ids=lambda measure: repr(measure)[:24],
)
def test_p_values_of_independent_spaces_are_uniform(measure: sim.AbstractMeasure) -> None:
    generator = seeded(1)
    p = [
        float(sim.compare_layers([normal(16, 3, seed=i)], [normal(16, 4, seed=900 + i)], measure, null=39,
                                 generator=generator).best.p)
        for i in range(150)
    ]  # fmt: skip
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_p_values_of_neighbour_counts_are_never_too_small() -> None:
    p = [
        float(sim.mutual_knn(normal(16, 3, seed=i), normal(16, 4, seed=900 + i), k=4, null=39, generator=seeded(i)).p)
        for i in range(150)
    ]  # counts tie often, and ties go against the method
    for level in (0.05, 0.2, 0.5):
        assert sum(x <= level for x in p) / len(p) < level + 3 * (level * (1 - level) / len(p)) ** 0.5
    assert sum(x <= 0.5 for x in p) / len(p) > 0.3


def test_best_of_many_layers_has_a_uniform_p() -> None:
    p_best, p_pair = [], []
    for i in range(120):
        layers_a, layers_b = ([normal(16, 3, seed=2000 + 10 * i + 5 * s + j) for j in range(4)] for s in (0, 1))
        got = sim.compare_layers(layers_a, layers_b, sim.LinearCKA(True), null=39, generator=seeded(i))
        p_best.append(float(got.best.p))
        p_pair.append(float(got.pairs.p[got.best_pair]))
    assert scipy.stats.kstest(p_best, "uniform").pvalue > 0.01
    assert sum(x <= 0.1 for x in p_pair) > 0.4 * len(p_pair)  # what is wrong with reading the best pair's own p


@pytest.mark.parametrize("measure", [sim.LinearCKA(True), sim.ProcrustesDistance(), sim.MutualKNN(3)], ids=repr)
def test_table_is_its_pairs_under_shared_permutations(measure: sim.AbstractMeasure) -> None:
    layers_a = [normal(24, width, seed=width) for width in (3, 30)]
    layers_b = [
        layers_a[0] @ normal(3, 5, seed=50) + normal(24, 5, seed=51),
        normal(24, 40, seed=52),
        layers_a[1] + 0.1,
    ]
    got = sim.compare_layers(layers_a, layers_b, measure, null=19, generator=seeded())
    for i, a in enumerate(layers_a):
        for j, b in enumerate(layers_b):
            single = sim.compare_layers([a], [b], measure, null=19, generator=seeded()).best
            for table, alone in zip(got.pairs, single, strict=True):
                torch.testing.assert_close(table[i, j], alone)
    best = got.pairs.value.min() if measure.falling else got.pairs.value.max()
    assert got.best.value == best == got.pairs.value[got.best_pair]
    assert (got.best.p >= got.pairs.p[got.best_pair]).all()


def test_null_statistics_are_those_of_recomputed_permutations() -> None:
    a, b = normal(15, 4, seed=1), normal(15, 3, seed=2)
    got = sim.procrustes_distance(a, b, null=29, generator=seeded(7))
    generator = seeded(7)
    null = torch.stack(
        [sim.procrustes_distance(a[torch.randperm(15, generator=generator)], b).value for _ in range(29)]
    )
    torch.testing.assert_close(got.null_mean, null.mean())
    torch.testing.assert_close(got.null_std, null.std())
    torch.testing.assert_close(got.z, (null.mean() - got.value) / null.std())
    torch.testing.assert_close(got.calibrated, (null.mean() - got.value) / null.mean())
    assert float(got.p) == (1 + int((null <= got.value).sum())) / 30


def test_equal_spaces_reach_the_smallest_p() -> None:
    a = normal(30, 4, seed=3)
    for measure in (sim.LinearCKA(), sim.ProcrustesDistance(), sim.MutualKNN(5), sim.CCA(), sim.RSA("spearman")):
        got = sim.compare_layers([a], [a], measure, null=19, generator=seeded()).best
        assert float(got.p) == 1 / 20
        assert float(got.z) > 3
        assert float(got.calibrated) == pytest.approx(1, abs=1e-6)


def test_saturated_cca_is_no_evidence() -> None:
    a, b = normal(10, 8, seed=4), normal(10, 12, seed=5)
    for dtype in (torch.float64, torch.float32):
        got = sim.mean_cca(a.to(dtype), b.to(dtype), null=19, generator=seeded())
        assert float(got.value) == pytest.approx(1, abs=1e-5)
        assert (float(got.p), float(got.z), float(got.calibrated)) == (1.0, 0.0, 0.0)


def test_chance_level() -> None:
    """Independent Gaussians: biased CKA near d / (N + d), unbiased CKA 0, mutual kNN k / (N - 1)."""
    spaces = [(normal(256, 64, seed=i), normal(256, 64, seed=70 + i)) for i in range(10)]
    biased = torch.stack([sim.linear_cka(a, b).value for a, b in spaces]).mean()
    unbiased = torch.stack([sim.linear_cka(a, b, unbiased=True).value for a, b in spaces])
    knn = torch.stack([sim.mutual_knn(a, b, k=10).value for a, b in spaces]).mean()
    assert float(biased) == pytest.approx(64 / (256 + 64), abs=0.01)
    assert abs(float(unbiased.mean())) < 4 * float(unbiased.std()) / 10**0.5
    assert float(unbiased.std()) < 0.02
    assert float(knn) == pytest.approx(10 / 255, abs=0.006)


def test_same_generator_same_null_and_gradients_pass_by_it() -> None:
    a, b = normal(12, 3, seed=1).requires_grad_(), normal(12, 3, seed=2)
    first, second = (sim.linear_cka(a, b, null=9, generator=seeded(3)) for _ in range(2))
    assert [x.item() for x in first] == [x.item() for x in second]
    assert first.value.requires_grad
    assert not any(x.requires_grad for x in first[1:])


GOOD = normal(12, 3, seed=0)
NAN = GOOD.clone().index_fill_(0, torch.tensor(2), float("nan"))
SIMPLEX = torch.eye(12, dtype=torch.float64)  # all distances equal
COPIES = torch.cat([torch.zeros(10, 3, dtype=torch.float64), GOOD[:2]])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sim.linear_cka(GOOD, GOOD[:11]), RowMismatchError, "same rows"),
        (lambda: sim.rsa(GOOD, NAN), NonFiniteError, r"layers_b\[0\]"),
        (lambda: sim.rsa(GOOD / 0, GOOD), NonFiniteError, r"layers_a\[0\]"),
        (lambda: sim.linear_cka(GOOD[:3], GOOD[:3]), InputError, "at least 4 rows"),
        (lambda: sim.mean_cca(GOOD[:2], GOOD[:2]), InputError, "at least 3 rows"),
        (lambda: sim.mutual_knn(GOOD, GOOD, k=12), InputError, "1 <= k < 12"),
        (lambda: sim.cycle_knn(GOOD, GOOD, k=0), InputError, "1 <= k < 12"),
        (lambda: sim.mutual_knn(GOOD, GOOD, k=2, metric="l1"), InputError, "metric"),
        (lambda: sim.mutual_knn(GOOD, GOOD, k=2, chunk=0), InputError, "chunk"),
        (lambda: sim.pwcca(GOOD, torch.ones(12, 3)), InputError, "vary over the rows"),
        (lambda: sim.linear_cka(GOOD.long(), GOOD), InputError, "floating-point"),
        (lambda: sim.linear_cka(GOOD[:, 0], GOOD), ShapeError, r"\(N, F\)"),
        (lambda: sim.linear_cka(GOOD[:, :0], GOOD), ShapeError, r"\(N, F\)"),
        (lambda: sim.linear_cka(SIMPLEX, GOOD, unbiased=True), InputError, "0/0"),
        (lambda: sim.rbf_cka(SIMPLEX, GOOD, unbiased=True), InputError, "0/0"),
        (lambda: sim.minibatch_cka(SIMPLEX, GOOD), InputError, "0/0"),
        (lambda: sim.rsa(SIMPLEX, GOOD), InputError, "0/0"),
        (lambda: sim.rbf_cka(COPIES, GOOD), InputError, "median"),
        (lambda: sim.rbf_cka(GOOD, GOOD, bandwidth=0), InputError, "bandwidth"),
        (lambda: sim.minibatch_cka(GOOD, GOOD, batch_size=7), InputError, "batch_size"),
        (lambda: sim.minibatch_cka(GOOD, GOOD, kernel="cubic"), InputError, "kernel"),
        (lambda: sim.svcca(GOOD, GOOD, explained=0.0), InputError, "explained"),
        (lambda: sim.rsa(GOOD, GOOD, correlation="kendall"), InputError, "correlation"),
        (lambda: sim.rsa(GOOD, GOOD, distance="l1"), InputError, "distance"),
        (lambda: sim.relative_similarity(GOOD, GOOD, [0, 0]), InputError, "anchor rows"),
        (lambda: sim.relative_similarity(GOOD, GOOD, [12]), InputError, "anchor rows"),
        (lambda: sim.relative_similarity(GOOD, GOOD, []), InputError, "anchor rows"),
        (lambda: sim.relative_similarity(GOOD, GOOD, range(12)), InputError, "fewer anchors"),
        (lambda: sim.relative_representation(GOOD, GOOD[:, :2]), ShapeError, "same space"),
        (lambda: sim.relative_representation(NAN, GOOD), NonFiniteError, "finite"),
        (lambda: sim.compare_layers([], [GOOD], sim.CCA()), InputError, "at least one layer"),
        (lambda: sim.linear_cka(GOOD, GOOD, null=-1), InputError, "null >= 0"),
        (lambda: sim.linear_cka(GOOD, GOOD, null=9), InputError, "generator"),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
