"""Data sets load from their own on-disk formats without a network; what is missing, broken or unreadable is named."""

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from sklearn.datasets import load_digits
from torchvision import datasets as tv_datasets
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

import neigenmaps.data.folders
from neigenmaps.data.datasets import DATASETS, load_splits
from neigenmaps.data.folders import default_cache_dir
from neigenmaps.data.store import ImageStore
from neigenmaps.data.unreadable import first_names
from neigenmaps.errors import DataError, InputError, NonFiniteError, ShapeError, UnknownNameError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def labels_of(store: ImageStore) -> list[int]:
    assert store.labels_N is not None
    return store.labels_N.tolist()


# ---- digits -----------------------------------------------------------------------------------------------------------


def test_digits() -> None:
    train, test = load_splits("digits")
    assert (train.images_NCHW.shape, test.images_NCHW.shape) == ((1400, 1, 8, 8), (397, 1, 8, 8))
    assert train.class_names == tuple("0123456789")
    # every digit is one of scikit-learn's, with its label, and none is in both parts
    raw = {image.tobytes(): label for image, label in zip(load_digits().images, load_digits().target, strict=True)}
    seen = []
    for store in (train, test):
        grey = torch.round(store.images_NCHW[:, 0].double() * 16 / 255).numpy()
        seen += [image.tobytes() for image in grey]
        assert [raw[image.tobytes()] for image in grey] == labels_of(store)
    assert len(set(seen)) == len(raw)
    assert int(train.images_NCHW.max()) == 255


def test_digits_split_is_stratified_and_fixed() -> None:
    train, test = load_splits("digits")
    share = np.bincount(labels_of(test)) / np.bincount(labels_of(train) + labels_of(test))
    assert np.ptp(share) < 0.01
    torch.manual_seed(7)
    np.random.seed(7)
    assert load_splits("digits").test.fingerprint == test.fingerprint


