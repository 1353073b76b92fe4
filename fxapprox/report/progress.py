"""A progress bar for work that takes longer than one waits for without asking."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE = 2.0
"""Seconds before the bar appears."""


@contextmanager
def progress(doing: str, total: int | None, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """A bar on stderr from `PATIENCE` seconds on, gone at the end. Call what it yields once a step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console or Console(stderr=True), transient=True)
    task, begun = bar.add_task(doing, total=total), time.monotonic()

    def advance() -> None:
        bar.advance(task)
        if not bar.live.is_started and time.monotonic() - begun > PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
