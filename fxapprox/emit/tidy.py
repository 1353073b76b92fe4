"""Captured forwards as a person would write them: runs of equal layers as loops, chains of calls nested,
arguments that say the default left out.

What is computed, and in which order, stays the same.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import EmitError
from .imports import find
from .lines import Block, Line, read, statement, written
from .loops import LISTS, held, rolled
from .nesting import folded

_INDEX = re.compile(r"\[\d+\]")
_BY_NAME = re.compile(r"\bgetattr\(self((?:\.\w+|\[\d+\])*\.\w+), ['\"](\d+)['\"]\)")


def tidied(source: str, module: nn.Module, imports: Mapping[str, tuple[str, str]]) -> str:
    """The source of a module's methods, with loops and nested calls. Unusual statements stay as they are."""

    def indexed(match: re.Match[str]) -> str:
        return f"self{match[1]}[{match[2]}]" if isinstance(held(module, match[1]), LISTS) else match[0]

    source = _BY_NAME.sub(indexed, textwrap.dedent(source).strip("\n"))
    if _INDEX.search(source):
        return _tidied(source, module, imports)
    return _alike(source, tuple(imports.items()))  # repeated blocks: once


@functools.lru_cache(maxsize=256)
def _alike(source: str, imports: tuple[tuple[str, tuple[str, str]], ...]) -> str:
    return _tidied(source, nn.Module(), dict(imports))


def _tidied(source: str, module: nn.Module, imports: Mapping[str, tuple[str, str]]) -> str:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source  # whoever compiles it will say what is wrong
    lines = source.split("\n")
    if any(not isinstance(node, ast.FunctionDef) for node in tree.body):
        return source
    found = []
    for function in tree.body:
        assert isinstance(function, ast.FunctionDef)
        taken = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)} | {
            a.arg for a in ast.walk(function) if isinstance(a, ast.arg)
        }
        body = rolled(_trimmed(read(function.body, lines), imports), module, taken, set())
        head = lines[function.lineno - 1 : function.body[0].lineno - 1]
        found.append("\n".join([*head, *written(folded(body, set()), 1)]))
    return "\n\n".join(found)


def _trimmed(body: list[Line], imports: Mapping[str, tuple[str, str]]) -> list[Line]:
    """Lines without the keyword arguments that say what is the function's default anyway."""
    return [
        Block(line.head, _trimmed(line.body, imports))
        if isinstance(line, Block)
        else _without_defaults(line, imports)
        for line in body
    ]


def _without_defaults(line: str, imports: Mapping[str, tuple[str, str]]) -> str:
    tree = statement(line)
    if tree is None or not line.isascii():
        return line
    cuts = []
    for call in ast.walk(tree):
        defaults = _defaults(ast.unparse(call.func), imports) if isinstance(call, ast.Call) else {}
        if not defaults or not isinstance(call, ast.Call) or call.func is None:
            continue
        behind = (call.args or [call.func])[-1].end_col_offset or 0
        for keyword in call.keywords:
            end = keyword.value.end_col_offset or 0
            if keyword.arg in defaults and _is_literal(keyword.value, defaults[keyword.arg]) and call.args:
                cuts.append((behind, end))
            behind = end
    for start, end in sorted(cuts, reverse=True):
        line = line[:start] + line[end:]
    return line


def _defaults(function: str, imports: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Defaults of an imported function's parameters by name; none where it has no signature."""
    first, _, rest = function.partition(".")
    if first not in imports:
        return {}
    try:
        module, name = imports[first]
        found = find(module, ".".join(filter(None, (name, rest))))
        return {
            p.name: p.default
            for p in inspect.signature(found).parameters.values()
            if p.default is not p.empty
        }
    except (EmitError, ValueError, TypeError):
        return {}


def _is_literal(value: ast.expr, wanted: Any) -> bool:
    try:
        found = ast.literal_eval(value)
    except ValueError:
        return False
    return type(found) is type(wanted) and found == wanted
