"""A packed store gives back what was put in, appears whole or not at all, and names every kind of damage."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from neigenmaps.data.packing import StoreWriter, write_store
from neigenmaps.data.store import CHUNK_BYTES, ImageStore, open_store
from neigenmaps.errors import DataError, InputError, ShapeError


def random_images(n: int = 7, channels: int = 3, size: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


LABELS = torch.tensor([0, 1, 2, 0, -1, 1, 2])
NAMES = ("ant", "bee", "cat")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    write_store(path, random_images(), LABELS, class_names=NAMES, source="test", skipped=("a.png",))
    return path


def edit_description(path: Path, **changes: object) -> None:
    description = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**description, **changes}))


def test_round_trip(packed: Path) -> None:
    store = open_store(packed, verify=True)
    assert torch.equal(store.images_NCHW, random_images())
    assert torch.equal(store.labels_N, LABELS)
    assert (store.class_names, store.source, store.skipped, len(store)) == (NAMES, "test", ("a.png",), 7)
    in_memory = ImageStore.from_tensors(random_images(), LABELS, class_names=NAMES, source="elsewhere")
    assert store.fingerprint == in_memory.fingerprint


def test_files_are_plain_npy(packed: Path) -> None:
    """Anyone with numpy can read the store."""
    np.testing.assert_array_equal(np.load(packed / "images.npy", allow_pickle=False), random_images().numpy())
    np.testing.assert_array_equal(np.load(packed / "labels.npy", allow_pickle=False), LABELS.numpy())


def test_fingerprint_is_sha256_of_bytes_then_shape() -> None:
    images = random_images()
    expected = hashlib.sha256(images.numpy().tobytes() + b"(7, 3, 5, 5)").hexdigest()
    assert ImageStore.from_tensors(images, source="x").fingerprint == expected
    assert ImageStore.from_tensors(images.reshape(7, 3, 25, 1), source="x").fingerprint != expected


def test_fingerprint_of_many_chunks_equals_that_of_one(tmp_path: Path) -> None:
    images = random_images(n=2 * CHUNK_BYTES // 2048**2 + 3, channels=1, size=2048)
    write_store(tmp_path / "s", images, source="x")
    expected = hashlib.sha256(images.numpy().tobytes() + repr(tuple(images.shape)).encode()).hexdigest()
    assert open_store(tmp_path / "s").fingerprint == expected


def test_streamed_appends_equal_one_write(tmp_path: Path, packed: Path) -> None:
    with StoreWriter(tmp_path / "streamed") as writer:
        for row in range(7):
            writer.append(random_images()[row : row + 1], LABELS[row : row + 1])
        writer.finish(class_names=NAMES, source="test", skipped=["a.png"])
    for name in ("images.npy", "labels.npy", "store.json"):
        assert (tmp_path / "streamed" / name).read_bytes() == (packed / name).read_bytes()


def test_non_contiguous_images_are_stored_in_row_order(tmp_path: Path) -> None:
    channels_last = random_images().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    write_store(tmp_path / "s", channels_last, source="x")
    assert torch.equal(open_store(tmp_path / "s", verify=True).images_NCHW, random_images())


def test_unlabelled(tmp_path: Path) -> None:
    write_store(tmp_path / "s", random_images(), source="x")
    assert open_store(tmp_path / "s").labels_N is None
    assert not (tmp_path / "s" / "labels.npy").exists()


def test_writing_to_the_tensor_leaves_the_file(packed: Path) -> None:
    before = (packed / "images.npy").read_bytes()
    open_store(packed).images_NCHW.zero_()
    assert (packed / "images.npy").read_bytes() == before


def test_subset_and_to(packed: Path) -> None:
    subset = open_store(packed).subset([4, 0])
    assert torch.equal(subset.images_NCHW, random_images()[[4, 0]])
    assert subset.labels_N is not None
    assert subset.labels_N.tolist() == [-1, 0]
    assert subset.fingerprint == ImageStore.from_tensors(random_images()[[4, 0]], source="x").fingerprint
    assert subset.to("cpu").fingerprint == subset.fingerprint


@pytest.mark.parametrize("indices", [[0, 7], [-1], [0.5], torch.ones(7, dtype=torch.bool), torch.zeros(1, 1).long()])
def test_subset_refuses_what_is_no_row(packed: Path, indices: object) -> None:
    with pytest.raises(InputError, match="subset: expected"):
        open_store(packed).subset(indices)  # type: ignore[arg-type]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with StoreWriter(tmp_path / "s") as writer:
            writer.append(random_images())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_store_made_meanwhile_is_kept(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s") as late:
        late.append(random_images(seed=1))
        write_store(tmp_path / "s", random_images(seed=2), source="first")
        with pytest.raises(DataError, match="another process"):
            late.finish(source="second")
    assert open_store(tmp_path / "s", verify=True).source == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_existing_path_is_refused(packed: Path) -> None:
    with pytest.raises(DataError, match="already exists"):
        write_store(packed, random_images(), source="x")


def test_truncated_file(packed: Path) -> None:
    with (packed / "images.npy").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(DataError, match="bytes, got 300; delete the folder"):
        open_store(packed)


def test_missing_file(packed: Path) -> None:
    (packed / "labels.npy").unlink()
    with pytest.raises(DataError, match="got no file"):
        open_store(packed)


def test_flipped_bit_is_found_by_verify(packed: Path) -> None:
    with (packed / "images.npy").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    open_store(packed)  # the documented default: sizes only
    with pytest.raises(DataError, match="sha256"):
        open_store(packed, verify=True)


def test_forged_fingerprint_is_found_by_verify(packed: Path) -> None:
    edit_description(packed, fingerprint="0" * 64)
    with pytest.raises(DataError, match="fingerprint"):
        open_store(packed, verify=True)


def test_damaged_array_header(packed: Path) -> None:
    with (packed / "images.npy").open("r+b") as file:
        file.write(b"not numpy")
    with pytest.raises(DataError, match=r"no readable \.npy"):
        open_store(packed)


def test_pickled_array_is_never_loaded(packed: Path) -> None:
    np.save(packed / "images.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    size = (packed / "images.npy").stat().st_size
    files = json.loads((packed / "store.json").read_text())["files"]
    edit_description(packed, files={**files, "images.npy": {"bytes": size, "sha256": ""}})
    with pytest.raises(DataError, match="no readable"):
        open_store(packed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "schema version 1, got 99"),
        ({"shape": [7, 3, 5, 6]}, "expected shape"),
        ({"class_names": ["ant"]}, "expected labels in -1 .. 0"),
        ({"files": {"images.npy": {}}}, "lacks or garbles"),
        ({"skipped": None}, "lacks or garbles"),
    ],
)
def test_tampered_description(packed: Path, changes: dict[str, object], message: str) -> None:
    edit_description(packed, **changes)
    with pytest.raises(DataError, match=message):
        open_store(packed)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_garbled_description(packed: Path, text: str) -> None:
    (packed / "store.json").write_text(text)
    with pytest.raises(DataError, match="delete the folder and pack it again"):
        open_store(packed)


def test_wrong_dtype_on_disk(packed: Path) -> None:
    np.save(packed / "labels.npy", LABELS.numpy().astype(np.float64))
    files = json.loads((packed / "store.json").read_text())["files"]
    files["labels.npy"]["bytes"] = (packed / "labels.npy").stat().st_size
    edit_description(packed, files=files)
    with pytest.raises(DataError, match="expected int64, got float64"):
        open_store(packed)


def test_no_store_here(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no store\.json"):
        open_store(tmp_path)


def test_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one image"):
        write_store(tmp_path / "s", random_images(0), source="x")
    with StoreWriter(tmp_path / "s") as writer, pytest.raises(DataError, match="no image to store"):
        writer.finish(source="x")


@pytest.mark.parametrize(
    ("images", "labels", "error"),
    [
        (random_images(), LABELS[:3], ShapeError),
        (random_images()[0], None, ShapeError),
        (random_images().float(), None, DataError),
        (random_images(), LABELS.float(), DataError),
        (random_images(), LABELS - 5, DataError),
        (random_images(), LABELS + 5, DataError),
    ],
)
def test_what_is_no_store_is_refused(tmp_path: Path, images: Tensor, labels: Tensor | None, error: type) -> None:
    with pytest.raises(error):
        ImageStore.from_tensors(images, labels, class_names=NAMES, source="x")
    with pytest.raises(error):
        write_store(tmp_path / "s", images, labels, class_names=NAMES, source="x")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s") as writer:
        writer.append(random_images())
        with pytest.raises(ShapeError, match="expected rows of shape"):
            writer.append(random_images(size=6))
