"""A level that is too tall, folded into columns; the heights of everything; the lines' points."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from .items import LANE, RANK_GAP, SIDE_GAP, Item, Piece, Point

WIDER, WORTH_FOLDING, SLACK = 1.4, 0.75, 1.08


def columns(
    grid: Sequence[Sequence[str]], items: Mapping[str, Item], tall: float
) -> list[list[Sequence[str]]]:
    """The ranks in columns of about equal height, as many as make the whole somewhat wider than high; one
    where nothing is too tall."""
    heights = [max((items[name].height for name in row), default=0.0) + RANK_GAP for row in grid]
    total = sum(heights)
    if total <= 1.25 * tall:
        return [list(grid)]
    right = max(item.x + item.width for item in items.values())
    width = right - min(item.x for item in items.values()) + 2 * SIDE_GAP
    count = min(max(2, round((WIDER * total / width) ** 0.5)), max(2, round(2 * total / tall)))
    low, high = max(heights), total
    while high - low > 1:  # the least height that this many columns can do with
        limit = (low + high) / 2
        low, high = (low, limit) if len(_filled(grid, heights, limit)) <= count else (limit, high)
    # one large child and little beside it: folding would only tear that away
    # (and a little slack saves a column that would hold one rank)
    return _filled(grid, heights, SLACK * high) if high < WORTH_FOLDING * total else [list(grid)]


def _filled(
    grid: Sequence[Sequence[str]], heights: Sequence[float], limit: float
) -> list[list[Sequence[str]]]:
    columns: list[list[Sequence[str]]] = [[]]
    filled = 0.0
    for row, height in zip(grid, heights, strict=True):
        if columns[-1] and filled + height > limit:
            columns.append([])
            filled = 0.0
        columns[-1].append(row)
        filled += height
    return columns


def stack(
    folded: Sequence[Sequence[Sequence[str]]], items: Mapping[str, Item], pieces: Sequence[Piece]
) -> list[tuple[str, tuple[Point, ...]]]:
    """y coordinates (and x, column by column), then the lines."""
    bands: dict[str, tuple[float, float, int]] = {}  # top and bottom of an item's rank, and its column
    left, lowest = 0.0, 0.0
    gutters: list[float] = []
    crossing = _crossing(folded, pieces)
    for number, column in enumerate(folded):
        names = [name for row in column for name in row]
        start = min((items[name].x for name in names), default=0.0)
        y = 0.0
        for row in column:
            height = max((items[name].height for name in row), default=0.0)
            for name in row:
                items[name].x += left - start
                items[name].y = y + (height - items[name].height) / 2
                bands[name] = (y, y + height, number)
            y += height + RANK_GAP
        lowest = max(lowest, y - RANK_GAP)
        right = max((items[name].x + items[name].width for name in names), default=left)
        lanes = len(crossing.get(number, ()))
        gutters.append(right + SIDE_GAP)
        left = right + 2 * SIDE_GAP + LANE * lanes
    drawn = []
    for upper, lower, line in pieces:
        one, other = items[upper], items[lower]
        points = _leaving(one, bands[upper], line) + _arriving(other, bands[lower], line)
        if bands[upper][2] != bands[lower][2]:
            lane = LANE * crossing[bands[upper][2]].index(line)
            points[2:2] = _around(
                points[1], points[2], gutters[bands[upper][2]] + lane, lowest + LANE + lane, lane
            )
        drawn.append((line, tuple(points)))
    return drawn


def _crossing(folded: Sequence[Sequence[Sequence[str]]], pieces: Sequence[Piece]) -> dict[int, list[str]]:
    """Column → the lines that go from it to the next."""
    column = {name: number for number, rows in enumerate(folded) for row in rows for name in row}
    found: dict[int, dict[str, None]] = defaultdict(dict)
    for upper, lower, line in pieces:
        if column[upper] != column[lower]:
            found[column[upper]][line] = None
    return {number: list(lines) for number, lines in found.items()}


def _leaving(item: Item, band: tuple[float, float, int], line: str) -> list[Point]:
    x = item.below(line)
    return [(x, item.y + item.height), (x, band[1])]


def _arriving(item: Item, band: tuple[float, float, int], line: str) -> list[Point]:
    x = item.above(line)
    return [(x, band[0]), (x, item.y)]


def _around(start: Point, end: Point, gutter: float, low: float, lane: float) -> list[Point]:
    """The way from the foot of a column to the head of the next: down, aside, up, aside, down."""
    high = -LANE - RANK_GAP / 2 - lane
    return [(start[0], low), (gutter, low), (gutter, high), (end[0], high)]
