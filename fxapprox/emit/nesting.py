"""Calls put into the calls that use their results, where nothing is computed in another order by that."""

from __future__ import annotations

import ast

from .lines import Block, Line, statement, used_before, used_behind

FOLDED_WIDTH = 88
MOST_NESTED = 3


def folded(body: list[Line], after: set[str]) -> list[Line]:
    """Lines put into the one that follows where that alone uses their result. `after` are names whose
    values are used behind the body."""
    found: list[Line] = []
    for line, later in zip(body, used_behind(body, after), strict=True):
        if isinstance(line, Block):
            again = used_before(line, later) if line.head.startswith("for ") else set()
            found.append(Block(line.head, folded(line.body, later | again)))
            continue
        while (
            found and isinstance(found[-1], str) and (joined := _joined(found[-1], line, later)) is not None
        ):
            found.pop()
            line = joined
        found.append(line)
    return found


def _joined(first: str, second: str, later: set[str]) -> str | None:
    """`second` with the expression of `first` in place of its name, None where that would not do."""
    made, user = statement(first), statement(second)
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


def _depth(value: ast.AST) -> int:
    """The deepest nest of calls in an expression."""
    below = max((_depth(child) for child in ast.iter_child_nodes(value)), default=0)
    return below + isinstance(value, ast.Call)
