"""Generalised Procrustes against brute force, scipy, a plain alternation on rows, and its own promises."""

import numpy as np
import pytest
import torch
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.functional.cross_moments import block_slices, cross_moments
from neigenmaps.functional.generalized_procrustes import ProcrustesConsensus, generalized_procrustes, nuclear_bound
from neigenmaps.functional.linear_maps import polar_factor
from oracles import alignment as oracle
from oracles.planted_alignment import normal, partly_shared, rotation, turned


def centred(spaces: dict[str, Tensor]) -> list[Tensor]:
    return [x - x.mean(0) for x in spaces.values()]


def solve(xs: list[Tensor], **options: object) -> ProcrustesConsensus:
    moments = cross_moments(xs)
    return generalized_procrustes(moments.centred(), moments.widths, tolerance=1e-14, max_sweeps=5000, **options)  # type: ignore[arg-type]


def bound(xs: list[Tensor], rank: int | None = None) -> float:
    moments = cross_moments(xs)
    return nuclear_bound(moments.centred(), moments.widths, n_components=rank)


def blocks(result: ProcrustesConsensus, xs: list[Tensor]) -> list[Tensor]:
    return [result.maps_DK[own] for own in block_slices([x.shape[1] for x in xs])]


def test_two_spaces_are_scipys() -> None:
    xs = centred(turned(80, 9, "ab", noise=1.0))
    first, second = blocks(solve(xs), xs)
    assert np.abs((first @ second.T).numpy() - oracle.procrustes(xs[0].numpy(), xs[1].numpy())).max() < 1e-12


def test_three_plane_spaces_reach_what_brute_force_finds() -> None:
    for seed in range(3):
        xs = [x - x.mean(0) for x in (normal(12, 2, seed=10 * seed + m) for m in range(3))]
        best = oracle.best_planar_agreement([x.numpy() for x in xs], steps=120)
        found = solve(xs).objective
        assert best <= found * (1 + 1e-12)
        assert found <= best * 1.001  # as fine as the grid


def test_planted_turns_are_recovered() -> None:
    xs = centred(turned(100, 7, "abcd"))
    result = solve(xs)
    maps = blocks(result, xs)
    for m in range(4):
        for n in range(4):
            assert torch.allclose(xs[m] @ maps[m] @ maps[n].T, xs[n], atol=1e-10)
    assert result.objective == pytest.approx(bound(xs), rel=1e-12)


def test_objective_is_the_agreement_of_rows_and_never_falls() -> None:
    xs = centred(partly_shared(300, 12, 4, "abcde"))
    result = solve(xs)
    expected = oracle.agreement([r.numpy() for r in blocks(result, xs)], [x.numpy() for x in xs])
    assert result.objective == pytest.approx(expected, rel=1e-10)
    steps = np.diff(result.history)
    assert steps.min() >= -1e-10 * result.objective
    assert result.objective <= bound(xs)


def test_plain_alternation_on_rows_ends_at_the_same_objective() -> None:
    xs = centred(turned(200, 8, "abc", noise=1.0))
    start = [np.eye(8)] * 3
    maps = oracle.alternating_procrustes([x.numpy() for x in xs], start, sweeps=300)
    assert solve(xs).objective == pytest.approx(oracle.agreement(maps, [x.numpy() for x in xs]), rel=1e-9)


STARTS = {
    "iso": (turned(400, 16, "abcde", noise=1.0), None, 1e-9),
    "shared directions": (partly_shared(400, 16, 5, "abcde"), 5, 1e-9),
    "directions of noise too": (
        partly_shared(400, 16, 5, "abcde"),
        None,
        3e-3,
    ),  # there are many optima, measured 1e-3 apart
}


@pytest.mark.parametrize("case", STARTS)
def test_every_start_ends_at_the_same_objective(case: str) -> None:
    spaces, rank, within = STARTS[case]
    xs = centred(spaces)
    columns = block_slices([16] * 5)
    spectral = solve(xs, n_components=rank).objective
    cross_DD = cross_moments(xs).centred()
    first_view = torch.cat([polar_factor(cross_DD[own, columns[0]][:, :rank]) for own in columns])
    turns = [torch.cat([rotation(16, 50 + 5 * s + m)[:, :rank] for m in range(5)]) for s in range(4)]
    for start in (first_view, *turns):
        found = solve(xs, n_components=rank, start_DK=start).objective
        assert found == pytest.approx(spectral, rel=within)


