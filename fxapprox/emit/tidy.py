"""Captured forwards as a person would write them: runs of equal layers as loops, chains of calls nested.

What is computed, and in which order, stays the same.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import EmitError
from .imports import find

FOLDED_WIDTH = 88
MOST_NESTED = 3
LONGEST_PERIOD = 6
FEWEST_ROUNDS = 3
_INDEXED = re.compile(r"\bself((?:\.\w+|\[\d+\])*\.\w+)\[(\d+)\]")
_BY_NAME = re.compile(r"\bgetattr\(self((?:\.\w+|\[\d+\])*\.\w+), ['\"](\d+)['\"]\)")
LISTS = (nn.ModuleList, nn.Sequential, nn.ParameterList)


@dataclass
class Block:
    """A compound statement: its head, and what is indented below it."""

    head: str
    body: list[Line]


Line = str | Block


def tidied(source: str, module: nn.Module, imports: Mapping[str, tuple[str, str]]) -> str:
    """The source of a module's methods, with loops and nested calls. Unusual statements stay as they are."""

    def indexed(match: re.Match[str]) -> str:
        return f"self{match[1]}[{match[2]}]" if isinstance(_held(module, match[1]), LISTS) else match[0]

    source = _BY_NAME.sub(indexed, textwrap.dedent(source).strip("\n"))
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
        names = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)} | {
            a.arg for a in ast.walk(function) if isinstance(a, ast.arg)
        }
        body = _rolled(_trimmed(_read(function.body, lines), imports), module, names)
        head = lines[function.lineno - 1 : function.body[0].lineno - 1]
        found.append("\n".join([*head, *_written(_folded(body, set()), 1)]))
    return "\n\n".join(found)


def _read(statements: Sequence[ast.stmt], lines: list[str]) -> list[Line]:
    """Statements as lines; `with` and `if` as blocks."""
    found: list[Line] = []
    for statement in statements:
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        text = lines[first].strip()
        if isinstance(statement, ast.With | ast.If) and statement.body[0].lineno - 1 > first:
            found.append(
                Block(
                    "\n".join(line.strip() for line in lines[first : statement.body[0].lineno - 1]),
                    _read(statement.body, lines),
                )
            )
            if isinstance(statement, ast.If) and statement.orelse:
                found.append(Block("else:", _read(statement.orelse, lines)))
        elif first == last:
            found.append(text)
        else:
            indent = len(lines[first]) - len(lines[first].lstrip())
            found.append("\n".join(line[indent:] for line in lines[first : last + 1]))
    return found


def _written(body: Iterable[Line], depth: int) -> Iterator[str]:
    for line in body:
        head = line.head if isinstance(line, Block) else line
        yield from ("    " * depth + piece for piece in head.split("\n"))
        if isinstance(line, Block):
            yield from _written(line.body, depth + 1)


# ---- arguments


def _trimmed(body: list[Line], imports: Mapping[str, tuple[str, str]]) -> list[Line]:
    """Lines without the keyword arguments that say what is the function's default anyway."""
    return [
        Block(line.head, _trimmed(line.body, imports))
        if isinstance(line, Block)
        else _without_defaults(line, imports)
        for line in body
    ]


def _without_defaults(line: str, imports: Mapping[str, tuple[str, str]]) -> str:
    statement = _statement(line)
    if statement is None or not line.isascii():
        return line
    cuts = []
    for call in ast.walk(statement):
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


# ---- loops


def _rolled(body: list[Line], module: nn.Module, names: set[str]) -> list[Line]:
    """Lines that repeat for every layer of a list as a loop over the list."""
    found: list[Line] = []
    position = 0
    while position < len(body):
        line = body[position]
        if isinstance(line, Block):
            found.append(Block(line.head, _rolled(line.body, module, names)))
            position += 1
            continue
        loops = (_loop(body, position, period, module, names) for period in range(1, LONGEST_PERIOD + 1))
        best = next((loop for loop in loops if loop is not None), None)
        if best is None:
            found.append(line)
            position += 1
        else:
            found.extend(best[0])
            position += best[1]
    return found


