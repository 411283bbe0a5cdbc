"""Files that can't be read as images: a few are left out and named, too many end the work."""

from collections.abc import Sequence
from typing import NamedTuple

from neigenmaps.errors import DataError

NAMES_IN_MESSAGE = 20  # a stopped run leaves no list of them


class Allowed(NamedTuple):
    """Share of unreadable files among so many."""

    share: float
    files: int


def check_unreadable(source: str, names: Sequence[str], allowed: Allowed, n_read: int | None = None) -> str:
    """What to say of the unreadable files `names` of a source. DataError if they are more than allowed of all its files, also when
    only the first `n_read` have been looked at."""
    among = f"{allowed.files} files" if n_read is None else f"the first {n_read} files"
    said = f"{source}: {len(names)} of {among} can't be read as images: {first_names(names)}"
    if len(names) > allowed.share * allowed.files:
        raise DataError(
            f"{said}. Repair or delete them, or raise max_unreadable_share (now {allowed.share:g}); what was done is kept"
        )
    return said


def first_names(names: Sequence[str]) -> str:
    """As many as a message holds, and how many more there are."""
    more = len(names) - NAMES_IN_MESSAGE
    return ", ".join(names[:NAMES_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")
