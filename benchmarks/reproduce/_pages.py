"""Tables in markdown, and their places in the pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ._experiment import Row
from ._store import locked, whole

END = "<!-- end -->"
PENDING = "Not run yet."
"""What a table says while no run has given it a row."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def spread(values: Iterable[float], digits: int = 1) -> str:
    """`mean ± deviation` (of the sample, n − 1); one value alone; – where there is none."""
    found = list(values)
    if not found:
        return "–"
    mean = f"{fmean(found):.{digits}f}"
    return mean if len(found) == 1 else f"{mean} ± {stdev(found):.{digits}f}"


def ratio(part: float | None, whole: float | None) -> str:
    """`part / whole`; – where one of them is not known."""
    return f"{part / whole:.2f}" if part and whole else "–"


def where(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def last(rows: Iterable[Row], column: str = "epoch") -> list[Row]:
    """Of every arm and seed the row with the largest `column`."""
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        key = (row["arm"], row["seed"])
        if key not in found or row[column] >= found[key][column]:
            found[key] = row
    return list(found.values())


def marker(experiment: str, table: str) -> str:
    return f"<!-- {experiment}:{table} -->"


def placed(page: str, mark: str) -> str | None:
    """What stands between the mark and the next end; None where the page has no such mark."""
    if mark not in page:
        return None
    return page.split(mark, 1)[1].split(END, 1)[0].strip("\n")


def fill(pages: Iterable[Path], experiment: str, tables: Mapping[str, str], lock: Path) -> list[str]:
    """Put every table in its places. Returns the marks that no page has."""
    with locked(lock):
        missing = {marker(experiment, table) for table in tables}
        for path in pages:
            text = before = path.read_text()
            for table, content in tables.items():
                mark = marker(experiment, table)
                if mark in text:
                    missing.discard(mark)
                    head, rest = text.split(mark, 1)
                    text = f"{head}{mark}\n{content}\n{END}{rest.split(END, 1)[1]}"
            if text != before:
                with whole(path) as fresh:
                    fresh.write_text(text)
        return sorted(missing)