def _loop(
    body: list[Line], start: int, period: int, module: nn.Module, names: set[str]
) -> tuple[list[Line], int] | None:
    """The loop (and what must stand before it) that begins at `start` with rounds of `period` lines, and how many lines it replaces."""
    first = _round(body[start : start + period])
    if first is None or len(body) - start < FEWEST_ROUNDS * period:
        return None
    text, lists, begin = first
    ahead, second = [], _round(body[start + period : start + 2 * period])
    if second is not None and second[0] != text and second[1:] == (lists, begin + 1):
        carried = _carried(text, second[0])
        if carried is None:
            return None
        ahead, text = [f"{carried[1]} = {carried[0]}"], second[0]
    rounds = 1
    while _round(body[start + rounds * period : start + (rounds + 1) * period]) == (
        text,
        lists,
        begin + rounds,
    ):
        rounds += 1
    if rounds < FEWEST_ROUNDS:
        return None
    given: dict[str, str] = {}
    for path in lists:
        wanted = path.rpartition(".")[2]
        wanted = wanted[:-1] if wanted.endswith("s") and len(wanted) > 2 else "layer"
        while wanted in names or wanted in given.values():
            wanted += "_"
        given[path] = wanted
    spans = []
    for path in lists:
        held = _held(module, path)
        if not isinstance(held, LISTS):
            return None
        whole = begin == 0 and rounds == len(held)
        spans.append(f"self{path}" if whole else f"self{path}[{begin}:{begin + rounds}]")
    over = spans[0] if len(spans) == 1 else f"zip({', '.join(spans)}, strict=True)"
    lines: list[Line] = [
        re.sub(r"self((?:\.\w+|\[\d+\])*\.\w+)\[#\]", lambda m: given[m[1]], one) for one in text
    ]
    names.update(given.values())
    return [*ahead, Block(f"for {', '.join(given.values())} in {over}:", lines)], rounds * period


def _carried(first: list[str], second: list[str]) -> tuple[str, str] | None:
    """(name in the first round, name in the others) of the value that each round takes over from the one
    before, if that is all in which the first round differs."""
    for one, other in zip(first, second, strict=True):
        if one == other:
            continue
        pairs = [
            (a, b) for a, b in zip(*(re.findall(r"\w+|\W", s) for s in (one, other)), strict=False) if a != b
        ]
        old, new = pairs[0]
        renamed = [re.sub(rf"(?<![.\w]){re.escape(old)}\b", new, line) for line in first]
        if renamed != second or not old.isidentifier() or not new.isidentifier():
            return None
        stored = False  # once the new name is bound, the old one would be another value
        for line in first:
            reads, stores = _names(line.replace("#", "0"))
            if old in stores or (stored and old in reads) or (not stored and new in reads):
                return None
            stored = stored or new in stores
        return old, new
    return None


def _round(lines: Sequence[Line]) -> tuple[list[str], list[str], int] | None:
    """(lines with `#` for the index, the lists, the index) where one index serves all lists of the round."""
    indices: set[str] = set()
    lists: list[str] = []
    texts = []
    for line in lines:
        if not isinstance(line, str) or line.startswith("return"):
            return None
        for path, index in _INDEXED.findall(line):
            indices.add(index)
            if path not in lists:
                lists.append(path)
        texts.append(_INDEXED.sub(r"self\1[#]", line))
    return (texts, lists, int(indices.pop())) if len(indices) == 1 else None


def _held(module: nn.Module, path: str) -> nn.Module | None:
    here: nn.Module | None = module
    for part in re.findall(r"\w+", path):
        here = here._modules.get(part) if here is not None else None
    return here


# ---- nested calls


def _folded(body: list[Line], after: set[str]) -> list[Line]:
    """Lines put into the one that follows where that alone uses their result. `after` are names whose
    values are used behind the body."""
    found: list[Line] = []
    used = [after]  # behind each line, last line first
    for line in reversed(body[1:]):
        used.append(_used_before(line, used[-1]))
    for line, later in zip(body, reversed(used), strict=True):
        if isinstance(line, Block):
            again = _used_before(line, later) if line.head.startswith("for ") else set()
            found.append(Block(line.head, _folded(line.body, later | again)))
            continue
        while (
            found and isinstance(found[-1], str) and (joined := _joined(found[-1], line, later)) is not None
        ):
            found.pop()
            line = joined
        found.append(line)
    return found


