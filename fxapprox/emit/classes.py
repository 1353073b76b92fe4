"""Blueprints to classes: modules of the same structure become one class, printed once."""

from __future__ import annotations

import keyword
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .expressions import (
    Argument,
    Blueprint,
    Build,
    Expression,
    Hole,
    Items,
    Named,
    Part,
    Plain,
    holes,
    printed,
    resolved,
)
from .imports import Imports
from .methods import MARK
from .parameters import FORWARD, Signature, signature
from .wrap import WIDTH, filled, quoted, wrapped

MOST_UNNAMED = 2
"""A class whose methods would take more nameless numbers than this is split instead."""


@dataclass(frozen=True)
class Class:
    """A class of the emitted file, in the order in which they must be defined."""

    name: str
    blueprint: Blueprint  # the first instance, its parts resolved
    paths: tuple[str, ...]
    signature: Signature


class Classes:
    """The classes for a model's blueprints."""

    def __init__(self, blueprints: Sequence[Blueprint], imports: Imports) -> None:
        self.imports = imports
        self.found: list[Class] = []
        self._calls: dict[Blueprint, Build] = {}
        self._first: dict[str, Blueprint] = {}  # wanted name → who got it
        self._parents: dict[tuple[str, str], Class] = {}  # base and constructor → who printed it first
        for level in _levels(blueprints):
            groups: dict[str, list[Blueprint]] = defaultdict(list)
            for blueprint in level:
                groups[self._skeleton(blueprint)].append(blueprint)
            for group in groups.values():
                self._define(group)

    def call(self, blueprint: Blueprint) -> Build:
        """The call that makes this module."""
        return self._calls[blueprint]

    def _define(self, group: list[Blueprint]) -> None:
        instances = [list(self._holes(blueprint)) for blueprint in group]
        facts = [blueprint.facts for blueprint in group]
        found = signature(instances, facts, {member.name for member in group[0].members})
        if len(found.unnamed) > MOST_UNNAMED:
            parts: dict[tuple[str, ...], list[Blueprint]] = defaultdict(list)
            for blueprint, row in zip(group, instances, strict=True):
                parts[tuple(row[position].text for position in found.unnamed)].append(blueprint)
            for part in parts.values():
                self._define(part)
            return
        name = self._named(group[0])
        self.found.append(Class(name, group[0], tuple(blueprint.path for blueprint in group), found))
        for place, blueprint in enumerate(group):
            arguments = [Argument(p.name, Plain(p.values[place]), p.default) for p in found.parameters]
            self._calls[blueprint] = Build(name, tuple(arguments))

    def _named(self, blueprint: Blueprint) -> str:
        """The user's name for the class; for a later class of that name, with what sets it apart."""
        first = self._first.setdefault(blueprint.name, blueprint)
        known = {member.name for member in first.members}
        extra = next((m.name for m in blueprint.members if m.name not in known and m.how == "child"), None)
        if extra is None or first is blueprint:
            return self.imports.reserve(blueprint.name)
        return self.imports.reserve(blueprint.name + "".join(word.capitalize() for word in extra.split("_")))

    def _holes(self, blueprint: Blueprint) -> Iterator[Hole]:
        yield from holes(resolved(blueprint.setup, self.call), "")
        for member in blueprint.members:
            yield from holes(resolved(member.value, self.call), member.name)
        for number in blueprint.numbers:
            yield Hole(number, "", FORWARD, None)

    def _skeleton(self, blueprint: Blueprint) -> str:
        """Equal for blueprints that differ in literals only."""
        members = [(member.name, member.how, self._shape(member.value)) for member in blueprint.members]
        head = (blueprint.name, blueprint.base, blueprint.origin, blueprint.forward, blueprint.remark)
        return repr((head, self._shape(blueprint.setup), members))

    def _shape(self, value: Expression) -> str:
        if isinstance(value, Part):
            return self._shape(self.call(value.blueprint))
        if isinstance(value, Build):
            return f"{value.callee}({','.join(a.name + '=' + self._shape(a.value) for a in value.arguments)})"
        if isinstance(value, Items):
            return f"[{','.join(map(self._shape, value.items))}]"
        if isinstance(value, Named):
            return "{" + ",".join(f"{key}:{self._shape(item)}" for key, item in value.items) + "}"
        return "_"

    def _constructor(self, cls: Class, body: list[str]) -> str:
        if body == ["super().__init__()"]:
            return ""
        given = "".join(f", {_parameter(p.name, p.annotation, p.default)}" for p in cls.signature.parameters)
        return "\n        ".join([f"\n\n    def __init__(self{given}) -> None:", *body])

    def text(self, cls: Class) -> str:
        """The source of a class."""
        blueprint = cls.blueprint
        fillings = iter(cls.signature.fillings)
        body = [printed(resolved(blueprint.setup, self.call), fillings)]
        body += [f"self.{p.name} = {p.name}" for p in cls.signature.parameters if p.kept]
        body += [
            _assignment(m.name, m.how, printed(resolved(m.value, self.call), fillings))
            for m in blueprint.members
        ]
        constructor = self._constructor(cls, body)
        # another forward of the same parts: a subclass says so, and saves a page
        alike = blueprint.forward and "super()" not in blueprint.forward
        parent = self._parents.setdefault((blueprint.base, constructor), cls) if alike else cls
        head = blueprint.base
        if parent is not cls and constructor and parent.blueprint.name == blueprint.name:
            head, constructor = parent.name, ""
        text = wrapped(f'class {cls.name}({head}):\n    """{_doc(cls)}"""' + constructor)
        if blueprint.forward:
            forward = blueprint.forward
            for filling in fillings:
                forward = forward.replace(MARK, filling, 1)
            text += "\n\n" + wrapped("\n".join(f"    {line}" if line else "" for line in forward.split("\n")))
        return text


