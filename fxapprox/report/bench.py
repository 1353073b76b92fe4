"""A measurement as a person reads it: the whole step, each distinct site beside its limit, the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .amounts import change, percent, saving, shape, size
from .grouping import grouped
from .tables import WIDE, Facts

NAMED = 4
"""Groups of sites that a sentence names; the rest are counted."""


def bench_table(told: Facts, width: int, *, written: Sequence[str | PathLike[str]] = ()) -> RenderableType:
    """All of `bench_facts()` at this width; `written` are files made of it."""
    parts: list[RenderableType] = [_heading(told), Text(""), _step(told["step"])]
    if told["sites"]:
        parts += [Text(""), _rows(told["sites"], width), _totals(told["totals"]), Text("")]
    parts.extend(_verdicts(told))
    parts.extend(Text("note: ", style="cyan").append(note, style="default") for note in told["notes"])
    if written:
        parts.append(Text(f"\nwrote {', '.join(map(str, written))}"))
    return Stack(*parts)


def milliseconds(seconds: float) -> str:
    """Three digits: "0.0123", "1.23", "12.3", "123"."""
    number = seconds * 1e3
    digits = 0 if number >= 99.95 else 1 if number >= 9.995 else 2 if number >= 0.9995 else 3
    return f"{number:.{digits}f}"


def times(ratio: float) -> str:
    return f"{ratio:.2f}×"


def site_names(ids: Sequence[str]) -> str:
    """The ids on one line, those that differ in numbers alone together: `layer1.{0-2}.conv2`."""
    groups = grouped(ids, name=str, same=lambda _: None)
    return ", ".join(group.label for group in groups)


def _heading(told: Facts) -> Text:
    about, settings = told["about"], told["settings"]
    text = Text(told["model"], style="bold")
    threads = about["threads"]
    text.append(
        f" · {threads} thread{'s' * (threads != 1)}, torch {about['torch']}, {about['cpu']}", "not bold"
    )
    how = f"{settings['repeat']} repetitions" if settings["repeat"] else f"about {settings['seconds']:g} s"
    text.append(
        f"\nmedian ms (quartiles), exact and ours in turn, {how}; ratio: exact / ours, above 1 ours wins",
        "not bold dim",
    )
    return text


def _step(step: Facts) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name in ("exact", "ours"):
        table.add_row(f"training step, {name}", f"{_spread(step[name])} ms{_form(step[name])}")
    low, high = step["ratio"]["quartiles"]
    table.add_row("ratio", f"{times(step['ratio']['median'])} ({times(low)} to {times(high)})")
    before, after = step["flops"], step["flops_after"]
    table.add_row(
        "saved",
        f"{_saved(step['measured_saving'])} of the time, {_saved(step['predicted_saving'])} predicted"
        f" ({change(before, after)} FLOPs)",
    )
    table.add_row("peak memory", _memory(step["memory"]))
    return table


def _memory(memory: Facts) -> str:
    if "reason" in memory:
        return f"not measured: {memory['reason']}"
    whole, step = ([memory[name][key] for name in ("exact", "ours")] for key in ("resident", "step"))
    return (
        f"training adds {size(step[0])} → {size(step[1])} ({saving(*step)});"
        f" resident in all {size(whole[0])} → {size(whole[1])}, a process of its own each"
    )


def _spread(side: Facts) -> str:
    low, high = side["quartiles"]
    return f"{milliseconds(side['seconds'])} ({milliseconds(low)}–{milliseconds(high)})"


def _form(side: Facts) -> str:
    """The memory format that served, where there was a choice."""
    if len(side["forms"]) < 2:
        return ""
    return f" in {side['form']} format"


def _saved(share: float) -> str:
    return f"{share:.0%}".replace("-", "−")


def _rows(sites: Sequence[Facts], width: int) -> Table:
    """One row a distinct site, the worst first; two lines a row below `WIDE` columns."""
    wide = width >= WIDE
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("site, worst first", overflow="fold", ratio=1)
    if wide:
        table.add_column("shape", overflow="fold")
    for name in ("exact ms", "ours ms", "ratio", "limit", "reached"):
        table.add_column(name, no_wrap=True, justify="right")
    for site in sites:
        label = Text(site_names(site["sites"])).append(f" ×{site['calls']}" * (site["calls"] > 1), "dim")
        sizes = f"{shape(site['input_shape'])} · {shape(site['weight_shape'])}"
        cells: list[RenderableType] = [label, Text(sizes)] if wide else [label.append(f"\n{sizes}", "dim")]
        for side in ("exact", "ours"):
            cells.append(_cell(site[side], wide))
        ratio = site["ratio"]["median"]
        cells.append(Text(times(ratio), style="red" if ratio < 1 else "green"))
        limit, reached = site["limit_ratio"], site["reached"]
        cells += [Text(times(limit["median"]) if limit else "–"), Text(f"{reached:.0%}" if limit else "–")]
        table.add_row(*cells)
    return table


def _cell(side: Facts, wide: bool) -> Text:
    """The median, its quartiles beside or below it; a star where channels_last served."""
    low, high = (milliseconds(value) for value in side["quartiles"])
    star = "*" if side["form"] == "channels_last" else ""
    between = " " if wide else "\n"
    return Text(f"{milliseconds(side['seconds'])}{star}").append(f"{between}{low}–{high}", style="dim")


def _totals(totals: Facts) -> Text:
    exact, ours, limit = (totals[name] for name in ("exact", "ours", "limit"))
    return Text(
        f"\nall {totals['calls']} calls of a step: exact {milliseconds(exact)} ms,"
        f" ours {milliseconds(ours)} ms ({times(exact / ours)}), limit {milliseconds(limit)} ms"
        f" ({times(exact / limit)}, {limit / ours:.0%} reached)\n"
        "limit: the exact operation on the kept pairs alone; reached: ratio / limit; * in channels_last",
        style="",
    )


def _verdicts(told: Facts) -> Iterator[Text]:
    """What the numbers say, plainly: also where they say that sampling does not pay."""
    unsure = [site for site in told["sites"] if _straddles(site["ratio"])]
    losing = [site for site in told["sites"] if site["ratio"]["median"] < 1 and site not in unsure]
    if losing:
        ratios = [site["ratio"]["median"] for site in losing]
        span = times(ratios[0]) if len(ratios) == 1 else f"{times(ratios[0])} to {times(ratios[-1])}"
        yield Text(
            f"ours is {span} here: sampling does not pay at these sites: {_named(losing)}", style="red"
        )
    if unsure:
        yield Text(f"too close to call, the quartiles of the ratio lie on both sides of 1: {_named(unsure)}")
    if told["sites"] and not losing and not unsure:
        yield Text("sampling pays at every site here", style="green")
    step = told["step"]
    ratio = step["ratio"]["median"]
    if ratio < 1:
        yield Text(
            f"the whole training step is {times(ratio)}: the rewritten model is slower here", style="red"
        )
    elif step["predicted_saving"] > 0 and step["measured_saving"] > 0:
        arrived = percent(min(step["measured_saving"], step["predicted_saving"]), step["predicted_saving"])
        yield Text(
            f"the whole training step is {times(ratio)}: {arrived} of the FLOPs saved arrive as time",
            style="green",
        )


def _named(sites: Sequence[Facts]) -> str:
    names = [site_names(site["sites"]) for site in sites]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _straddles(ratio: Mapping[str, Any]) -> bool:
    low, high = ratio["quartiles"]
    return bool(low < 1 < high)
