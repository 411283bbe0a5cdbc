"""A store survives the disk unchanged, is read piece by piece, appears whole or not at all, and names every damage."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from neigenmaps.errors import CheckpointError, InputError, ShapeError
from neigenmaps.retrieval import CodeStore, TruncatedIndex
from neigenmaps.retrieval import sealed as sealed_module
from neigenmaps.retrieval import store as module

KILLER = Path(__file__).parent / "kill_while_saving.py"


def codes(n: int = 50, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "codes.safetensors"
    CodeStore(codes(), ids=np.arange(50) * 3, eigenvalues=np.linspace(1, 0, 40), fingerprint="model a").save(path)
    return path


def rewritten(path: Path, **changes: str) -> None:
    """The same tensors under other notes, as somebody with an editor might leave them."""
    with safe_open(path, framework="np") as file:
        notes, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={**notes, **changes})


@pytest.mark.parametrize("width", [1, 16, 17, 40, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_round_trip(tmp_path: Path, width: int, dtype: type) -> None:
    before = CodeStore(codes(30, width).astype(dtype), eigenvalues=np.linspace(1, 0, width), fingerprint="model a")
    before.save(tmp_path / "s")
    after = CodeStore.load(tmp_path / "s")
    for m in {1, width // 2 or 1, width}:
        np.testing.assert_array_equal(after.prefix(m), codes(30, width).astype(dtype)[:, :m])
        np.testing.assert_array_equal(after.gather(np.array([7, 0, 7]), m), after.prefix(m)[[7, 0, 7]])
        np.testing.assert_array_equal(after.prefix(m, 4, 9), after.prefix(m)[4:9])
    np.testing.assert_array_equal(after.ids, np.arange(30))
    np.testing.assert_array_equal(after.eigenvalues_K, before.eigenvalues_K)
    assert (after.width, len(after), after.fingerprint) == (width, 30, "model a")
    assert {block.dtype for block in after._segments[0].blocks} == {np.dtype(dtype)}


@pytest.mark.parametrize("ids", [["é/1.jpg", "", "longer/name.png"], np.array([-5, 2**60, 0])])
def test_ids_survive(tmp_path: Path, ids) -> None:  # type: ignore[no-untyped-def]
    CodeStore(codes(3), ids=ids).save(tmp_path / "s")
    np.testing.assert_array_equal(CodeStore.load(tmp_path / "s").ids, ids)
    assert CodeStore.load(tmp_path / "s").fingerprint is None


def test_the_file_is_the_same_whatever_the_length_and_opens_with_safetensors(tmp_path: Path, saved: Path) -> None:
    for m, metric in ((4, "cosine"), (40, "inner_product")):
        store = CodeStore.load(saved)
        TruncatedIndex(store, m, metric).save(tmp_path / "again")  # type: ignore[arg-type]
        assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    with safe_open(saved, framework="np") as file:
        columns = [file.get_tensor(f"codes_{a}_{b}") for a, b in ((0, 16), (16, 32), (32, 40))]
    np.testing.assert_array_equal(np.concatenate(columns, axis=1), codes())


def test_loaded_index_answers_as_before(saved: Path) -> None:
    index = TruncatedIndex(codes(), 20, ids=np.arange(50) * 3)
    loaded = TruncatedIndex.load(saved, 20)
    expected, got = index.search(codes(3, seed=1), 5), loaded.search(codes(3, seed=1), 5)
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_array_equal(got.scores, expected.scores)


def test_removed_rows_are_not_saved_and_added_ones_are(tmp_path: Path, saved: Path) -> None:
    store = CodeStore.load(saved)
    store.remove([0, 6])
    store.add(codes(4, seed=1))
    store.add(codes(3, seed=2), ids=[1, 2, 4])
    store.remove([149])
    store.save(saved)  # over the file that it is a map of
    again = CodeStore.load(saved)
    kept = np.setdiff1d(np.arange(50), [0, 2])
    expected = np.concatenate([codes()[kept], codes(4, seed=1)[[0, 2, 3]], codes(3, seed=2)])
    np.testing.assert_array_equal(again.prefix(40), expected)
    assert again.ids.tolist() == [*(kept * 3).tolist(), 148, 150, 151, 1, 2, 4]
    rows = np.array([0, 49, 52, 1, 54])
    np.testing.assert_array_equal(store.gather(rows, 33), store.prefix(33)[rows])
    np.testing.assert_array_equal(store.prefix(33, 48, 56), store.prefix(33)[48:56])


def test_pieces_join_up(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_A_TIME", 48)
    monkeypatch.setattr(sealed_module, "HASHED_AT_A_TIME", 7)
    CodeStore.load(saved).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    CodeStore.load(tmp_path / "again")


def test_loading_maps_the_file_instead_of_reading_it(tmp_path: Path) -> None:
    CodeStore(np.zeros((100_000, 64), np.float32)).save(tmp_path / "s")

    def own_memory() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    before = own_memory()
    store = CodeStore.load(tmp_path / "s")
    assert own_memory() - before < 6_000  # KiB; the codes are 25,600, the ids 800
    assert store.prefix(64).sum() == 0


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_truncated_file(saved: Path, size: int) -> None:
    os.truncate(saved, size if size >= 0 else saved.stat().st_size + size)
    with pytest.raises(CheckpointError, match="cut short or no safetensors"):
        CodeStore.load(saved, verify=False)


def test_a_flipped_bit_anywhere_is_found(saved: Path) -> None:
    whole = saved.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for position in [*range(0, header, 61), *range(header, len(whole), 397), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 4
        saved.write_bytes(damaged)
        try:
            CodeStore.load(saved)
        except CheckpointError:
            continue
        assert whole[position : position + 1].isspace(), f"byte {position} was changed and nobody noticed"
    saved.write_bytes(whole)
    CodeStore.load(saved)


def test_without_verifying_damage_in_the_numbers_passes(saved: Path) -> None:
    damaged = bytearray(saved.read_bytes())
    damaged[-1] ^= 4
    saved.write_bytes(damaged)
    CodeStore.load(saved, verify=False)  # as documented
    with pytest.raises(CheckpointError, match="differs from what was saved"):
        CodeStore.load(saved)


def test_changed_headers_are_refused_even_without_verifying(saved: Path) -> None:
    whole = saved.read_bytes()
    for changes, message in [
        ({"fingerprint": json.dumps("model b")}, "header of .* was changed"),
        ({"sha256": "{}"}, "header of .* was changed"),
        ({"sha256": "{"}, "no readable digests"),
        ({"format": "neigenmaps.codes/9"}, "expected format"),
        ({"digest": "0"}, "header of .* was changed"),
    ]:
        rewritten(saved, **changes)
        with pytest.raises(CheckpointError, match=message):
            CodeStore.load(saved, verify=False)
        saved.write_bytes(whole)


def test_sealed_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    part = sealed_module.Part("codes_0_4", "float32", (3, 4), [codes(3, 4)])
    ids = sealed_module.Part("ids", "int64", (3,), [np.arange(3)])
    for parts, notes, message in [
        ([part], {"fingerprint": "null"}, "has no 'id_bytes'"),
        ([part, ids], {}, "has no 'fingerprint'"),
        ([ids], {"fingerprint": "null"}, "columns do not join up"),
        ([part._replace(name="codes_4_8"), ids], {"fingerprint": "null"}, "columns do not join up"),
        ([part, ids._replace(pieces=[np.zeros(3)])], {"fingerprint": "null"}, "2 repeated"),
    ]:
        sealed_module.write_sealed(path, parts, notes)
        with pytest.raises(CheckpointError, match=message):
            CodeStore.load(path)


def test_what_is_not_there_or_no_store(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no such file"):
        CodeStore.load(tmp_path / "nothing")
    save_file({"x": codes(2)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="expected format"):
        CodeStore.load(tmp_path / "other")
    torch.save({"x": torch.zeros(2)}, tmp_path / "pickle")
    with pytest.raises(CheckpointError, match="no safetensors"):
        CodeStore.load(tmp_path / "pickle")
    empty = CodeStore(codes(2))
    empty.remove([0, 1])
    with pytest.raises(InputError, match="rows to save"):
        empty.save(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_a_failed_save_leaves_the_old_file_and_nothing_else(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        CodeStore(codes(5)).save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def killed_while_saving(folder: Path, rows: int, width: int, kills: int, mode: str) -> dict[str, int]:
    command = [sys.executable, str(KILLER), str(folder), str(rows), str(width), str(kills), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.mark.skipif(not hasattr(os, "fork") or not hasattr(signal, "SIGKILL"), reason="needs fork and SIGKILL")
def test_killed_at_any_moment_the_old_file_or_the_new_is_there(tmp_path: Path) -> None:
    for mode, kills in (("replace", 12), ("add", 6)):
        counts = killed_while_saving(tmp_path, 10_000, 64, kills, mode)
        assert counts["old"] + counts["new"] == kills
        assert counts["old"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kills"), [("replace", 40), ("add", 25)])
def test_killed_at_any_moment_with_a_million_codes(tmp_path: Path, mode: str, kills: int) -> None:
    counts = killed_while_saving(tmp_path, 1_000_000, 32, kills, mode)
    print(mode, counts)
    assert counts["old"] + counts["new"] == kills
    assert min(counts["old"], counts["new"], counts["left_over"]) > 0  # kills fell before, after, and amid the writing


def test_notes_are_kept_and_must_be_text(tmp_path: Path) -> None:
    notes = {"images": "some/folder", "é": "<b>"}
    CodeStore(codes(), notes=notes).save(tmp_path / "s")
    assert CodeStore.load(tmp_path / "s").notes == notes
    with pytest.raises(InputError, match="from str to str"):
        CodeStore(codes(), notes={"n": 3})  # type: ignore[dict-item]


def test_origins_stay_with_their_rows(tmp_path: Path) -> None:
    store = CodeStore(np.eye(4), origins=np.array([5, -6, 7, 8]))
    store.remove([1])
    store.add(np.ones((1, 4)))
    store.save(tmp_path / "a")
    loaded = CodeStore.load(tmp_path / "a")
    assert loaded.origins_N.tolist() == [5, 7, 8, 0]
    other = CodeStore(np.eye(4), ids=[10, 11, 12, 13])
    assert CodeStore.joined([loaded, other]).origins_N.tolist() == [5, 7, 8, 0, 0, 0, 0, 0]
    for wrong in (np.arange(3), np.ones(4)):
        with pytest.raises(ShapeError, match=r"int64 origins \(4,\)"):
            CodeStore(np.eye(4), origins=wrong)


def test_joined_stores_answer_like_one(tmp_path: Path) -> None:
    whole = codes(50)
    for number, part in enumerate((slice(0, 20), slice(20, 21), slice(21, 50))):
        CodeStore(whole[part], ids=np.arange(50)[part], fingerprint="model a").save(tmp_path / str(number))
    store = CodeStore.joined([CodeStore.load(tmp_path / str(number)) for number in range(3)])
    np.testing.assert_array_equal(store.prefix(40), whole)
    np.testing.assert_array_equal(store.gather(np.array([49, 20, 0, 20]), 17), whole[[49, 20, 0, 20], :17])
    store.add(-whole[:2], fingerprint="model a")
    store.add(-whole[2:3])
    store.remove([20])
    store.save(tmp_path / "all")
    after = CodeStore.load(tmp_path / "all")
    np.testing.assert_array_equal(after.prefix(40), np.concatenate([np.delete(whole, 20, 0), -whole[:3]]))
    assert after.ids.tolist() == [*range(20), *range(21, 53)]


def test_stores_that_do_not_belong_together_are_not_joined() -> None:
    a = CodeStore(codes(), fingerprint="a")
    for others, message in (
        ([], "got none"),
        ([a, CodeStore(codes(), fingerprint="b")], "expected codes of the model"),
        ([a, CodeStore(codes(width=8))], "width 40, got 8"),
        ([a, CodeStore(codes().astype(np.float16), ids=np.arange(50, 100))], "one precision"),
        ([a, CodeStore(codes())], "50 repeated"),
    ):
        with pytest.raises(InputError, match=message):
            CodeStore.joined(others)
