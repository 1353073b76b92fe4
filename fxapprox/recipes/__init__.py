"""Recipes: rules with a name, each with the evidence that it stands on.

A recipe is one file here, NAME.toml: a rules file whose comments before the first key are its title (the
first line) and its evidence, and in which `@2/3@` stands for that part of a run's optimizer steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import MappingProxyType

from ..errors import RequestError, one_of
from ..rules import Rules, read_rules

_PART = re.compile(r"@(\d+/\d+)@")


@dataclass(frozen=True)
class Recipe:
    """`text` is the file's; `scheduled` where its keep follows the steps of training."""

    name: str
    title: str
    evidence: str
    text: str

    @property
    def scheduled(self) -> bool:
        return _PART.search(self.text) is not None

    def rules_file(self, steps: int | None = None) -> str:
        """The recipe as a rules file, for a run of so many optimizer steps.

        Raises RequestError where it needs them and they are not given, or are no positive number."""
        if steps is not None and steps < 1:
            raise RequestError(f"a run of {steps} steps", remedy="epochs × batches of an epoch, 1 or more")
        if self.scheduled and steps is None:
            raise RequestError(
                f"recipe {self.name!r} follows the steps of training, and their number is not given",
                remedy="say how many optimizer steps the run has: --train-steps N, in Python steps=N",
            )
        return _PART.sub(lambda part: str(max(round(Fraction(part[1]) * (steps or 0)), 1)), self.text)


@cache
def recipes() -> Mapping[str, Recipe]:
    """Every recipe by its name, in the order of the names."""
    files = sorted(Path(__file__).parent.glob("*.toml"))
    return MappingProxyType({file.stem: _read(file) for file in files})


def _read(file: Path) -> Recipe:
    text = file.read_text(encoding="utf-8")
    head = re.match(r"(?:#.*\n)+", text)
    lines = [line.removeprefix("#").strip() for line in (head[0] if head else "").splitlines()]
    title, *rest = lines or [""]
    return Recipe(file.stem, title, " ".join(line for line in rest if line), text)


def find(name: str) -> Recipe:
    """The recipe of this name. Raises RequestError where there is none."""
    found = recipes().get(name)
    if found is None:
        raise RequestError(f"there is no recipe {name!r}", remedy=one_of(name, recipes()))
    return found


def recipe(name: str, *, steps: int | None = None) -> Rules:
    """The rules of a recipe, for `fxapprox.rewrite(model, inputs, rules=…)`.

    `steps`: how many optimizer steps the run has, which recipes with a keep schedule need. Raises
    RequestError for an unknown name, and for steps that are missing or not positive."""
    return read_rules(find(name).rules_file(steps), f"recipe {name}")
