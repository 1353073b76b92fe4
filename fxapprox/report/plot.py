"""A measurement as a picture: the saving that FLOPs predict against the saving of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import RequestError
from .bench import site_names
from .tables import Facts

NAMED = 12
"""Dots that get a name; beyond that they would cover each other."""


def check_plot(path: Path, *, force: bool = False) -> None:
    """Raise RequestError, before anything is measured, where the picture could not be drawn: without
    matplotlib, in another format than SVG, or over a file, unless `force`."""
    if path.suffix != ".svg":
        raise RequestError(f"{path} is not an .svg file", remedy=f"try {path.with_suffix('.svg')}")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent}", remedy="make it first")
    if path.exists() and not force and MARK not in path.read_bytes()[:4000]:
        raise RequestError(
            f"{path} exists and was not drawn by fxapprox",
            remedy="choose another name, or overwrite it with --force",
        )
    _matplotlib()


MARK = b"fxapprox bench"


def draw_savings(told: Facts, path: Path) -> None:
    """One dot for each distinct site, sized by its share of the exact time, and one for the whole step.

    On the diagonal all of the FLOPs saved arrive as time; below zero sampling costs time. Raises
    RequestError where matplotlib is missing or the file cannot be written."""
    figure = _matplotlib()(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    low = min([0.0, *(one["measured_saving"] for one in (*told["sites"], told["step"]))])
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="all FLOPs saved arrive as time")
    axes.axhline(0, color="#cc3333", linewidth=1, linestyle=":")
    exact = told["totals"]["exact"] if told["totals"] else 1.0
    for place, site in enumerate(sorted(told["sites"], key=_weight, reverse=True)):
        at = site["predicted_saving"], site["measured_saving"]
        axes.scatter(*at, s=20 + 400 * _weight(site) / exact, color="#3366aa", alpha=0.6, linewidths=0)
        if place < NAMED:
            axes.annotate(
                site_names(site["sites"])[:40], at, fontsize=7, xytext=(4, 4), textcoords="offset points"
            )
    step = told["step"]
    axes.scatter(
        step["predicted_saving"],
        step["measured_saving"],
        marker="*",
        s=200,
        color="#dd8800",
        label="training step",
    )
    axes.set(
        xlabel="FLOPs saved, predicted",
        ylabel="time saved, measured",
        xlim=(0, 1),
        ylim=(low * 1.1 - 0.02, 1),
    )
    axes.set_title(f"{told['model']}, {told['about']['threads']} threads", fontsize=10)
    axes.legend(loc="upper left", fontsize=8)
    try:
        figure.savefig(path, format="svg", metadata={"Creator": MARK.decode(), "Date": None})
    except OSError as failure:
        raise RequestError(f"{path} cannot be written: {failure.strerror or failure}") from failure


def _weight(site: Facts) -> float:
    weight: float = site["calls"] * site["exact"]["seconds"]
    return weight


def _matplotlib() -> Any:
    """matplotlib's Figure, which draws without a display and without global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as failure:
        raise RequestError(
            "a plot needs matplotlib, which is not installed", remedy="pip install 'fxapprox[plots]'"
        ) from failure
    return Figure
