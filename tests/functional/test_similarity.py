"""Similarity values against numpy formulas, and what each measure must not see."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from neigenmaps.functional import similarity as sim
from oracles import similarity as oracle

Pair = tuple[Tensor, Tensor]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int, seed: int = 9) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


def related(rows: int, width_a: int, width_b: int) -> Pair:
    shared = normal(rows, 3, seed=0)
    a = shared @ normal(3, width_a, seed=1) + normal(rows, width_a, seed=2) + 0.3
    return a, shared @ normal(3, width_b, seed=3) + normal(rows, width_b, seed=4) - 0.2


NARROW, MIXED, WIDE = related(20, 5, 7), related(20, 30, 6), related(20, 30, 40)
ANCHORS = [0, 3, 7, 11]


def kernels(a: np.ndarray, b: np.ndarray, kind: str = "linear") -> tuple[np.ndarray, np.ndarray]:
    kernel = oracle.linear_kernel if kind == "linear" else oracle.rbf_kernel
    return kernel(a), kernel(b)


def batches(a: np.ndarray, b: np.ndarray, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [kernels(x, y, kind) for x, y in zip(np.array_split(a, 3), np.array_split(b, 3), strict=True)]


# name: (measure, the same in numpy, does it need fewer columns than rows)
ORACLES: dict[str, tuple[sim.AbstractMeasure, Callable[[np.ndarray, np.ndarray], float], bool]] = {
    "cka": (sim.LinearCKA(), lambda a, b: oracle.cka(*kernels(a, b), unbiased=False), False),
    "cka_unbiased": (sim.LinearCKA(True), lambda a, b: oracle.cka(*kernels(a, b), unbiased=True), False),
    "rbf": (sim.RBFCKA(), lambda a, b: oracle.cka(*kernels(a, b, "rbf"), unbiased=False), False),
    "rbf_unbiased": (
        sim.RBFCKA(unbiased=True),
        lambda a, b: oracle.cka(*kernels(a, b, "rbf"), unbiased=True),
        False,
    ),
    "minibatch": (sim.MinibatchCKA(8), lambda a, b: oracle.minibatch_cka(batches(a, b, "linear")), False),
    "minibatch_rbf": (sim.MinibatchCKA(8, "rbf"), lambda a, b: oracle.minibatch_cka(batches(a, b, "rbf")), False),
    "cca": (sim.CCA(), lambda a, b: float(oracle.canonical(a, b)[0].mean()), True),
    "svcca": (sim.CCA(0.8), lambda a, b: oracle.svcca(a, b, 0.8), False),
    "pwcca": (sim.PWCCA(), oracle.pwcca, True),
    "procrustes": (sim.ProcrustesDistance(), oracle.procrustes_distance, False),
    "rsa": (sim.RSA(), lambda a, b: oracle.rsa(a, b, "pearson", "euclidean"), False),
    "rsa_spearman": (sim.RSA("spearman", "cosine"), lambda a, b: oracle.rsa(a, b, "spearman", "cosine"), False),
    "mutual": (sim.MutualKNN(4, chunk=6), lambda a, b: oracle.mutual_knn(a, b, 4, "cosine"), False),
    "mutual_euclidean": (sim.MutualKNN(4, "euclidean"), lambda a, b: oracle.mutual_knn(a, b, 4, "euclidean"), False),
    "cycle": (sim.CycleKNN(3, "euclidean", 6), lambda a, b: oracle.cycle_knn(a, b, 3, "euclidean"), False),
    "relative": (
        sim.RelativeSimilarity(tuple(ANCHORS)),
        lambda a, b: oracle.relative_similarity(a, b, ANCHORS),
        False,
    ),
}
MEASURES = {name: row[0] for name, row in ORACLES.items()}
ROTATION_PROOF = [name for name in MEASURES if name != "pwcca"]  # its weights sum over the first space's columns


def value(measure: sim.AbstractMeasure, a: Tensor, b: Tensor) -> float:
    return float(sim.compare_layers([a], [b], measure).best.value)


PAIRS = {"narrow": NARROW, "mixed": MIXED, "wide": WIDE}
COMPARED = [
    pytest.param(name, pair, id=f"{name}-{label}")
    for name, (_, _, needs_narrow) in ORACLES.items()
    for label, pair in PAIRS.items()
    if label == "narrow" or not needs_narrow  # some oracles invert covariances
]


@pytest.mark.parametrize(("name", "pair"), COMPARED)
def test_agrees_with_numpy(name: str, pair: Pair) -> None:
    measure, expected, _ = ORACLES[name]
    for a, b in (pair, pair[::-1]):
        assert value(measure, a, b) == pytest.approx(expected(a.numpy(), b.numpy()), rel=1e-9)


def test_functions_are_their_measures() -> None:
    a, b = NARROW
    calls = {
        "cka": sim.linear_cka(a, b),
        "cka_unbiased": sim.linear_cka(a, b, unbiased=True),
        "rbf": sim.rbf_cka(a, b),
        "rbf_unbiased": sim.rbf_cka(a, b, unbiased=True),
        "minibatch": sim.minibatch_cka(a, b, batch_size=8),
        "minibatch_rbf": sim.minibatch_cka(a, b, batch_size=8, kernel="rbf"),
        "cca": sim.mean_cca(a, b),
        "svcca": sim.svcca(a, b, explained=0.8),
        "pwcca": sim.pwcca(a, b),
        "procrustes": sim.procrustes_distance(a, b),
        "rsa": sim.rsa(a, b),
        "rsa_spearman": sim.rsa(a, b, correlation="spearman", distance="cosine"),
        "mutual": sim.mutual_knn(a, b, k=4),
        "mutual_euclidean": sim.mutual_knn(a, b, k=4, metric="euclidean"),
        "cycle": sim.cycle_knn(a, b, k=3, metric="euclidean"),
        "relative": sim.relative_similarity(a, b, ANCHORS),
    }
    assert {name: float(call.value) for name, call in calls.items()} == {
        name: value(measure, a, b) for name, measure in MEASURES.items()
    }
    assert all(call[1:] == (None,) * 5 for call in calls.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_spearman_shares_ranks_among_ties(dtype: torch.dtype) -> None:
    """Rows on a small lattice, copies among them: few distances, each many times."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 3, (25, 3), generator=generator).to(dtype) for _ in range(2))
    assert len(torch.pdist(a).unique()) < 12
    found = float(sim.rsa(a, b, correlation="spearman").value)
    assert found == pytest.approx(oracle.rsa(a.double().numpy(), b.double().numpy(), "spearman", "euclidean"), abs=1e-6)
    order = torch.randperm(25, generator=generator)
    assert float(sim.rsa(a[order], b[order], correlation="spearman").value) == pytest.approx(found, abs=1e-6)


