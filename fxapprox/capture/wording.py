"""How nodes are worded in source text: operators, names of results, steps into containers."""

from __future__ import annotations

import keyword
import operator
from collections.abc import Iterator
from typing import Any

from torch import fx

from .facts import Region, facts_of
from .solve import Expression

INFIX: dict[Any, str] = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.floordiv: "//",
    operator.mod: "%", operator.pow: "**", operator.matmul: "@", operator.lshift: "<<", operator.rshift: ">>",
    operator.and_: "&", operator.or_: "|", operator.xor: "^", operator.eq: "==", operator.ne: "!=",
    operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=",
}  # fmt: skip
# Python's operators arrive as these methods.
INFIX_METHODS = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "pow": operator.pow, "true_divide": operator.truediv, "matmul": operator.matmul,
    "eq": operator.eq, "ne": operator.ne,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
# Methods that only look at a tensor in another way: the result goes by the operand's name.
VIEWS = {
    "view",
    "reshape",
    "permute",
    "transpose",
    "contiguous",
    "unsqueeze",
    "squeeze",
    "flatten",
    "unflatten",
    "expand",
    "to",
    "float",
    "type",
    "type_as",
    "expand_as",
    "view_as",
    "clone",
    "detach",
    "t",
    "swapaxes",
    "repeat",
    "roll",
    "half",
}
PREFIX: dict[Any, str] = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}


def nodes_in(value: Any) -> Iterator[fx.Node]:
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from nodes_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from nodes_in(item)
    elif isinstance(value, slice):
        yield from nodes_in((value.start, value.stop, value.step))
    elif isinstance(value, Expression):
        yield from nodes_in(value.values)


def is_step(node: fx.Node) -> bool:
    """Whether the node takes a value out of a container (not a tensor) by a constant key."""
    if node.op != "call_function" or node.target not in (operator.getitem, getattr):
        return False
    source = node.args[0]
    return (
        isinstance(source, fx.Node)
        and not hasattr(facts_of(source).value, "shape")
        and not isinstance(node.args[1], fx.Node | tuple | slice | list)
    )


def own_name(node: fx.Node) -> str:
    """A name from what makes the value."""
    if node.op == "call_module":
        parts = [part for part in str(node.target).split(".") if part.isidentifier()]
        name = parts[-1] if parts else "x"
    elif isinstance(node.target, type):
        name = "output"
    elif node.target is getattr or node.target is operator.getitem:
        name = str(node.args[1]) if isinstance(node.args[1], str) else "item"
    else:
        name = getattr(node.target, "__name__", "x").strip("_")
    name = "".join(c if c.isalnum() else "_" for c in name).strip("_")
    return name if name.isidentifier() and not keyword.iskeyword(name) else "x"


def telling(name: str) -> bool:
    """Whether a layer's name says what its result is (`q`, `v_proj`, `gate`)."""
    return len(name) <= 2 or name in ("query", "key", "value", "gate", "qkv") or name.endswith("_proj")


def common_regions(one: tuple[Region, ...], other: tuple[Region, ...]) -> int:
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
