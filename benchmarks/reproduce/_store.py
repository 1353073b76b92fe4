"""Results as tidy data: NAME.csv holds the rows, NAME.json how they were made.

A run is in the results once NAME.json lists it; rows of a run that it does not list (the process was
killed between the two files) are left out. Several processes may add runs of one experiment at once.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._experiment import Experiment, Row, Run


@dataclass(frozen=True)
class Results:
    """What stands in the files: settings (None: no files), runs in the order they ended, and their rows."""

    settings: Mapping[str, Any] | None
    runs: list[dict[str, Any]]
    rows: list[Row]

    def has(self, run: Run) -> bool:
        return any((done["arm"], done["seed"]) == (run.arm, run.seed) for done in self.runs)


def read(folder: Path, name: str) -> Results:
    """The results of the experiment in `folder`."""
    about, table = folder / f"{name}.json", folder / f"{name}.csv"
    if not about.exists():
        return Results(None, [], [])
    stored = json.loads(about.read_text())
    done = {(run["arm"], run["seed"]) for run in stored["runs"]}
    with table.open(newline="") as file:
        rows = [{key: _value(key, cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]
    return Results(
        stored["settings"], stored["runs"], [row for row in rows if (row["arm"], row["seed"]) in done]
    )


def _value(column: str, cell: str) -> Any:
    if column == "arm":
        return cell
    for number in (int, float):
        try:
            return number(cell)
        except ValueError:
            continue
    return cell


def refuse_unfit(found: Results, experiment: Experiment) -> None:
    """Raise SystemExit where the results were made with other settings or keys than the code has now."""
    if found.settings is None:
        return
    differences = _differences("settings", found.settings, experiment.settings)
    planned = {
        (run.arm, run.seed): run for run in experiment.runs(sorted({run["seed"] for run in found.runs}))
    }
    for done in found.runs:
        run = planned.get((done["arm"], done["seed"]))
        if run is None:
            differences.append(f"{done['arm']}, seed {done['seed']}: in the results, not in the experiment")
        else:
            differences += _differences(run.name, done["keys"], run.keys)
    if differences:
        lines = "\n  ".join(differences[:8])
        raise SystemExit(
            f"error: the results of {experiment.name} were made in another way\n  {lines}\n"
            f"  undo the change, or move {experiment.name}.csv and {experiment.name}.json away"
        )


def _differences(where: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    here = json.loads(json.dumps(here))
    return [
        f"{where}: {key} is {there.get(key)!r} in the results and {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def ordered(rows: list[Row], experiment: Experiment) -> list[Row]:
    """The rows by arm, as the experiment lists them, then by seed: however the runs came to their end."""
    seeds = sorted({row["seed"] for row in rows})
    arms = list(dict.fromkeys(run.arm for run in experiment.runs(seeds))) if seeds else []
    return sorted(rows, key=lambda row: (arms.index(row["arm"]), row["seed"]))


def append(
    folder: Path, experiment: Experiment, run: Run, rows: Sequence[Row], about: Mapping[str, Any]
) -> None:
    """Add a run. The caller holds the lock of the experiment."""
    found = read(folder, experiment.name)
    if found.has(run):
        return
    folder.mkdir(parents=True, exist_ok=True)
    every = [*found.rows, *({"arm": run.arm, "seed": run.seed, **row} for row in rows)]
    columns = list(dict.fromkeys(key for row in every for key in row))
    with whole(folder / f"{experiment.name}.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(every)
    runs = [*found.runs, {"arm": run.arm, "seed": run.seed, "keys": dict(run.keys), **about}]
    lines = ",\n  ".join(json.dumps(each) for each in runs)
    settings = json.dumps(experiment.settings)
    with whole(folder / f"{experiment.name}.json") as path:
        path.write_text(f'{{\n "settings": {settings},\n "runs": [\n  {lines}\n ]\n}}\n')


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        Path(name).chmod(0o644)  # mkstemp's files are the owner's alone
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `path` among processes; without `wait` the value says whether we have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
