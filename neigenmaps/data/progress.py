"""How far a long job is and when it will end: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 60.0


@contextlib.contextmanager
def showing_progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields what takes the number of items that have just been done. done: by an earlier process, hence not in the rate."""
    console, now = Console(stderr=True), done
    started = shown = time.monotonic()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(escape(title), total=total, completed=done, rate="")

            def move(n: int) -> None:
                nonlocal now
                now += n
                bar.update(task, completed=now, rate=_rate(now - done, started))

            yield move
        return

    def line(n: int) -> None:
        nonlocal now, shown
        now += n
        if time.monotonic() - shown < LINE_SECONDS or now == done:
            return
        shown = time.monotonic()
        left = timedelta(seconds=round((total - now) * (shown - started) / (now - done)))
        console.print(
            f"{title}: {now:,} of {total:,}, {_rate(now - done, started)}, {left} left", soft_wrap=True, markup=False
        )

    yield line


def _rate(n: int, started: float) -> str:
    rate = n / max(1e-9, time.monotonic() - started)
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
