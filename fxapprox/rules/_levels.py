"""Depth conditions: Python's indices and slices over the levels of a model that branches.

A site has a depth (sites on the longest path from an input, 0 for the first) and a height (to an
output, 0 for the last). On a chain of L sites depth + height = L − 1, so `-1` is both "index L − 1" and
"height 0". On a graph with branches of unequal length only the second reading is local to the site, so it
is the one used: what counts from the front is compared with the depth, what counts from the back with
the height. On a chain this selects exactly what `range(L)[...]` would.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_INDEX = re.compile(r"[+-]?\d+")
_SLICE = re.compile(r"([+-]?\d+)?\s*:\s*([+-]?\d+)?\s*(?::\s*([+-]?\d+)?)?")


@dataclass(frozen=True)
class Span:
    """One index (`stop` and `step` unused) or one slice."""

    start: int | None
    stop: int | None
    step: int = 1
    index: bool = False

    def holds(self, depth: int, height: int) -> bool:
        if self.index:
            return _coordinate(self.start or 0, depth, height) == self.start
        if self.start is not None and _coordinate(self.start, depth, height) < self.start:
            return False
        if self.stop is not None and _coordinate(self.stop, depth, height) >= self.stop:
            return False
        start = self.start or 0
        return (_coordinate(start, depth, height) - start) % self.step == 0

    def distance(self, depth: int, height: int) -> int:
        """How many levels a site is away from the span, a step not counted."""
        if self.index:
            return abs(_coordinate(self.start or 0, depth, height) - (self.start or 0))
        below = 0 if self.start is None else self.start - _coordinate(self.start, depth, height)
        above = 0 if self.stop is None else _coordinate(self.stop, depth, height) - self.stop + 1
        return max(below, above, 0)

    def __str__(self) -> str:
        """In words: "2 or more", "less than 3", "2 to 4"."""
        if self.index:
            return _level(self.start or 0)
        every = f", every {self.step} levels" if self.step > 1 else ""
        if self.start is None and self.stop is None:
            return "any" + every
        if self.stop is None:
            return f"{_level(self.start or 0)} or more" + every
        if not self.start:
            return f"less than {_level(self.stop)}" + every
        return f"{_level(self.start)} or more and less than {_level(self.stop)}" + every


@dataclass(frozen=True)
class Levels:
    """A parsed `depth` condition: a site is in it when it is in any of the spans."""

    text: str
    spans: tuple[Span, ...]

    def holds(self, depth: int, height: int) -> bool:
        return any(span.holds(depth, height) for span in self.spans)

    def distance(self, depth: int, height: int) -> int:
        return min(span.distance(depth, height) for span in self.spans)

    def __str__(self) -> str:
        return " or ".join(str(span) for span in self.spans)

    def reaching(self, depth: int) -> str:
        """A condition of the same form that takes in a site at this depth, for "try depth = …"."""
        only = self.spans[0]
        if len(self.spans) == 1 and not only.index and only.stop is None and (only.start or 0) > depth:
            return f"{depth}:"
        return str(depth)


def parse_levels(value: int | str) -> Levels:
    """The condition in `"0, -1"`, `"1:-1"`, `"::2"`, `3`. Raises ValueError with the offending piece."""
    text = str(value)
    return Levels(text, tuple(_span(piece.strip()) for piece in text.split(",")))


def _span(piece: str) -> Span:
    if _INDEX.fullmatch(piece):
        return Span(int(piece), None, index=True)
    found = _SLICE.fullmatch(piece)
    if found is None:
        raise ValueError(f"{piece!r} is neither an index nor a slice")
    start, stop, step = (None if group is None else int(group) for group in found.groups())
    if step is not None and step < 1:
        raise ValueError(f"the step of {piece!r} must be 1 or more")
    return Span(start, stop, step or 1)


def _coordinate(bound: int, depth: int, height: int) -> int:
    """The site's position in the numbering that `bound` counts in: from the front, or from the back."""
    return depth if bound >= 0 else -1 - height


def _level(bound: int) -> str:
    return str(bound) if bound >= 0 else f"{bound} (height {-1 - bound})"