def test_unbiased_hsic_is_the_mean_over_four_rows() -> None:
    k, m = kernels(*(x[:7].numpy() for x in NARROW))
    assert oracle.hsic_unbiased(k, m) == pytest.approx(oracle.hsic_u_statistic(k, m), rel=1e-10)


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "cycle"])
@pytest.mark.parametrize("pair", [NARROW, WIDE], ids=["narrow", "wide"])
def test_a_space_is_its_own_best_match(name: str, pair: Pair) -> None:
    measure = MEASURES[name]
    assert value(measure, pair[0], pair[0]) == pytest.approx(measure.best, abs=1e-6)


@pytest.mark.parametrize("name", ROTATION_PROOF)
def test_rotation_and_scale_are_not_seen(name: str) -> None:
    for a, b in (NARROW, WIDE):
        turned = 3.7 * a @ rotation(a.shape[1])
        assert value(MEASURES[name], turned, b) == pytest.approx(value(MEASURES[name], a, b), rel=1e-9)


@pytest.mark.parametrize("name", [n for n in MEASURES if n not in ("rsa_spearman", "mutual", "relative")])
def test_translation_is_not_seen_unless_by_cosines(name: str) -> None:
    a, b = NARROW
    assert value(MEASURES[name], a + 5, b) == pytest.approx(value(MEASURES[name], a, b), rel=1e-9)


