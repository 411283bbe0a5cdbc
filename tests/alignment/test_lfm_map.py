"""Two encoders of the same things, rows of the second shuffled: what is recovered, and what no symmetry may change."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neigenmaps.alignment import LatentFunctionalMap, stitch
from neigenmaps.errors import AlignmentWarning, InputError, NonFiniteError, NotFittedError, ShapeError
from neigenmaps.functional.functional_map import MapWeights

N = 240
FEW = {"n_eigenvectors": 20, "n_starts": 3}


def encoders(noise: float = 0.02, seed: int = 0, n: int = N) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """tanh encoders of widths 24 and 32 over eight clusters in ten dimensions; and the clusters. Row n is one thing."""
    g = torch.Generator().manual_seed(seed)
    clusters = torch.randint(8, (n,), generator=g)
    centres = torch.randn(8, 10, generator=g, dtype=torch.float64)
    z = centres[clusters] + torch.randn(n, 10, generator=g, dtype=torch.float64)
    spaces = []
    for width in (24, 32):
        weights = torch.randn(10, width, generator=g, dtype=torch.float64) / 10
        space = torch.tanh(z @ weights)
        spaces.append(space + noise * torch.randn(n, width, generator=g, dtype=torch.float64))
    return spaces[0], spaces[1], clusters


def shuffled(y: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of Y in another order; and for every row n of X where its row of Y went."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return y[order], order.argsort()


def fitted(**settings_: object) -> tuple[LatentFunctionalMap, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y, _ = encoders()
    y, there = shuffled(y)
    ix = torch.arange(0, N, 24)
    return LatentFunctionalMap(**(FEW | settings_)).fit(x, y, anchors=(ix, there[ix])), x, y, there


@pytest.mark.parametrize("anchors", [3, 5, 10])
@pytest.mark.parametrize("refine", ["zoomout", "icp"])
def test_shuffled_rows_are_found_from_few_anchors(anchors: int, refine: str) -> None:
    """The direction test: were the map fitted on pairs read backwards, no row of a shuffled Y would be found."""
    x, y, _ = encoders()
    y, there = shuffled(y)
    ix = torch.arange(anchors) * (N // anchors)
    model = LatentFunctionalMap(**FEW, refine=refine).fit(x, y, anchors=(ix, there[ix]))
    found = model.correspondences()
    assert (found.index == there).double().mean() >= 0.97
    assert model.confidence_ >= 0.8
    assert found.mutual.double().mean() >= 0.95
    assert (model.retrieve(x, 1).index_Qk[:, 0] == there).double().mean() >= 0.93  # with all pairs known: 0.95


@pytest.mark.parametrize("mask", ["resolvent", "squared", "paper"])
@pytest.mark.parametrize("weights", [MapWeights(1.0, 1.0, 0.0), MapWeights(1.0, 1e-3, 1e-1)])  # ours; the paper's
def test_every_energy_starts_a_search_that_ends_right(mask: str, weights: MapWeights) -> None:
    model, _, _, there = fitted(mask=mask, weights=weights)
    assert (model.correspondences().index == there).double().mean() >= 0.97


def test_order_of_rows_changes_nothing() -> None:
    x, y, _ = encoders()
    ix = torch.arange(0, N, 24)
    straight = LatentFunctionalMap(**FEW).fit(x, y, anchors=(ix, ix))
    moved, there = shuffled(y, seed=4)
    other = LatentFunctionalMap(**FEW).fit(x, moved, anchors=(ix, there[ix]))
    torch.testing.assert_close(other.transform(x), straight.transform(x), atol=1e-9, rtol=0)
    assert torch.equal(other.correspondences().index, there[straight.correspondences().index])


def test_map_carries_coefficients_of_x_to_those_of_y() -> None:
    model, _, _, there = fitted()
    assert model.functional_map_.shape == (20, 20)
    phi_x, phi_y = (basis.eigenvectors_NK * N**0.5 for basis in (model.basis_x_, model.basis_y_))
    back = torch.empty_like(there).index_copy(0, there, torch.arange(N))  # row of X by row of Y
    carried, turned = phi_y @ model.functional_map_, phi_y @ model.functional_map_.T
    assert (carried - phi_x[back])[:, :4].square().mean() < 0.2  # of mean square 1
    assert (turned - phi_x[back])[:, :4].square().mean() > 0.4  # the map of the other direction


def test_a_space_and_itself_give_the_identity() -> None:
    x, _, _ = encoders()
    model = LatentFunctionalMap(**FEW).fit(x, x, anchors=([0, 80, 160], [0, 80, 160]))
    torch.testing.assert_close(model.functional_map_, torch.eye(20, dtype=torch.float64), atol=1e-8, rtol=0)
    assert torch.equal(model.correspondences().index, torch.arange(N))
    torch.testing.assert_close(model.transform(x), x, atol=1e-10, rtol=0)
    assert model.confidence_ == 1


def test_isometric_spaces_give_transposed_maps_both_ways() -> None:
    x, _, _ = encoders()
    turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(1)).double()).Q
    y, there = shuffled(x @ turn)
    ix = torch.tensor([0, 80, 160])
    forth = LatentFunctionalMap(**FEW).fit(x, y, anchors=(ix, there[ix]))
    back = LatentFunctionalMap(**FEW).fit(y, x, anchors=(there[ix], ix))
    torch.testing.assert_close(forth.functional_map_, back.functional_map_.T, atol=1e-7, rtol=0)
    torch.testing.assert_close(forth.transform(x), x @ turn, atol=1e-8, rtol=0)
    torch.testing.assert_close(forth.inverse_transform(x @ turn), x, atol=1e-8, rtol=0)


@settings(max_examples=6, deadline=None, database=None, derandomize=True)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), flip=st.booleans())
def test_permutations_rotations_scales_and_flips(seed: int, scale: float, flip: bool) -> None:
    """Y is moved: matches move along, and points land where they landed before, moved."""
    x, y, _ = encoders(n=120)
    ix = torch.arange(0, 120, 12)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(seed)).double()).Q
    turn = turn * (-1 if flip else 1) * scale
    moved, there = shuffled(y @ turn, seed)
    model = LatentFunctionalMap(n_eigenvectors=12, n_starts=2).fit(x, moved, anchors=(ix, there[ix]))
    plain = LatentFunctionalMap(n_eigenvectors=12, n_starts=2).fit(x, y, anchors=(ix, ix))
    assert (model.correspondences().index == there).double().mean() >= 0.97
    torch.testing.assert_close(model.transform(x), plain.transform(x) @ turn, atol=1e-3 * scale, rtol=0)


def test_widths_and_numbers_of_rows_may_differ() -> None:
    x, y, _ = encoders()
    y, there = shuffled(y[: N - 20])
    ix = torch.arange(0, N - 20, 24)
    model = LatentFunctionalMap(**FEW).fit(x, y, anchors=(ix, there[ix]))
    assert (model.correspondences().index[: N - 20] == there).double().mean() >= 0.9
    assert model.transform(x).shape == (N, 32)
    assert model.inverse_transform(y).shape == (N - 20, 24)
    assert model.transfer_function(x[:, 0]).shape == (N - 20,)


def test_labels_serve_without_anchors() -> None:
    x, y, clusters = encoders()
    y, there = shuffled(y)
    y_labels = torch.empty_like(clusters).index_copy(0, there, clusters)
    model = LatentFunctionalMap(**FEW).fit(x, y, labels=(clusters, y_labels))
    assert (model.correspondences().index == there).double().mean() >= 0.97
    assert model.anchor_inliers_ is None


def test_nothing_known_at_all() -> None:
    """Two noisy copies, the second turned: their shape alone must tell, so its axes are uneven and skewed."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=g, dtype=torch.float64).exp() * torch.tensor([3.0, 2.5, 2, 1.5, 1.2, 1]).double()
    turn = torch.linalg.qr(torch.randn(9, 6, generator=g, dtype=torch.float64)).Q.T
    x, y = (x + 0.02 * torch.randn(N, 6, generator=g, dtype=torch.float64) for _ in range(2))
    y, there = shuffled(y @ turn)
    model = LatentFunctionalMap(n_eigenvectors=20).fit(x, y)
    assert (model.correspondences().index == there).double().mean() >= 0.97


