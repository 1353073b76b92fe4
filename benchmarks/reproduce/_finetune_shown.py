"""Figures and tables of the experiment `finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ._experiment import Row
from ._pages import PENDING, markdown, ratio, spread, where
from ._plots import colours, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = {"images": "CIFAR-10, residual network", "rows": "MNIST by rows, transformer"}


def again(row: Row) -> float:
    """Accuracy with batch norm re-estimated, where there is any."""
    return float(row["reestimated"] if "reestimated" in row else row["accuracy"])


def duration(rows: list[Row], task: str, name: str, way: Any, settings: Mapping[str, Any]) -> float | None:
    """Seconds of all steps; None where they are not measured."""
    steps = settings["epochs"] * (settings["count"] // settings["batch"])
    total = 0.0
    for share, keep in way.arm.phases:
        timed = _of_phase(where(rows, phase="seconds", task=task), name, way, keep)
        if timed is None:
            return None
        total += share * steps * timed["seconds"]
    return total


def peak(rows: list[Row], task: str, name: str, way: Any) -> float | None:
    """Bytes of the phase that needs most; None where they are not measured."""
    measured = where(rows, phase="memory", task=task)
    found = [_of_phase(measured, name, way, keep) for _, keep in way.arm.phases]
    return max((row["bytes"] for row in found if row is not None), default=None)


def _of_phase(rows: list[Row], name: str, way: Any, keep: float) -> Row | None:
    """The row of a way's steps at this `keep`: those of a schedule's exact part are exact's."""
    found = where(rows, way="exact" if keep == 1 and way.arm.rule else name, keep=keep)
    return found[0] if found else None


def tables(rows: list[Row], ways: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    found = dict.fromkeys(("images", "rows", "rates"), PENDING)
    found["readme"] = _in_short(rows, ways, settings)
    for task in TASKS:
        ends = where(rows, phase="final", task=task)
        cells = []
        for name, way in {"pretrained": None, **ways}.items():
            if not (of_way := where(ends, way=name)):
                continue
            took = duration(rows, task, name, way, settings) if way else None
            held = peak(rows, task, name, way) if way else None
            renewed = spread(100 * row["reestimated"] for row in of_way if "reestimated" in row)
            cells.append([
                name if way else "not fine-tuned", f"{of_way[0]['rate']:g}" if way else "–",
                spread(100 * row["accuracy"] for row in of_way), *([renewed] if task == "images" else []),
                f"{took:.1f}" if took else "–", f"{held / 2**20:.0f}" if held else "–",
            ])  # fmt: skip
        if cells:
            again_head = ["re-estimated, %"] if task == "images" else []
            head = ["", "rate", "accuracy, %", *again_head, "seconds", "peak, MiB"]
            found[task] = markdown(head, cells)
    searched = where(rows, phase="rate")
    if searched:
        arms = list(dict.fromkeys(row["arm"] for row in searched))
        cells = [
            [arm.replace("rate of ", ""),
             ", ".join(f"{row['rate']:g}: {100 * again(row):.1f}" for row in where(searched, arm=arm))]
            for arm in arms
        ]  # fmt: skip
        found["rates"] = markdown(["", "accuracy in % at each rate"], cells)
    return found


def _in_short(rows: list[Row], ways: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Accuracy and seconds beside exact's, of both networks."""
    whole = {task: duration(rows, task, "exact", ways["exact"], settings) for task in TASKS}
    cells = []
    for name, way in ways.items():
        line = [name]
        for task in TASKS:
            finals = where(rows, phase="final", task=task, way=name)
            took = duration(rows, task, name, way, settings)
            line += [spread(100 * shown(row, way) for row in finals), ratio(took, whole[task])]
        cells.append(line)
    nets = ("residual net", "transformer")
    head = [f"{net}: {what}" for net in nets for what in ("accuracy, %", "of exact's seconds")]
    return markdown(["fine-tuning", *head], cells)


def shown(row: Row, way: Any) -> float:
    """The accuracy that counts, as in `cifar`: re-estimated where forward products are sampled to the end."""
    return again(row) if way.arm.column == "reestimated" else float(row["accuracy"])


def figures(rows: list[Row], ways: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Accuracy against seconds, or against the way where no seconds are measured yet."""
    if not where(rows, phase="final"):
        return {}
    figure, axes = panels(len(TASKS), width=4.5, height=4.2)
    colour = colours(list(ways))
    for axis, (task, title) in zip(axes, TASKS.items(), strict=True):
        timed = duration(rows, task, "exact", ways["exact"], settings) is not None
        for place, (name, way) in enumerate(ways.items()):
            of_way = where(rows, phase="final", task=task, way=name)
            found = [100 * shown(row, way) for row in of_way]
            if not found:
                continue
            at = (duration(rows, task, name, way, settings) or 0.0) if timed else float(place)
            deviation = stdev(found) if len(found) > 1 else 0.0
            axis.errorbar(at, fmean(found), deviation, fmt="o", color=colour[name], label=name, capsize=2)
        axis.set(title=title, xlabel="seconds of fine-tuning" if timed else "way")
    axes[0].set(ylabel="test accuracy, %")
    handles = {
        name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=7)
    return {"seconds": figure}
