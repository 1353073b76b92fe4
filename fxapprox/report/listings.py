"""One site explained; every policy and every kind listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .amounts import change, saving, shape
from .tables import Facts, treatment, warning_text

_MARKS = {"matches": ("✓", "green"), "fails": ("✗", "red"), "not tried": ("·", "dim")}
_SCORES = {
    "pair": "‖A‖·‖B‖", "weight": "‖weight‖", "none": "none", "hash": "hashes",
    "result": "result", "grad": "Σ|grad|",
}  # fmt: skip
_NAMES = {"forward": "forward", "grad_input": "grad input", "grad_weight": "grad weight"}


def explanation_text(told: Facts, *, next_command: str | None = None) -> RenderableType:
    """What became of one site and why: the decision, its three products, the rules in their order."""
    parts: list[RenderableType] = [_decision(told), Text(""), _site(told), _products(told)]
    if told["rules"]:
        parts += [Text("\nrules, top to bottom; the first that matches decides:"), _rules(told["rules"])]
    parts += map(warning_text, told["warnings"])
    if next_command:
        parts.append(Text(f"\nnext: {next_command}"))
    return Stack(*parts)


def _decision(told: Facts) -> Text:
    text = Text(told["id"], style="bold")
    how = treatment(told).replace("\n", ", ") if told["rewritten"] else "stays exact"
    text.append(f": {how}", style="not bold")
    said = any(rule["reason"] and told["reason"].endswith(rule["reason"]) for rule in told["rules"])
    if not said:
        text.append(f"\n{told['reason']}", style="not bold")
    if told["rewritten"] and told["gate"]:
        text.append(f"\n{told['gate']['words']}", style="not bold")
    return text


def _site(told: Facts) -> Text:
    weight = (
        f"{told['weight']} {shape(told['weight_shape'])}" if told["weight"] else shape(told["weight_shape"])
    )
    lines = [
        f"{told['kind']} ({told['op']}), {told['dtype']}, depth {told['depth']}, height {told['height']}"
        + (f", called {told['calls']} times" if told["calls"] != 1 else "")
        + (", weight shared" if told["shared"] else ""),
        f"{shape(told['input_shape'])} · {weight} → {shape(told['output_shape'])}",
    ]
    return Text("\n".join([*lines, *([told["source"]] if told["source"] else [])]))


def _products(told: Facts) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title in ("product", "contracted over", "kept", "FLOPs"):
        table.add_column(title, overflow="fold")
    for name, one in told["products"].items():
        before, after = one["flops"], one["flops_after"]
        saved = f" ({saving(before, after)})" if before != after else ""
        over = f"{one['pairs']} {one['over']}" + (
            f" in each of {one['groups']} groups" if one["groups"] > 1 else ""
        )
        table.add_row(
            _NAMES[name], over, _kept(one), change(before, after) + saved if before else "never computed"
        )
    return table


def _kept(product: Mapping[str, Any]) -> str:
    if product["treatment"] == "sampled":
        of = f" of {product['kept_of']} {product['kept_over']}" if product["samples"] == "nodes" else ""
        fewest, most = product["kept_range"]
        varies = f" on average ({fewest} to {most})" if fewest != most else ""
        return f"{product['kept']}{of}{varies} by {product['policy']}"
    return "those of the forward" if product["treatment"] == "reuse" else "all"


def _rules(rules: Sequence[Facts]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for rule in rules:
        mark, style = _MARKS[rule["outcome"]]
        table.add_row(Text(mark, style=style), rule["rule"], rule["reason"] or Text("not tried", style="dim"))
    return table


def policies_table(told: Sequence[Facts]) -> RenderableType:
    """Name, what it does, the score, biased or not, options, source."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("policy", no_wrap=True)
    table.add_column("samples\nby score", no_wrap=True)
    table.add_column("unbiased", no_wrap=True)
    table.add_column("random", no_wrap=True)
    table.add_column("what it does, options, source", overflow="fold", ratio=1)
    for one in told:
        text = Text(one["summary"])
        for option, default in one["options"].items():
            text.append(f"\n--option {option}={default}", style="cyan")
        text.append(f"\n{one['source']}", style="dim")
        facts = [
            f"{one['samples']}\n{_SCORES[one['scores']]}",
            "yes" if one["unbiased"] else "no",
            "yes" if one["random"] else "no",
        ]
        table.add_row(one["name"], *facts, text)
    return table


def kinds_table(told: Sequence[Facts]) -> RenderableType:
    """Name, summary, spellings; the opt-in ones marked."""
    table = _described("kind", "what it is, layers, functions")
    for one in told:
        text = _marked(one["summary"], "only where a rule names it" if one["opt_in"] else None)
        spelled = [*(f"nn.{name}" for name in one["modules"]), *dict.fromkeys(one["functions"])]
        table.add_row(one["name"], text.append("\n" + ", ".join(spelled), style="dim"))
    return table


def recipes_table(told: Sequence[Facts]) -> RenderableType:
    """Name, what it is for, what it stands on; those that need the number of steps marked."""
    table = _described("recipe", "what it is, what it stands on")
    for one in told:
        text = _marked(one["title"], "needs --train-steps" if one["scheduled"] else None)
        table.add_row(one["name"], text.append(f"\n{one['evidence']}", style="dim"))
    return table


def _described(name: str, about: str) -> Table:
    """An empty table of names and what there is to say of each."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(name, no_wrap=True)
    table.add_column(about, overflow="fold", ratio=1)
    return table


def _marked(text: str, mark: str | None) -> Text:
    return Text.assemble(text, (f" ({mark})", "yellow")) if mark else Text(text)