@pytest.mark.parametrize(("n_anchors", "n_wrong"), [(20, 8), (10, 5)])
def test_wrong_anchors_are_named_by_a_robust_fit(n_anchors: int, n_wrong: int) -> None:
    x, y, _ = encoders()
    y, there = shuffled(y)
    ix = torch.arange(0, N, N // n_anchors)
    iy = there[ix].clone()
    iy[:n_wrong] = iy[:n_wrong].roll(1)
    model = LatentFunctionalMap(**FEW, robust=True).fit(x, y, anchors=(ix, iy))
    assert (model.correspondences().index == there).double().mean() >= 0.97
    assert model.anchor_inliers_ is not None
    assert model.anchor_inliers_.tolist() == [False] * n_wrong + [True] * (n_anchors - n_wrong)


def test_three_pieces_are_bridged_and_matched() -> None:
    x, y, clusters = encoders()
    far = torch.eye(3, dtype=torch.float64)[clusters % 3] * 4
    y, there = shuffled(torch.cat([y, far], dim=1))
    x = torch.cat([x, far], dim=1)
    ix = torch.arange(0, N, 20)
    model = LatentFunctionalMap(**FEW, n_neighbors=10, metric="euclidean", kernel="gaussian").fit(
        x, y, anchors=(ix, there[ix])
    )
    assert model.graph_x_.n_components_found == 3
    assert len(model.graph_x_.bridges) == 2
    assert (torch.isin(model.correspondences().index, there[clusters % 3 == 0]) == (clusters % 3 == 0)).all()


def test_unrelated_spaces_are_doubted() -> None:
    x, _, _ = encoders()
    y = torch.randn(N, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    with pytest.warns(AlignmentWarning, match="rows are confirmed"):
        model = LatentFunctionalMap(**FEW).fit(x, y, anchors=([0, 1], [0, 1]))
    assert model.confidence_ < 0.4


@pytest.mark.parametrize("transfer", ["orthogonal", "ridge", "affine"])
def test_points_never_seen_are_carried_both_ways(transfer: str) -> None:
    x, y, _ = encoders()
    seen = slice(0, 200)
    moved, there = shuffled(y[seen])
    ix = torch.tensor([0, 60, 120, 180])
    model = LatentFunctionalMap(**FEW, transfer=transfer).fit(x[seen], moved, anchors=(ix, there[ix]))
    for carried, true in ((model.transform(x[200:]), y[200:]), (model.inverse_transform(y[200:]), x[200:])):
        error = (carried - true).square().sum() / (true - true.mean(dim=0)).square().sum()
        assert error < (0.5 if transfer == "orthogonal" else 0.15)
    near = model.retrieve(x[200:], 200).index_Qk
    assert near.shape == (40, 200)


def test_functions_and_labels_are_carried_to_the_right_rows() -> None:
    model, _, _, there = fitted()
    clusters = encoders()[2]
    smooth = model.basis_x_.eigenvectors_NK[:, 1]
    carried = model.transfer_function(smooth)
    assert torch.corrcoef(torch.stack([carried[there], smooth]))[0, 1] > 0.95
    both = model.transfer_function(torch.stack([smooth, smooth**2], dim=1))
    torch.testing.assert_close(both[:, 0], carried)
    assert (model.propagate_labels(clusters, n_neighbors=1)[there] == clusters).double().mean() > 0.95
    third = torch.where(torch.arange(N) % 3 == 0, clusters, -1)  # overlapping clusters, eight of them
    assert (model.propagate_labels(third)[there] == clusters).double().mean() > 0.7


def test_stitching_evaluates_a_head_over_another_encoder() -> None:
    """A linear head of space b, read over a's embeddings."""
    model, x, y, there = fitted(transfer="ridge")
    head = torch.randn(32, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    stitched = stitch(lambda rows: rows * 2, lambda rows: rows @ head, model)
    own = y[there] @ head
    assert (stitched(x / 2) - own).square().sum() / (own - own.mean(dim=0)).square().sum() < 0.1


def test_dtype_and_settings_and_inputs_stay_what_they_were() -> None:
    x, y, _ = (tensor.clone() for tensor in encoders())
    before = x.clone(), y.clone()
    ix = [0, 60, 120, 180]
    model = LatentFunctionalMap(**FEW).fit(x.float(), y.float(), anchors=(ix, ix))
    assert model.transform(x.float()).dtype == model.functional_map_.dtype == torch.float32
    assert model.correspondences().score.dtype == model.transfer_function(x[:, 0].float()).dtype == torch.float32
    assert model.n_neighbors is None
    again = LatentFunctionalMap(**FEW).fit(x.float().numpy(), y.float().numpy(), anchors=(np.array(ix), np.array(ix)))
    assert torch.equal(model.functional_map_, again.functional_map_)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("n", [400, pytest.param(1500, marks=pytest.mark.slow)])
def test_spaces_that_no_rotation_joins_are_matched_whitened(n: int) -> None:
    """The best orthogonal map, fitted to all true pairs, finds two rows of three; a linear one finds them all."""
    x, y, _ = encoders(n=n)
    y, there = shuffled(y)
    ix = torch.tensor([0, n // 3, 2 * n // 3])
    model = LatentFunctionalMap(**FEW).fit(x, y, anchors=(ix, there[ix]))
    assert model.matched_in_ == "whitened"
    assert (model.correspondences().index == there).double().mean() >= 0.97


def test_landmarks_carry_the_functions_of_all_rows() -> None:
    model, _, _, there = fitted(n_landmarks=160, n_eigenvectors=12)
    exact, _, _, _ = fitted(n_eigenvectors=12)
    assert len(model.graph_x_.reach_N) == 160
    assert (model.correspondences().index == there).double().mean() >= 0.97
    span_NK, functions_NK = (one.basis_x_.eigenvectors_NK for one in (model, exact))
    assert torch.linalg.svdvals(torch.linalg.qr(span_NK).Q.T @ functions_NK[:, :6]).min() >= 0.9
    whole, _, _, _ = fitted(n_landmarks=N, n_eigenvectors=12)
    assert torch.equal(whole.functional_map_, exact.functional_map_)
    smooth, _, _, _ = fitted(n_landmarks=160)  # 1 - lambda falls to .04 here
    assert (smooth.correspondences().index == there).double().mean() >= 0.97


@pytest.mark.slow
def test_large_spaces_are_matched_by_samples() -> None:
    x, y, _ = (tensor.float() for tensor in encoders(n=6000))
    y, there = shuffled(y)
    ix = torch.tensor([0, 2000, 4000])
    model = LatentFunctionalMap(**FEW).fit(x, y, anchors=(ix, there[ix]))
    assert (model.correspondences().index == there).double().mean() >= 0.9


BAD = torch.zeros(N, 5)
OK = ([0, 1], [0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"anchors": ([0, 1], [0])}, InputError, "as many rows of X as of Y"),
        ({"anchors": ([], [])}, InputError, "at least one"),
        ({"anchors": ([0, N], [0, 1])}, InputError, "anchors of X in 0..239"),
        ({"anchors": ([0, 1], [0, -1])}, InputError, "anchors of Y"),
        ({"anchors": ([0, 1], [2, 2])}, InputError, "a row twice"),
        ({"anchors": ([0.5, 1], [2, 3])}, InputError, "whole numbers"),
        ({"anchors": [0, 1, 2]}, InputError, "two lists of one length"),
        ({"anchors": [(0, 5), (50, 7)]}, InputError, "two pairs"),
        ({"labels": ([0] * N,)}, InputError, "give two lists"),
        ({"labels": (["a"] * N, ["a"] * N)}, InputError, "number the classes"),
        ({"labels": ([0] * N, None)}, InputError, "labels of Y"),
        ({"labels": ([0] * 3, [0] * N)}, ShapeError, "a whole number for each"),
        ({"labels": ([0] * N, [1] * N)}, InputError, "must mean the same"),
        ({"X": torch.zeros(N)}, ShapeError, "expected X of shape"),
        ({"X": torch.zeros(N, 3, dtype=torch.int64)}, InputError, "floating-point"),
        ({"Y": torch.full((N, 3), torch.nan)}, NonFiniteError, "first in row 0"),
        ({"Y": torch.ones(N, 3)}, InputError, "Y: the 240 rows are equal up to rounding"),
        ({"X": torch.randn(20, 3)}, InputError, "2 <= n_eigenvectors < 20 .*: lower it"),
    ],
)
def test_bad_input_is_refused(arguments: dict, error: type[Exception], message: str) -> None:
    x, y, _ = encoders()
    with pytest.raises(error, match=message):
        LatentFunctionalMap(**FEW).fit(**({"X": x, "Y": y} | arguments))


def test_only_a_robust_fit_takes_anchors_that_contradict_each_other() -> None:
    x, y, _ = encoders()
    y, there = shuffled(y)
    ix = torch.arange(0, N, 24)
    iy = there[ix].clone()
    iy[0] = iy[1]
    with pytest.raises(InputError, match="robust=True"):
        LatentFunctionalMap(**FEW).fit(x, y, anchors=(ix, iy))
    model = LatentFunctionalMap(**FEW, robust=True).fit(x, y, anchors=(ix, iy))
    assert model.anchor_inliers_ is not None
    assert model.anchor_inliers_.tolist() == [False] + [True] * 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("refine", "none"),
        ("transfer", "linear"),
        ("n_starts", 0),
        ("n_neighbors", 0),
        ("n_eigenvectors", 1),
        ("n_landmarks", 20),
        ("mask", "no"),
        ("weights", MapWeights(-1.0)),
    ],
)
def test_bad_settings_are_refused(name: str, value: object) -> None:
    x, y, _ = encoders()
    with pytest.raises(InputError, match=name):
        LatentFunctionalMap(**(FEW | {name: value})).fit(x, y, anchors=OK)


def test_unfitted_maps_say_so_and_fitted_ones_check_what_they_are_given() -> None:
    for call in (
        "correspondences",
        "transform",
        "inverse_transform",
        "retrieve",
        "transfer_function",
        "propagate_labels",
    ):
        with pytest.raises(NotFittedError, match="call fit"):
            getattr(LatentFunctionalMap(), call)(*([] if call == "correspondences" else [BAD]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, x, y, _ = fitted()
    with pytest.raises(ShapeError, match=r"\(N, 24\)"):
        model.transform(y)
    with pytest.raises(ShapeError, match=r"\(N, 32\)"):
        model.inverse_transform(x)
    with pytest.raises(NonFiniteError, match="expected finite points"):
        model.transform(torch.full((2, 24), torch.inf))
    with pytest.raises(ShapeError, match="values on the 240 rows of X"):
        model.transfer_function(torch.zeros(3))
    with pytest.raises(ShapeError, match="whole number for each"):
        model.propagate_labels(torch.zeros(3))
    with pytest.raises(InputError, match="number the classes"):
        model.propagate_labels(["a"] * N)
    with pytest.raises(InputError, match="labelled rows"):
        model.propagate_labels(torch.full((N,), -1))
    with pytest.raises(InputError, match="<= k <="):
        model.retrieve(x, N + 1)
