"""Bits are shared out as trying every way would; what is lost agrees with theory; at equal bytes order pays."""

import numpy as np
import pytest
import torch

from neigenmaps.errors import InputError, NonFiniteError, NotFittedError, ShapeError
from neigenmaps.retrieval import CodeQuantizer, TruncatedIndex, allot_bits
from neigenmaps.retrieval.quantize import GAUSSIAN_ERROR, _lloyd_levels
from neigenmaps.retrieval.scoring import overlap
from oracles import retrieval as oracle


def falling(n: int, width: int = 64, seed: int = 0, decay: float = 1.0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)
    return rows * np.arange(1, width + 1, dtype=np.float32) ** np.float32(-decay / 2)


@pytest.mark.parametrize("n_bits", [1, 3, 6, 9, 16])
def test_no_other_sharing_out_of_bits_errs_less(n_bits: int) -> None:
    generator = np.random.default_rng(n_bits)
    for _ in range(5):
        variances = generator.exponential(size=4) ** 2
        bits = allot_bits(variances, n_bits)
        assert bits.sum() == n_bits
        error = sum(v * GAUSSIAN_ERROR[b] for v, b in zip(variances, bits, strict=True))
        assert error == pytest.approx(oracle.best_bits(variances.tolist(), list(GAUSSIAN_ERROR), n_bits), rel=1e-12)


def test_bits_follow_the_water_level() -> None:
    assert allot_bits(16.0 ** -np.arange(4), 12).tolist() == [6, 4, 2, 0]  # two bits less at each sixteenth
    assert allot_bits(np.ones(5), 40).tolist() == [8] * 5
    assert allot_bits([1.0, 0.0], 3).tolist() == [3, 0]
    assert allot_bits(torch.ones(4), 2).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("n_bits", [0, 1, 2, 4, 6, 8])
def test_error_on_gaussian_numbers_is_that_of_the_table(n_bits: int) -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    levels = _lloyd_levels(values, n_bits)
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]
    error = np.square(values - nearest, dtype=np.float64).mean()
    assert error == pytest.approx(GAUSSIAN_ERROR[n_bits], rel=0.04)  # beyond 5 bits the table is a limit, 4 % too high


@pytest.mark.parametrize(("kind", "numbers"), [("float32", 3), ("float16", 6), ("int8", 12)])
def test_prefixes_round_trip_to_their_precision(kind: str, numbers: int) -> None:
    codes = falling(500)
    quantizer = CodeQuantizer(12, kind).fit(codes)  # type: ignore[arg-type]
    packed = quantizer.encode(codes)
    assert packed.shape == (500, 12)
    assert packed.dtype == np.uint8
    back = quantizer.decode(packed)
    assert (back[:, numbers:] == 0).all()
    assert quantizer.bits_K_.sum() == 96
    bound = {"float32": 0.0, "float16": 2**-11, "int8": 0.5 / 127}[kind]
    error = np.abs(back - codes)[:, :numbers]
    largest = np.abs(codes).max(axis=0)[:numbers] if kind == "int8" else np.abs(codes[:, :numbers])
    assert (error <= bound * largest * (1 + 1e-5) + 1e-7 * (kind != "float32")).all()


@pytest.mark.parametrize("n_bytes", [1, 5, 16, 64])
def test_eigenvalue_bits_round_trip(n_bytes: int) -> None:
    quantizer, codes = CodeQuantizer(n_bytes).fit(falling(20_000)), falling(3_000, seed=1)
    packed = quantizer.encode(codes)
    assert packed.shape == (3_000, n_bytes)
    back = quantizer.decode(packed)
    expected = sum(
        variance * GAUSSIAN_ERROR[bits]
        for variance, bits in zip(np.square(codes, dtype=np.float64).mean(0), quantizer.bits_K_, strict=True)
    )
    # with 256 levels learned from 20,000 codes, 78 a level, new codes fare a little worse
    assert np.square(back - codes, dtype=np.float64).sum(1).mean() == pytest.approx(expected, rel=0.1)
    np.testing.assert_array_equal(quantizer.decode(quantizer.encode(back)), back)  # levels are their own nearest
    np.testing.assert_array_equal(quantizer.encode(torch.from_numpy(codes)), packed)


def test_given_eigenvalues_decide_the_bits() -> None:
    codes = falling(500, 8)
    quantizer = CodeQuantizer(1, eigenvalues=[0, 0, 0, 1, 0, 0, 0, -1e-9]).fit(codes)
    assert quantizer.bits_K_.tolist() == [0, 0, 0, 8, 0, 0, 0, 0]


def test_at_equal_bytes_bits_by_eigenvalue_keep_most_neighbours() -> None:
    gallery, queries = falling(5_000, decay=1.5), falling(50, seed=1, decay=1.5)
    truth = TruncatedIndex(gallery).search(queries, 10).ids
    recall = {}
    for kind in ("float32", "float16", "int8", "eigenvalue_bits"):
        quantizer = CodeQuantizer(16, kind).fit(gallery)  # type: ignore[arg-type]
        found = TruncatedIndex(quantizer.decode(quantizer.encode(gallery))).search(queries, 10).ids
        recall[kind] = overlap(found, truth).mean()
    assert recall["float32"] < recall["float16"] < recall["int8"] < recall["eigenvalue_bits"]


def test_numbers_beyond_what_was_learned_are_clipped() -> None:
    codes = falling(500)
    for kind, n_bytes in (("int8", 4), ("eigenvalue_bits", 4)):
        quantizer = CodeQuantizer(n_bytes, kind).fit(codes)  # type: ignore[arg-type]
        far = quantizer.decode(quantizer.encode(np.full((1, 64), 1e6)))[0, 0]
        assert 0 < far <= np.abs(codes).max()
    half = CodeQuantizer(2, "float16").fit(codes)
    assert half.decode(half.encode(np.full((1, 64), 1e6)))[0, 0] == np.finfo(np.float16).max


def test_wrong_input_is_refused() -> None:
    for given, message in [
        ({"n_bytes": 3, "kind": "float32"}, "4 bytes or more, got 3"),
        ({"n_bytes": 0}, "1 bytes or more, got 0"),
        ({"n_bytes": 4, "kind": "int4"}, "'eigenvalue_bits', got 'int4'"),
    ]:
        with pytest.raises(InputError, match=message):
            CodeQuantizer(**given)  # type: ignore[arg-type]
    for variances, n_bits, message in [
        ([0.0, 0.0], 1, "some above"),
        ([1.0, -1.0], 1, "at least 0"),
        ([1.0, np.nan], 1, "at least 0"),
        ([1.0], 9, "n_bits <= 8"),
        ([1.0], 0, "got 0"),
    ]:
        with pytest.raises(InputError, match=message):
            allot_bits(np.array(variances), n_bits)
    quantizer = CodeQuantizer(4, eigenvalues=np.ones(3))
    with pytest.raises(NotFittedError, match="fit"):
        quantizer.encode(falling(2))
    with pytest.raises(NotFittedError, match="fit"):
        quantizer.decode(np.zeros((2, 4), np.uint8))
    with pytest.raises(ShapeError, match=r"eigenvalues \(64,\)"):
        quantizer.fit(falling(20))
    fitted = CodeQuantizer(4).fit(falling(20))
    with pytest.raises(ShapeError, match="width 64, got 63"):
        fitted.encode(falling(2, 63))
    with pytest.raises(NonFiniteError, match="given codes"):
        fitted.encode(np.full((1, 64), np.nan))
    with pytest.raises(ShapeError, match=r"uint8 \(N, 4\)"):
        fitted.decode(np.zeros((2, 5), np.uint8))
