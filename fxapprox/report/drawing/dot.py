"""An outline as graphviz source, for those who have it and want its layouts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .outline import ROOT, Outline
from .scene import frame_label, node_texts
from .svg import border, fill, policy_colours, tooltip


def dot_text(drawn: Outline, whole: int, told: Mapping[str, Any], mark: str) -> str:
    """A digraph with a cluster for each module."""
    colours = policy_colours(drawn.nodes.values())
    most = max((node.flops for node in drawn.nodes.values()), default=0)

    def inside(cluster: str, indent: str) -> Iterator[str]:
        for child in drawn.children[cluster]:
            if child in drawn.children:
                yield f"{indent}subgraph {_quoted('cluster ' + child)} {{"
                yield f"{indent}  label={_quoted(frame_label(drawn, child, whole))}"
                yield from inside(child, indent + "  ")
                yield f"{indent}}}"
                continue
            node = drawn.nodes[child]
            colour, width, dashes = border(node, colours)
            label = "\n".join(text for _, text in node_texts(drawn, node, whole))
            style = "filled,rounded" + (",dashed" if dashes else "")
            yield (
                f"{indent}{_quoted(child)} [label={_quoted(label)}, tooltip={_quoted(tooltip(node, whole))},"
                f' fillcolor="{fill(node.flops, most)}", color="{colour}", penwidth={width}, style="{style}"]'
            )

    lines = [
        f"// {mark}",
        f"digraph {_quoted(told['model'])} {{",
        f"  label={_quoted(told['model'] + chr(10) + told['unit'])}",
        '  node [shape=box, fontname="Helvetica", fontsize=11]',
        '  graph [fontname="Helvetica", style="rounded,filled", fillcolor="#f7f9fb", color="#c4cbd4"]',
        *inside(ROOT, "  "),
        *(f"  {_quoted(one)} -> {_quoted(other)}" for one, other in drawn.edges),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A double-quoted string: dot's escapes are JSON's for what occurs here."""
    return json.dumps(text, ensure_ascii=False)
