"""From an outline to a scene: boxes with their texts, frames and lines at absolute places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..amounts import percent, shape
from ..tables import treatment
from .items import Item, Level, Point
from .layout import lay_out
from .outline import ROOT, Node, Outline, chain, meeting

PAD, LABEL = 10.0, 18.0
LETTER, LINE = 6.3, 14.0  # mean width of a letter and height of a line, at 11 px
TALL = 1500.0
MOST_FOLDED = 4


@dataclass(frozen=True)
class Box:
    """One node: `texts` are (style, text) lines, style "folded", "name", "facts" or "op"."""

    node: Node
    x: float
    y: float
    width: float
    height: float
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Frame:
    """One cluster."""

    cluster: str
    label: str
    x: float
    y: float
    width: float
    height: float
    depth: int


@dataclass(frozen=True)
class Scene:
    width: float
    height: float
    boxes: tuple[Box, ...]
    frames: tuple[Frame, ...]
    lines: tuple[tuple[str, tuple[Point, ...]], ...]


def scene(drawn: Outline, whole: int | None, *, tall: float = TALL) -> Scene:
    """Everything placed; boxes and frames tell their share of `whole`, the model's training FLOPs."""
    texts = {name: node_texts(drawn, node, whole) for name, node in drawn.nodes.items()}
    flows = _flows(drawn)
    levels: dict[str, Level] = {}
    for cluster in sorted(drawn.children, key=lambda path: -_depth(drawn, path)):
        boxes = [
            _cluster_item(child, levels[child], frame_label(drawn, child, whole))
            if child in levels
            else _node_item(child, texts[child])
            for child in drawn.children[cluster]
        ]
        levels[cluster] = lay_out(boxes, flows[cluster], tall)
    placed = _Placed([], [], [])
    _unfold(drawn, levels, texts, whole, placed, ROOT, PAD, PAD, 0)
    root = levels[ROOT]
    return Scene(
        root.width + 2 * PAD,
        root.height + 2 * PAD,
        tuple(placed.boxes),
        tuple(placed.frames),
        tuple(placed.lines),
    )


@dataclass(frozen=True)
class _Placed:
    boxes: list[Box]
    frames: list[Frame]
    lines: list[tuple[str, tuple[Point, ...]]]


def _unfold(
    drawn: Outline,
    levels: Mapping[str, Level],
    texts: Mapping[str, tuple[tuple[str, str], ...]],
    whole: int | None,
    placed: _Placed,
    cluster: str,
    x: float,
    y: float,
    depth: int,
) -> None:
    """Move a level's content to where the level stands, and each level inside it after that."""
    for line, points in levels[cluster].lines:
        placed.lines.append((line, tuple((x + px, y + py) for px, py in points)))
    for item in levels[cluster].items:
        left, top = x + item.x, y + item.y
        if item.name not in levels:
            node = drawn.nodes[item.name]
            placed.boxes.append(Box(node, left, top, item.width, item.height, texts[item.name]))
            continue
        label = frame_label(drawn, item.name, whole)
        placed.frames.append(Frame(item.name, label, left, top, item.width, item.height, depth))
        inner = levels[item.name]
        shift = (item.width - inner.width) / 2
        for ports, start, end in (
            (inner.entry, 0.0, PAD + LABEL),
            (inner.exit, item.height - PAD, item.height),
        ):
            for line, at in ports.items():
                at += left + shift
                placed.lines.append((line, ((at, top + start), (at, top + end))))
        _unfold(drawn, levels, texts, whole, placed, item.name, left + shift, top + PAD + LABEL, depth + 1)


