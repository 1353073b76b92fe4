"""Captured forwards that say so when they are called in another way than they were recorded."""

from __future__ import annotations

import ast

from ..capture._types import Forward
from .wrap import WIDTH, quoted

REFUSAL = "unlike the example inputs that this file was made with: rewrite the model with others"


def refusing(source: str, forward: Forward) -> str:
    """The text with a first statement that raises ValueError for arguments that the forward, recorded
    with others, would serve wrongly."""
    return _guarded(source, forward, f"raise ValueError({quoted(REFUSAL)})")


def deferring(source: str, forward: Forward) -> str:
    """The text with a first statement that leaves such calls to the base class's own forward."""
    passed = forward.guard.passed if forward.guard else ""
    return _guarded(source, forward, f"return super().forward({passed})")


def _guarded(source: str, forward: Forward, consequence: str) -> str:
    conditions = _conditions(forward, source)
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


def _conditions(forward: Forward, source: str) -> list[str]:
    """What is true of arguments unlike the recorded ones, as far as a line can tell: plain values that
    differ, and None where something was given."""
    if forward.guard is None:
        return []
    defaults = _none_by_default(source)
    found = []
    for name, pattern in zip(forward.guard.names, forward.guard.patterns, strict=True):
        if pattern[0] == "plain":
            value = pattern[2]
            text = quoted(value) if isinstance(value, str) else repr(value)
            found.append(
                f"{name} is not {text}" if value is None or isinstance(value, bool) else f"{name} != {text}"
            )
        elif pattern[0] in ("tensor", "holds") and name in defaults:
            found.append(f"{name} is None")
    return found


def _none_by_default(source: str) -> set[str]:
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    positional = [*function.args.posonlyargs, *function.args.args]
    pairs = [*zip(positional[::-1], function.args.defaults[::-1], strict=False)]
    pairs += [
        (a, d)
        for a, d in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        if d is not None
    ]
    return {
        argument.arg
        for argument, default in pairs
        if isinstance(default, ast.Constant) and default.value is None
    }
