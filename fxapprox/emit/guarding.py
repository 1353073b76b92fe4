"""Captured forwards that say so when they are called in another way than they were recorded."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from ..capture._types import Forward
from .wrap import WIDTH, quoted

REFUSAL = "unlike the example inputs that this file was made with: rewrite the model with others"


def refusing(forward: Forward, written: Callable[..., Any]) -> str:
    """The text with a first statement that raises ValueError for arguments that the forward, recorded
    with others, would serve wrongly. `written` is the user's own."""
    return _guarded(forward, written, f"raise ValueError({quoted(REFUSAL)})")


def deferring(forward: Forward, written: Callable[..., Any]) -> str:
    """The text with a first statement that leaves such calls to the base class's own forward."""
    passed = forward.guard.passed if forward.guard else ""
    return _guarded(forward, written, f"return super().forward({passed})")


def _guarded(forward: Forward, written: Callable[..., Any], consequence: str) -> str:
    conditions, source = _conditions(forward, written), forward.source
    if not conditions:
        return source
    lines = source.split("\n")
    body = next(f.body[0].lineno - 1 for f in ast.parse(source).body if isinstance(f, ast.FunctionDef))
    head = f"    if {' or '.join(conditions)}:"
    if len(head) > WIDTH - 4:
        head = "\n".join(
            ["    if (", *(f"        {'or ' * (i > 0)}{c}" for i, c in enumerate(conditions)), "    ):"]
        )
    return "\n".join([*lines[:body], head, f"        {consequence}", *lines[body:]])


def _conditions(forward: Forward, written: Callable[..., Any]) -> list[str]:
    """What is true of arguments unlike the recorded ones, as far as a line can tell: plain values that
    differ, and None where something was given."""
    if forward.guard is None:
        return []
    # the text may say None for a default that has no text
    parameters = inspect.signature(written).parameters.values()
    optional = {parameter.name for parameter in parameters if parameter.default is None}
    found = []
    for name, pattern in zip(forward.guard.names, forward.guard.patterns, strict=True):
        if pattern[0] == "plain":
            value = pattern[2]
            text = quoted(value) if isinstance(value, str) else repr(value)
            found.append(
                f"{name} is not {text}" if value is None or isinstance(value, bool) else f"{name} != {text}"
            )
        elif pattern[0] in ("tensor", "holds") and name in optional:
            found.append(f"{name} is None")
    return found
