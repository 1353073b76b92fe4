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

import networkx as nx

from .columns import columns, stack
from .items import LINE_GAP, SIDE_GAP, Item, Level, Piece, Point

SWEEPS = 8


def lay_out(boxes: Sequence[Item], lines: Iterable[tuple[str | None, str | None, str]], tall: float) -> Level:
    """One level. `lines` are (from, to, line); None stands for the level's upper or lower border. All lines
    of one name carry the same tensor, and are drawn as one trunk with branches. A level higher than `tall` is
    folded."""
    flows = list(dict.fromkeys(lines))
    ranks = _ranks([box.name for box in boxes], flows)
    items, grid, pieces = _grid(boxes, ranks, flows)
    _order(grid, pieces, items)
    _place(grid, pieces, items)
    drawn = stack(columns(grid, items, tall), items, pieces)
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
    if line in upper.exit and line in lower.entry:
        # module below module: by their middles, or a long chain of blocks would drift to one side
        shift = upper.x + upper.width / 2 - lower.x - lower.width / 2
    else:
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
