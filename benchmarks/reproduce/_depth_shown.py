"""Figures and tables of the experiment `depth`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._experiment import Row
from ._pages import PENDING, markdown, spread, where
from ._plots import colours, curve, panels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure


TABLES = ("accuracy", "answers", "batch", "cifar", "seconds", "growth", "rates")
TOLD = (0.5, 0.8333)  # keeps in the table of errors; the figure has all


def _unique(rows: Sequence[Row], column: str) -> list:
    return list(dict.fromkeys(row[column] for row in rows if column in row))


def _by_depth(rows: list[Row], mode: str) -> list[Row]:
    """Ends of the runs that differ in depth alone."""
    return [row for row in where(rows, phase="final", mode=mode) if "layers" in row["arm"]]


def tables(rows: list[Row]) -> dict[str, str]:
    found = {**dict.fromkeys(TABLES, PENDING), **_accuracies(rows), **_times(rows)}
    if grown := where(rows, phase="growth"):
        found["growth"] = _growth(grown)
    if searched := where(rows, phase="rate"):
        cells = []
        for arm in _unique(searched, "arm"):
            tried = where(searched, arm=arm)
            told = ", ".join(f"{row['rate']:g}: {100 * row['accuracy']:.1f}" for row in tried)
            cells.append([arm.removeprefix("rate of "), told])
        found["rates"] = markdown(["", "accuracy in % at each rate"], cells)
    return found


def _accuracies(rows: list[Row]) -> dict[str, str]:
    """Accuracy by depth, how the answers of the S runs spread over the labels, by batch, and on CIFAR-10."""
    found: dict[str, str] = {}
    cells, spreads = [], []
    for mode in ("M", "S"):
        ends = _by_depth(rows, mode)
        depths = sorted(_unique(_by_depth(rows, "M") + _by_depth(rows, "S"), "layers"))
        for method in _unique(ends, "method"):
            by_depth = [where(ends, method=method, layers=depth) for depth in depths]
            name = f"{method} {mode}"
            cells.append([name, *(spread(100 * row["accuracy"] for row in each) for each in by_depth)])
            spreads.append([
                name,
                *(f"{spread((r['entropy'] for r in each), 2)}; {spread((100 * r['top'] for r in each), 0)}"
                  for each in by_depth),
            ])  # fmt: skip
    if cells:
        head = ["hidden layers", *(str(depth) for depth in depths)]
        found["accuracy"], found["answers"] = markdown(head, cells), markdown(head, spreads)
    by_batch = [row for row in where(rows, phase="final") if ", batch " in row["arm"]]
    if by_batch:
        sizes = sorted(_unique(by_batch, "batch"))
        found["batch"] = markdown(
            ["batch", *(str(size) for size in sizes)],
            [
                [method, *(spread(100 * r["accuracy"] for r in where(by_batch, method=method, batch=size))
                           for size in sizes)]
                for method in _unique(by_batch, "method")
            ],
        )  # fmt: skip
    if on_cifar := where(rows, phase="final", mode="CIFAR-10"):
        found["cifar"] = markdown(
            ["", "accuracy, %"],
            [
                [method, spread(100 * row["accuracy"] for row in where(on_cifar, method=method))]
                for method in _unique(on_cifar, "method")
            ],
        )
    return found


def _times(rows: list[Row]) -> dict[str, str]:
    times = where(rows, phase="seconds")
    if not times:
        return {}
    shown = [
        [row["case"], *(f"{row[part]:.2f}" for part in ("forward", "backward", "update", "low", "high"))]
        for row in times
    ]
    return {"seconds": markdown(["", "forward", "backward", "update", "Q1, all", "Q3, all"], shown)}


def _growth(rows: list[Row]) -> str:
    depths = sorted(_unique(rows, "layer"))
    cells = []
    for net in _unique(rows, "net"):
        for keep in TOLD:
            of_net = [where(rows, net=net, keep=keep, layer=depth) for depth in depths]
            for column, name in (("error", "measured"), ("predicted", "predicted")):
                means = (sum(row[column] for row in each) / len(each) for each in of_net)
                cells.append([f"{net}, keep {keep:.2f}, {name}", *(f"{mean:.3g}" for mean in means)])
    return markdown(["layer", *(str(depth) for depth in depths)], cells)


def figures(rows: list[Row]) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    if _by_depth(rows, "M") or _by_depth(rows, "S"):
        found["layers"] = _layers(rows)
    if where(rows, phase="confusion"):
        found["confusion"] = _confusion(rows)
    if grown := where(rows, phase="growth"):
        found["growth"] = _growth_figure(grown)
    return found


def _layers(rows: list[Row]) -> Figure:
    figure, axes = panels(3)
    colour = colours(_unique(where(rows, phase="final"), "method"))
    for axis, mode in zip(axes, ("M", "S"), strict=False):
        ends = _by_depth(rows, mode)
        for method in _unique(ends, "method"):
            of_method = where(ends, method=method)
            style: dict[str, Any] = {"color": colour[method], "marker": "o"}
            curve(axis, of_method, "layers", "accuracy", method, scale=100, **style)
            if mode == "S":
                curve(axes[2], of_method, "layers", "top", method, scale=100, **style)
        axis.set(title=f"{mode}: test accuracy, %", xlabel="hidden layers")
    handles, names = axes[1].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=7)
    axes[2].set(title="S: share of the commonest answer, %", xlabel="hidden layers")
    return figure


def _confusion(rows: list[Row]) -> Figure:
    """Where the test images of each label (rows) go (columns), seed 0."""
    found = where(rows, phase="confusion")
    arms = _unique(found, "arm")
    columns = 5
    figure, axes = panels(columns, -(-len(arms) // columns), width=2.2, height=2.4)
    for axis, arm in zip(axes, arms, strict=False):
        counts = [[row[f"as {j}"] for j in range(10)] for row in where(found, arm=arm)]
        shares = [[count / max(sum(row), 1) for count in row] for row in counts]
        axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        axis.set_title(arm, fontsize=7)
        axis.grid(False)
    for axis in axes[len(arms) :]:
        axis.set_visible(False)
    return figure


def _growth_figure(rows: list[Row]) -> Figure:
    nets = _unique(rows, "net")
    figure, axes = panels(len(nets), width=3.2)
    colour = colours([str(keep) for keep in _unique(rows, "keep")])
    for axis, net in zip(axes, nets, strict=True):
        for keep in _unique(rows, "keep"):
            found, as_keep = where(rows, net=net, keep=keep), colour[str(keep)]
            curve(axis, found, "layer", "error", f"keep {keep:.2f}", marker="o", color=as_keep)
            curve(axis, found, "layer", "predicted", "_", linestyle=":", color=as_keep)
        axis.set(title=net, xlabel="layer", yscale="log")
    axes[0].set(ylabel="relative error; dotted: Theorem 2")
    axes[0].legend(fontsize=7)
    return figure