def test_distance_to_the_mean_is_the_sum_over_pairs() -> None:
    xs = centred(turned(100, 6, "abcd", noise=0.5))
    mapped = [x @ r for x, r in zip(xs, blocks(solve(xs), xs), strict=True)]
    mean = torch.stack(mapped).mean(0)
    to_mean = sum((u - mean).square().sum() for u in mapped)
    pairs = sum((mapped[m] - mapped[n]).square().sum() for n in range(4) for m in range(n))
    assert torch.allclose(to_mean, pairs / 4)


@pytest.mark.parametrize("n_components", [None, 9, 7, 4, 1])
def test_unequal_widths_and_any_rank(n_components: int | None) -> None:
    full = turned(150, 9, "abc", noise=0.3)
    xs = centred({"a": full["a"], "b": full["b"][:, :7], "c": full["c"][:, :5]})
    result = solve(xs, n_components=n_components)
    rank = n_components or 9
    for x, block in zip(xs, blocks(result, xs), strict=True):
        assert block.shape == (x.shape[1], rank)
        small = block @ block.T if x.shape[1] <= rank else block.T @ block
        assert torch.allclose(small, torch.eye(len(small), dtype=torch.float64), atol=1e-10)
    assert np.diff(result.history).min() >= -1e-10 * result.objective
    assert result.objective <= bound(xs, rank)
    axes = torch.stack([x @ block for x, block in zip(xs, blocks(result, xs), strict=True)]).sum(0)
    covariance = axes.T @ axes
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-8)
    assert (covariance.diagonal().diff() <= 1e-8).all()


def test_a_model_that_weighs_much_rules() -> None:
    """With a_0 large every other space is turned to the first alone."""
    xs = centred(turned(100, 5, "abc", noise=1.5))
    weights = torch.tensor([1e6, 1.0, 1.0], dtype=torch.float64)
    first, second, _ = blocks(solve(xs, model_weights_M=weights), xs)
    assert np.abs((second @ first.T).numpy() - oracle.procrustes(xs[1].numpy(), xs[0].numpy())).max() < 1e-4


def test_stopping_early_is_said() -> None:
    xs = centred(partly_shared(200, 12, 3, "abcd"))
    moments = cross_moments(xs)
    assert not generalized_procrustes(moments.centred(), moments.widths, max_sweeps=2).converged
    assert solve(xs).converged


def test_bad_arguments_are_named() -> None:
    cross = torch.eye(6, dtype=torch.float64)
    with pytest.raises(ShapeError, match="6, 6"):
        generalized_procrustes(cross[:5], [3, 3])
    for function in (generalized_procrustes, nuclear_bound):
        with pytest.raises(InputError, match="at least 2 spaces"):
            function(cross, [6])
    for wrong in (0, 4):
        with pytest.raises(InputError, match="largest width"):
            generalized_procrustes(cross, [3, 3], n_components=wrong)


def test_large_problems_are_swept_in_single_precision_and_finished_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    xs = centred(turned(300, 12, "abcd", noise=1.0))
    moments = cross_moments(xs)
    exact = generalized_procrustes(moments.centred(), moments.widths, tolerance=1e-6)
    monkeypatch.setattr("neigenmaps.functional.generalized_procrustes.LARGEST_DOUBLE", 10)
    single = generalized_procrustes(moments.centred(), moments.widths, tolerance=1e-6)
    assert single.maps_DK.dtype == torch.float64
    assert not torch.equal(single.maps_DK, exact.maps_DK)
    assert single.objective == pytest.approx(exact.objective, rel=2e-6)
    for block in blocks(single, xs):
        assert torch.allclose(block.T @ block, torch.eye(12, dtype=torch.float64), atol=1e-13)
    expected = oracle.agreement([r.numpy() for r in blocks(single, xs)], [x.numpy() for x in xs])
    assert single.objective == pytest.approx(expected, rel=1e-12)
    tight = generalized_procrustes(moments.centred(), moments.widths, tolerance=1e-12)
    assert tight.objective == pytest.approx(exact.objective, rel=2e-6)
    assert np.diff(tight.history).min() >= -1e-12 * tight.objective  # float32 would not show it


def test_many_columns_begin_at_the_widest_space_and_end_at_the_same_objective() -> None:
    full = turned(900, 140, "abcd", noise=1.0)
    xs = centred({**full, "a": full["a"][:, :130]})
    hub, columns = solve(xs).objective, block_slices([x.shape[1] for x in xs])
    eye_DK = torch.cat([torch.eye(x.shape[1], 140, dtype=torch.float64) for x in xs])
    assert len(eye_DK) > 512
    assert columns[0].stop == 130
    assert solve(xs, start_DK=eye_DK).objective == pytest.approx(hub, rel=1e-4)
    assert hub > 0.9 * bound(xs)
