"""A scene as SVG text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from ..amounts import amount, percent
from ..tables import treatment
from .items import Point
from .outline import Node
from .scene import LINE, Box, Frame, Scene, how

POLICY_COLOURS = ("#1b6ca8", "#2e7d32", "#7b3fa0", "#00838f", "#ad1457", "#5d4037", "#455a64", "#9e7700")
EXACT = "#8a8a8a"
_LOW, _MIDDLE, _HIGH = (255, 250, 240), (253, 205, 140), (240, 110, 50)
_LEGEND = 64.0
STYLE = """
text { font: 11px ui-sans-serif, system-ui, "DejaVu Sans", Arial, sans-serif; fill: #222 }
.name { font-weight: 600 } .folded { fill: #4d4d4d; font-size: 10px } .op { fill: #444 }
.frame > rect { stroke: #c4cbd4; rx: 6px } .frame > text { fill: #5a6572; font-weight: 600 }
.line { fill: none; stroke: #77818c; stroke-width: 1.2 } .title { font-size: 15px; font-weight: 600 }
"""


def svg_text(drawn: Scene, told: Mapping[str, Any], mark: str) -> str:
    """A whole SVG file: legend, frames, lines, boxes. `mark` is the comment that says who made it."""
    whole = told["totals"]["model_flops"] or told["totals"]["site_flops"]
    colours = policy_colours(box.node for box in drawn.boxes)
    most = max((box.node.flops for box in drawn.boxes), default=0)
    legend = list(_legend(told, colours, most, whole))
    width = max(drawn.width, 620.0)
    height = drawn.height + _LEGEND + LINE * len(colours)
    shift = height - drawn.height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
        f' width="{width:.0f}" height="{height:.0f}">',
        f"<!-- {mark} -->",
        f"<title>{escape(told['model'])}</title>",
        f"<style>{STYLE}</style>",
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0.5 L8 4 L0 7.5 z" fill="#77818c"/></marker>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        *legend,
        f'<g transform="translate({(width - drawn.width) / 2:.1f} {shift:.1f})">',
        *(_frame(frame) for frame in drawn.frames),
        *_lines(drawn),
        *(_box(box, most, whole, colours) for box in drawn.boxes),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def policy_colours(nodes: Iterable[Node]) -> dict[str, str]:
    """What is done at a node, in words → its colour; exact ones are not in it."""
    told = dict.fromkeys(how(node) for node in nodes if any(site["rewritten"] for site in node.sites))
    return {text: POLICY_COLOURS[number % len(POLICY_COLOURS)] for number, text in enumerate(told)}


def fill(flops: int, most: int) -> str:
    """The colour of a share: white for none, orange for the largest; the root makes small ones visible."""
    if not most:
        return "#ffffff"
    at = 2 * (flops / most) ** 0.5
    low, high, part = (_LOW, _MIDDLE, at) if at < 1 else (_MIDDLE, _HIGH, at - 1)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(low, high, strict=True))


def border(node: Node, colours: Mapping[str, str]) -> tuple[str, float, str]:
    """(colour, width, dashes) of a node's border: what was done to it."""
    if not node.sites:
        return "#c0c0c0", 1.0, ""
    if how(node) in colours:
        return colours[how(node)], 2.2, ""
    return EXACT, 1.0, "4 3"


def tooltip(node: Node, whole: int) -> str:
    """All that a box is too small for."""
    lines = [node.id, *([f"before it: {', '.join(node.head)}"] if node.head else [])]
    for site in node.sites:
        lines.append(f"{site['id']}: {site['kind']}, {percent(site['flops'], whole)} of the training FLOPs")
        for name, product in site["products"].items():
            after = (
                f" → {amount(product['flops_after'])}" if product["flops_after"] != product["flops"] else ""
            )
            lines.append(f"{name}: {product['pairs']} {product['over']}, {amount(product['flops'])}{after}")
        if site["rewritten"]:
            lines.append(treatment(site).replace("\n", ", "))
        lines += [text for text in (site["reason"], site["source"]) if text]
    lines += [f"after it: {', '.join(node.tail)}"] if node.tail else []
    return "\n".join(lines)


def _legend(told: Mapping[str, Any], colours: Mapping[str, str], most: int, whole: int) -> Iterator[str]:
    total = told["totals"]
    yield f'<text class="title" x="12" y="22">{escape(told["model"])}</text>'
    counts = f"{total['sites']} sites, {total['rewritten']} rewritten · {amount(whole)} {told['unit']}"
    yield f'<text x="12" y="38">{escape(counts)}</text>'
    for step in range(24):
        x, colour = 12 + 5 * step, fill(step * step, 23 * 23)
        yield f'<rect x="{x}" y="46" width="5.5" height="10" fill="{colour}"/>'
    yield _caption(140, 55, f"share of the training FLOPs, up to {percent(most, whole)}")
    yield f'<rect x="400" y="46" width="18" height="10" fill="none" stroke="{EXACT}" stroke-dasharray="4"/>'
    yield _caption(424, 55, "left exact")
    for number, (text, colour) in enumerate(colours.items()):
        y = 60 + LINE * number
        yield (
            f'<rect x="12" y="{y:.0f}" width="18" height="10" fill="white"'
            f' stroke="{colour}" stroke-width="2.2"/>{_caption(36, y + 9, text)}'
        )


def _caption(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="folded">{escape(text)}</text>'


def _frame(frame: Frame) -> str:
    tint = "#f7f9fb" if frame.depth % 2 == 0 else "#eef2f6"
    return (
        f'<g class="frame" id={quoteattr("module " + frame.cluster)}>'
        f'<rect x="{frame.x:.1f}" y="{frame.y:.1f}" width="{frame.width:.1f}"'
        f' height="{frame.height:.1f}" fill="{tint}"/>'
        f'<text x="{frame.x + 8:.1f}" y="{frame.y + 15:.1f}">{escape(frame.label)}</text></g>'
    )


def _lines(drawn: Scene) -> Iterator[str]:
    ends = {(round(box.x + box.width / 2, 1), round(box.y, 1)) for box in drawn.boxes}
    for source, points in drawn.lines:
        if len(set(points)) < 2:
            continue
        last = (round(points[-1][0], 1), round(points[-1][1], 1))
        tip = ' marker-end="url(#tip)"' if last in ends else ""
        yield f'<path class="line" data-from={quoteattr(source)} d="{_path(points)}"{tip}/>'


def _path(points: Iterable[Point]) -> str:
    """Straight where two points share a coordinate, else an S with vertical ends."""
    (x, y), *rest = points
    told = [f"M{x:.1f} {y:.1f}"]
    for next_x, next_y in rest:
        if abs(next_x - x) < 0.05 or abs(next_y - y) < 0.05:
            told.append(f"L{next_x:.1f} {next_y:.1f}")
        else:
            middle = (y + next_y) / 2
            told.append(f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {next_y:.1f}")
        x, y = next_x, next_y
    return " ".join(told)


def _box(box: Box, most: int, whole: int, colours: Mapping[str, str]) -> str:
    node = box.node
    colour, width, dashes = border(node, colours)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    round_ = 4 if node.sites else box.height / 2
    background = fill(node.flops, most) if node.sites else "#ffffff"
    texts = "".join(_text(box, number) for number in range(len(box.texts)))
    return (
        f'<g class="node" id={quoteattr(node.id)}><title>{escape(tooltip(node, whole))}</title>'
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
        f' rx="{round_:.0f}" fill="{background}" stroke="{colour}" stroke-width="{width}"{dashed}/>'
        f"{texts}</g>"
    )


def _text(box: Box, number: int) -> str:
    style, text = box.texts[number]
    x, y = box.x + box.width / 2, box.y + 15 + LINE * number
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(text)}</text>'
