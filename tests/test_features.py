"""A feature set survives the disk unchanged, and anything else is refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from neigenmaps.errors import CheckpointError, InputError, NonFiniteError, RowMismatchError, ShapeError
from neigenmaps.features import FeatureSet, check_same_rows, fingerprint_rows
from neigenmaps.files import whole_file

IMAGES = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).reshape(4, 3, 2, 2)


def make(**changes: object) -> FeatureSet:
    generator = torch.Generator().manual_seed(0)
    arguments: dict[str, object] = {
        "embeddings_NF": torch.randn(4, 6, generator=generator),
        "labels_N": torch.tensor([0, 1, -1, 2]),
        "eigenvalues_K": torch.tensor([0.9, 0.5]),
        "row_fingerprint": fingerprint_rows(IMAGES),
        "provenance": {"checkpoint": "last.ckpt", "übung": "λ"},
    }
    return FeatureSet(**(arguments | changes))  # type: ignore[arg-type]


def assert_equal(a: FeatureSet, b: FeatureSet) -> None:
    for name in ("embeddings_NF", "labels_N", "eigenvalues_K"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None and y is None) or (x.dtype == y.dtype and torch.equal(x, y))
    assert (a.row_fingerprint, a.provenance) == (b.row_fingerprint, b.provenance)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"labels_N": None, "eigenvalues_K": None, "provenance": {}},
        {"embeddings_NF": torch.arange(80.0).bfloat16().reshape(10, 8).T[:4]},  # a view that is not contiguous
    ],
    ids=["full", "bare", "view"],
)
def test_round_trip(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "features" / "probe.safetensors"
    make().save(path)
    make(**changes).save(path)  # replaces
    assert_equal(FeatureSet.load(path), make(**changes))
    assert [file.name for file in path.parent.iterdir()] == ["probe.safetensors"]


def write_half(path: Path) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_bytes(b"half")
        _ = 1 / 0


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    make().save(path)
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    assert_equal(FeatureSet.load(path), make())
    assert len(list(tmp_path.iterdir())) == 1


def test_the_fingerprint_sees_order_content_shape_and_dtype() -> None:
    variants = [IMAGES, IMAGES.flip(0), IMAGES + 1, IMAGES.flatten(1), IMAGES.int(), IMAGES[:3]]
    assert len({fingerprint_rows(images) for images in variants}) == len(variants)
    assert fingerprint_rows(IMAGES) == fingerprint_rows(IMAGES.to(memory_format=torch.channels_last))


def test_sets_over_other_rows_are_refused() -> None:
    check_same_rows(make(), make(embeddings_NF=torch.ones(4, 2), provenance={}))
    with pytest.raises(RowMismatchError, match="same order"):
        check_same_rows(make(), make(row_fingerprint=fingerprint_rows(IMAGES.flip(0))))
    with pytest.raises(RowMismatchError, match="got 4 rows"):
        check_same_rows(make(), make(embeddings_NF=torch.ones(3, 2), labels_N=None))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"embeddings_NF": torch.ones(4, 2, 2)}, ShapeError, "flatten"),
        ({"embeddings_NF": torch.ones(0, 2)}, ShapeError, "non-empty"),
        ({"embeddings_NF": torch.full((4, 2), torch.nan)}, NonFiniteError, "embeddings"),
        ({"eigenvalues_K": torch.tensor([torch.inf])}, NonFiniteError, "eigenvalues"),
        ({"eigenvalues_K": torch.ones(2, 2)}, ShapeError, "one row"),
        ({"labels_N": torch.zeros(3).long()}, ShapeError, "one label"),
        ({"labels_N": torch.zeros(4)}, InputError, "integer"),
        ({"row_fingerprint": ""}, InputError, "fingerprint_rows"),
        ({"provenance": {"epoch": 3}}, InputError, "str to str"),
    ],
)
def test_wrong_content_is_refused(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**changes)


def rewrite(path: Path, *, drop: str = "", metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> None:
    """Save the file at `path` again with other tensors or metadata, as someone who tampers would."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        kept = file.metadata() | (metadata or {})
    content = load_file(path) | tensors
    kept.pop(drop, None)
    content.pop(drop, None)
    save_file(content, path, metadata=kept)


@pytest.mark.parametrize(
    ("tampering", "message"),
    [
        ({"embeddings_NF": torch.ones(4, 6)}, "damaged"),
        ({"labels_N": torch.tensor([1, 1, -1, 2])}, "damaged"),
        ({"drop": "eigenvalues_K"}, "damaged"),
        ({"drop": "digest"}, "digest"),
        ({"drop": "provenance"}, "provenance"),
        ({"drop": "row_fingerprint"}, "row_fingerprint"),
        ({"metadata": {"format": "other/1"}}, "expected format"),
        ({"metadata": {"provenance": "{"}}, "not JSON"),
        ({"metadata": {"provenance": "[]"}}, "str to str"),
        ({"metadata": {"provenance": '{"epoch": 3}'}}, "str to str"),
    ],
)
def test_tampered_files_are_refused(tmp_path: Path, tampering: dict, message: str) -> None:
    path = tmp_path / "probe.safetensors"
    make().save(path)
    rewrite(path, **tampering)
    with pytest.raises(CheckpointError, match=message):
        FeatureSet.load(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embeddings_NF": torch.full((4, 2), torch.nan)}, "finite embeddings"),
        ({"labels_N": torch.zeros(4).long()}, "embeddings_NF"),
        ({"embeddings_NF": torch.ones(4, 2), "extra": torch.ones(1)}, "extra"),
    ],
    ids=["nan", "no embeddings", "extra"],
)
def test_consistent_files_with_wrong_tensors_are_refused(tmp_path: Path, tensors: dict, message: str) -> None:
    from neigenmaps.features import FORMAT, _digest

    path = tmp_path / "probe.safetensors"
    metadata = {"format": FORMAT, "row_fingerprint": "a", "provenance": "{}", "digest": _digest(tensors)}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        FeatureSet.load(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    with pytest.raises(CheckpointError, match="found no file"):
        FeatureSet.load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        FeatureSet.load(path)
    make().save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="cannot be read"):
        FeatureSet.load(path)
    save_file({"embeddings_NF": torch.ones(2, 2)}, path)
    with pytest.raises(CheckpointError, match="expected format"):
        FeatureSet.load(path)