def _flows(drawn: Outline) -> dict[str, list[tuple[str | None, str | None, str]]]:
    """Each cluster's lines: between its children, from its upper border, to its lower border."""
    flows: dict[str, list[tuple[str | None, str | None, str]]] = defaultdict(list)
    for one, other in drawn.edges:
        first, second = chain(drawn.nodes[one], drawn.above), chain(drawn.nodes[other], drawn.above)
        common, a, b = meeting(one, first, other, second)
        flows[common].append((a, b, one))
        start = first.index(common) + 1
        for cluster, child in pairwise([*first[start:], one]):
            flows[cluster].append((child, None, one))
        start = second.index(common) + 1
        for cluster, child in pairwise([*second[start:], other]):
            flows[cluster].append((None, child, one))
    return flows


def _depth(drawn: Outline, cluster: str) -> int:
    depth, around = 0, drawn.above[cluster]
    while around is not None:
        depth, around = depth + 1, drawn.above[around]
    return depth


def _cluster_item(name: str, level: Level, label: str) -> Item:
    width = max(level.width + 2 * PAD, LETTER * len(label) + 2 * PAD)
    shift = (width - level.width) / 2
    entry = {line: at + shift for line, at in level.entry.items()}
    leave = {line: at + shift for line, at in level.exit.items()}
    return Item(name, width, level.height + 2 * PAD + LABEL, entry, leave)


def _node_item(name: str, texts: tuple[tuple[str, str], ...]) -> Item:
    widest = max(len(text) * (1.08 if style == "name" else 1.0) for style, text in texts)
    return Item(name, LETTER * widest + 18, LINE * len(texts) + 8)


# texts


def node_texts(drawn: Outline, node: Node, whole: int | None) -> tuple[tuple[str, str], ...]:
    """What stands in a box: folded operators, name, sizes, share and treatment, folded operators."""
    lines: list[tuple[str, str]] = []
    if not node.sites:
        return (("op", _folded([*node.head, node.op, *node.tail])),)
    if set(node.head) - {"Identity"}:
        lines.append(("folded", _folded(node.head)))
    lines.append(("name", drawn.title(node.id)))
    for site in node.sites:
        part = "" if len(node.sites) == 1 else site["id"].rpartition(".")[2]
        lines.append(("facts", site_line(site, part or site["kind"])))
    lines.append(("facts", f"{percent(node.flops, whole)} · {how(node)}" if whole else how(node)))
    if set(node.tail) - {"Identity"}:
        lines.append(("folded", _folded(node.tail)))
    return tuple(lines)


def frame_label(drawn: Outline, cluster: str, whole: int | None) -> str:
    share = sum(node.flops for node in drawn.within(cluster))
    return drawn.title(cluster) + (f" · {percent(share, whole)}" if whole else "")


def site_line(site: Mapping[str, Any], noun: str) -> str:
    """ "conv2d 64→128 3×3", "matmul 8×4×16×32 · 8×4×32×16"."""
    if not site["weight"]:
        return f"{noun} {shape(site['input_shape'])} · {shape(site['weight_shape'])}"
    into, out = (
        site["products"][name]["pairs"] * site["products"][name]["groups"]
        for name in ("forward", "grad_input")
    )
    kernel = f" {shape(site['weight_shape'][2:])}" if len(site["weight_shape"]) > 2 else ""
    return f"{noun} {into}→{out}{kernel}"


def how(node: Node) -> str:
    """What is done at a node, in short."""
    told = dict.fromkeys(
        treatment(site).replace("\n", ", ") if site["rewritten"] else "exact" for site in node.sites
    )
    return ", ".join(told)


def _folded(ops: list[str]) -> str:
    """Operators on one line: "BatchNorm2d, ReLU", "add ×2"; those that do nothing are not told."""
    runs: list[list[str]] = []
    for op in [op.strip("_") for op in ops if op != "Identity"] or ops:
        if runs and runs[-1][0] == op:
            runs[-1].append(op)
        else:
            runs.append([op])
    told = [run[0] if len(run) == 1 else f"{run[0]} ×{len(run)}" for run in runs]
    if len(told) > MOST_FOLDED:
        told = [*told[: MOST_FOLDED - 2], "…", told[-1]]
    return ", ".join(told)
