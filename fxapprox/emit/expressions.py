"""What the constructors of an emitted file are made of, before it is decided which numbers vary.

Every literal is a hole: classes that differ only in their holes are one class, whose constructor
takes what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from .wrap import quoted


@dataclass(frozen=True)
class Plain:
    """A literal, as source text."""

    text: str


@dataclass(frozen=True)
class Argument:
    """An argument of a call. `default` is the text of the parameter's default: an argument that spells
    the same is left out. A `name` of "" is a positional one that has no name worth showing."""

    name: str
    value: Expression
    default: str | None = None


@dataclass(frozen=True)
class Build:
    """A call: of torch's constructors, or of another class of the file."""

    callee: str
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Items:
    """Expressions in a row: a list, or the arguments of `nn.Sequential`."""

    items: tuple[Expression, ...]
    brackets: bool = True


@dataclass(frozen=True)
class Named:
    """A dict with names as keys."""

    items: tuple[tuple[str, Expression], ...]


@dataclass(frozen=True)
class Part:
    """An instance of another class of the file."""

    blueprint: Blueprint


Expression: TypeAlias = Plain | Build | Items | Named | Part


@dataclass(frozen=True)
class Member:
    """An attribute that a constructor makes. `how`: "plain", "child", "parameter", "buffer", "transient
    buffer" (not persistent), or "statement" for a line of another sort. `tensor`: what a buffer holds that
    is not one in the model."""

    name: str
    value: Expression
    how: str
    tensor: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(eq=False)
class Blueprint:
    """One module of the model that becomes an instance of a class of the file.

    `forward` is the source of its methods with `{}`-like marks at the numbers (see methods.py), "" where its
    parent or its base runs it; `base` the text of the base class, `setup` the call that begins the
    constructor; `facts` are the user's own plain attributes, name → text: they lend names to what varies."""

    path: str
    name: str
    origin: str
    base: str
    setup: Build
    members: tuple[Member, ...]
    forward: str = ""
    numbers: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""


@dataclass(frozen=True)
class Hole:
    """A literal in a class, and what it is called where it is used."""

    text: str
    name: str
    member: str
    default: str | None


def holes(value: Expression, member: str, name: str = "", default: str | None = None) -> Iterator[Hole]:
    """The literals of an expression, in the order in which `filled` consumes them. Parts must be resolved."""
    if isinstance(value, Plain):
        yield Hole(value.text, name, member, default)
    elif isinstance(value, Build):
        for argument in value.arguments:
            yield from holes(argument.value, member, argument.name or name, argument.default)
    elif isinstance(value, Items):
        for item in value.items:
            yield from holes(item, member, name)
    elif isinstance(value, Named):
        for key, item in value.items:
            yield from holes(item, f"{member}_{key}" if key.isidentifier() else member, name)
    else:
        raise TypeError(f"{value} has not been resolved")


def resolved(value: Expression, build: Callable[[Blueprint], Build]) -> Expression:
    """`value` with every part replaced by the call that makes it."""
    if isinstance(value, Part):
        return build(value.blueprint)
    if isinstance(value, Build):
        arguments = tuple(Argument(a.name, resolved(a.value, build), a.default) for a in value.arguments)
        return Build(value.callee, arguments)
    if isinstance(value, Items):
        return Items(tuple(resolved(item, build) for item in value.items), value.brackets)
    if isinstance(value, Named):
        return Named(tuple((key, resolved(item, build)) for key, item in value.items))
    return value


def printed(value: Expression, texts: Iterator[str]) -> str:
    """The expression as one line, its literals replaced by the next of `texts`."""
    if isinstance(value, Plain):
        return next(texts)
    if isinstance(value, Build):
        return f"{value.callee}({', '.join(_arguments(value.arguments, texts))})"
    if isinstance(value, Items):
        items = ", ".join(_runs([printed(item, texts) for item in value.items], value.brackets))
        return f"[{items}]" if value.brackets else items
    if isinstance(value, Named):
        return "{" + ", ".join(f"{quoted(key)}: {printed(item, texts)}" for key, item in value.items) + "}"
    raise TypeError(f"{value} has not been resolved")


def _arguments(arguments: tuple[Argument, ...], texts: Iterator[str]) -> Iterator[str]:
    """Required arguments by position, the others by name, none that spells its default."""
    for argument in arguments:
        text = printed(argument.value, texts)
        if text == argument.default:
            continue
        yield text if argument.default is None or not argument.name else f"{argument.name}={text}"


def _runs(items: list[str], brackets: bool) -> Iterator[str]:
    """Three or more equal constructor calls in a row as a comprehension."""
    position = 0
    while position < len(items):
        item, end = items[position], position
        while end < len(items) and items[end] == item:
            end += 1
        if end - position < 3 or not item.endswith(")"):
            yield from items[position:end]
        elif brackets and end - position == len(items):
            yield f"{item} for _ in range({len(items)})"
        else:
            yield f"*[{item} for _ in range({end - position})]"
        position = end
