"""The summary as a person reads it: the counts, the table, the reasons, the next command to type."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .amounts import amount, change, percent, saving, shape, size
from .grouping import Group, grouped, merged, pattern

WIDE = 120
"""From this many columns on each fact has a column of its own; below, rows have two lines."""
MOST_NOTES = 8
SHORT = {"forward": "fwd", "grad_input": "gi", "grad_weight": "gw"}
RUNGS = {"trace": "traced", "partial": "traced in part", "modules": "not traced, layers only"}
Facts = Mapping[str, Any]


def summary_table(
    told: Facts,
    width: int,
    *,
    every: bool = False,
    written: Sequence[str | PathLike[str]] = (),
    next_step: str | None = None,
) -> RenderableType:
    """All of `facts()` at this width. `every` prints a row for each site instead of grouping equals;
    `written` are files made of it, `next_step` is what to type now."""
    chosen = [site for site in told["sites"] if site["rewritten"]]
    left = [site for site in told["sites"] if not site["rewritten"]]
    parts: list[RenderableType] = [heading(told), Text("")]
    if chosen:
        parts.append(_rewritten(_rows(chosen, every), width))
    if left and told["decided"]:
        parts.append(_left(_rows(left, every), width, titled=bool(chosen)))
    elif left:
        parts.append(_found(_rows(left, every), width, told["totals"]))
    parts += [totals(told), *_gate(told), *_notes(told), *_warnings(told)]
    if written:
        parts.append(Text(f"\nwrote {', '.join(map(str, written))}"))
    if next_step:
        parts.append(Text(f"\nnext: {next_step}", overflow="fold"))
    return Stack(*parts)


def heading(told: Facts) -> Text:
    total = told["totals"]
    text = Text(told["model"], style="bold")
    text.append(f" · {_count(total['sites'], 'site')}", style="not bold")
    if told["decided"]:
        left = total["sites"] - total["rewritten"]
        text.append(f" · {total['rewritten']} rewritten, {left} left exact", "not bold")
    if told["rung"]:
        text.append(f" · {RUNGS.get(told['rung'], told['rung'])}", "not bold")
    text.append(f"\n{told['unit']}, one training step on the example inputs", style="not bold dim")
    if told["averaged_over"]:
        steps = _count(told["averaged_over"], "step")
        text.append(f"; where keep follows a schedule, its average ({steps})", style="not bold dim")
    return text


# rows


def _rows(sites: list[Facts], every: bool) -> list[Group[Facts]]:
    if every:
        return [Group(site["id"], (site,)) for site in sites]
    return grouped(sites, name=lambda site: str(site["id"]), same=_sameness)


def _sameness(site: Facts) -> str:
    """Everything a row says of a site but its name; the rule in place of a reason that holds the name."""
    keys = (
        "kind",
        "op",
        "input_shape",
        "weight_shape",
        "output_shape",
        "rewritten",
        "scope",
        "rule",
        "products",
    )
    reason = None if site["rewritten"] else pattern(site["reason"].replace(site["id"], ""))
    return json.dumps([*(site[key] for key in keys), reason], default=str)


def _name(group: Group[Facts], limit: int | None = None) -> Text:
    text = Text(group.label)
    if len(group.items) > 1:
        text.append(f" ×{len(group.items)}", style="dim")
    return text


def _sum(group: Group[Facts], product: str, key: str) -> int:
    return sum(site["products"][product][key] for site in group.items)


def _flops(group: Group[Facts]) -> tuple[str, str]:
    """Forward and backward FLOPs of a row, before → after, over all of its sites."""
    back = ("grad_input", "grad_weight")
    before, after = (sum(_sum(group, name, key) for name in back) for key in ("flops", "flops_after"))
    return change(_sum(group, "forward", "flops"), _sum(group, "forward", "flops_after")), change(
        before, after
    )


def _sizes(site: Facts) -> str:
    weight = "" if site["weight"] else f" · {shape(site['weight_shape'])}"
    return f"{shape(site['input_shape'])}{weight} → {shape(site['output_shape'])}"


def treatment(site: Facts) -> str:
    """ "topk · forward · 0.5"; each product's own where a rule named them one by one."""
    products = site["products"]
    if site["scope"] == "per product":
        return "\n".join(f"{SHORT[name]} {_sampling(one, ' ')}" for name, one in products.items())
    sampled = [one for one in products.values() if one["treatment"] == "sampled"]
    if not sampled:
        return "exact"
    policy, _, rest = _sampling(sampled[-1], " · ").partition(" · ")
    return f"{policy} · {site['scope']} · {rest}"


