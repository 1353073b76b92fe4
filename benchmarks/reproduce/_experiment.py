"""What an experiment is: data that says which runs it has and how each is done, shown and summed up."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEARCH = "rate of "
"""What the run that looks for an arm's learning rate is called, before the arm's name."""
Row = dict[str, Any]  # one observation; `arm` and `seed` are put in front by the frame


@dataclass(frozen=True)
class Run:
    """The unit that is done whole or not at all. `keys` says what its arm is (policy, keep, rates …); it is
    kept beside the data. A run that measures seconds has `alone=True` among them: it is done with --timing
    only, and nothing else is."""

    arm: str
    seed: int
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def alone(self) -> bool:
        return bool(self.keys.get("alone"))

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Given:
    """What a run gets: the data folder, a bar to move by `tick(done, total)`, and a file that it may keep a
    checkpoint in (`_train.train` does) and that is removed when the run is over."""

    data: Path
    tick: Callable[[int, int], None]
    checkpoint: Path


@dataclass(frozen=True)
class Experiment:
    """`settings` decide the numbers together with the runs' keys: data made with others are refused.
    `perform` is pure but for the seed. `figures` and `tables` must do with a part of the rows: they are made
    anew after every run. A figure `x` is docs/results/NAME-x.svg; a table `x` goes between
    `<!-- NAME:x -->` and `<!-- end -->` of whichever page has that line."""

    name: str
    title: str
    minutes: float
    settings: Mapping[str, Any]
    runs: Callable[[Sequence[int]], list[Run]]
    perform: Callable[[Run, Given], list[Row]]
    figures: Callable[[list[Row]], dict[str, Figure]]
    tables: Callable[[list[Row]], dict[str, str]]


def experiments() -> dict[str, Experiment]:
    """All experiments by name: the `EXPERIMENT` of every file in this folder that has no underscore."""
    package = __package__ or ""
    folder = [str(Path(__file__).parent)]
    names = sorted(module.name for module in pkgutil.iter_modules(folder) if not module.name.startswith("_"))
    found = {name: importlib.import_module(f"{package}.{name}").EXPERIMENT for name in names}
    for name, experiment in found.items():
        if experiment.name != name:
            raise SystemExit(f"error: {name}.py holds an experiment that is called {experiment.name!r}")
    return found
