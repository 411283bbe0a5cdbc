"""Procrustes and LinearMap as objects: each pair's map is the function's, and scipy's."""

import numpy as np
import pytest
import torch

from neigenmaps.alignment import LinearMap, Procrustes
from neigenmaps.errors import InputError
from neigenmaps.functional.linear_maps import orthogonal_map, ridge_map
from oracles import alignment as oracle
from oracles.planted_alignment import normal, turned

SHARED = normal(60, 7, seed=0)
SPACES = {
    "a": SHARED + 3,
    "b": SHARED.flip(1) + normal(60, 7, seed=1) - 2,
    "c": SHARED[:, :4] + 0.5 * normal(60, 4, seed=2) + 50,
}
PAIRS = [(a, b) for a in SPACES for b in SPACES if a != b]


def test_turns_are_scipys() -> None:
    found = Procrustes().fit(SPACES).maps_["a", "b"].matrix_FG
    assert np.abs(found.numpy() - oracle.procrustes(SPACES["a"].numpy(), SPACES["b"].numpy())).max() < 1e-12


@pytest.mark.parametrize("translation", [True, False])
@pytest.mark.parametrize("weights", [None, torch.rand(60, generator=torch.Generator().manual_seed(5))])
def test_each_pair_has_the_functions_map(translation: bool, weights: torch.Tensor | None) -> None:
    fits = {
        Procrustes(translation=translation): lambda x, y: orthogonal_map(
            x, y, translation=translation, weights_N=weights
        ),
        Procrustes(scale=True, translation=translation): lambda x, y: orthogonal_map(
            x, y, scale=True, translation=translation, weights_N=weights
        ),
        LinearMap(0.1, translation=translation): lambda x, y: ridge_map(
            x, y, ridge=0.1, translation=translation, weights_N=weights
        ),
    }
    for aligner, function in fits.items():
        aligner.fit(SPACES, weights=weights)
        for source, target in PAIRS:
            found = aligner.translate(SPACES[source], source=source, target=target)
            expected = function(SPACES[source], SPACES[target])(SPACES[source])
            assert torch.allclose(found, expected, atol=1e-9)


def test_least_squares_is_numpys() -> None:
    aligner = LinearMap(ridge=0.0).fit(SPACES)
    for source, target in PAIRS:
        matrix, _ = oracle.ridge(SPACES[source].numpy(), SPACES[target].numpy(), 0.0)
        assert np.abs(aligner.maps_[source, target].matrix_FG.numpy() - matrix).max() < 1e-10


def test_the_universe_is_the_first_space() -> None:
    aligner = Procrustes().fit(SPACES)
    assert torch.equal(aligner.transform(SPACES["a"], source="a"), SPACES["a"])
    assert torch.equal(
        aligner.transform(SPACES["c"], source="c"), aligner.translate(SPACES["c"], source="c", target="a")
    )


def test_fewer_rows_than_columns() -> None:
    few = {name: x[:4] for name, x in turned(40, 9, "abc").items()}
    for aligner in (Procrustes().fit(few), LinearMap(ridge=0.0).fit(few)):
        assert torch.allclose(aligner.translate(few["a"], source="a", target="c"), few["c"], atol=1e-7)


def test_bad_ridge_is_named() -> None:
    with pytest.raises(InputError, match="ridge >= 0"):
        LinearMap(-1.0).fit(SPACES)


def test_aligners_show_what_was_chosen() -> None:
    assert repr(LinearMap()) == "LinearMap()"
    assert repr(LinearMap(ridge=0.5)) == "LinearMap(ridge=0.5)"
