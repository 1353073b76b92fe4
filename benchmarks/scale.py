"""What sampling costs and saves as batch, width, depth, keep and threads grow: exact, ours and the limit.

    python -m benchmarks.scale                               # all points, some fifteen minutes
    python -m benchmarks.scale --only 'linear/batch/*' --missing
    python -m benchmarks.scale --draw                        # only the pictures, from the results

Forward and backward, policy topk, scope forward, in turn in one process; one thing varies, the others stay
where BASE has them. A layer of depth d is d equal layers with a ReLU each, its limit d times that of one.
Results: docs/results/scale.json and scale-*.svg; the third picture is of rewrite_time.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

import fxapprox

from . import kernels
from .kernels import Case
from .reproduce._plots import panels, save
from .store import RESULTS, Measure, chosen, make, rows_of
from .turns import Claim, Rival, keep_memory, rounds, told

FILE = RESULTS / "scale.json"
SECONDS = 4.0
COLOURS = {"exact": "#666666", "topk": "#3366aa", "limit": "#dd8800"}
NAMES = {"exact": "exact", "topk": "sampled (topk)", "limit": "limit"}


@dataclass(frozen=True)
class Point:
    """A stack of `depth` equal layers on a batch; a convolution where it has a side."""

    batch: int
    width: int
    depth: int = 1
    keep: float = 0.5
    threads: int = 2
    side: int = 0

    def case(self) -> Case:
        if self.side:
            return kernels.conv(self.width, self.side, self.batch, last=True)
        return kernels.linear((self.batch,), self.width, self.width)


BASE = {"linear": Point(batch=128, width=1024), "conv": Point(batch=32, width=128, side=16)}
CORES = os.cpu_count() or 1
ALIKE: dict[str, Sequence[float]] = {
    "depth": (1, 2, 4, 8),
    "keep": (0.05, 0.1, 0.25, 0.5, 0.75, 1.0),
    "threads": tuple(sorted({1, 2, CORES})),
}
AXES: dict[str, dict[str, Sequence[float]]] = {
    "linear": {
        "batch": (8, 32, 128, 512, 2048),
        "width": (128, 256, 512, 1024, 2048, 4096),
        **ALIKE,
    },
    "conv": {
        "batch": (1, 4, 16, 64, 128),
        "width": (16, 32, 64, 128, 256, 512),
        **ALIKE,
    },
}


def points() -> dict[str, Point]:
    """Every point by its name: `kind/axis/value`."""
    return {
        f"{kind}/{axis}/{value:g}": replace(BASE[kind], **{axis: value})
        for kind, axes in AXES.items()
        for axis, values in axes.items()
        for value in values
    }


def contenders(point: Point) -> dict[str, Rival]:
    """Exact, ours and the limit of the stack."""
    case = point.case()
    torch.manual_seed(0)
    layers = [kernels.operands(case)[0] for _ in range(point.depth)]
    _, x, grad = kernels.operands(case)
    stack = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())])
    ours = fxapprox.rewrite(stack, (x[:2],), policy="topk", keep=point.keep, gate=False)
    limits = [kernels.limit(case, layer, x, grad, point.keep, "forward") for layer in layers]

    def all_limits() -> None:
        for one in limits:
            one.step()

    return {
        "exact": kernels.layer_step(stack, x, grad),
        "topk": kernels.layer_step(ours, x, grad),
        "limit": Rival(all_limits, tuple(tensor for one in limits for tensor in one.tensors)),
    }


def measure(point: Point, seconds: float) -> dict[str, Any]:
    torch.set_num_threads(point.threads)  # and left so, for the row tells how many there are
    found = rounds(contenders(point), seconds)
    return told(found, [Claim("exact", "topk"), Claim("exact", "limit")])


def draw(rows: Mapping[str, Mapping[str, Any]], kind: str, path: Path) -> None:
    """A column for each axis: milliseconds above, speed against exact below."""
    axes = {
        axis: there
        for axis, values in AXES[kind].items()
        if (there := [value for value in values if f"{kind}/{axis}/{value:g}" in rows])
    }
    figure, grid = panels(len(axes), 2, width=2.8, height=2.6)
    for column, (axis, there) in enumerate(axes.items()):
        found = [rows[f"{kind}/{axis}/{value:g}"] for value in there]
        above, below = grid[column], grid[len(axes) + column]
        for name, colour in COLOURS.items():
            low, median, high = zip(*(row["milliseconds"][name] for row in found), strict=True)
            above.plot(there, median, "o-", color=colour, label=NAMES[name], ms=3)
            above.fill_between(there, low, high, color=colour, alpha=0.2, linewidth=0)
        for place, name in enumerate(("topk", "limit")):
            ratios = [row["claims"][place]["value"][1] for row in found]
            below.plot(there, ratios, "o-", color=COLOURS[name], ms=3)
        below.axhline(1, color=COLOURS["exact"], linewidth=1, linestyle=":")
        if axis not in ("keep", "threads"):
            above.set_xscale("log", base=2)
            below.set_xscale("log", base=2)
        above.set_yscale("log")
        below.set_xlabel(axis)
    grid[0].set_ylabel("ms, forward and backward")
    grid[len(axes)].set_ylabel("times faster than exact")
    grid[0].legend(fontsize=8)
    save(figure, path)


def draw_rewriting(source: Path, path: Path) -> None:
    """Seconds of a rewrite against the number of sites, our own and the model's."""
    rows = [one for one in json.loads(source.read_text(encoding="utf-8"))["rows"] if one["sites"] >= 10]
    chains = sorted((one for one in rows if one["model"].endswith(" layers")), key=lambda one: one["sites"])
    figure, (panel,) = panels(1, width=5, height=4)
    for key, name, colour in (
        ("ours_s", "tracing, deciding, rewriting", COLOURS["topk"]),
        ("model_s", "running the model to check it", COLOURS["limit"]),
    ):
        sites = [one["sites"] for one in chains]
        panel.plot(sites, [one[key] for one in chains], "o-", color=colour, label=name)
        for one in (one for one in rows if one not in chains):
            at = one["sites"], one[key]
            panel.plot(*at, "*", color=colour, ms=10)
            panel.annotate(one["model"], at, fontsize=7, xytext=(6, 0), textcoords="offset points")
    panel.set(xscale="log", yscale="log", xlabel="sites", ylabel="seconds of a rewrite")
    panel.legend(fontsize=8)
    save(figure, path)


