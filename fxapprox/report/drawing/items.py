"""What a drawing is laid out of: items on ranks, pieces of lines, and the finished level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Point = tuple[float, float]
RANK_GAP, SIDE_GAP, LINE_GAP, LANE = 26.0, 22.0, 12.0, 7.0


@dataclass
class Item:
    """Something with a place on a rank: a box (node or cluster), a port, or a point of a passing line.

    `entry` and `exit`: line → offset from the left border at which it comes in above or goes out below;
    the middle where it is not named. `x`, `y` are those of the upper left corner."""

    name: str
    width: float
    height: float
    entry: Mapping[str, float] = field(default_factory=dict)
    exit: Mapping[str, float] = field(default_factory=dict)
    x: float = 0.0
    y: float = 0.0

    def above(self, line: str) -> float:
        return self.x + self.entry.get(line, self.width / 2)

    def below(self, line: str) -> float:
        return self.x + self.exit.get(line, self.width / 2)


@dataclass(frozen=True)
class Level:
    """One cluster, laid out: places of its children in its own coordinates, and the lines between them.

    `width` and `height` enclose everything; `entry` and `exit` are the offsets of its ports. A line's
    points are the ends of vertical pieces, with curves between them."""

    width: float
    height: float
    items: tuple[Item, ...]
    lines: tuple[tuple[str, tuple[Point, ...]], ...]
    entry: Mapping[str, float]
    exit: Mapping[str, float]


Piece = tuple[str, str, str]
"""(upper item, lower item, line) on neighbouring ranks."""
