"""Captured forwards as the methods of an emitted class: imports spelled, calls of sites redirected,
numbers marked so that blocks which differ in numbers only can share a class."""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..capture._types import Forward, FunctionCall
from ..errors import EmitError
from .imports import Imports
from .operators import Edit, Span, as_written
from .wrap import quoted

MARK = "\x00"
"""Stands for a number in a template."""


@dataclass(frozen=True)
class Methods:
    """The text of a class's methods with its numbers cut out, and the calls that go to site modules."""

    template: str
    numbers: tuple[str, ...]
    sites: tuple[FunctionCall, ...]


def template(forward: Forward) -> tuple[object, ...]:
    """What two forwards have in common that differ in numbers only."""
    marked, _ = _cut(_source(forward), [])
    return marked, tuple(sorted(forward.imports.items())), tuple((c.target, c.name) for c in forward.calls)


def methods(forward: Forward, redirected: Iterable[str], imports: Imports) -> Methods:
    """The forward's text for the emitted file.

    `redirected` are the targets of the calls that go to `self.<name>`; every other free name is imported
    by `imports`. Raises EmitError for a name that a fresh process could not import."""
    source, targets = _source(forward), set(redirected)
    names = {call.target: f"self.{call.name}" for call in forward.calls if call.target in targets}
    tree = _parsed(source, forward)
    kept = {call.target: forward.imports[call.target] for call in forward.calls if call.target not in targets}
    edits, done = as_written(tree, source, kept)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node not in done:
            if node.id in names:
                edits.append((_place(node, source), names[node.id]))
            elif node.id in forward.imports:
                edits.append((_place(node, source), _spelled(node.id, forward, imports)))
    marked, numbers = _cut(source, edits)
    return Methods(marked, numbers, tuple(call for call in forward.calls if call.target in targets))


def local_names(forward: Forward) -> set[str]:
    """Names that the text itself binds, which no import may take."""
    found: set[str] = set()
    for node in ast.walk(_parsed(_source(forward), forward)):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def attributes(forward: Forward, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(module, name) of every plain attribute that the text reads, in `module` or below it."""
    for node in ast.walk(_parsed(_source(forward), forward)):
        if not isinstance(node, ast.Attribute):
            continue
        owner = _resolved(node.value, module)
        if isinstance(owner, nn.Module) and node.attr in owner.__dict__ and node.attr != "training":
            yield owner, node.attr


def _source(forward: Forward) -> str:
    return textwrap.dedent(forward.source).strip("\n")


def _parsed(source: str, forward: Forward) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as failure:
        raise EmitError(
            f"the captured forward does not parse: {failure}", where=forward.path or "the model"
        ) from failure


def _spelled(name: str, forward: Forward, imports: Imports) -> str:
    try:
        return imports.spell(*forward.imports[name])
    except EmitError as failure:
        where = f"used by the forward of {forward.path or 'the model'}"
        raise EmitError(failure.message, where=where, remedy=failure.remedy) from failure


def _resolved(node: ast.expr, module: nn.Module) -> Any:
    """The module that an expression on `self` reaches, None for anything else."""
    if isinstance(node, ast.Name):
        return module if node.id == "self" else None
    if isinstance(node, ast.Attribute):
        owner = _resolved(node.value, module)
        return owner._modules.get(node.attr) if isinstance(owner, nn.Module) else None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        owner = _resolved(node.value, module)
        return owner._modules.get(str(node.slice.value)) if isinstance(owner, nn.Module) else None
    if isinstance(node, ast.Call) and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
        owner = _resolved(node.args[0], module)
        return owner._modules.get(str(node.args[1].value)) if isinstance(owner, nn.Module) else None
    return None


def _place(node: ast.Name, source: str) -> Span:
    line = source.splitlines()[node.lineno - 1].encode()
    start = len(line[: node.col_offset].decode())
    return node.lineno - 1, start, start + len(node.id)


def _cut(source: str, edits: list[Edit]) -> tuple[str, tuple[str, ...]]:
    """`source` with its numbers replaced by marks and the edits made; and the numbers, in order."""
    numbers = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NUMBER:
            numbers.append(token.string)
            edits = [*edits, ((token.start[0] - 1, token.start[1], token.end[1]), MARK)]
        elif token.type == tokenize.STRING and token.start[0] == token.end[0] and token.string[0] == "'":
            text = ast.literal_eval(token.string)
            edits = [*edits, ((token.start[0] - 1, token.start[1], token.end[1]), quoted(text))]
    lines = source.splitlines()
    for (line, start, end), text in sorted(edits, reverse=True):
        lines[line] = lines[line][:start] + text + lines[line][end:]
    return "\n".join(line.rstrip() for line in lines), tuple(numbers)
