"""What the constructor of a repeated class takes: the literals in which its instances differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from .expressions import Hole

# one and the same size, as torch's constructors call it
SIZES = dict.fromkeys(("in_channels", "out_channels", "num_features", "num_channels", "groups"), "channels")
SIZES |= dict.fromkeys(
    (
        "in_features",
        "out_features",
        "normalized_shape",
        "embed_dim",
        "embedding_dim",
        "input_size",
        "hidden_size",
    ),
    "features",
)
FORWARD = "forward"
"""The member name of holes in a class's methods."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a class's constructor, and its argument in every instance. `kept` says that the
    methods read it as an attribute, too."""

    name: str
    default: str | None
    annotation: str
    values: tuple[str, ...]
    kept: bool = False


@dataclass(frozen=True)
class Signature:
    """The parameters of a class, and what each hole is filled with."""

    parameters: tuple[Parameter, ...]
    fillings: tuple[str, ...]
    unnamed: tuple[int, ...]  # holes in methods that vary and for which nothing lends a name


def signature(
    instances: Sequence[Sequence[Hole]], facts: Sequence[Mapping[str, str]], members: Set[str]
) -> Signature:
    """Name what varies. `facts` are plain attributes of each instance; `members` the class's attributes,
    which a number that the methods read must not hide.

    Columns that vary together are one parameter; one that is a whole multiple of another is written so."""
    first = instances[0]
    fillings = [hole.text for hole in first]
    parameters: list[Parameter] = []
    unnamed: list[int] = []
    for column, family, positions in _families(instances):
        usable = [p for p in parameters if family != FORWARD or p.name not in members]
        related = _related(column, family, usable)
        if related is None:
            found = [first[position] for position in positions]
            fact = _fact(column, facts, found[0].name)
            taken = {
                "self",
                "training",
                *(p.name for p in parameters),
                *(members if family == FORWARD else ()),
            }
            related = _name(found, fact, taken)
            parameters.append(Parameter(related, _default(found, column), _type(column), column))
            unnamed += positions[:1] if family == FORWARD and fact is None else []
        if family == FORWARD:
            words = set(re.findall(r"\w+", related))
            parameters = [replace(p, kept=p.kept or p.name in words) for p in parameters]
            related = _of_self(related)
        for position in positions:
            fillings[position] = related
    parameters.sort(key=lambda parameter: parameter.default is not None)
    return Signature(tuple(parameters), tuple(fillings), tuple(unnamed))


def _families(instances: Sequence[Sequence[Hole]]) -> list[tuple[tuple[str, ...], str, list[int]]]:
    """(texts by instance, family, positions) of holes that vary together; those in methods last."""
    found: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for position, holes in enumerate(zip(*instances, strict=True)):
        column = tuple(hole.text for hole in holes)
        if len(set(column)) > 1:
            found.setdefault((column, _family(holes[0])), []).append(position)
    rows = [(column, family, positions) for (column, family), positions in found.items()]
    return sorted(rows, key=lambda row: row[1] == FORWARD)


def _family(hole: Hole) -> str:
    """Columns of one family may share a parameter: sizes, or arguments of the same name."""
    if hole.member == FORWARD:
        return FORWARD
    return "size" if hole.name in SIZES else hole.name


def _related(column: tuple[str, ...], family: str, parameters: Sequence[Parameter]) -> str | None:
    """The column in terms of an earlier parameter, where sizes or numbers in methods allow it."""
    if family not in ("size", FORWARD):
        return None
    for parameter in parameters:
        if parameter.values == column:
            return parameter.name
    for parameter in parameters:
        if not all(text.isdigit() and text != "0" for text in (*column, *parameter.values)):
            continue
        pairs = [(int(own), int(other)) for own, other in zip(column, parameter.values, strict=True)]
        up, down = pairs[0][0] // pairs[0][1], pairs[0][1] // pairs[0][0]
        if all(own == other * up for own, other in pairs):
            return f"{up} * {parameter.name}"
        if all(other == own * down for own, other in pairs):
            return f"{parameter.name} // {down}"
    return None


def _of_self(expression: str) -> str:
    text = re.sub(r"\b([A-Za-z_]\w*)", r"self.\1", expression)
    return f"({text})" if " " in text else text


def _fact(column: tuple[str, ...], facts: Sequence[Mapping[str, str]], wanted: str) -> str | None:
    """The user's own name for numbers that vary like this: an attribute that holds them in every instance."""
    if not all(re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) for text in column):
        return None
    names = [
        name
        for name in facts[0]
        if name.isidentifier() and not name.startswith("_")
        and all(own.get(name) == text for own, text in zip(facts, column, strict=True))
    ]  # fmt: skip
    return wanted if wanted in names else next(iter(names), None)


def _name(found: Sequence[Hole], fact: str | None, taken: set[str]) -> str:
    names = [hole.name for hole in found]
    words = {SIZES[name] for name in names if name in SIZES}
    if fact is not None:
        wanted = fact
    elif {"in_channels", "out_channels"} <= set(names):
        wanted = "channels"
    elif len(words) == 1 and len(set(names)) > 1 and not {"in_channels", "out_channels"} & set(names):
        wanted = words.pop()
    else:
        wanted = next((name for name in names if name in ("in_channels", "out_channels")), names[0]) or "size"
    hole = found[0]
    for name in (wanted, f"{hole.member}_{wanted}"):
        if name not in taken and name.isidentifier():
            return name
    count = 2
    while f"{wanted}_{count}" in taken:
        count += 1
    return f"{wanted}_{count}"


def _default(found: Sequence[Hole], column: tuple[str, ...]) -> str | None:
    """A default that torch's own parameter has, where some instance uses it."""
    default = found[0].default
    return (
        default if default and default in column and all(hole.default == default for hole in found) else None
    )


def _type(column: tuple[str, ...]) -> str:
    """The annotation, "" where the values are of several types."""
    if all(re.fullmatch(r"-?\d+", text) for text in column):
        return "int"
    if all(re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) for text in column):
        return "float"
    return "bool" if set(column) == {"True", "False"} else ""
