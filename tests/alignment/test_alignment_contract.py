"""What holds for every aligner: shapes, dtypes, errors, streams, newcomers, files, and what a map must not depend on."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from neigenmaps.alignment import CCA, GCCA, GCPA, GPA, AbstractAligner, LinearMap, Procrustes
from neigenmaps.errors import (
    AlignmentWarning,
    CheckpointError,
    ConvergenceWarning,
    InputError,
    NonFiniteError,
    NotFittedError,
    RowMismatchError,
    ShapeError,
    UnknownNameError,
)
from oracles.planted_alignment import cosines, normal, rotation, turned

Make = Callable[[], AbstractAligner]
EXACT = 1e-14  # sweeps until rounding alone moves the objective: results are then compared to 1e-6
MAKERS: dict[str, Make] = {
    "procrustes": Procrustes,
    "procrustes_scaled": lambda: Procrustes(scale=True),
    "linear": lambda: LinearMap(ridge=0.0),
    "ridge": LinearMap,
    "cca": CCA,
    "gpa": lambda: GPA(tolerance=EXACT),
    "gpa_simulation": lambda: GPA("simulation", tolerance=EXACT),
    "gpa_robust": lambda: GPA(robust=True, tolerance=EXACT),
    "gpa_zscore": lambda: GPA(standardize="zscore", tolerance=EXACT),
    "gcca": GCCA,
    "gcca_plain": lambda: GCCA(5, shrinkage=0.0, weighting="none"),
    "gcca_permutation": lambda: GCCA("permutation"),
    "gcca_heldout": lambda: GCCA("heldout"),
    "gcca_robust": lambda: GCCA(robust=True),
    "gcpa": lambda: GCPA(folds=2, gpa=GPA(tolerance=EXACT)),
    "gcpa_agreement": lambda: GCPA("agreement", ridge=0.01, shrinkage=0.1, gpa=GPA(tolerance=EXACT)),
    "gcpa_mlp": lambda: GCPA("mlp", mlp_max_steps=5, gpa=GPA(tolerance=EXACT)),
}
ROBUST = {"gpa_robust", "gcca_robust"}
NEEDS_ROWS = ROBUST | {"gcca_permutation", "gcca_heldout"}
CORRECTED = {"gcpa", "gcpa_agreement", "gcpa_mlp"}
DRAWS_ROWS = NEEDS_ROWS | {"gcpa", "gcpa_mlp"}  # for folds, batches, nulls
N_ROWS, WIDTH = 60, 6


def spaces_for(name: str, noise: float = 0.3, n_rows: int = N_ROWS) -> dict[str, Tensor]:
    return turned(n_rows, WIDTH, "ab" if name == "cca" else "abc", noise=noise)


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str) -> Make:
    return MAKERS[kind]


def test_fit_gives_maps_between_all_names(kind: str, make: Make) -> None:
    spaces = spaces_for(kind)
    before = {name: x.clone() for name, x in spaces.items()}
    aligner = make()
    assert aligner.fit(spaces) is aligner
    assert aligner.names_ == tuple(spaces)
    assert aligner.widths_ == dict.fromkeys(spaces, WIDTH)
    for name, x in spaces.items():
        universe = aligner.transform(x[:7], source=name)
        assert universe.shape == (7, aligner.n_components_)
        for other in spaces:
            back = aligner.inverse_transform(universe, target=other)
            across = aligner.translate(x[:7], source=name, target=other)
            assert back.shape == across.shape == (7, WIDTH)
        assert torch.equal(x, before[name])


def test_turned_copies_are_translated_exactly(kind: str, make: Make) -> None:
    if kind in {"ridge", "gcca_plain", "gpa_zscore"}:
        pytest.skip("shrinks, keeps fewer dimensions, or sees the basis")
    spaces = spaces_for(kind, noise=0.0)
    aligner = make().fit(spaces)
    if kind == "gcpa_mlp":  # no way back, but one network for all: what is equal before it is equal after
        expected = aligner.transform(spaces["a"], source="a")
        assert torch.allclose(aligner.transform(spaces["b"], source="b"), expected, atol=1e-5)
        return
    for source, x in spaces.items():
        for target, y in spaces.items():
            assert torch.allclose(aligner.translate(x, source=source, target=target), y, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_follows_the_rows(make: Make, kind: str, dtype: torch.dtype) -> None:
    spaces = spaces_for(kind)
    aligner = make().fit({name: x.to(dtype) for name, x in spaces.items()})
    universe = aligner.transform(spaces["a"].to(dtype), source="a")
    assert universe.dtype == dtype
    assert aligner.inverse_transform(universe, target="b").dtype == dtype
    assert aligner.translate(spaces["a"].to(dtype), source="a", target="b").dtype == dtype
    assert aligner.transform(spaces["a"].float(), source="a").dtype == torch.float32


def test_float32_far_from_zero_keeps_its_digits(make: Make, kind: str) -> None:
    near = spaces_for(kind)
    far = {name: (x + 1000).float() for name, x in near.items()}
    rounded = {name: x.double() - 1000 for name, x in far.items()}
    expected = make().fit(rounded).translate(rounded["a"], source="a", target="b")
    found = make().fit(far).translate(far["a"], source="a", target="b").double() - 1000
    assert (found - expected).abs().max() < 1e-3


def test_arrays_tensors_and_lists_are_alike(make: Make, kind: str) -> None:
    spaces = spaces_for(kind)
    a = spaces["a"]
    expected = make().fit(spaces).transform(a, source="a")
    arrays = make().fit({name: x.numpy() for name, x in spaces.items()})
    listed = make().fit(list(spaces.values()))
    assert listed.names_ == ("0", "1", "2")[: len(spaces)]
    for found in (arrays.transform(a.numpy(), source="a"), listed.transform(a, source="0")):
        assert torch.equal(found, expected)


def test_fitting_again_changes_nothing(make: Make, kind: str) -> None:
    spaces = spaces_for(kind)
    aligner = make().fit(spaces)
    first = aligner.transform(spaces["a"], source="a")
    state = torch.random.get_rng_state()
    assert torch.equal(aligner.fit(spaces).transform(spaces["a"], source="a"), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(make().fit(spaces).transform(spaces["a"], source="a"), first)


def test_gradients_of_the_caller_are_left_alone(make: Make, kind: str) -> None:
    spaces = {name: x.requires_grad_() for name, x in spaces_for(kind).items()}
    assert not make().fit(spaces).transform(spaces["a"], source="a").requires_grad


def test_order_of_rows_does_not_matter(make: Make, kind: str) -> None:
    if kind in DRAWS_ROWS:
        pytest.skip("draws rows by number")
    spaces = spaces_for(kind)
    order = torch.randperm(N_ROWS, generator=torch.Generator().manual_seed(0))
    shuffled = make().fit({name: x[order] for name, x in spaces.items()})
    expected = cosines(make().fit(spaces), spaces, "a", "b")
    assert torch.allclose(cosines(shuffled, spaces, "a", "b"), expected, atol=1e-6)


def test_order_of_spaces_does_not_matter(make: Make, kind: str) -> None:
    if kind in DRAWS_ROWS:
        pytest.skip("draws permutations or batches space by space")
    spaces = spaces_for(kind)
    reversed_order = make().fit(dict(reversed(spaces.items())))
    expected = make().fit(spaces).translate(spaces["a"], source="a", target="b")
    found = reversed_order.translate(spaces["a"], source="a", target="b")
    assert torch.allclose(found, expected, atol=1e-6)


def test_turning_scaling_and_moving_an_input_does_not_matter(make: Make, kind: str) -> None:
    if kind in {"gpa_zscore", "gcpa_mlp", "procrustes", "procrustes_scaled", "linear", "ridge"}:
        pytest.skip("z-scores and networks see the basis; pairwise maps have no universe of their own")
    spaces = spaces_for(kind)
    moved = {**spaces, "b": 3 * spaces["b"] @ rotation(WIDTH, seed=77) + 5}
    expected = cosines(make().fit(spaces), spaces, "a", "b")
    assert torch.allclose(cosines(make().fit(moved), moved, "a", "b"), expected, atol=1e-6)


def test_integer_weights_are_repeated_rows(make: Make, kind: str) -> None:
    if kind in DRAWS_ROWS or kind in {"gcca", "gpa_simulation"}:
        pytest.skip("counts or draws rows")
    spaces = spaces_for(kind)
    times = torch.tensor([2, 0, 1] * (N_ROWS // 3))
    weighted = make().fit(spaces, weights=times.double())
    repeated = make().fit({name: x.repeat_interleave(times, dim=0) for name, x in spaces.items()})
    for target in ("a", "b"):
        found, expected = (m.translate(spaces["a"], source="a", target=target) for m in (weighted, repeated))
        assert torch.allclose(found, expected, atol=1e-6)


def test_what_stands_in_missing_rows_is_not_read(make: Make, kind: str) -> None:
    spaces = spaces_for(kind, n_rows=120)
    mask = torch.arange(120) % 4 != 0
    blank, noise = ({**spaces, "b": spaces["b"].clone()} for _ in range(2))
    blank["b"][~mask] = torch.nan
    noise["b"][~mask] = 50.0
    fits = [make().fit(some, masks={"b": mask}) for some in (blank, noise)]
    found, expected = (m.translate(spaces["b"], source="b", target="a") for m in fits)
    assert torch.equal(found, expected)
    error = (found - spaces["a"])[~mask].square().mean() / spaces["a"].square().mean()
    assert error < 0.75  # rows it has not seen are mapped near their place all the same


def test_batches_give_what_one_fit_gives(make: Make, kind: str) -> None:
    spaces = spaces_for(kind)
    aligner = make()
    batches = [{name: x[part] for name, x in spaces.items()} for part in torch.arange(N_ROWS).split(25)]
    if kind in CORRECTED:  # a correction is made of aligned rows, which a stream has only once it has ended
        assert not hasattr(aligner, "partial_fit")
        return
    if kind in NEEDS_ROWS:
        with pytest.raises(InputError, match=r"fit"):
            aligner.partial_fit(batches[0])
        return
    for batch in batches:
        aligner.partial_fit(batch, solve=False)
    with pytest.raises(NotFittedError):
        aligner.transform(spaces["a"], source="a")
    expected = make().fit(spaces)
    for streamed in (aligner.refit(), make().partial_fit(dict(reversed(batches[0].items())))):
        if streamed is not aligner:
            streamed.partial_fit(batches[1]).partial_fit(batches[2])
        found = streamed.translate(spaces["a"], source="a", target="b")
        assert torch.allclose(found, expected.translate(spaces["a"], source="a", target="b"), atol=1e-6)
    with pytest.raises(RowMismatchError, match="expected the spaces"):
        aligner.partial_fit(turned(20, WIDTH, "ax" if kind == "cca" else "abx"))
    with pytest.raises(RowMismatchError, match="widths"):
        aligner.partial_fit(turned(20, WIDTH + 1, "ab" if kind == "cca" else "abc"))


def test_a_newcomer_leaves_old_maps_alone_and_is_certified(make: Make, kind: str) -> None:
    spaces = spaces_for(kind, n_rows=150)
    aligner = make().fit(spaces)
    newcomer = spaces["a"] @ rotation(WIDTH, seed=5) + 0.1 * normal(150, WIDTH, seed=6)
    if kind == "cca":
        with pytest.raises(InputError, match="use GCCA"):
            aligner.add("d", newcomer)
        assert aligner.names_ == ("a", "b")
        return
    before = {name: aligner.transform(x, source=name) for name, x in spaces.items()}
    certificate = aligner.add("d", newcomer)
    assert aligner.names_ == ("a", "b", "c", "d")
    assert all(torch.equal(aligner.transform(x, source=name), before[name]) for name, x in spaces.items())
    assert certificate.n_held_out == 30
    assert certificate.rank1 > 0.6
    assert certificate.agreement > 0.7
    assert certificate.p_value == 1 / 200
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        stranger = aligner.add("stranger", normal(150, WIDTH, seed=8))
    assert any("no better than shuffled rows" in str(one.message) for one in doubts) == (stranger.p_value > 0.05)
    assert stranger.rank1 < 0.3
    assert stranger.p_value > 0.01
    widths = dict(aligner.widths_)
    aligner.refit()
    assert aligner.widths_ == widths
    assert aligner.transform(newcomer, source="d").shape == (150, aligner.n_components_)


def test_a_refit_is_a_fit_on_all(make: Make, kind: str) -> None:
    if kind in NEEDS_ROWS or kind == "cca":
        pytest.skip("choices made from rows are kept; CCA takes no third space")
    spaces = turned(N_ROWS, WIDTH, "abcd", noise=0.3)
    aligner = make().fit({name: spaces[name] for name in "abc"})
    aligner.add("d", spaces["d"])
    found = aligner.refit().translate(spaces["d"], source="d", target="a")
    expected = make().fit(spaces).translate(spaces["d"], source="d", target="a")
    assert torch.allclose(found, expected, atol=1e-6)


def test_files_bring_back_every_bit(make: Make, kind: str, tmp_path: Path) -> None:
    spaces = spaces_for(kind)
    aligner = make().fit(spaces)
    path = tmp_path / "aligner.safetensors"
    aligner.save(path)
    loaded = type(aligner).load(path)
    assert loaded.names_ == aligner.names_
    assert loaded._parameters() == aligner._parameters()
    for name, x in spaces.items():
        assert torch.equal(loaded.transform(x, source=name), aligner.transform(x, source=name))
        assert torch.equal(loaded.translate(x, source=name, target="a"), aligner.translate(x, source=name, target="a"))
    if kind != "cca":
        with pytest.raises(NotFittedError, match="against"):
            loaded.add("d", spaces["a"])
        some = spaces if isinstance(loaded, Procrustes | LinearMap) else {"a": spaces["a"], "b": spaces["b"]}
        assert loaded.add("d", spaces["a"], against=some).rank1 > 0.5
    if kind in CORRECTED:
        with pytest.raises(NotFittedError, match="keeps none: call fit"):
            loaded.refit()
    else:
        loaded.refit()
    with safe_open(path, framework="pt") as file:
        assert set(json.loads(file.metadata()["header"])) == {"parameters", "facts"}


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    spaces = spaces_for("gpa")
    path = tmp_path / "gpa.safetensors"
    GPA().fit(spaces).save(path)
    with safe_open(path, framework="pt") as file:
        text, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with pytest.raises(CheckpointError, match="holds a GPA, not a GCCA"):
        GCCA.load(path)
    with pytest.raises(CheckpointError, match="no file"):
        GPA.load(tmp_path / "none")
    changed = {**tensors, "maps.0.to_FK": tensors["maps.0.to_FK"] + 1e-9}
    save_file(changed, path, metadata=text)
    with pytest.raises(CheckpointError, match="damaged"):
        GPA.load(path)
    save_file(tensors, path, metadata={**text, "header": "{"})
    with pytest.raises(CheckpointError, match="header"):
        GPA.load(path)
    header = json.loads(text["header"])
    save_file(tensors, path, metadata={**text, "header": json.dumps({**header, "parameters": {"nothing": 1}})})
    with pytest.raises(CheckpointError, match="of this version"):
        GPA.load(path)
    path.write_bytes(b"not a tensor in sight")
    with pytest.raises(CheckpointError, match="safetensors"):
        GPA.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "gpa.safetensors"
    aligner = GPA().fit(spaces_for("gpa"))
    aligner.save(path)
    content = path.read_bytes()
    aligner.random_state = object()  # type: ignore[assignment]
    with pytest.raises(TypeError):
        aligner.save(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_works_before_fit(make: Make, tmp_path: Path) -> None:
    x = normal(5, WIDTH, seed=0)
    calls: list[Callable[[AbstractAligner], object]] = [
        lambda m: m.transform(x, source="a"),
        lambda m: m.inverse_transform(x, target="a"),
        lambda m: m.translate(x, source="a", target="b"),
        lambda m: m.add("c", x),
        lambda m: m.refit(),
        lambda m: m.save(tmp_path / "file"),
    ]
    for call in calls:
        with pytest.raises(NotFittedError, match="call fit first"):
            call(make())


def test_bad_input_to_fit_is_named(make: Make, kind: str) -> None:
    spaces = spaces_for(kind)
    a = spaces["a"]
    hole, equal = a.clone(), torch.full_like(a, 1 / 3)
    hole[4, 2] = torch.nan
    mask, first = torch.ones(N_ROWS, dtype=torch.bool), torch.arange(N_ROWS)
    cases = [
        (InputError, "at least 2 spaces, got 1", ({"a": a},), {}),
        (InputError, "non-empty text", ({**spaces, "": a},), {}),
        (ShapeError, "'b' of shape", ({**spaces, "b": a[0]},), {}),
        (InputError, "floating-point features in 'b'", ({**spaces, "b": a.long()},), {}),
        (InputError, "floating-point", ({**spaces, "b": np.arange(N_ROWS * 2).reshape(-1, 2)},), {}),
        (RowMismatchError, "'b': 59", ({**spaces, "b": a[:-1]},), {}),
        (NonFiniteError, "'b', got NaN or infinity in 1 rows, first in row 4", ({**spaces, "b": hole},), {}),
        (InputError, "'b' that vary", ({**spaces, "b": equal},), {}),
        (InputError, "at least 2 rows", ({name: x[:1] for name, x in spaces.items()},), {}),
        (ShapeError, "weights", (spaces,), {"weights": torch.ones(3)}),
        (InputError, "weights >= 0", (spaces,), {"weights": -torch.ones(N_ROWS)}),
        (InputError, "mask for 'z'", (spaces,), {"masks": {"z": mask}}),
        (ShapeError, "boolean mask", (spaces,), {"masks": {"a": mask.double()}}),
        (ShapeError, "boolean mask", (spaces,), {"masks": {"a": mask[:3]}}),
        (InputError, "a mask that leaves 'a' at least 2 rows, got 0", (spaces,), {"masks": {"a": ~mask}}),
        (InputError, "a mask that leaves 'a' at least 2 rows, got 1", (spaces,), {"masks": {"a": first < 1}}),
        (
            InputError,
            "got 3 equal ones: too few under its mask",
            ({**spaces, "b": equal},),
            {"masks": {"b": first < 3}},
        ),
        (InputError, "mapping from names of spaces to masks, got list", (spaces,), {"masks": [mask]}),
        (InputError, "a mask for 'a', got None", (spaces,), {"masks": {"a": None}}),
        (ShapeError, "boolean mask", (spaces,), {"masks": {"a": torch.ones(0, dtype=torch.bool)}}),
        (InputError, "rows of numbers in 'b', got NoneType", ({**spaces, "b": None},), {}),
        (InputError, "rows of numbers in 'b', got ndarray of <U1", ({**spaces, "b": np.array([["x"]])},), {}),
        (InputError, "mapping from names to rows, or a sequence of rows, got NoneType", (None,), {}),
    ]
    for error, message, arguments, options in cases:
        with pytest.raises(error, match=message):
            make().fit(*arguments, **options)


def test_spaces_without_common_rows_are_refused(make: Make, kind: str) -> None:
    spaces = spaces_for(kind)
    first = torch.arange(N_ROWS) < N_ROWS // 2
    masks = {name: first if name == "a" else ~first for name in spaces}
    with pytest.raises(InputError, match=r"'a' that another space has too"):
        make().fit(spaces, masks=masks)


def test_bad_input_to_maps_is_named(make: Make, kind: str) -> None:
    aligner = make().fit(spaces_for(kind))
    x = normal(5, WIDTH, seed=0)
    hole = x.clone()
    hole[3] = torch.inf
    with pytest.raises(UnknownNameError, match="unknown space 'bb': did you mean 'b'"):
        aligner.transform(x, source="bb")
    with pytest.raises(UnknownNameError, match="unknown space"):
        aligner.inverse_transform(x, target="z")
    with pytest.raises(UnknownNameError, match="unknown space"):
        aligner.translate(x, source="a", target="z")
    with pytest.raises(ShapeError, match="width 6"):
        aligner.transform(x[:, :-1], source="a")
    with pytest.raises(ShapeError, match=f"width {aligner.n_components_}"):
        aligner.inverse_transform(normal(5, 40, seed=0), target="a")
    with pytest.raises(NonFiniteError, match="first in row 3"):
        aligner.transform(hole, source="a")
    with pytest.raises(InputError, match="floating-point"):
        aligner.transform(x.long(), source="a")
    with pytest.raises(InputError, match="is taken"):
        aligner.add("a", x)
    with pytest.raises(RowMismatchError, match="expected 60 rows of 'd'"):
        aligner.add("d", x)
    with pytest.raises(InputError, match="at least 10 rows"):
        aligner.add("d", x, against={"a": x})
    with pytest.raises(UnknownNameError, match="unknown space 'q'"):
        aligner.add("d", x, against={"q": x})
    with pytest.raises(ShapeError, match="width 6"):
        aligner.add("d", x, against={"a": x[:, :2]})


def test_spaces_of_one_column_are_aligned(make: Make, kind: str) -> None:
    """All that can agree is the sign."""
    if kind in {"gcca_plain", "gcpa_agreement"}:
        pytest.skip("five components of one column; a drift of nothing")
    column = normal(N_ROWS, 1, seed=0)
    signs = {"a": 1.0, "b": -2.0} if kind == "cca" else {"a": 1.0, "b": -2.0, "c": 0.5}
    spaces = {name: sign * column + 0.1 * normal(N_ROWS, 1, seed=m) + 3 for m, (name, sign) in enumerate(signs.items())}
    aligner = make().fit(spaces)
    assert aligner.transform(spaces["a"], source="a").shape == (N_ROWS, 1)
    found = aligner.translate(spaces["a"], source="a", target="b")
    assert torch.corrcoef(torch.cat([found, spaces["b"]], dim=1).T)[0, 1] > 0.95


@pytest.mark.parametrize("shuffled", ["b", "all", "bc"])
def test_shuffled_rows_are_doubted_and_others_are_not(make: Make, kind: str, shuffled: str) -> None:
    spaces = spaces_for(kind)
    make().fit(spaces)  # a warning would be an error
    order = torch.randperm(N_ROWS, generator=torch.Generator().manual_seed(1))
    names = [name for name in spaces if name in shuffled]
    moved = {name: x[order] if name in names else x for name, x in spaces.items()}
    if shuffled == "all":
        orders = [torch.randperm(N_ROWS, generator=torch.Generator().manual_seed(m)) for m in range(3)]
        moved = {name: x[some] for (name, x), some in zip(spaces.items(), orders, strict=False)}
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        make().fit(moved)
    said = [str(one.message) for one in doubts if one.category is AlignmentWarning]
    assert len(said) == 1
    assert "no better than shuffled rows do" in said[0]
    assert Path(doubts[-1].filename).name == ("gcpa.py" if kind in CORRECTED else Path(__file__).name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AlignmentWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        make().fit(moved, doubt_above=1.0)


def test_a_file_of_another_aligner_is_refused_by_name(make: Make, kind: str, tmp_path: Path) -> None:
    aligner = make().fit(spaces_for(kind))
    aligner.save(tmp_path / "file")
    for other in {type(known()) for known in MAKERS.values()} - {type(aligner)}:
        with pytest.raises(CheckpointError, match=f"holds a {type(aligner).__name__}, not a {other.__name__}"):
            other.load(tmp_path / "file")


@pytest.mark.gpu
def test_device_follows_the_rows(make: Make, kind: str) -> None:
    spaces = {name: x.cuda() for name, x in spaces_for(kind).items()}
    aligner = make().fit(spaces)
    assert aligner.transform(spaces["a"], source="a").is_cuda
    assert not aligner.transform(spaces["a"].cpu(), source="a").is_cuda
