"""What is wrong with a request: collected first, raised once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import RequestError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `key` is what was written, to find its line; `where` is a file and line."""

    message: str
    key: tuple[str, ...] = ()
    remedy: str | None = None
    where: str | None = None


def raise_problems(problems: Sequence[Problem], what: str) -> None:
    """Raise one RequestError with all the problems of `what` ("the rules"); return if there are none."""
    if not problems:
        return
    if len(problems) == 1:
        only = problems[0]
        raise RequestError(only.message, where=only.where, remedy=only.remedy)
    lines = []
    for problem in problems:
        lines.append((f"{problem.where}: " if problem.where else "") + problem.message)
        if problem.remedy:
            lines.extend("  " + line.strip() for line in problem.remedy.split("\n"))
    raise RequestError(f"{len(problems)} problems with {what}", remedy="\n  ".join(lines))


def typed(
    keys: Mapping[str, object], key: str, types: tuple[type, ...], problems: list[Problem]
) -> Any:  # the caller knows which of the types it asked for
    """The value of a key if it has one of the types; None, and a problem, where it has another."""
    value = keys.get(key)
    if value is None or (isinstance(value, types) and (bool in types or not isinstance(value, bool))):
        return value
    wanted = " or ".join(_TYPE_WORDS[kind] for kind in types if kind is not int or float not in types)
    problems.append(Problem(f"{key} must be {wanted}, not {value!r}", (key,)))
    return None


_TYPE_WORDS: dict[type, str] = {
    str: "a string", int: "a whole number", float: "a number", bool: "true or false", dict: "a table",
    list: "a list",
}  # fmt: skip
