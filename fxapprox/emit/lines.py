"""Source text as lines and blocks, which can be put in another order and written again."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass
class Block:
    """A compound statement: its head, and what is indented below it."""

    head: str
    body: list[Line]


Line = str | Block


def read(statements: Sequence[ast.stmt], lines: list[str]) -> list[Line]:
    """Statements as lines; `with` and `if` as blocks."""
    found: list[Line] = []
    for statement in statements:
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        text = lines[first].strip()
        if isinstance(statement, ast.With | ast.If) and statement.body[0].lineno - 1 > first:
            found.append(
                Block(
                    "\n".join(line.strip() for line in lines[first : statement.body[0].lineno - 1]),
                    read(statement.body, lines),
                )
            )
            if isinstance(statement, ast.If) and statement.orelse:
                found.append(Block("else:", read(statement.orelse, lines)))
        elif first == last:
            found.append(text)
        else:
            indent = len(lines[first]) - len(lines[first].lstrip())
            found.append("\n".join(line[indent:] for line in lines[first : last + 1]))
    return found


def written(body: Iterable[Line], depth: int) -> Iterator[str]:
    for line in body:
        head = line.head if isinstance(line, Block) else line
        yield from ("    " * depth + piece for piece in head.split("\n"))
        if isinstance(line, Block):
            yield from written(line.body, depth + 1)


def used_behind(body: Sequence[Line], after: set[str]) -> list[set[str]]:
    """For each line the names whose values are used behind it; `after` are those used behind the body."""
    used = [after]
    for line in reversed(body[1:]):
        used.append(used_before(line, used[-1]))
    return used[::-1]


def used_before(line: Line, after: set[str]) -> set[str]:
    """Names whose values are used from `line` on, given those that are used behind it."""
    if isinstance(line, Block):
        inside = after
        for inner in reversed(line.body):
            inside = used_before(inner, inside)
        return after | inside | names(f"{line.head} pass")[0]
    reads, stores = names(line)
    return (after - stores) | reads


@functools.lru_cache(maxsize=4096)
def names(line: str) -> tuple[set[str], set[str]]:
    """Names that a statement reads, and those that it binds."""
    try:
        tree = ast.parse(line)
    except SyntaxError:  # a head such as `else: pass`
        return set(re.findall(r"[A-Za-z_]\w*", line)), set()
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    reads = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    return reads, {node.id for node in names if not isinstance(node.ctx, ast.Load)} - reads


@functools.lru_cache(maxsize=4096)
def statement(line: str) -> ast.stmt | None:
    """The tree of a line that is one statement by itself."""
    if "\n" in line:
        return None
    try:
        return ast.parse(line).body[0]
    except (SyntaxError, IndexError):
        return None
