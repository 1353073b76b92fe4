"""Where boxes and lines go: layered drawing from top to bottom, a module's inside first, then as one box.

Sugiyama, Tagawa, Toda 1981 in its usual four steps, on networkx's graphs: ranks by longest path, points
where a line passes a rank, an order within ranks by barycentres, coordinates by least squares
under that order (pool adjacent violators). Lines enter and leave a module through ports on its upper and
lower border, so each level is laid out by itself; a level that gets too tall is folded into columns.
Graphviz would need a compiled program, igraph's layout knows no clusters."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

Point = tuple[float, float]
RANK_GAP, SIDE_GAP, LINE_GAP, LANE = 26.0, 22.0, 12.0, 7.0
SWEEPS = 8
WIDER, WORTH_FOLDING = 1.4, 0.75


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


def lay_out(boxes: Sequence[Item], lines: Iterable[tuple[str | None, str | None, str]], tall: float) -> Level:
    """One level. `lines` are (from, to, line); None stands for the level's upper or lower border. All lines
    of one name carry the same tensor, and are drawn as one trunk with branches. A level higher than `tall` is
    folded."""
    flows = list(dict.fromkeys(lines))
    ranks = _ranks([box.name for box in boxes], flows)
    items, grid, pieces = _grid(boxes, ranks, flows)
    _order(grid, pieces, items)
    _place(grid, pieces, items)
    columns = _columns(grid, items, tall)
    drawn = _stack(columns, items, pieces)
    return _framed(boxes, items, grid, drawn)


def _ranks(names: Sequence[str], flows: Iterable[tuple[str | None, str | None, str]]) -> dict[str, int]:
    """Longest path from a source; sources stand right above their first reader."""
    graph = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from((one, other) for one, other, _ in flows if one is not None and other is not None)
    rank = {}
    for number, generation in enumerate(nx.topological_generations(graph)):
        rank.update(dict.fromkeys(generation, number))
    entered = {other for one, other, _ in flows if one is None}
    for name in names:
        if not graph.in_degree(name) and graph.out_degree(name) and name not in entered:
            rank[name] = min(rank[reader] for reader in graph.successors(name)) - 1
    return rank


Piece = tuple[str, str, str]
"""(upper item, lower item, line) on neighbouring ranks."""


def _grid(
    boxes: Sequence[Item], ranks: Mapping[str, int], flows: Sequence[tuple[str | None, str | None, str]]
) -> tuple[dict[str, Item], list[list[str]], list[Piece]]:
    """All items, their ranks from top to bottom (ports on the first and the last), and every line cut into
    pieces between neighbouring ranks."""
    items = {box.name: box for box in boxes}
    last = max(ranks.values(), default=0) + 1
    rows: dict[int, dict[str, None]] = {number: {} for number in range(-1, last + 1)}
    for name, rank in sorted(ranks.items(), key=lambda pair: pair[1]):
        rows[rank][name] = None
    pieces: dict[Piece, None] = {}

    def point(line: str, rank: int) -> str:
        name = f"{line}\0{rank}"
        if name not in items:
            items[name] = Item(name, 0.0, 0.0)
            rows[rank][name] = None
        return name

    for one, other, line in flows:
        at = ranks[one] if one is not None else -1
        end = ranks[other] if other is not None else last
        upper = one if one is not None else point(line, -1)
        for rank in range(at + 1, end):
            lower = point(line, rank)
            pieces[upper, lower, line] = None
            upper = lower
        pieces[upper, other if other is not None else point(line, last), line] = None
    return items, [list(rows[number]) for number in sorted(rows)], list(pieces)


def _neighbours(pieces: Iterable[Piece]) -> tuple[dict[str, list[Piece]], dict[str, list[Piece]]]:
    up, down = defaultdict(list), defaultdict(list)
    for piece in pieces:
        down[piece[0]].append(piece)
        up[piece[1]].append(piece)
    return up, down


def _order(grid: list[list[str]], pieces: Sequence[Piece], items: Mapping[str, Item]) -> None:
    """Sort each rank by the mean position of its neighbours, down and up in turn: fewer crossings."""
    up, down = _neighbours(pieces)

    def mean(name: str, sides: Mapping[str, list[Piece]], end: int, place: Mapping[str, float]) -> float:
        near = [
            place[piece[end]] + _lean(items[piece[end]], piece[2], end)
            for piece in sides[name]
            if piece[end] in place
        ]
        return sum(near) / len(near) if near else place[name]

    for sweep in range(SWEEPS):
        sides, end = (up, 0) if sweep % 2 == 0 else (down, 1)
        order = grid if sweep % 2 == 0 else grid[::-1]
        for above, row in itertools.pairwise(order):
            place = {name: float(number) for number, name in enumerate(above)}
            place |= {name: float(number) for number, name in enumerate(row)}
            row.sort(key=lambda name: mean(name, sides, end, place))


def _lean(item: Item, line: str, end: int) -> float:
    """How far from an item's middle the line is attached, as a part of a place in the order."""
    offset = (item.exit if end == 0 else item.entry).get(line)
    return 0.0 if offset is None or not item.width else 0.8 * (offset / item.width - 0.5)


