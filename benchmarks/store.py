"""Results that are made row by row: a file that is written anew as each row ends, rows in the order asked."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from fxapprox.planfile import write_whole

from .machine import machine

RESULTS = Path(__file__).parent.parent / "docs" / "results"
Measure = Callable[[], dict[str, Any]]


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file by name; none where there is no file."""
    if not path.exists():
        return {}
    return {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def put(path: Path, row: dict[str, Any], order: Sequence[str], **more: Any) -> None:
    """Write one row into the file, in the place of the one of its name. Rows that `order` no longer has are
    dropped, `more` stands beside the rows."""
    rows = rows_of(path) | {row["name"]: row}
    kept = [rows[name] for name in order if name in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({**more, "rows": kept}, indent=1, ensure_ascii=False) + "\n")


def chosen(names: Iterable[str], only: Sequence[str], path: Path, *, missing: bool) -> list[str]:
    """The names that one of the globs matches (all without one); `missing`: those without a row only."""
    have = rows_of(path) if missing else {}
    return [
        name
        for name in names
        if name not in have and (not only or any(fnmatch.fnmatchcase(name, glob) for glob in only))
    ]


def make(
    path: Path,
    measures: Mapping[str, Measure],
    names: Sequence[str],
    show: Callable[[dict[str, Any]], str],
) -> None:
    """Measure the named rows and keep each as it ends, with command, machine, threads, versions and date."""
    console = Console(stderr=True)
    module = getattr(sys.modules["__main__"], "__spec__", None)
    command = " ".join(["python -m", module.name if module else "benchmarks", *sys.argv[1:]])
    for name in track(names, "measuring", console=console):
        row = {"name": name, **measures[name](), "about": machine(command)}
        put(path, row, list(measures))
        console.print(show(row), highlight=False)
