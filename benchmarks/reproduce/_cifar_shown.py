"""Seconds, figures and tables of the experiment `cifar`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from ._arms import Arm
from ._experiment import SEARCH, Row
from ._pages import PENDING, markdown, ratio, spread, where
from ._plots import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IN_SHORT = (
    "exact",
    "exact, 4 of 6 epochs",
    "narrower, half the arithmetic",
    "topk 0.5",
    "topk 0.5, exact last fifth",
    "bfloat16",
    "bfloat16, 7 epochs",
    "bfloat16, 8 epochs",
    "bfloat16, topk 0.5, exact last fifth, 7 epochs",
    "bfloat16, topk 0.5, exact last fifth, 9 epochs",
)


def duration(arm: Arm, rows: Sequence[Row], steps: int, upto: float = 1.0) -> float | None:
    """Seconds of the arm's first steps, up to this part of them, in the memory format that is faster for the
    whole run, at so many steps an epoch; None without timings."""
    steps *= arm.epochs
    found = []
    for last in (0, 1):
        total, start = 0.0, 0.0
        for share, keep in arm.phases:
            timed = where(rows, phase="seconds", step=arm.step(keep), channels_last=last)
            if not timed:
                return None
            total += steps * min(max(upto - start, 0.0), share) * timed[0]["seconds"]
            start += share
        found.append(total)
    return min(found)


def marks_of(arms: Mapping[str, Arm]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm: a colour for those that are exact, those that sample forward products
    (to the end, or not), gradients only, and those in bfloat16."""
    found: dict[str, tuple[str, str]] = {}
    for name, arm in arms.items():
        if not arm.rule:
            colour = "0.5" if arm.bfloat16 else "black"
        elif arm.bfloat16:
            colour = "C3"
        elif not arm.forward:
            colour = "C1"
        else:
            colour = "C0" if arm.column == "reestimated" else "C2"
        taken = sum(colour == other for other, _ in found.values())
        found[name] = colour, "os^vDPX*"[taken % 8]
    return found


def figures(rows: list[Row], arms: Mapping[str, Arm], steps: int) -> dict[str, Figure]:
    """Where the arms end, and how they get there; against epochs as long as no seconds are measured."""
    shown = [name for name in arms if where(rows, arm=name)]
    if not shown:
        return {}
    timed = duration(arms["exact"], rows, steps) is not None
    figure, axes = panels(2, width=5.5, height=5.0)
    marks = marks_of(arms)
    for name in shown:
        arm, (colour, mark) = arms[name], marks[name]
        ends, curve = where(rows, arm=name, phase="final"), where(rows, arm=name, phase="training")
        finals = [100 * row[arm.column] for row in ends]
        at = (duration(arm, rows, steps) or 0.0) if timed else float(arm.epochs)
        if finals:
            deviation = stdev(finals) if len(finals) > 1 else 0.0
            axes[0].errorbar(at, fmean(finals), deviation, fmt=mark, color=colour, label=name, capsize=2)
        epochs = sorted({row["epoch"] for row in curve})
        x = [(duration(arm, rows, steps, e / arm.epochs) or 0.0) if timed else float(e) for e in epochs]
        y = [100 * fmean(row["reestimated"] for row in where(curve, epoch=e)) for e in epochs]
        axes[1].plot(x, y, marker=mark, markersize=3, color=colour, linewidth=1)
    for axis, title in zip(axes, ("after training", "while training (re-estimated)"), strict=True):
        axis.set(title=title, xlabel="seconds of training" if timed else "epochs")
    axes[0].set(ylabel="test accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    return {"seconds": figure}


def tables(rows: list[Row], arms: Mapping[str, Arm], rates: Sequence[float], steps: int) -> dict[str, str]:
    """Where the arms end, those in short that tell most, and the search for their rates."""
    found = {"arms": PENDING, "rates": PENDING, "readme": PENDING}
    finals = where(rows, phase="final")
    whole = duration(arms["exact"], rows, steps)
    cells, short = [], []
    for name, arm in arms.items():
        if ends := where(finals, arm=name):
            took = duration(arm, rows, steps)
            cells.append([
                name, f"{ends[0]['rate']:g}", str(len(ends)),
                *(spread(100 * row[column] for row in ends) for column in ("accuracy", "reestimated")),
                f"{took:.0f}" if took else "–", ratio(took, whole),
            ])  # fmt: skip
            if name in IN_SHORT:
                short.append([name, spread(100 * row[arm.column] for row in ends), ratio(took, whole)])
    if cells:
        head = ["", "rate", "seeds", "accuracy, %", "re-estimated, %", "seconds", "of exact's"]
        found["arms"] = markdown(head, cells)
        found["readme"] = markdown(["CIFAR-10 from scratch", "test accuracy, %", "of exact's seconds"], short)
    searched = {name: of_arm for name in arms if (of_arm := where(rows, arm=SEARCH + name))}
    if searched:
        cells = [
            [name, *(f"{100 * row['reestimated']:.1f}" for row in of_arm)]
            for name, of_arm in searched.items()
        ]
        found["rates"] = markdown(["", *(f"{rate:g}" for rate in rates)], cells)
    return found
