"""Recognised calls that stay as they were, in the spelling of their author: `a @ b`, `a.mm(b)`."""

from __future__ import annotations

import ast
from collections.abc import Mapping

Span = tuple[int, int, int]
"""Line (from 0), first and last column, in characters."""
Edit = tuple[Span, str]
INFIX = (("operator", "matmul"), ("torch", "Tensor.__matmul__"))
TIGHT = ast.Name | ast.Attribute | ast.Call | ast.Subscript
"""What binds at least as tightly as an operator's operand, or a method's receiver, must."""


def as_written(
    tree: ast.Module, source: str, kept: Mapping[str, tuple[str, str]]
) -> tuple[list[Edit], set[ast.AST]]:
    """Edits that turn calls of `kept` (name → what it imports) into operators and methods; and the names
    of the functions in them, which need no import then."""
    edits: list[Edit] = []
    done: set[ast.AST] = set()
    if not source.isascii():
        return edits, done  # the tree's columns count bytes
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.Return)}
    alone |= {id(argument) for node in ast.walk(tree) if isinstance(node, ast.Call) for argument in node.args}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in kept:
            continue
        if node.lineno == node.end_lineno and all(isinstance(argument, TIGHT) for argument in node.args[:2]):
            own = _infix(node, kept[node.func.id], id(node) in alone) or _method(node, kept[node.func.id])
            edits += own
            done |= {node.func} if own else set()
    return edits, done


def _infix(call: ast.Call, function: tuple[str, str], alone: bool) -> list[Edit]:
    """`a @ b`, in brackets unless it stands alone."""
    if function not in INFIX or len(call.args) != 2 or call.keywords:
        return []
    (first, second), line = call.args, call.lineno - 1
    return [
        ((line, call.col_offset, first.col_offset), "" if alone else "("),
        ((line, _end(first), second.col_offset), " @ "),
        ((line, _end(second), _end(call)), "" if alone else ")"),
    ]


def _method(call: ast.Call, function: tuple[str, str]) -> list[Edit]:
    """`a.mm(b)`; a call with arguments by keyword only stays a call of the function."""
    method = function[1].removeprefix("Tensor.")
    if method == function[1] or not call.args or (call.keywords and len(call.args) == 1):
        return []
    receiver, line = call.args[0], call.lineno - 1
    until = call.args[1].col_offset if call.args[1:] else _end(call) - 1
    return [
        ((line, call.col_offset, receiver.col_offset), ""),
        ((line, _end(receiver), until), f".{method}("),
    ]


def _end(node: ast.expr) -> int:
    return node.end_col_offset or 0
