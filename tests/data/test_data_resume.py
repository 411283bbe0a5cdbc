"""Packing goes on where it stopped, on all cores, in the order of one process, and says how far it is."""

import math
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from PIL import Image

import neigenmaps.data.folders
import neigenmaps.data.progress
import neigenmaps.data.resumable
from neigenmaps.data.datasets import load_splits
from neigenmaps.data.folders import decoded
from neigenmaps.data.listing import image_files, list_folder
from neigenmaps.data.progress import showing_progress
from neigenmaps.data.resumable import PROGRESS, ResumableWriter
from neigenmaps.data.store import open_store
from neigenmaps.errors import DataError

N, CHUNK = 60, 7


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neigenmaps.data.resumable, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(neigenmaps.data.folders, "CHUNK_IMAGES", CHUNK)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for number in range(N):
        path = tmp_path / "zoo" / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    (tmp_path / "zoo" / "a" / "006.png").write_bytes(b"no image")
    return tmp_path / "zoo"


def pack(zoo: Path, cache: Path) -> None:
    load_splits(str(zoo), cache_dir=cache, image_size=8, max_unreadable_share=0.1)


def files(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


@pytest.mark.filterwarnings("ignore:.*1 of 60 files")
def test_resume_after_an_interruption_decodes_only_the_rest(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(zoo, tmp_path / "whole")
    decode, seen = neigenmaps.data.folders.decode_image, []

    def interrupted(file: str, size: int) -> object:
        seen.append(file)
        if len(seen) == 20:
            raise KeyboardInterrupt
        return decode(file, size)

    monkeypatch.setattr(neigenmaps.data.folders, "decode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(zoo, tmp_path / "cache")
    pack(zoo, tmp_path / "cache")
    assert len(seen) == N + 20 - 2 * CHUNK  # two chunks had been saved
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


def pack_until(call: float, zoo: Path, cache: Path) -> int:
    """How many calls of functions packing took; the process is killed at the one of number `call`, wherever that is."""
    n = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal n
        n += event == "call"
        if n == call:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(counted)
    try:
        pack(zoo, cache)
    finally:
        sys.setprofile(None)
    return n


@pytest.mark.skipif(not hasattr(os, "fork") or not hasattr(signal, "SIGKILL"), reason="needs fork and SIGKILL")
@pytest.mark.filterwarnings("ignore:.*1 of 60 files")
def test_resume_after_kills_at_any_moment(zoo: Path, tmp_path: Path) -> None:
    n_calls, context = pack_until(math.inf, zoo, tmp_path / "whole"), multiprocessing.get_context("fork")

    def exit_code(call: int, cache: Path) -> int | None:
        child = context.Process(target=pack_until, args=(call, zoo, cache))
        child.start()
        child.join()
        return child.exitcode

    for moment in range(1, 12):
        cache = tmp_path / f"cache{moment}"
        assert exit_code(n_calls * moment // 12, cache) == -signal.SIGKILL
        assert exit_code(n_calls // 4, cache) in (-signal.SIGKILL, 0)  # again, while it goes on, or at its end
        pack(zoo, cache)
        assert files(cache) == files(tmp_path / "whole")


def rows(first: int, n: int) -> torch.Tensor:
    return torch.arange(first, first + n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).contiguous()


def unfinished(path: Path) -> Path:
    return path.parent / f".{path.name}.unfinished"


def test_resume_cuts_off_what_was_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    with ResumableWriter(path) as writer:
        writer.append(rows(0, 3), torch.tensor([0, 1, 2]))
        writer.save(4, skipped=["x"])
        monkeypatch.setattr(neigenmaps.data.resumable, "SAVE_SECONDS", 1e9)
        writer.append(rows(50, 5), torch.tensor([5] * 5))
        writer.save(9)
    with ResumableWriter(path) as writer:
        assert (writer.done, writer.skipped) == (4, ("x",))
        writer.append(rows(3, 2), torch.tensor([3, 4]))
        writer.finish(source="here")
    store = open_store(path, verify=True)
    assert torch.equal(store.images_NCHW, rows(0, 5))
    assert store.labels_N is not None
    assert store.labels_N.tolist() == [0, 1, 2, 3, 4]
    assert sorted(file.name for file in path.iterdir()) == ["images.npy", "labels.npy", "store.json"]
    assert not unfinished(path).exists()


def test_resume_where_nothing_could_be_read_yet(tmp_path: Path) -> None:
    with ResumableWriter(tmp_path / "s") as writer:
        writer.save(2, skipped=["x", "y"])
    with ResumableWriter(tmp_path / "s") as writer:
        assert (writer.done, writer.skipped) == (2, ("x", "y"))
        writer.append(rows(0, 3))
        writer.finish(source="here", skipped=writer.skipped)
    assert torch.equal(open_store(tmp_path / "s", verify=True).images_NCHW, rows(0, 3))


@pytest.mark.parametrize("harm", ["short", "garbled", "gone"])
def test_a_harmed_remainder_is_begun_anew(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "s"
    with ResumableWriter(path) as writer:
        writer.append(rows(0, 3))
        writer.save(3)
    if harm == "short":
        os.truncate(unfinished(path) / "images.npy", 130)
    elif harm == "garbled":
        (unfinished(path) / PROGRESS).write_text("{")
    else:
        (unfinished(path) / "images.npy").unlink()
    with ResumableWriter(path) as writer:
        assert writer.done == 0
        writer.append(rows(7, 1))
        writer.finish(source="here")
    assert torch.equal(open_store(path, verify=True).images_NCHW, rows(7, 1))


def test_a_second_process_waits_and_then_opens_what_the_first_made(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def second() -> None:
        with pytest.raises(DataError, match="another process"), ResumableWriter(path):
            pass

    with ResumableWriter(path) as writer:
        writer.append(rows(0, 1))
        child = multiprocessing.get_context("fork").Process(target=second)
        child.start()
        child.join(0.2)
        assert child.is_alive()
        writer.finish(source="first")
    child.join()
    assert child.exitcode == 0


def test_processes_decode_in_the_order_of_one(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = list_folder(zoo, 0.2).train
    alone = list(decoded(listing, 8, start=3))
    monkeypatch.setattr(neigenmaps.data.folders, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(neigenmaps.data.folders, "cores", lambda: 2)
    state = torch.get_rng_state()
    together = list(decoded(listing, 8, start=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert [chunk[:2] for chunk in together] == [chunk[:2] for chunk in alone]
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(alone, together, strict=True))
    assert [row for chunk in alone for row in chunk[0]] == list(range(3, len(listing)))


def test_packing_stops_when_too_much_is_unreadable(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in sorted((zoo / "a").iterdir())[:8]:
        path.write_bytes(b"no image")
    decode, seen = neigenmaps.data.folders.decode_image, []
    monkeypatch.setattr(neigenmaps.data.folders, "decode_image", lambda *given: seen.append(1) or decode(*given))
    with pytest.raises(
        DataError, match=r"\d of the first 7 files can't be read as images: .*max_unreadable_share \(now 0\.05\)"
    ):
        load_splits(str(zoo), cache_dir=tmp_path / "cache", image_size=8, max_unreadable_share=0.05)
    assert len(seen) == CHUNK


def test_links_and_folders_that_cannot_be_listed(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (zoo / "b" / "link.png").symlink_to(zoo / "b" / "001.png")
    (zoo / "b" / "broken.png").symlink_to(zoo / "nowhere.png")
    (zoo / "c").symlink_to(zoo / "b")
    (zoo / "b" / "folder.png").mkdir()
    found = image_files(zoo, "")
    assert len(found) == N + 1
    assert "b/link.png" in found
    listed = os.scandir

    def refused(path: Path) -> Iterator[os.DirEntry[str]]:
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"zoo/b: can't be listed \(Permission denied\)"):
        image_files(zoo, "")


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 30.0, 61.0, 61.0, 61.0, 90.0])
    monkeypatch.setattr(neigenmaps.data.progress.time, "monotonic", lambda: next(clock))
    with showing_progress("Packing x", 4000, done=1000) as show:
        show(500)
        show(500)
        show(200)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.fullmatch(r"Packing x: 2,000 of 4,000, 16/s, 0:02:02 left", lines[0])


def test_progress_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    with showing_progress("Packing [x]", 4000, done=1000) as show:
        show(500)
        show(700)
    shown = capsys.readouterr().err
    assert "Packing [x]" in shown
    assert "2200/4000" in shown