def _sampling(product: Facts, joint: str) -> str:
    if product["treatment"] != "sampled":
        return str(product["treatment"])
    options = [f"{name}={value}" for name, value in product["options"].items()]
    centred = ["centred"] if product["center"] else []
    waits = [] if product["memory"] is None else ["memory"]
    waits += [f"decay={product['memory']:g}"] if waits and product["memory"] < 1 else []
    floor = [f"k≥{product['min_k']}"] if product["min_k"] > 1 else []
    share = [product["keep_words"]] if product["keep_words"] else []
    return joint.join([product["policy"], *share, *centred, *waits, *floor, *options])


def _grid(width: int) -> Table:
    gap = 2 if width >= WIDE else 1
    return Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")


def _rewritten(rows: list[Group[Facts]], width: int) -> RenderableType:
    hows = {(treatment(row.items[0]), row.items[0]["rule"] or "") for row in rows}
    if width >= WIDE:
        return _rewritten_wide(rows, width)
    if len(hows) > 1:
        return _rewritten_narrow(rows, width, each=True)
    how, rule = next(iter(hows))
    alike = (
        Text("every rewritten site: ").append(how.replace("\n", ", ")).append(f" ({rule})" if rule else "")
    )
    return Stack(alike, Text(""), _rewritten_narrow(rows, width, each=False))


def _rewritten_wide(rows: list[Group[Facts]], width: int) -> Table:
    table = _grid(width)
    table.add_column("site", overflow="fold", ratio=3)
    table.add_column("kind", no_wrap=True)
    table.add_column("sizes", overflow="fold")
    table.add_column("policy · scope · keep", overflow="fold")
    table.add_column("forward FLOPs", no_wrap=True)
    table.add_column("backward FLOPs", no_wrap=True)
    table.add_column("rule", overflow="fold", ratio=2)
    for row in rows:
        first = row.items[0]
        how, rule = treatment(first), first["rule"] or ""
        table.add_row(_name(row), first["kind"], _sizes(first), how, *_flops(row), rule)
    return table


def _rewritten_narrow(rows: list[Group[Facts]], width: int, *, each: bool) -> Table:
    """Two lines a row; `each` has a column for the policy and the rule, where they differ."""
    table = _grid(width)
    table.add_column("site, kind, sizes", overflow="fold", ratio=1)
    if each:
        table.add_column("policy · scope · keep, rule", overflow="fold", max_width=27)
    table.add_column("FLOPs, before → after", no_wrap=True)
    for row in rows:
        first = row.items[0]
        forward, backward = _flops(row)
        cells = [_name(row).append(f"\n{first['kind']} {_sizes(first)}", "dim")]
        if each:
            cells.append(Text(treatment(first) + "\n").append(first["rule"] or "", "dim"))
        table.add_row(*cells, f"fwd {forward}\nbwd {backward}")
    return table


def _left(rows: list[Group[Facts]], width: int, *, titled: bool) -> RenderableType:
    """The sites that stay exact, and why each does; `titled` where another table stands above."""
    table = _grid(width)
    wide = width >= WIDE
    table.add_column("left exact" if titled else "site", overflow="fold", ratio=3 if wide else 1)
    if wide:
        table.add_column("kind", no_wrap=True)
        table.add_column("sizes", overflow="fold")
    table.add_column("FLOPs", no_wrap=True)
    explained = any(site["reason"] for row in rows for site in row.items)
    if explained:
        table.add_column("why", overflow="fold", ratio=3 if wide else 1)
    for row in rows:
        first = row.items[0]
        flops = amount(sum(site["flops"] for site in row.items))
        why = [_why(row)] if explained else []
        if wide:
            table.add_row(_name(row), first["kind"], _sizes(first), flops, *why)
        else:
            table.add_row(_name(row).append(f"\n{first['kind']} {_sizes(first)}", "dim"), flops, *why)
    return Stack(Text(""), table) if titled else table


