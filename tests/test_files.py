"""Whole or not at all; and what a killed writer left is gone after the next writing, but nobody else's file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from neigenmaps.errors import InputError
from neigenmaps.files import HOST, UNTOUCHED, whole_file

WRITES_AND_WAITS = """
import sys, time
from neigenmaps.files import whole_file
with whole_file(sys.argv[1]) as unfinished:
    unfinished.write_text("half")
    print(unfinished.name, flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text("whole")


def fill_the_disk(path: Path) -> None:
    path.write_text("half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("path", [None, 3, b"a.json"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(InputError, match="expected the path of a file to write, got"):
        write(path)


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write(path)
    with pytest.raises(OSError, match="No space left"), whole_file(path) as unfinished:
        fill_the_disk(unfinished)
    assert (path.read_text(), names(path.parent)) == ("whole", ["a.json"])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_a_killed_writer_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    writer = subprocess.Popen([sys.executable, "-c", WRITES_AND_WAITS, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    left = writer.stdout.readline().strip()
    write(path)  # while it lives
    assert names(tmp_path) == [left, "a.json"]
    writer.kill()
    writer.communicate()
    write(tmp_path / "b.json")
    assert names(tmp_path) == [left, "a.json", "b.json"]
    write(path)
    assert names(tmp_path) == ["a.json", "b.json"]


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    process, elsewhere = int(dead.stdout), "0" * 8 if HOST != "0" * 8 else "1" * 8
    kept = [
        f".a.b.{HOST}-{process}.unfinished.json",  # of a.b.json
        f".a.{HOST}-{process}.unfinished.png",
        f".a.{HOST}-{os.getpid()}.unfinished.png",
        f".a.{elsewhere}-{process}.unfinished.json",  # its writer can't be asked
        f"a.{HOST}-{process}.unfinished.json",
    ]
    old, gone = f".a.{elsewhere}-1.unfinished.json", f".a.{HOST}-{process}.unfinished.json"
    for name in (*kept, old, gone):
        (tmp_path / name).touch()
    long_ago = time.time() - UNTOUCHED - 60
    os.utime(tmp_path / old, (long_ago, long_ago))
    write(tmp_path / "a.json")
    assert names(tmp_path) == sorted([*kept, "a.json"])
