"""Advice on a model: the questions with their answers, the rules, the warnings, the command to type."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..guide import Guide
from .facts import facts
from .tables import Facts, hushed, warning_text

FORMAT = 1


def guide_facts(guide: Guide, command: str) -> dict[str, Any]:
    """All that is printed, JSON-able."""
    made = facts(guide.plan)
    return {
        "format": FORMAT,
        "model": guide.plan.model,
        "batch_size": guide.batch_size,
        "cores": guide.cores,
        "method": guide.method,
        "questions": [dataclasses.asdict(question) for question in guide.questions],
        "rules": [dict(table) for table in guide.tables],
        "rules_text": guide.rules_text,
        "totals": made["totals"],
        "warnings": made["warnings"],
        "silenced": made["silenced"],
        "command": command,
    }


def guide_text(told: Facts) -> RenderableType:
    """The walk as a table, and where it ends."""
    total = told["totals"]
    title = Text(told["model"], style="bold").append(f" · {told['method']}", style="bold green")
    title.append(f" · batch {told['batch_size']}, {told['cores']} cores", style="not bold default")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("question", overflow="fold", ratio=3)
    table.add_column("this model", overflow="fold", ratio=3)
    table.add_column("answer", overflow="fold", ratio=4)
    table.add_column("source", overflow="fold", style="dim", min_width=8)
    for one in told["questions"]:
        table.add_row(one["asked"], one["found"], one["answer"], one["source"])
    counts = f"\nthe rules sample {total['rewritten']} of {total['sites']} sites:"
    rules = Text(told["rules_text"].rstrip(), style="cyan")
    tail = Text(f"\nnext: {told['command']}", overflow="fold")
    sources = Text("[A] Adelman et al. 2021, [E] Ebrahimi, Advani, Asudeh 2023", style="dim")
    warnings = [*map(warning_text, told["warnings"]), *hushed(told)]
    return Stack(title, Text(""), table, sources, Text(counts), rules, *warnings, tail)