@pytest.mark.parametrize("name", [n for n in MEASURES if not n.startswith("minibatch") and n != "relative"])
def test_order_of_rows_is_not_seen(name: str) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    a, b = NARROW
    assert value(MEASURES[name], a[order], b[order]) == pytest.approx(value(MEASURES[name], a, b), rel=1e-9)


@pytest.mark.parametrize("name", [n for n in MEASURES if n not in ("pwcca", "cycle")])
def test_symmetric(name: str) -> None:
    for a, b in (NARROW, MIXED):
        assert value(MEASURES[name], a, b) == pytest.approx(value(MEASURES[name], b, a), rel=1e-9)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("pair", [NARROW, MIXED, WIDE], ids=["narrow", "mixed", "wide"])
def test_permuting_what_was_prepared_is_preparing_what_was_permuted(name: str, pair: Pair) -> None:
    measure, (a, b) = MEASURES[name], pair
    order = torch.randperm(20, generator=torch.Generator().manual_seed(6))
    if name.startswith("minibatch"):  # only within batches
        order = torch.cat([part[torch.arange(len(part)).flip(0)] for part in torch.arange(20).tensor_split(3)])
    other = measure.prepare(b, second=True)
    fast = measure.compare(measure.permute(measure.prepare(a, second=False), order), other)
    slow = measure.compare(measure.prepare(a[order], second=False), other)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_cca_does_not_see_invertible_maps() -> None:
    a, b = NARROW
    bent = a @ normal(5, 5, seed=7) + 2
    assert float(sim.mean_cca(bent, b).value) == pytest.approx(float(sim.mean_cca(a, b).value), rel=1e-9)
    assert float(sim.mean_cca(bent, a).value) == pytest.approx(1.0, rel=1e-9)
    assert float(sim.linear_cka(bent, a).value) < 0.99


def test_rank_deficient_columns_add_nothing() -> None:
    a, b = NARROW
    doubled = torch.cat([a, a @ normal(5, 4, seed=8), torch.ones(20, 1, dtype=a.dtype)], dim=1)
    assert float(sim.mean_cca(doubled, b).value) == pytest.approx(float(sim.mean_cca(a, b).value), rel=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_noise_moves_spaces_apart(name: str) -> None:
    a, noise = normal(200, 4, seed=10), normal(200, 4, seed=11)
    measure = MEASURES[name]
    values = [value(measure, a, a @ rotation(4) + scale * noise) for scale in (0.05, 0.4, 4.0)]
    assert values == sorted(values, reverse=not measure.falling)
    assert abs(values[0] - values[2]) > 0.1


def test_single_precision_and_half() -> None:
    for name, measure in MEASURES.items():
        a, b = NARROW
        assert value(measure, a.float(), b.float()) == pytest.approx(value(measure, a, b), abs=1e-5), name
        assert np.isfinite(value(measure, a.half(), b.bfloat16()))
    assert sim.linear_cka(a.float(), b.float()).value.dtype == torch.float32


def test_copies_of_rows_agree_only_by_chance() -> None:
    """All neighbours tie: a search that takes the first of equals in both spaces would report full agreement."""
    two = torch.zeros(200, 1, dtype=torch.float64)
    two[0] = 1
    assert float(sim.mutual_knn(two, two, k=5, metric="euclidean").value) < 0.2


@pytest.mark.parametrize(
    "name", [n for n in MEASURES if n not in ("mutual", "mutual_euclidean", "cycle", "rsa_spearman")]
)
def test_gradient(name: str) -> None:
    def of(a: Tensor, b: Tensor) -> Tensor:
        return sim.compare_layers([a], [b], MEASURES[name]).best.value

    inputs = tuple(x[:12].clone().requires_grad_() for x in related(12, 3, 4))
    assert torch.autograd.gradcheck(of, inputs)


def test_relative_representation() -> None:
    x, turn = normal(9, 4, seed=12), rotation(4)
    got = sim.relative_representation(x, x[:3])
    expected = torch.nn.functional.cosine_similarity(x[:, None], x[None, :3], dim=2)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(sim.relative_representation(2 * x @ turn, x[:3] @ turn), got)