def _place(grid: Sequence[Sequence[str]], pieces: Sequence[Piece], items: Mapping[str, Item]) -> None:
    """x coordinates: every item where its lines would be straight, as far as its rank has room."""
    up, down = _neighbours(pieces)
    for row in grid:
        _spread(row, items, dict.fromkeys(row, (0.0, 1.0)))
    for sweep in range(3 * SWEEPS):
        both = sweep >= 2 * SWEEPS
        order = grid if sweep % 2 == 0 else grid[::-1]
        for row in order:
            wanted = {}
            for name in row:
                pulls = []
                if both or sweep % 2 == 0:
                    pulls += [_pull(items, piece, 1) for piece in up[name]]
                if both or sweep % 2 == 1:
                    pulls += [_pull(items, piece, 0) for piece in down[name]]
                weight = sum(weight for _, weight in pulls)
                here = sum(x * w for x, w in pulls) / weight if weight else items[name].x
                wanted[name] = (here, max(weight, 0.01))
            _spread(row, items, wanted)


def _pull(items: Mapping[str, Item], piece: Piece, end: int) -> tuple[float, float]:
    """Where the item at this end of a piece would stand for the piece to be vertical, and how much that
    matters: long lines should be straight before short ones are."""
    upper, lower, line = items[piece[0]], items[piece[1]], piece[2]
    weight = 1.0 + 3.0 * (not upper.width) + 3.0 * (not lower.width)
    shift = upper.below(line) - lower.above(line)
    return (lower.x + shift, weight) if end == 1 else (upper.x - shift, weight)


def _gap(one: Item, other: Item) -> float:
    return SIDE_GAP if one.width and other.width else LINE_GAP


def _spread(row: Sequence[str], items: Mapping[str, Item], wanted: Mapping[str, tuple[float, float]]) -> None:
    """Least squares under the order and the gaps: the pool-adjacent-violators algorithm."""
    offset, offsets = 0.0, []
    for number, name in enumerate(row):
        if number:
            before = items[row[number - 1]]
            offset += before.width + _gap(before, items[name])
        offsets.append(offset)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, members
    for name, offset in zip(row, offsets, strict=True):
        x, weight = wanted[name]
        mean, members = x - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, more, count = blocks.pop()
            mean, weight, members = (
                (mean * weight + other * more) / (weight + more),
                weight + more,
                members + count,
            )
        blocks.append((mean, weight, members))
    places = [mean for mean, _, count in blocks for _ in range(count)]
    for name, offset, start in zip(row, offsets, places, strict=True):
        items[name].x = start + offset


def _columns(
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
    return _filled(grid, heights, high) if high < WORTH_FOLDING * total else [list(grid)]


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


def _stack(
    columns: Sequence[Sequence[Sequence[str]]], items: Mapping[str, Item], pieces: Sequence[Piece]
) -> list[tuple[str, tuple[Point, ...]]]:
    """y coordinates (and x, column by column), then the lines."""
    bands: dict[str, tuple[float, float, int]] = {}  # top and bottom of an item's rank, and its column
    left, lowest = 0.0, 0.0
    gutters: list[float] = []
    crossing = _crossing(columns, pieces)
    for number, column in enumerate(columns):
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


def _crossing(columns: Sequence[Sequence[Sequence[str]]], pieces: Sequence[Piece]) -> dict[int, list[str]]:
    """Column → the lines that go from it to the next."""
    column = {name: number for number, rows in enumerate(columns) for row in rows for name in row}
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


def _framed(
    boxes: Sequence[Item],
    items: Mapping[str, Item],
    grid: Sequence[Sequence[str]],
    drawn: Sequence[tuple[str, tuple[Point, ...]]],
) -> Level:
    """Everything moved so that the smallest coordinates are 0, and the ports of the level."""
    xs = [item.x for item in items.values()] + [item.x + item.width for item in items.values()]
    xs += [x for _, points in drawn for x, _ in points]
    ys = [item.y + item.height for item in items.values()] + [y for _, points in drawn for _, y in points]
    left, top = min(xs, default=0.0), min([*ys, 0.0])
    for item in items.values():
        item.x, item.y = item.x - left, item.y - top
    lines = [(line, tuple((x - left, y - top) for x, y in points)) for line, points in drawn]
    height = max(ys, default=0.0) - top
    entry: dict[str, float] = {}
    leave: dict[str, float] = {}
    for row, ports, border in ((grid[0], entry, 0.0), (grid[-1], leave, height)):
        for name in row:
            line, item = name.partition("\0")[0], items[name]
            ports[line] = item.x
            lines.append((line, ((item.x, border), (item.x, item.y))))
    return Level(max(xs, default=0.0) - left, height, tuple(boxes), tuple(lines), entry, leave)
