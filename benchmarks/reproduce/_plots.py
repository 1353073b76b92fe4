"""Figures that are the same file for the same data, and the few shapes that the experiments share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from ._experiment import Row
from ._store import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# no date, no random ids, text as text: a figure changes in version control when its data do
STYLE = {
    "svg.hashsalt": "fxapprox",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def panels(
    columns: int, rows: int = 1, *, width: float = 4.0, height: float = 3.2
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row. Made without pyplot, which would keep it."""
    import matplotlib
    from matplotlib.figure import Figure as New

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = New(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flatten())


def curve(
    axes: Axes, rows: Iterable[Row], x: str, y: str, label: str, *, scale: float = 1.0, **style: object
) -> None:
    """The mean of `y` over seeds against `x`, with a band of one deviation where there are several seeds."""
    by_x: dict[float, list[float]] = {}
    for row in rows:
        if x in row and y in row:
            by_x.setdefault(row[x], []).append(scale * row[y])
    places = sorted(by_x)
    if not places:
        return
    means = [fmean(by_x[place]) for place in places]
    drawn = axes.plot(places, means, label=label, **style)  # type: ignore[arg-type]
    if any(len(by_x[place]) > 1 for place in places):
        spreads = [stdev(by_x[place]) if len(by_x[place]) > 1 else 0.0 for place in places]
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=drawn[0].get_color(), alpha=0.15, linewidth=0)


def legend(axes: Axes, size: float = 7.0) -> None:
    """A legend, where anything is drawn yet."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=size)


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour of the default cycle for each name, the same in all panels of a figure."""
    return {name: f"C{i % 10}" for i, name in enumerate(names)}


def save(figure: Figure, path: Path) -> None:
    """Write an SVG, whole."""
    import matplotlib

    with whole(path) as fresh, matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(fresh, format="svg", metadata={"Date": None})
