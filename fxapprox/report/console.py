"""Rich renderables as text of a given width."""

from __future__ import annotations

import io
import shutil

from rich.console import Console, RenderableType


def columns() -> int:
    """The terminal's width (COLUMNS where it is set), 80 without one."""
    return shutil.get_terminal_size().columns


def text_of(renderable: RenderableType, width: int) -> str:
    """The renderable as plain text, no wider than `width`."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, highlight=False, legacy_windows=False).print(
        renderable, soft_wrap=False
    )
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