def pictures() -> list[Path]:
    """Draw what there are results for."""
    drawn = []
    rows = rows_of(FILE)
    for kind in AXES:
        if any(name.startswith(f"{kind}/") for name in rows):
            drawn.append(RESULTS / f"scale-{kind}.svg")
            draw(rows, kind, drawn[-1])
    source = RESULTS / "rewrite_time.json"
    if source.exists():
        drawn.append(RESULTS / "scale-rewrite.svg")
        draw_rewriting(source, drawn[-1])
    return drawn


def line(row: dict[str, Any]) -> str:
    ours, limit = (claim["value"][1] for claim in row["claims"])
    return f"{row['name']}: {ours:.2f}× (limit {limit:.2f}×)"


def main(
    only: Annotated[list[str] | None, typer.Option(help="A glob on the points' names; repeatable.")] = None,
    missing: Annotated[bool, typer.Option(help="Only points that have no result yet.")] = False,
    seconds: Annotated[float, typer.Option(help="For each point.")] = SECONDS,
    draw_only: Annotated[bool, typer.Option("--draw", help="Only draw the pictures.")] = False,
) -> None:
    """Measure the curves and draw them."""
    if not draw_only:
        keep_memory()
        measures: dict[str, Measure] = {
            name: partial(measure, point, seconds) for name, point in points().items()
        }
        make(FILE, measures, chosen(measures, only or [], FILE, missing=missing), line)
    for path in pictures():
        Console().print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
