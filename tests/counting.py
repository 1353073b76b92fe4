"""How much work a call is, in a measure that no busy machine changes."""

from __future__ import annotations

import sys
from collections.abc import Callable


def function_calls(work: Callable[[], object]) -> int:
    """Calls of Python and C functions that `work` makes."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count
