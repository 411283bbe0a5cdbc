"""WebDataset shards: what was put into a tar comes out, and every kind of damage is named."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neigenmaps.data import open_rows
from neigenmaps.data.datasets import load_splits
from neigenmaps.data.store import ImageStore
from neigenmaps.errors import DataError


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(first: int, n: int = 10) -> list[tuple[str, bytes]]:
    """Image, class and a caption of each key; class: key mod 3."""
    keys = range(first, first + n)
    return [
        member
        for key in keys
        for member in (
            (f"{key:04}.png", png(key)),
            (f"{key:04}.cls", str(key % 3).encode()),
            (f"{key:04}.json", b"{}"),
        )
    ]


def load(path: Path, tmp_path: Path, **options: object) -> tuple[ImageStore, ImageStore]:
    return load_splits(str(path), cache_dir=tmp_path / "cache", **{"image_size": 8, **options})  # type: ignore[arg-type]


def shown(store: ImageStore) -> dict[bytes, int]:
    """Labels by pixels."""
    assert store.labels_N is not None
    rows = zip(store.images_NCHW, store.labels_N.tolist(), strict=True)
    return {image.permute(1, 2, 0).numpy().tobytes(): label for image, label in rows}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        write_tar(tmp_path / "set" / f"a-{number:03}.tar", samples(10 * number))
    return tmp_path / "set"


def test_every_image_and_label_of_all_shards(shards: Path, tmp_path: Path) -> None:
    train, test = load(shards, tmp_path)
    assert (len(train), len(test)) == (24, 6)
    assert shown(train) | shown(test) == {pixels(key).tobytes(): key % 3 for key in range(30)}
    assert sorted(shown(test).values()) == [0, 0, 1, 1, 2, 2]  # stratified


def test_one_tar_file(shards: Path, tmp_path: Path) -> None:
    train, test = load(shards / "a-001.tar", tmp_path)
    assert shown(train) | shown(test) == {pixels(key).tobytes(): key % 3 for key in range(10, 20)}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train/0.tar", "val/0.tar"),
        ("train/0.tar", "test/0.tar"),
        ("x-train-0.tar", "x-val-0.tar"),
        ("train0.tar", "validation0.tar"),
    ],
)
def test_explicit_parts(tmp_path: Path, first: str, second: str) -> None:
    write_tar(tmp_path / "set" / first, samples(0, 4))
    write_tar(tmp_path / "set" / second, samples(4, 3))
    train, test = load(tmp_path / "set", tmp_path)
    assert shown(train) == {pixels(key).tobytes(): key % 3 for key in range(4)}
    assert shown(test) == {pixels(key).tobytes(): key % 3 for key in range(4, 7)}


def test_unlabelled_samples_and_masks(tmp_path: Path) -> None:
    members = [("d.1/a.jpg", png(0)), ("d.1/a.seg.png", png(9)), ("d.1/b.PNG", png(1)), ("d.1/._a.jpg", b"macOS")]
    write_tar(tmp_path / "none.tar", members)
    train, test = load(tmp_path / "none.tar", tmp_path, test_share=0.5)
    assert (train.labels_N, test.labels_N, len(train), len(test)) == (None, None, 1, 1)
    write_tar(tmp_path / "some.tar", [*members, ("d.1/b.cls", b"7\n")])
    train, test = load(tmp_path / "some.tar", tmp_path, test_share=0.5)
    assert shown(train) | shown(test) == {pixels(0).tobytes(): -1, pixels(1).tobytes(): 7}


def test_the_second_call_reads_no_shard_and_a_changed_one_is_packed_anew(shards: Path, tmp_path: Path) -> None:
    first = load(shards, tmp_path)
    state = (shards / "a-001.tar").stat()
    content = (shards / "a-001.tar").read_bytes()
    (shards / "a-001.tar").write_bytes(bytes(len(content)))
    os.utime(shards / "a-001.tar", ns=(state.st_mtime_ns, state.st_mtime_ns))  # as far as anyone can tell, the same
    assert load(shards, tmp_path)[0].fingerprint == first[0].fingerprint
    write_tar(shards / "a-001.tar", samples(50))
    assert shown(load(shards, tmp_path)[0]).keys() - shown(first[0]).keys() >= {pixels(50).tobytes()}


def test_rows_of_shards_by_name(shards: Path) -> None:
    rows = open_rows(str(shards), image_size=8)
    assert rows.names[:2] == ("a-000.tar/0000.png", "a-000.tar/0001.png")
    assert len(rows) == 30
    image = rows.read([12])[0]
    assert image is not None
    assert torch.equal(image, torch.from_numpy(pixels(12)).permute(2, 0, 1))


def test_corrupt_images_in_a_shard(tmp_path: Path) -> None:
    members = samples(0, 20)
    members[3 * 7] = ("0007.png", png(7)[:60])
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"1 of 20 files can't be read as images: a\.tar/0007\.png\. Repair"):
        load(tmp_path / "a.tar", tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 20 files .* a\.tar/0007\.png"):
        train, test = load(tmp_path / "a.tar", tmp_path, max_unreadable_share=0.05)
    assert train.skipped + test.skipped == ("a.tar/0007.png",)
    assert shown(train) | shown(test) == {pixels(key).tobytes(): key % 3 for key in range(20) if key != 7}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])  # the last quarter is padding
def test_torn_shard(shards: Path, tmp_path: Path, share: float) -> None:
    content = (shards / "a-001.tar").read_bytes()
    (shards / "a-001.tar").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"a-001\.tar.*copy it again"):
        load(shards, tmp_path)


def test_shard_torn_between_two_members(tmp_path: Path) -> None:
    """Every header is whole: only the mark at the end is missing."""
    content = write_tar(tmp_path / "a.tar", samples(0, 4)).read_bytes()
    (tmp_path / "a.tar").write_bytes(content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512))
    with pytest.raises(DataError, match="without the mark of a whole tar file"):
        load(tmp_path / "a.tar", tmp_path)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_compressed_shard(tmp_path: Path, mode: str) -> None:
    write_tar(tmp_path / "a.tar", samples(0, 4), mode)
    with pytest.raises(DataError, match="no whole, uncompressed tar file"):
        load(tmp_path / "a.tar", tmp_path)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("0001.png", png(1)), "key '0001' has a second image"),
        (("0001.jpg", png(1)), "key '0001' has a second image"),
        (("0001.cls", b"1"), "key '0001' has a second class"),
        (("0009.cls", b"cat"), "0009.cls holds b'cat'; expected a class as an integer"),
        (("0009.cls", b"-2"), "expected a class as an integer of at least 0"),
    ],
)
def test_what_no_sample_can_be(tmp_path: Path, member: tuple[str, bytes], message: str) -> None:
    write_tar(tmp_path / "a.tar", [*samples(0, 4), member])
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.tar", tmp_path)


def test_equal_keys_in_two_shards_are_two_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "set" / "a.tar", samples(0, 4))
    write_tar(tmp_path / "set" / "b.tar", samples(0, 4))
    train, test = load(tmp_path / "set", tmp_path)
    assert len(train) + len(test) == 8


def test_shards_without_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.json", b"{}")])
    with pytest.raises(DataError, match=r"found no image in 1 tar file"):
        load(tmp_path / "a.tar", tmp_path)
