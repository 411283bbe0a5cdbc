"""Codes of a folder equal `encode`'s, whatever was killed, shared out or unreadable on the way; nothing is overwritten."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neigenmaps.data import ImageRows, open_rows
from neigenmaps.data.rows import with_channels
from neigenmaps.errors import CheckpointError, DataError, InputError, NotFittedError
from neigenmaps.functional.rayleigh_ritz import RitzResult
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.retrieval import CodeStore, fingerprint_model
from neigenmaps.retrieval.embedding import embed_images

N_IMAGES = 23


@pytest.fixture(scope="module")
def model() -> NeuralEigenmapModel:
    torch.manual_seed(0)
    model = NeuralEigenmapModel(width=6, hidden=8)
    model.set_ritz(RitzResult(torch.linspace(0.9, 0.2, 6), torch.linalg.qr(torch.randn(6, 6))[0], torch.zeros(6), 6))
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(N_IMAGES):
        path = tmp_path / "images" / f"{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def rows_of(folder: Path) -> ImageRows:
    return open_rows(str(folder), image_size=8, channels=1)


def true_codes(model: NeuralEigenmapModel, folder: Path, store: CodeStore, dims: int) -> np.ndarray:
    pixels = np.stack([np.asarray(Image.open(folder / name)) for name in store.ids])[:, None]
    return model.encode(pixels, dims).numpy()


def test_codes_are_those_of_encode_under_the_names_of_files(
    tmp_path: Path, folder: Path, model: NeuralEigenmapModel
) -> None:
    seen: list[int] = []
    done = embed_images(model, rows_of(folder), tmp_path / "c", dims=4, block=10, on_block=seen.append)
    store = CodeStore.load(done.path)
    assert (seen, done.n_encoded, done.skipped, done.n_missing) == ([10, 10, 3], N_IMAGES, (), 0)
    assert store.ids.tolist() == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    np.testing.assert_allclose(store.prefix(4), true_codes(model, folder, store, 4), rtol=0, atol=1e-6)
    np.testing.assert_allclose(store.eigenvalues_K, model.eigenvalues[:4].double(), rtol=1e-7)
    assert store.fingerprint == fingerprint_model(model)
    assert store.notes["images"] == str(folder)
    assert not (tmp_path / "c.parts").exists()


def block_of(place: Path, name: str) -> Path:
    (found,) = (place / "c.parts").glob(f"*/{name}")
    return found


class Killed(BaseException):
    """What a signal would do, where a test can see the rest."""


def test_a_killed_run_goes_on_and_encodes_nothing_twice(
    tmp_path: Path, folder: Path, model: NeuralEigenmapModel
) -> None:
    def kill_at_second(n_images: int, calls: list[int] = []) -> None:  # noqa: B006
        calls.append(n_images)
        if len(calls) == 2:
            raise Killed

    with pytest.raises(Killed):
        embed_images(model, rows_of(folder), tmp_path / "c", block=5, on_block=kill_at_second)
    block_of(tmp_path, "000001.json").unlink()  # killed between the codes and the mark that they are whole
    done = embed_images(model, rows_of(folder), tmp_path / "c", block=5)
    assert done.n_encoded == N_IMAGES - 5
    whole = embed_images(model, rows_of(folder), tmp_path / "d", block=5)
    np.testing.assert_array_equal(CodeStore.load(done.path).prefix(6), CodeStore.load(whole.path).prefix(6))
    assert embed_images(model, rows_of(folder), tmp_path / "c", block=5).n_encoded == 0


def test_shards_make_one_store(tmp_path: Path, folder: Path, model: NeuralEigenmapModel) -> None:
    images = rows_of(folder)
    reports = [embed_images(model, images, tmp_path / "c", block=4, shard=(i, 3)) for i in (2, 0, 1)]
    assert [report.n_missing for report in reports] == [4, 2, 0]
    assert sum(report.n_encoded for report in reports) == N_IMAGES
    one = embed_images(model, images, tmp_path / "d", block=4)
    a, b = CodeStore.load(tmp_path / "c"), CodeStore.load(one.path)
    np.testing.assert_array_equal(a.prefix(6), b.prefix(6))
    assert a.ids.tolist() == b.ids.tolist()


def test_files_that_are_no_images_are_named_and_left_out(
    tmp_path: Path, folder: Path, model: NeuralEigenmapModel
) -> None:
    bad = ["0/00.png", "1/03.png", "1/05.png"]
    for name in bad:
        (folder / name).write_bytes((folder / name).read_bytes()[:50])
    with pytest.raises(DataError, match=r"2 of 23 files can't be read as images: 0/00.png, 1/03.png\. .*is kept"):
        embed_images(model, rows_of(folder), tmp_path / "c", block=1, max_unreadable_share=0.05)
    assert not (tmp_path / "c").exists()
    done = embed_images(model, rows_of(folder), tmp_path / "c", block=1, max_unreadable_share=0.2)
    assert list(done.skipped) == bad
    assert done.n_encoded < N_IMAGES - 3  # those before the refusal were kept
    store = CodeStore.load(tmp_path / "c")
    assert json.loads(store.notes["skipped"]) == bad
    np.testing.assert_allclose(store.prefix(6), true_codes(model, folder, store, 6), rtol=0, atol=1e-6)
    for path in folder.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(DataError, match="none of 23 images"):
        embed_images(model, rows_of(folder), tmp_path / "e", block=7, max_unreadable_share=1)


def test_other_jobs_do_not_mix(tmp_path: Path, folder: Path, model: NeuralEigenmapModel) -> None:
    embed_images(model, rows_of(folder), tmp_path / "c", block=8, shard=(0, 2))
    with pytest.raises(InputError, match="blocks of another job"):
        embed_images(model, rows_of(folder), tmp_path / "c", dims=3, block=8)
    embed_images(model, rows_of(folder), tmp_path / "c", block=8)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(InputError, match="holds codes of another job"):
        embed_images(model, rows_of(folder), tmp_path / "c", dims=3, block=8)
    assert (tmp_path / "c").read_bytes() == before


def test_a_damaged_block_is_made_anew(tmp_path: Path, folder: Path, model: NeuralEigenmapModel) -> None:
    embed_images(model, rows_of(folder), tmp_path / "c", block=8, shard=(0, 2))
    part = block_of(tmp_path, "000002.safetensors")
    part.write_bytes(part.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="encoded anew: run the command again"):
        embed_images(model, rows_of(folder), tmp_path / "c", block=8)
    assert embed_images(model, rows_of(folder), tmp_path / "c", block=8).n_encoded == N_IMAGES - 16


def change(folder: Path, removed: list[str], added: list[str], changed: list[str]) -> None:
    for name in removed:
        (folder / name).unlink()
    for name in added + changed:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 77, dtype=np.uint8)).save(folder / name)


def reads_of(folder: Path, seen: list[str]) -> ImageRows:
    """Notes the names of images that are read."""
    images = rows_of(folder)

    def read(rows: Sequence[int]) -> list[torch.Tensor | None]:
        seen.extend(images.names[row] for row in rows)
        return images.read(rows)

    return replace(images, read=read)


@pytest.mark.parametrize(
    ("removed", "added", "changed"),
    [
        ([], [], []),
        (["0/04.png"], [], []),
        ([], ["0/03a.png", "2/00.png"], []),
        ([], [], ["1/11.png"]),
        (["0/00.png", "1/21.png"], ["0/00a.png"], ["0/02.png", "1/03.png"]),
    ],
)
def test_of_a_folder_that_has_changed_only_what_is_new_is_encoded(
    tmp_path: Path, folder: Path, model: NeuralEigenmapModel, removed: list[str], added: list[str], changed: list[str]
) -> None:
    embed_images(model, rows_of(folder), tmp_path / "c", block=6)
    before, seen = CodeStore.load(tmp_path / "c"), list[str]()
    change(folder, removed, added, changed)
    reports = [embed_images(model, reads_of(folder, seen), tmp_path / "c", block=7, shard=(i, 2)) for i in (1, 0)]
    assert sorted(seen) == sorted(added + changed)
    store = CodeStore.load(tmp_path / "c")
    assert store.ids.tolist() == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    np.testing.assert_allclose(store.prefix(6), true_codes(model, folder, store, 6), rtol=0, atol=1e-6)
    stayed = [name for name in before.ids.tolist() if name not in removed + changed]
    for name in stayed:
        a, b = store.ids.tolist().index(name), before.ids.tolist().index(name)
        np.testing.assert_array_equal(store.prefix(6)[a], before.prefix(6)[b])
    assert sum(report.n_encoded for report in reports) == len(seen)
    if removed + added + changed:
        assert sum(report.n_kept for report in reports) == len(stayed)
        assert reports[0].n_gone == reports[1].n_gone == len(removed + changed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "images"]
    assert embed_images(model, reads_of(folder, seen), tmp_path / "c").n_encoded == 0
    assert store.notes["images"] == str(folder)


def test_blocks_of_a_folder_that_has_changed_since_are_kept(
    tmp_path: Path, folder: Path, model: NeuralEigenmapModel
) -> None:
    for shard in ((0, 2), (1, 4)):  # three blocks of four; the last one holds 1/13 to 1/21
        embed_images(model, rows_of(folder), tmp_path / "c", block=6, shard=shard)
    damaged = block_of(tmp_path, "000001.safetensors")  # of 0/12 to 0/22
    damaged.write_bytes(damaged.read_bytes()[:-3])
    change(folder, ["0/04.png", "1/21.png"], ["2/00.png"], ["0/02.png"])
    seen = list[str]()
    done = embed_images(model, reads_of(folder, seen), tmp_path / "c", block=5)
    old = [f"0/{n}.png" for n in range(12, 24, 2)] + [f"1/{n}.png" for n in (13, 15, 17, 19)]
    assert sorted(seen) == sorted(["2/00.png", "0/02.png", *old])
    assert (done.n_encoded, done.n_kept, done.n_gone) == (12, 10, 2)
    store = CodeStore.load(tmp_path / "c")
    assert store.ids.tolist() == list(rows_of(folder).names)
    np.testing.assert_allclose(store.prefix(6), true_codes(model, folder, store, 6), rtol=0, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "images"]


def test_codes_of_other_images_are_not_replaced(tmp_path: Path, folder: Path, model: NeuralEigenmapModel) -> None:
    embed_images(model, rows_of(folder), tmp_path / "c")
    before = (tmp_path / "c").read_bytes()
    change(folder, [], [], [path.relative_to(folder).as_posix() for path in folder.rglob("*.png")])
    with pytest.raises(InputError, match=r"holds codes of 23 images, and none of them is in .* as it was"):
        embed_images(model, rows_of(folder), tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before


def test_a_folder_that_was_moved_is_not_encoded_again(tmp_path: Path, folder: Path, model: NeuralEigenmapModel) -> None:
    embed_images(model, rows_of(folder), tmp_path / "c")
    done = embed_images(model, rows_of(folder.rename(tmp_path / "moved")), tmp_path / "c")
    assert (done.n_encoded, done.n_kept) == (0, N_IMAGES)
    assert CodeStore.load(tmp_path / "c").notes["images"] == str(tmp_path / "moved")


def test_wrong_arguments_are_refused(tmp_path: Path, folder: Path, model: NeuralEigenmapModel) -> None:
    for wrong in ({"shard": (2, 2)}, {"block": 0}, {"max_unreadable_share": 1.5}):
        with pytest.raises(InputError, match="expected a shard i/n"):
            embed_images(model, rows_of(folder), tmp_path / "c", **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dims between 1 and 6"):
        embed_images(model, rows_of(folder), tmp_path / "c", dims=7)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    with pytest.raises(NotFittedError, match="not been put in order"):
        embed_images(NeuralEigenmapModel(width=6, hidden=8), rows_of(folder), tmp_path / "c")


def test_rows_of_a_data_set_are_both_parts_in_the_channels_asked_for() -> None:
    rows = open_rows("digits", image_size=10, channels=3)
    assert (len(rows), rows.names[0], rows.names[-1]) == (1797, "train/0", "test/396")
    image = rows.read([1796])[0]
    assert image is not None
    assert image.shape == (3, 10, 10)
    assert (image[0] == image[2]).all()


def test_grey_is_what_pillow_makes_of_colours() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    grey = with_channels(torch.from_numpy(pixels).permute(2, 0, 1), 1)[0]
    difference = grey.int() - torch.from_numpy(np.array(Image.fromarray(pixels).convert("L"))).int()
    assert difference.abs().max() <= 1
    with pytest.raises(InputError, match="channels 1 or 3"):
        open_rows("digits", image_size=8, channels=4)
