"""`fxapprox inspect`: what is in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TextIO

import typer

from . import _options as o
from ._model import captured, decision_rules
from ._running import command, progress, show, show_json, step

Graph = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Draw the graph: .svg, .html (zoom, search, details) or .dot (graphviz).",
        rich_help_panel="Output",
    ),
]


@command
def inspect(
    out: TextIO,
    asked: o.Asked,
    *,
    graph: Graph = None,
    force: o.Force = False,
    json: o.Json = False,
    all_sites: o.AllSites = False,
) -> None:
    """Show what is in a model: its sites, their FLOPs, sizes and depth; write nothing.

    A site is one contraction: a linear layer, a convolution, a matmul … With --policy, --rules or
    --plan the table and the drawing also show what would be rewritten.

    Examples:
      fxapprox inspect model.py --input 32x3x32x32
      fxapprox inspect model.py:Net --graph net.svg
      fxapprox inspect model.py:Net --rules rules.toml --graph net.html
    """
    wanted = decision_rules(asked) if asked.decides else None
    from fxapprox.api import planned
    from fxapprox.report import draw, facts, undecided
    from fxapprox.report.drawing import check_target
    from fxapprox.report.tables import summary_table

    if graph:
        check_target(graph, force=force)
    with captured(asked) as found, progress() as tick:
        decided = (
            undecided(found)
            if wanted is None
            else planned(found, wanted, costly=True, gate=asked.gate, tick=tick)
        )
    told = facts(decided, found, decided=wanted is not None)
    written = []
    if graph:
        with step(f"drawing {graph}"):
            written = [draw(told, found, graph, force=force)]
    if json:
        show_json(out, told | {"written": [str(path) for path in written]})
        return
    following = f"fxapprox rewrite {asked.words()}{'' if asked.decides else ' --policy topk'} --dry-run"
    show(out, lambda width: summary_table(told, width, every=all_sites, written=written, next_step=following))