def _used_before(line: Line, after: set[str]) -> set[str]:
    """Names whose values are used from `line` on, given those that are used behind it."""
    if isinstance(line, Block):
        inside = after
        for inner in reversed(line.body):
            inside = _used_before(inner, inside)
        return after | inside | _names(f"{line.head} pass")[0]
    reads, stores = _names(line)
    return (after - stores) | reads


def _names(line: str) -> tuple[set[str], set[str]]:
    """Names that a statement reads, and those that it binds."""
    try:
        tree = ast.parse(line)
    except SyntaxError:  # a head such as `else: pass`
        return set(re.findall(r"[A-Za-z_]\w*", line)), set()
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    reads = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    return reads, {node.id for node in names if not isinstance(node.ctx, ast.Load)} - reads


def _joined(first: str, second: str, later: set[str]) -> str | None:
    """`second` with the expression of `first` in place of its name, None where that would not do."""
    made, user = _statement(first), _statement(second)
    if not isinstance(made, ast.Assign) or not isinstance(made.targets[0], ast.Name) or len(made.targets) > 1:
        return None
    if not isinstance(made.value, ast.Call | ast.BinOp | ast.UnaryOp):
        return None
    if isinstance(user, ast.Assign) and all(isinstance(t, ast.Name | ast.Tuple) for t in user.targets):
        stored = {n.id for t in user.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    elif isinstance(user, ast.Return) and user.value is not None:
        stored = set()
    else:
        return None
    name = made.targets[0].id
    if name in later - stored or user.value is None:
        return None
    use = _only_use(user.value, name, plain=not isinstance(made.value, ast.Call))
    if use is None:
        return None
    whole = isinstance(user, ast.Return) and use is user.value
    if not whole and _nesting(user.value, use) + _depth(made.value) > MOST_NESTED:
        return None
    if not second.isascii() or not first.isascii():
        return None  # columns of the tree count bytes
    value = first[made.value.col_offset : made.value.end_col_offset]
    text = second[: use.col_offset] + value + second[use.end_col_offset :]
    return text if len(text) <= FOLDED_WIDTH or whole else None


def _statement(line: str) -> ast.stmt | None:
    if "\n" in line:
        return None
    try:
        return ast.parse(line).body[0]
    except (SyntaxError, IndexError):
        return None


def _only_use(value: ast.expr, name: str, *, plain: bool) -> ast.Name | None:
    """The one place where `name` is read, if nothing is called before it. `plain`: an expression with an
    operator goes there, which only an argument or a whole value can hold without brackets."""
    uses = [node for node in ast.walk(value) if isinstance(node, ast.Name) and node.id == name]
    if len(uses) != 1:
        return None
    use = uses[0]
    start = (use.lineno, use.col_offset)
    for node in ast.walk(value):
        if isinstance(
            node, ast.Lambda | ast.ListComp | ast.DictComp | ast.GeneratorExp | ast.IfExp | ast.BoolOp
        ):
            return None
        if isinstance(node, ast.Call) and (node.end_lineno or 0, node.end_col_offset or 0) <= start:
            return None
    if plain and use is not value:
        holders = (node for node in ast.walk(value) if isinstance(node, ast.Call))
        if not any(use in node.args or any(k.value is use for k in node.keywords) for node in holders):
            return None
    return use


def _nesting(value: ast.expr, use: ast.Name) -> int:
    """Calls around `use`."""
    return sum(
        isinstance(n, ast.Call) and any(inner is use for inner in ast.walk(n)) for n in ast.walk(value)
    )


def _depth(value: ast.expr) -> int:
    """The deepest nest of calls in an expression."""
    below = max(
        (_depth(child) for child in ast.iter_child_nodes(value) if isinstance(child, ast.expr | ast.keyword)),
        default=0,
    )  # type: ignore[arg-type]
    return below + isinstance(value, ast.Call)