def _found(rows: list[Group[Facts]], width: int, total: Facts) -> Table:
    """The sites of a model about which nothing was decided."""
    table = _grid(width)
    wide = width >= WIDE
    whole = total["model_flops"] or total["site_flops"]
    table.add_column("site", overflow="fold", ratio=2)
    if wide:
        table.add_column("kind", no_wrap=True)
        table.add_column("sizes", overflow="fold")
    table.add_column("depth", no_wrap=True, justify="right")
    table.add_column("FLOPs", no_wrap=True, justify="right")
    table.add_column("share", no_wrap=True, justify="right")
    if wide:
        table.add_column("source, why never sampled", overflow="fold", ratio=2)
    for row in rows:
        first = row.items[0]
        flops = sum(site["flops"] for site in row.items)
        counts = [merged([str(site["depth"]) for site in row.items]), amount(flops), percent(flops, whole)]
        remarks = [text for text in (first["source"], first["reason"] and _why(row)) if text]
        if wide:
            table.add_row(_name(row), first["kind"], _sizes(first), *counts, "\n".join(remarks))
        else:
            below = "\n".join([f"{first['kind']} {_sizes(first)}", *remarks[-1:] * bool(first["reason"])])
            table.add_row(_name(row).append(f"\n{below}", "dim"), *counts)
    return table


def _why(row: Group[Facts]) -> str:
    """The reason of all sites of a row: the row's label for their names, ranges for their numbers."""
    reasons = [site["reason"].removeprefix("left exact: ").replace(site["id"], "\0") for site in row.items]
    return merged(reasons).replace("\0", row.label)


# what follows the table


def totals(told: Facts) -> Text:
    total = told["totals"]
    lines = [""]
    for name in ("forward", "backward"):
        before, after = total[f"{name}_flops"], total[f"{name}_flops_after"]
        lines.append(f"{name:9} {change(before, after)} FLOPs in sites" + _saved(before, after))
    if total["model_flops"]:
        inside, whole, after = total["site_flops"], total["model_flops"], total["model_flops_after"]
        lines.append(
            f"sites hold {percent(inside, whole)} of the model's training FLOPs"
            f" ({amount(inside)} of {amount(whole)})"
        )
        if after != whole:
            lines.append(f"the whole training step: {change(whole, after)} FLOPs{_saved(whole, after)}")
    before, after = total["kept_bytes"], total["kept_bytes_after"]
    if before != after:
        lines.append(
            f"inputs kept for the backward pass: {size(before)} → {size(after)}"
            f" ({saving(before, after)}; what other layers keep of the same tensors stays)"
        )
    return Text("\n".join(lines))


def _gate(told: Facts) -> Iterator[Text]:
    """What the gate did, how it knows, and what it does not know."""
    gate = told["gate"]
    if not gate:
        return
    how = [f"{gate[key]} {key}" for key in ("measured", "judged", "unmeasured") if gate[key]]
    said = f"{gate['left_exact']} of {_count(gate['sites'], 'site')} left exact, not faster sampled here"
    said += f" ({', '.join(how)}; {_count(gate['threads'], 'thread')}; --no-gate samples all)"
    yield Text("gate: ", style="cyan").append(said, style="default")
    for reason in gate["why_unmeasured"]:
        yield Text(f"  not measured, and sampled as asked: {reason}", style="dim")


def _saved(before: int, after: int) -> str:
    return f" ({saving(before, after)})" if before != after else ""


def _notes(told: Facts) -> Iterator[Text]:
    """Frozen values, opaque modules, refused front-ends: equal ones once, and never a wall of them."""
    said: dict[tuple[str, str], list[str]] = {}
    for note in told["notes"]:
        place = note["source"] or note["module"]
        said.setdefault((note["topic"], note["message"]), []).append(place)
    counted: dict[str, int] = {}
    for (topic, message), places in said.items():
        counted[topic] = counted.get(topic, 0) + 1
        if counted[topic] > MOST_NOTES:
            continue
        known = list(dict.fromkeys(place for place in places if place))
        where = f", {known[0]}" if known else ""
        more = f" and {len(known) - 1} more" if len(known) > 1 else ""
        yield Text(f"{topic}: ", style="cyan").append(f"{message}{where}{more}", style="default")
    for topic, count in counted.items():
        if count > MOST_NOTES:
            yield Text(f"{topic}: {count - MOST_NOTES} more (--json lists them)", style="cyan")


def warning_text(warning: Facts) -> Text:
    text = Text("warning: ", style="yellow").append(warning["message"], style="default")
    return text.append(f"\n  {warning['remedy']}", style="dim") if warning["remedy"] else text


def _warnings(told: Facts) -> Iterator[Text]:
    yield from map(warning_text, told["warnings"])
    yield from hushed(told)


def hushed(told: Facts) -> Iterator[Text]:
    """The line that keeps silenced warnings from being forgotten."""
    if names := [warning["name"] for warning in told["silenced"]]:
        listed = ", ".join(dict.fromkeys(names))
        yield Text(f"{_count(len(names), 'warning')} silenced: {listed}", style="dim")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
