"""Rows that say the same are one row: `layer1.{0-2}.conv2 ×3`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
_NUMBER = re.compile(r"\d+")
_AMOUNT = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Group(Generic[T]):
    """Items that differ in nothing but numbers of their names; `label` spells exactly their names."""

    label: str
    items: tuple[T, ...]


def grouped(items: Iterable[T], name: Callable[[T], str], same: Callable[[T], Hashable]) -> list[Group[T]]:
    """The items in groups, in the order of each group's first item.

    Items belong together where `same` agrees, their names agree but for numbers, and one pattern with
    ranges of numbers names all of them and nothing else."""
    alike: dict[Hashable, list[T]] = {}
    for item in items:
        alike.setdefault((pattern(name(item)), same(item)), []).append(item)
    groups = [group for members in alike.values() for group in _split(members, name)]
    order = {id(item): place for place, item in enumerate(itertools.chain(*alike.values()))}
    return sorted(groups, key=lambda group: order[id(group.items[0])])


def pattern(text: str) -> str:
    """The text with every number masked: equal for texts that differ in numbers only."""
    return _NUMBER.sub("#", text)


def merged(texts: Sequence[str]) -> str:
    """One text for texts of one pattern, with ranges where their numbers differ: "depth 3…9"."""
    columns = zip(*(_AMOUNT.findall(text) for text in texts), strict=True)
    spans = iter(column[0] if len(set(column)) == 1 else _span(column) for column in columns)
    return _AMOUNT.sub(lambda _: next(spans), texts[0])


def _span(numbers: Sequence[str]) -> str:
    ordered = sorted(numbers, key=float)
    return f"{ordered[0]}…{ordered[-1]}"


def _split(members: Sequence[T], name: Callable[[T], str]) -> list[Group[T]]:
    numbers = [tuple(_NUMBER.findall(name(member))) for member in members]
    values = [list(dict.fromkeys(column)) for column in zip(*numbers, strict=True)]
    if len(set(numbers)) < len(numbers):
        return [Group(name(member), (member,)) for member in members]
    if set(itertools.product(*values)) == set(numbers):
        return [Group(_label(name(members[0]), values), tuple(members))]
    varied = [place for place, column in enumerate(values) if len(column) > 1]
    place = min(varied, key=lambda place: len(values[place]))
    parts = [
        [m for m, n in zip(members, numbers, strict=True) if n[place] == value] for value in values[place]
    ]
    return [group for part in parts for group in _split(part, name)]


def _label(first: str, values: Sequence[Sequence[str]]) -> str:
    texts = iter(column[0] if len(column) == 1 else "{" + _ranges(column) + "}" for column in values)
    return _NUMBER.sub(lambda _: next(texts), first)


def _ranges(numbers: Iterable[str]) -> str:
    """ "0-2,5" of 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in sorted(int(number) for number in numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
