"""Doing an experiment's runs one after the other, and showing what they came to."""

from __future__ import annotations

import fnmatch
import hashlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..machine import machine
from . import _pages, _plots, _store
from ._experiment import Experiment, Given, Run

ROOT = Path(__file__).parents[2]
REDRAW = 60.0  # seconds: drawing takes a second or two, which some runs do not


@dataclass(frozen=True)
class Places:
    """Where results, work in progress (ignored by git) and pages are."""

    results: Path = ROOT / "docs" / "results"
    work: Path = ROOT / ".reproduce"
    pages: tuple[Path, ...] = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@dataclass(frozen=True)
class Wanted:
    """What the command line asked for. `limit` is in minutes."""

    data: Path
    seeds: Sequence[int] = (0, 1, 2)
    only: str = "*"
    timing: bool = False
    limit: float | None = None


def carry_out(experiment: Experiment, wanted: Wanted, places: Places, console: Console) -> None:
    """Do the runs that are not done yet, and draw figures and tables anew. Raises SystemExit with one
    message for results made in another way, or an `only` that fits no arm."""
    _store.refuse_unfit(_store.read(places.results, experiment.name), experiment)
    every = experiment.runs(wanted.seeds)
    fitting = [run for run in every if fnmatch.fnmatchcase(run.arm, wanted.only)]
    if not fitting:
        arms = ", ".join(dict.fromkeys(run.arm for run in every))
        raise SystemExit(
            f"error: no arm of {experiment.name} fits --only {wanted.only!r}\n  there are: {arms}"
        )
    runs = [run for run in fitting if run.alone == wanted.timing]
    started = drawn = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(experiment.name, total=len(runs))
        for run in runs:
            if wanted.limit is not None and time.monotonic() - started >= 60 * wanted.limit:
                break
            _carry_out(run, experiment, wanted, places, progress)
            if time.monotonic() - drawn > REDRAW:
                show(experiment, places)
                drawn = time.monotonic()
            progress.advance(bar)
    for mark in show(experiment, places):
        console.print(f"no page has a place for {mark}", markup=False)
    found = _store.read(places.results, experiment.name)
    left = [run.name for run in every if not found.has(run) and not run.alone]
    timings = [run.name for run in every if not found.has(run) and run.alone]
    console.print(f"{experiment.name}: {len(every) - len(left) - len(timings)} of {len(every)} runs are done")
    for what, names in (("left", left), ("left, with --timing", timings)):
        if names:
            console.print(f"{what}: {'; '.join(names)}")


def _carry_out(run: Run, experiment: Experiment, wanted: Wanted, places: Places, progress: Progress) -> None:
    work = places.work / experiment.name
    # of all that decides the numbers: another setting must not go on from this one's checkpoint
    stem = work / hashlib.sha256(repr((experiment.settings, run)).encode()).hexdigest()[:16]
    with _store.locked(stem.with_suffix(".lock"), wait=False) as ours:
        if not ours or _store.read(places.results, experiment.name).has(run):
            return
        bar = progress.add_task(run.name, total=None)
        given = Given(
            wanted.data,
            lambda done, total: progress.update(bar, completed=done, total=total),
            stem.with_suffix(".pt"),
        )
        started = time.monotonic()
        rows = experiment.perform(run, given)
        about = {**machine(f"python -m benchmarks.reproduce {_arguments(experiment, run)}")}
        about["seconds"] = round(time.monotonic() - started, 1)
        with _store.locked(work / "results.lock"):
            _store.append(places.results, experiment, run, rows, about)
        given.checkpoint.unlink(missing_ok=True)
        progress.remove_task(bar)
        progress.console.print(f"{run.name}: {rows[-1] if rows else 'no rows'}", highlight=False)


def _arguments(experiment: Experiment, run: Run) -> str:
    """The command that does this run again."""
    timing = " --timing" if run.alone else ""
    return f"{experiment.name} --only {shlex.quote(run.arm)} --seeds {run.seed}{timing}"


def show(experiment: Experiment, places: Places) -> list[str]:
    """Draw the figures and write the tables from the results as they stand. Returns the marks of tables
    that have a place in no page."""
    with _store.locked(places.work / experiment.name / "figures.lock"):
        rows = _store.ordered(_store.read(places.results, experiment.name).rows, experiment)
        if not rows:
            return []
        for name, figure in experiment.figures(rows).items():
            _plots.save(figure, places.results / f"{experiment.name}-{name}.svg")
        tables = experiment.tables(rows)
        return _pages.fill(places.pages, experiment.name, tables, places.work / "pages.lock")


def listing(found: dict[str, Experiment], seeds: Sequence[int], places: Places) -> Table:
    """The experiments: what each shows, the minutes it takes and how much of it is done."""
    table = Table("experiment", "shows", "minutes", "done")
    for name, experiment in found.items():
        results = _store.read(places.results, name)
        runs = experiment.runs(seeds)
        done = sum(results.has(run) for run in runs)
        table.add_row(name, experiment.title, f"{experiment.minutes:g}", f"{done} of {len(runs)} runs")
    return table
