"""How far a long job is and when it will end: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 60.0


@contextlib.contextmanager
def showing_progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields what takes the number of items done. done: by an earlier process, hence not counted in the rate."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(title, total=total, completed=done, rate="")
            started = time.monotonic()
            yield lambda now: bar.update(task, completed=now, rate=_rate(now - done, started))
        return
    started = shown = time.monotonic()

    def line(now: int) -> None:
        nonlocal shown
        if time.monotonic() - shown < LINE_SECONDS or now == done:
            return
        shown = time.monotonic()
        left = timedelta(seconds=round((total - now) * (shown - started) / (now - done)))
        console.print(
            f"{title}: {now:,} of {total:,}, {_rate(now - done, started)}, {left} left", soft_wrap=True, markup=False
        )

    yield line


def _rate(n: int, started: float) -> str:
    return f"{n / max(1e-9, time.monotonic() - started):,.0f}/s"
