"""Files that are written whole or not at all."""

import contextlib
import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from neigenmaps.errors import InputError

UNTOUCHED = 24 * 3600.0  # seconds after which nobody is believed to be writing, where processes can't be asked
HOST = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()  # of one length, whatever its letters


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` if the block succeeds and is removed if not.

    What writers of the same file left behind when they were killed is removed first. InputError for what is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"expected the path of a file to write, got {path!r}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    unfinished = path.with_name(f".{path.stem}.{HOST}-{os.getpid()}.unfinished{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_leftovers(path: Path) -> None:
    ours = re.compile(rf"\.{re.escape(path.stem)}\.([0-9a-f]+)-(\d+)\.unfinished{re.escape(path.suffix)}")
    for name in os.listdir(path.parent):
        found = ours.fullmatch(name)
        if found is not None and _is_abandoned(path.with_name(name), found[1], int(found[2])):
            path.with_name(name).unlink(missing_ok=True)


def _is_abandoned(unfinished: Path, host: str, process: int) -> bool:
    """Whether its writer is dead, or, on another machine of a shared folder, has written nothing for a day."""
    if host == HOST and os.name == "posix":
        try:
            os.kill(process, 0)  # asks, and sends nothing
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):  # another user's
            return False
        return False
    try:
        return time.time() - unfinished.stat().st_mtime > UNTOUCHED
    except FileNotFoundError:  # finished meanwhile
        return False