def test_image_size_resizes_named_data_sets() -> None:
    small = load_splits("digits").test
    store = load_splits("digits", image_size=12).test
    expected = tv.resize(small.images_NCHW, [12, 12], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(store.images_NCHW, expected)
    assert store.labels_N is not None
    assert labels_of(store) == labels_of(small)


# ---- torchvision ------------------------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    """MNIST's format: two zero bytes, 8 for uint8, the number of axes, the sizes in big-endian, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_from_raw_files(tmp_path: Path, name: str, folder: str) -> None:
    images = rng().integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
    for part, rows in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        write_idx(tmp_path / folder / "raw" / f"{part}-images-idx3-ubyte", images[rows])
        write_idx(tmp_path / folder / "raw" / f"{part}-labels-idx1-ubyte", labels[rows])
    train, test = load_splits(name, root=tmp_path)
    np.testing.assert_array_equal(train.images_NCHW[:, 0].numpy(), images[:3])
    np.testing.assert_array_equal(test.images_NCHW[:, 0].numpy(), images[3:])
    assert (labels_of(train), labels_of(test)) == ([3, 1, 4], [1, 5])
    assert len(train.class_names) == 10
    assert (train.source, test.source) == (f"{name}/train", f"{name}/test")


def write_cifar(
    root: Path, kind: type[tv_datasets.CIFAR10], label_key: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, np.ndarray]:
    """Pickled batches as the authors ship them: rows of 1024 red, then green, then blue values. Checksums are replaced."""
    base = root / kind.base_folder
    base.mkdir()
    written = {}
    sums: dict[str, str] = {}
    names = [name for name, _ in kind.train_list + kind.test_list]
    for seed, name in enumerate(names):
        written[name] = rng(seed).integers(0, 256, (2, 3 * 32 * 32), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": written[name], label_key: [seed, seed + 1]}))
    names_key = kind.meta["key"]
    (base / kind.meta["filename"]).write_bytes(pickle.dumps({names_key: [f"class {n}" for n in range(10)]}))
    for path in base.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[name, sums[name]] for name, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    return written


@pytest.mark.parametrize(
    ("name", "kind", "label_key"),
    [("cifar10", tv_datasets.CIFAR10, "labels"), ("cifar100", tv_datasets.CIFAR100, "fine_labels")],
)
def test_cifar_from_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[tv_datasets.CIFAR10], label_key: str
) -> None:
    written = write_cifar(tmp_path, kind, label_key, monkeypatch)
    train, test = load_splits(name, root=tmp_path)
    rows = np.concatenate([*written.values()]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(torch.cat([train.images_NCHW, test.images_NCHW]).numpy(), rows)
    assert labels_of(train) + labels_of(test) == [label for seed in range(len(written)) for label in (seed, seed + 1)]
    assert train.class_names[3] == "class 3"


def test_stl10_marks_unlabelled_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary files, each channel column by column, labels from 1."""
    base = tmp_path / "stl10_binary"
    base.mkdir()
    images = {part: rng(i).integers(0, 256, (2, 3, 96, 96), dtype=np.uint8) for i, part in enumerate(("train", "test"))}
    images["unlabeled"] = rng(9).integers(0, 256, (3, 3, 96, 96), dtype=np.uint8)
    for part, array in images.items():
        (base / f"{part}_X.bin").write_bytes(array.transpose(0, 1, 3, 2).tobytes())
    for part in ("train", "test"):
        (base / f"{part}_y.bin").write_bytes(bytes([1, 10]))
    monkeypatch.setattr(tv_datasets.STL10, "_check_integrity", lambda self: True)
    train, test = load_splits("stl10", root=tmp_path)
    np.testing.assert_array_equal(train.images_NCHW.numpy(), np.concatenate([images["train"], images["unlabeled"]]))
    assert labels_of(train) == [0, 9, -1, -1, -1]
    assert labels_of(test) == [0, 9]


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits"}))
def test_missing_files_say_how_to_get_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"download=True .*`data.download: true`.*or place"):
        load_splits(name, root=tmp_path)


def test_files_cut_short(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.zeros((4, 28, 28), np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.zeros(4, np.uint8))
    file = raw / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="mnist: can't be loaded"):
        load_splits("mnist", root=tmp_path)


@pytest.mark.download
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_download(tmp_path: Path, name: str) -> None:
    train, test = load_splits(name, root=tmp_path, download=True)
    assert len(train) in (50_000, 60_000)
    assert len(test) == 10_000


# ---- npz --------------------------------------------------------------------------------------------------------------


def test_npz_with_images_alone_is_split(tmp_path: Path) -> None:
    images = rng().integers(0, 256, (20, 6, 5), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    train, test = load_splits(str(tmp_path / "a.npz"), test_share=0.25)
    assert (len(train), len(test)) == (15, 5)
    assert train.labels_N is None
    both = torch.cat([train.images_NCHW, test.images_NCHW])[:, 0].numpy()
    assert {image.tobytes() for image in both} == {image.tobytes() for image in images}


def test_npz_split_is_stratified(tmp_path: Path) -> None:
    labels = np.repeat([0, 1], [40, 10])
    np.savez(tmp_path / "a.npz", images=rng().integers(0, 256, (50, 4, 4), dtype=np.uint8), labels=labels)
    test = load_splits(str(tmp_path / "a.npz"), test_share=0.2).test
    assert np.bincount(labels_of(test)).tolist() == [8, 2]


@pytest.mark.parametrize(
    "keys", [("train_images", "train_labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test")]
)
def test_npz_with_parts(tmp_path: Path, keys: tuple[str, ...]) -> None:
    images = rng().integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    labels = np.array([[2], [0], [1]], dtype=np.uint8)  # (N, 1), as MedMNIST stores them
    np.savez(tmp_path / "a.npz", **dict(zip(keys, (images[:2], labels[:2], images[2:], labels[2:]), strict=True)))
    train, test = load_splits(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(train.images_NCHW.numpy(), images[:2].transpose(0, 3, 1, 2))
    assert (labels_of(train), labels_of(test)) == ([2, 0], [1])


def test_npz_floating_point_and_channels_first(tmp_path: Path) -> None:
    levels = rng().integers(0, 256, (4, 3, 6, 7), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", train_images=(levels / 255).astype(np.float32), test_images=levels)
    train, test = load_splits(str(tmp_path / "a.npz"))
    assert torch.equal(train.images_NCHW, test.images_NCHW)
    assert load_splits(str(tmp_path / "a.npz"), image_size=5).train.images_NCHW.shape == (4, 3, 5, 5)


GOOD = np.zeros((4, 5, 5), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"pictures": GOOD}, DataError, "got pictures"),
        ({"images": GOOD[0]}, DataError, r"expected \(N, H, W\)"),
        ({"images": np.zeros((4, 5, 5, 2), np.uint8)}, DataError, "with C 1 or 3"),
        ({"images": np.zeros((4, 3, 5, 3), np.uint8)}, DataError, "either axis 1 or axis 3"),
        ({"images": GOOD.astype(np.int64)}, DataError, "got int64"),
        ({"images": GOOD + 0.5 + np.nan}, NonFiniteError, "NaN or infinity"),
        ({"images": GOOD + 1.5}, DataError, r"\[0, 1\], got 1.5"),
        ({"images": GOOD, "labels": np.zeros(4)}, DataError, "integer labels"),
        ({"images": GOOD, "labels": np.zeros(3, int)}, ShapeError, "one label for each of 4"),
        ({"images": GOOD[:0]}, DataError, "at least one image"),
        ({"images": GOOD[:1]}, DataError, "enough images to split"),
        ({"images": np.array([{}], dtype=object)}, DataError, "without pickled objects"),
    ],
)
def test_npz_that_is_no_data_set(tmp_path: Path, arrays: dict[str, np.ndarray], error: type, message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(error, match=message):
        load_splits(str(tmp_path / "a.npz"))


def test_npz_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match=r"no readable \.npz"):
        load_splits(str(tmp_path / "a.npz"))
    with (tmp_path / "b.npz").open("wb") as file:
        np.save(file, GOOD)
    with pytest.raises(DataError, match="got a single array"):
        load_splits(str(tmp_path / "b.npz"))


# ---- folders ----------------------------------------------------------------------------------------------------------


def paint(path: Path, seed: int = 0, size: tuple[int, int] = (10, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = (3,) if mode == "RGB" else ()
    Image.fromarray(rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)).save(path)


def load(folder: Path, cache: Path, **options: object) -> tuple[ImageStore, ImageStore]:
    return load_splits(str(folder), cache_dir=cache, **{"image_size": 8, **options})  # type: ignore[arg-type]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    for number in range(10):
        paint(tmp_path / "zoo" / "cat" / f"{number}.png", number)
        paint(tmp_path / "zoo" / "dog" / "deep" / f"{number}.PNG", 100 + number)
    (tmp_path / "zoo" / "notes.txt").write_text("no image")
    (tmp_path / "zoo" / "cat" / "._0.png").write_text("left by macOS")
    return tmp_path / "zoo"


def test_class_folders(zoo: Path, cache: Path) -> None:
    train, test = load(zoo, cache)
    assert (train.images_NCHW.shape, test.images_NCHW.shape) == ((16, 3, 8, 8), (4, 3, 8, 8))
    assert train.class_names == ("cat", "dog")
    assert labels_of(test) == [0, 0, 1, 1]
    assert train.skipped == ()


def test_second_call_decodes_nothing(zoo: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(zoo, cache)
    monkeypatch.setattr(neigenmaps.data.folders, "decode_image", None)
    second = load(zoo, cache)
    assert [store.fingerprint for store in second] == [store.fingerprint for store in first]
    assert torch.equal(second[0].images_NCHW, first[0].images_NCHW)


def test_changed_folder_is_packed_anew(zoo: Path, cache: Path) -> None:
    before = load(zoo, cache)
    paint(zoo / "cat" / "0.png", seed=55)
    paint(zoo / "cow" / "0.png", seed=56)
    after = load(zoo, cache)
    assert after[0].class_names == ("cat", "cow", "dog")
    assert len(after[0]) + len(after[1]) == 21
    assert after[0].fingerprint != before[0].fingerprint
    assert load(zoo, cache, image_size=9)[0].images_NCHW.shape[-1] == 9


def test_rewritten_file_is_read_again(tmp_path: Path, cache: Path) -> None:
    """Same names, same sizes: only the time of change tells."""
    files = [tmp_path / "two" / f"{number}.bmp" for number in range(2)]
    for file in files:
        paint(file, seed=0, size=(8, 8))
    before = load(tmp_path / "two", cache)
    for file in files:
        changed = file.stat().st_mtime_ns
        paint(file, seed=1, size=(8, 8))
        os.utime(file, ns=(changed + 1000, changed + 1000))
    assert load(tmp_path / "two", cache)[0].fingerprint != before[0].fingerprint


def test_lost_half_of_a_cache_entry_is_packed_again(zoo: Path, cache: Path) -> None:
    """As after a kill between the two parts."""
    before = load(zoo, cache)
    (half,) = cache.glob("*/test")
    for file in half.iterdir():
        file.unlink()
    half.rmdir()
    assert load(zoo, cache)[1].fingerprint == before[1].fingerprint


def test_damaged_cache_entry_says_what_to_do(zoo: Path, cache: Path) -> None:
    load(zoo, cache)
    for file in cache.glob("*/train/images.npy"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="delete the folder and pack it again"):
        load(zoo, cache)


def test_images_without_folders_are_unlabelled(tmp_path: Path, cache: Path) -> None:
    for number in range(5):
        paint(tmp_path / "flat" / f"{number}.jpg", number)
    train, test = load(tmp_path / "flat", cache, image_size=None)
    assert (train.labels_N, test.labels_N) == (None, None)
    assert (len(train), len(test)) == (4, 1)
    assert train.images_NCHW.shape[-2:] == (64, 64)


def test_images_beside_class_folders_are_unlabelled_rows(zoo: Path, cache: Path) -> None:
    for number in range(10):
        paint(zoo / f"stray{number}.png", 200 + number)
    train, test = load(zoo, cache)
    assert sorted(labels_of(train) + labels_of(test)) == [-1] * 10 + [0] * 10 + [1] * 10


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_explicit_parts(tmp_path: Path, cache: Path, held_out: str) -> None:
    for number, file in enumerate(["train/b/0.png", "train/a/1.png", "train/a/2.png", f"{held_out}/b/3.png"]):
        paint(tmp_path / "parts" / file, number, size=(8, 8))
    train, test = load(tmp_path / "parts", cache)
    assert (labels_of(train), labels_of(test)) == ([0, 0, 1], [1])
    expected = rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(test.images_NCHW[0].numpy(), expected.transpose(2, 0, 1))


def test_train_alone_is_split_and_is_no_class(tmp_path: Path, cache: Path) -> None:
    for number in range(6):
        paint(tmp_path / "lone" / "train" / "ab"[number % 2] / f"{number}.png", number)
    train, test = load(tmp_path / "lone", cache, test_share=0.34)
    assert train.class_names == ("a", "b")
    assert (len(train), len(test)) == (4, 2)


def test_train_beside_other_folders_is_a_class(tmp_path: Path, cache: Path) -> None:
    for number in range(4):
        paint(tmp_path / "vehicles" / ("train", "plane")[number % 2] / f"{number}.png", number)
    assert load(tmp_path / "vehicles", cache)[0].class_names == ("plane", "train")


def test_resize_and_centre_crop_match_pil(tmp_path: Path, cache: Path) -> None:
    """Shorter side to 8, then the centre 8 x 8: with 32 x 16 pixels both steps fall on whole pixels."""
    for number in range(2):
        paint(tmp_path / "wide" / f"{number}.png", 4, size=(32, 16))
    store = load(tmp_path / "wide", cache)[0]
    image = Image.open(tmp_path / "wide" / "0.png").resize((16, 8), Image.Resampling.BICUBIC).crop((4, 0, 12, 8))
    difference = store.images_NCHW[0].permute(1, 2, 0).int() - torch.tensor(np.asarray(image)).int()
    # the kernel of a resampled box ends at the box, that of the whole image looks two pixels across the cut
    assert int(difference[:, 1:-1].abs().max()) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path: Path, cache: Path, orientation: int) -> None:
    for name in ("a.png", "b.png"):
        paint(tmp_path / "photos" / name, size=(10, 10))
        image, exif = Image.open(tmp_path / "photos" / name), Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(tmp_path / "photos" / name, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "photos" / "a.png")))
    store = load_splits(str(tmp_path / "photos"), cache_dir=cache, image_size=10, test_share=0.5).train
    assert np.array_equal(store.images_NCHW[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # by PIL
def test_broken_exif_is_passed_over(tmp_path: Path, cache: Path) -> None:
    paint(tmp_path / "photos" / "a.png")
    Image.open(tmp_path / "photos" / "a.png").save(
        tmp_path / "photos" / "b.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    )
    splits = load_splits(str(tmp_path / "photos"), cache_dir=cache, test_share=0.5)
    assert len(splits.train) + len(splits.test) == 2


def test_a_store_decoded_otherwise_is_not_opened(zoo: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(zoo, cache)
    monkeypatch.setattr("neigenmaps.data.folders.DECODING", 1)
    load(zoo, cache)
    assert len(list(cache.iterdir())) == 2


def test_grey_becomes_rgb_and_16_bits_are_scaled(tmp_path: Path, cache: Path) -> None:
    values = rng().integers(0, 256, (8, 8), dtype=np.uint8)
    (tmp_path / "grey").mkdir()
    Image.fromarray(values).save(tmp_path / "grey" / "0.png")
    Image.fromarray(values.astype(np.uint16) * 256 + 17).save(tmp_path / "grey" / "1.png")
    train, test = load(tmp_path / "grey", cache)
    for store in (train, test):
        np.testing.assert_array_equal(store.images_NCHW[0].numpy(), np.stack([values] * 3))


def spoil(zoo: Path) -> None:
    whole = (zoo / "cat" / "3.png").read_bytes()
    (zoo / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    (zoo / "dog" / "deep" / "4.PNG").write_bytes(b"no image")


def test_a_message_names_twenty_files_and_counts_the_rest() -> None:
    names = [f"{number}.jpg" for number in range(23)]
    assert first_names(names[:3]) == "0.jpg, 1.jpg, 2.jpg"
    assert first_names(names).endswith("18.jpg, 19.jpg and 3 more")


def test_unreadable_images_are_named_and_left_out(zoo: Path, cache: Path) -> None:
    spoil(zoo)
    with pytest.warns(UserWarning, match=r"2 of 20 files can't be read as images: .*cat/3\.png"):
        train, test = load(zoo, cache, max_unreadable_share=0.1)
    assert len(train) + len(test) == 18
    assert set(train.skipped + test.skipped) == {"cat/3.png", "dog/deep/4.PNG"}
    described = [json.loads(path.read_text())["skipped"] for path in cache.glob("*/*/store.json")]
    assert sorted(name for names in described for name in names) == ["cat/3.png", "dog/deep/4.PNG"]
    assert labels_of(train).count(0) + labels_of(test).count(0) == 9
    with pytest.warns(UserWarning, match="2 of 20"):  # a cached folder says so again
        load(zoo, cache, max_unreadable_share=0.1)


def test_too_many_unreadable_images_stop_the_run(zoo: Path, cache: Path) -> None:
    spoil(zoo)
    with pytest.raises(DataError, match="raise max_unreadable_share"):
        load(zoo, cache)
    with pytest.raises(DataError, match="raise max_unreadable_share"):  # nor does the cache hide it
        load(zoo, cache)


def test_nothing_readable(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of 2 files could be read"):
        load(tmp_path / "bad", cache, max_unreadable_share=1.0)


def test_decompression_bomb_is_unreadable(zoo: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # an error from twice as many on; the images have 100
    with pytest.raises(DataError, match="none of"):
        load(zoo, cache)


def test_no_image(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    for name in ("empty", "texts"):
        with pytest.raises(DataError, match=r"found no image; expected files ending in \.bmp"):
            load(tmp_path / name, cache)


def test_one_image_can_not_be_split(tmp_path: Path, cache: Path) -> None:
    paint(tmp_path / "one" / "0.png")
    with pytest.raises(DataError, match="enough images to split"):
        load(tmp_path / "one", cache)


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "neigenmaps"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "neigenmaps"


# ---- names ------------------------------------------------------------------------------------------------------------


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown data set 'cifar01': did you mean 'cifar10'"):
        load_splits("cifar01")


@pytest.mark.parametrize("name", ["no/such/folder", "none.npz"])
def test_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_splits(name)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match="another kind of file"):
        load_splits(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    "options", [{"image_size": 0}, {"test_share": 0.0}, {"test_share": 1.0}, {"max_unreadable_share": 1.5}]
)
def test_arguments_outside_their_range(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        load_splits("digits", **options)  # type: ignore[arg-type]
