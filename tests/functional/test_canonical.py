"""CCA and GCCA from covariances, against bases built row by row and another package."""

import numpy as np
import pytest
import torch
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.functional.canonical import cca, generalized_cca, null_values, shared_directions, whitening
from neigenmaps.functional.cross_moments import block_slices, cross_moments
from oracles import alignment as oracle
from oracles.planted_alignment import normal, partly_shared, rotation, turned


def covariance(spaces: dict[str, Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    moments = cross_moments(list(spaces.values()))
    return moments.centred() / moments.n_rows, moments.widths


def projected(spaces: dict[str, Tensor], projections_DK: Tensor) -> list[Tensor]:
    own = block_slices([x.shape[1] for x in spaces.values()])
    return [(x - x.mean(0)) @ projections_DK[part] for x, part in zip(spaces.values(), own, strict=True)]


def uneven(n_rows: int = 200) -> dict[str, Tensor]:
    full = partly_shared(n_rows, 9, 4, "abc", noise=0.5)
    return {"a": full["a"], "b": full["b"][:, :7] + 3, "c": 5 * full["c"][:, :5]}


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.linalg.svd(np.linalg.qr(first)[0].T @ np.linalg.qr(second)[0], compute_uv=False)


def test_two_spaces_give_canonical_correlations() -> None:
    spaces = {name: x for name, x in uneven().items() if name != "c"}
    expected = oracle.canonical_correlations(*(x.numpy() for x in spaces.values()))
    pair, many = cca(*covariance(spaces)), generalized_cca(*covariance(spaces), n_components=7)
    for found in (pair.values_K, pair.correlations_K, many.correlations_K, many.values_K - 1):
        assert np.abs(found.numpy() - expected[: len(found)]).max() < 1e-10
    first, second = projected(spaces, pair.projections_DK)
    assert torch.allclose(first.T @ first / 200, torch.eye(7, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(first.T @ second / 200, pair.values_K.diag(), atol=1e-10)
    for pair_side, many_side in zip((first, second), projected(spaces, many.projections_DK), strict=True):
        assert (cosines(pair_side.numpy(), many_side.numpy()) > 1 - 1e-10).all()


def test_many_spaces_are_the_singular_vectors_of_stacked_bases() -> None:
    spaces = uneven()
    found = generalized_cca(*covariance(spaces), n_components=4)
    basis, squares = oracle.stacked_bases([x.numpy() for x in spaces.values()], 4)
    assert np.abs(found.values_K.numpy() - squares).max() < 1e-10
    assert np.abs(found.correlations_K.numpy() - (squares - 1) / 2).max() < 1e-10
    total = sum(projected(spaces, found.projections_DK))
    assert (cosines(np.asarray(total), basis) > 1 - 1e-10).all()


def test_subspace_is_that_of_cca_zoo() -> None:
    linear = pytest.importorskip("cca_zoo.linear")
    spaces = uneven()
    theirs = linear.GCCA(n_components=4).fit([x.numpy() for x in spaces.values()])
    ours = generalized_cca(*covariance(spaces), n_components=4).projections_DK
    for own, weights in zip(block_slices([9, 7, 5]), theirs.weights_, strict=True):
        assert (cosines(ours[own].numpy(), weights) > 1 - 1e-8).all()


def test_correlations_are_those_of_the_projections() -> None:
    spaces = uneven()
    for shrinkage in (0.0, 0.3, 1.0):
        found = generalized_cca(*covariance(spaces), n_components=5, shrinkage=shrinkage)
        views = projected(spaces, found.projections_DK)
        own = sum(view.square().mean(0) for view in views)
        assert torch.allclose(own / 3, torch.ones_like(own))
        mixed = sum((a * b).mean(0) for i, a in enumerate(views) for j, b in enumerate(views) if i != j)
        assert torch.allclose(found.correlations_K, mixed / (2 * own), atol=1e-10)


def test_no_shrinkage_sees_no_basis_and_full_shrinkage_is_procrustes() -> None:
    spaces = turned(100, 6, "ab", noise=0.5)
    bent = {"a": spaces["a"] @ (rotation(6, 3) * torch.arange(1.0, 7.0)), "b": spaces["b"]}
    assert torch.allclose(cca(*covariance(bent)).values_K, cca(*covariance(spaces)).values_K)
    whole = cca(*covariance(spaces), n_components=6, shrinkage=1.0).projections_DK
    turn = whole[:6] @ torch.linalg.inv(whole[6:])
    turn = turn / torch.linalg.matrix_norm(turn) * 6**0.5
    assert np.abs(turn.numpy() - oracle.procrustes(spaces["a"].numpy(), spaces["b"].numpy())).max() < 1e-10


def test_directions_that_are_not_there_are_left_out() -> None:
    thin = {name: x @ normal(9, 14, seed=4) for name, x in partly_shared(200, 9, 4, "ab").items()}
    whitener = whitening(covariance(thin)[0][:14, :14], 0.0)
    assert whitener.shape == (14, 9)
    values = cca(*covariance(thin), n_components=9).values_K
    assert np.abs(values.numpy() - oracle.canonical_correlations(*(x.numpy() for x in thin.values()))[:9]).max() < 1e-6


@pytest.mark.parametrize(("n_rows", "widths"), [(80, [6, 9, 4]), (22, [6, 9, 4])])
def test_null_is_that_of_independent_rows(n_rows: int, widths: list[int]) -> None:
    drawn = null_values(widths, n_rows, draws=300, generator=torch.Generator().manual_seed(0))
    direct = []
    for draw in range(300):
        rows = normal(n_rows, sum(widths), seed=draw).split(widths, dim=1)
        direct.append(oracle.stacked_bases([x.numpy() for x in rows], 1)[1][0])
    spread = (drawn.var() / 300 + np.var(direct) / 300) ** 0.5
    assert abs(float(drawn.mean()) - np.mean(direct)) < 4 * spread
    assert float(drawn.std()) == pytest.approx(np.std(direct), rel=0.2)


@pytest.mark.parametrize("shared", [1, 4, 10])
def test_shared_directions_are_counted(shared: int) -> None:
    spaces = partly_shared(600, 10, shared, "abcd", noise=0.7)
    null_P = null_values([10] * 4, 600, draws=19, generator=torch.Generator().manual_seed(0))
    assert shared_directions(*covariance(spaces), null_P) == shared


def test_independent_spaces_share_one_direction_at_least() -> None:
    spaces = {name: normal(300, 8, seed=seed) for seed, name in enumerate("abc")}
    null_P = null_values([8] * 3, 300, draws=19, generator=torch.Generator().manual_seed(0))
    assert shared_directions(*covariance(spaces), null_P) == 1


def test_bad_arguments_are_named() -> None:
    inputs = covariance(uneven())
    for shrinkage in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="shrinkage between 0"):
            generalized_cca(*inputs, shrinkage=shrinkage)
    for wrong in (0, 22):
        with pytest.raises(InputError, match="directions there are"):
            generalized_cca(*inputs, n_components=wrong)