def _levels(blueprints: Iterable[Blueprint]) -> list[list[Blueprint]]:
    """Blueprints by height: those without parts, then those whose parts have none, and so on."""
    height: dict[Blueprint, int] = {}
    levels: list[list[Blueprint]] = []
    for blueprint in blueprints:  # parts come before what holds them
        below = [height[part] for value in _values(blueprint) for part in _parts(value)]
        height[blueprint] = max(below, default=-1) + 1
        while len(levels) <= height[blueprint]:
            levels.append([])
        levels[height[blueprint]].append(blueprint)
    return levels


def _values(blueprint: Blueprint) -> Iterator[Expression]:
    yield blueprint.setup
    for member in blueprint.members:
        yield member.value


def _parts(value: Expression) -> Iterator[Blueprint]:
    if isinstance(value, Part):
        yield value.blueprint
    elif isinstance(value, Build):
        for argument in value.arguments:
            yield from _parts(argument.value)
    elif isinstance(value, Items):
        for item in value.items:
            yield from _parts(item)
    elif isinstance(value, Named):
        for _, item in value.items:
            yield from _parts(item)


def _assignment(name: str, how: str, text: str) -> str:
    plain_name = name.isidentifier() and not keyword.iskeyword(name)
    if how == "buffer":
        return f"self.register_buffer({quoted(name)}, {text})"
    if how == "transient buffer":
        return f"self.register_buffer({quoted(name)}, {text}, persistent=False)"
    if how == "statement":
        return text
    if plain_name:
        return f"self.{name} = {text}"
    if how == "parameter":
        return f"self.register_parameter({quoted(name)}, {text})"
    return (
        f"self.add_module({quoted(name)}, {text})"
        if how == "child"
        else f"setattr(self, {quoted(name)}, {text})"
    )


def _parameter(name: str, annotation: str, default: str | None) -> str:
    typed = f"{name}: {annotation}" if annotation else name
    return typed if default is None else f"{typed}{' = ' if annotation else '='}{default}"


def _doc(cls: Class) -> str:
    """Where it comes from, where it stands, and what is odd about it; in one line where that fits."""
    remark = f" {cls.blueprint.remark}" if cls.blueprint.remark else ""
    for count in (3, 2, 1):
        shown = [path or "the model" for path in cls.paths[:count]]
        more = len(cls.paths) - len(shown)
        places = ", ".join(shown) + (f" and {more} more" if more else "")
        text = f"{cls.blueprint.origin}: {places}.{remark}"
        if len(text) <= WIDTH - 10:
            break
    return "\n    ".join(filled(text.replace("\\", "\\\\").replace('"""', "'''"), WIDTH - 10))
