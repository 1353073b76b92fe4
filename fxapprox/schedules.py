"""Keep schedules: the share of the pairs that is kept, over the steps of training.

A schedule is written as a table in place of the number: `keep = { from = 0.5, exact_after = 800 }`.
The shapes are those of learning-rate schedules; steps count from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast, get_args

from .errors import one_of
from .problems import Problem, typed

Shape = Literal["constant", "linear", "cosine", "step"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
COMMON = ("schedule", "from", "exact_after")
OWN: dict[Shape, tuple[str, ...]] = {
    "constant": (),
    "linear": ("to", "steps"),
    "cosine": ("to", "steps"),
    "step": ("at",),
}
EXAMPLE = "{ from = 0.5, exact_after = 800 }"
_POINTS = 256
"""Steps of a slope at which averages look: those of a cosine are exact to 1e-5 then."""


@dataclass(frozen=True)
class Schedule:
    """`keep` at every step from 0 on: `first` at step 0, then by shape
    constant; linear or cosine to `last` at step `steps`, and `last` from there on;
    step, the value of each (step, value) in `at` from its step on.
    From step `exact_after` on it is 1, whatever the shape."""

    shape: Shape
    first: float
    last: float = 1.0
    steps: int = 0
    at: tuple[tuple[int, float], ...] = ()
    exact_after: int | None = None

    def keep_at(self, step: int) -> float:
        """The share kept at a step."""
        if self.exact_after is not None and step >= self.exact_after:
            return 1.0
        if self.shape in ("linear", "cosine"):
            if step >= self.steps:  # to the bit: 1.0 asks for the exact call
                return self.last
            part = step / self.steps
            if self.shape == "cosine":
                part = (1 - math.cos(math.pi * part)) / 2
            return self.first + (self.last - self.first) * part
        return next((value for since, value in reversed(self.at) if step >= since), self.first)

    def since(self, step: int) -> int:
        """The first step of the stretch of equal values that `step` is in; itself on a slope."""
        if self.shape in ("linear", "cosine") and step < self.steps and self.first != self.last:
            stretches = []
        else:
            stretches = [0, *(at for at, _ in self.at), self.steps]
        if self.exact_after is not None and step >= self.exact_after:
            return self.exact_after
        return max((at for at in stretches if at <= step), default=step)

    @property
    def slopes(self) -> bool:
        """Whether the value changes gradually, rather than at a few steps."""
        return self.shape in ("linear", "cosine") and self.first != self.last

    @property
    def length(self) -> int:
        """Steps until the value changes no more; 0 where it never changes."""
        if self.exact_after is not None:
            return self.exact_after
        return max([self.steps, *(at for at, _ in self.at)])

    @property
    def final(self) -> float:
        """The value in the end."""
        return self.keep_at(self.length)

    @property
    def span(self) -> tuple[float, float]:
        """The least and the greatest value at any step."""
        values = [self.keep_at(0), self.keep_at(max(self.length - 1, 0)), self.final, *dict(self.parts)]
        return min(values), max(values)

    @property
    def parts(self) -> tuple[tuple[float, float], ...]:
        """(value, share of the first `length` steps) of all values that it takes there; together 1."""
        length = self.length
        if self.shape in ("linear", "cosine") and length:
            points = min(length, _POINTS)
            steps = (int((point + 0.5) * length / points) for point in range(points))
            return tuple((self.keep_at(step), 1 / points) for step in steps)
        ends = sorted({0, length, *(at for at, _ in self.at if at < length)})
        if not length:
            return ((self.first, 1.0),)
        return tuple((self.keep_at(one), (other - one) / length) for one, other in pairwise(ends))

    def spelled(self) -> dict[str, object]:
        """The table that `read_keep` turns into this schedule."""
        table: dict[str, object] = {"schedule": self.shape, "from": self.first}
        if self.shape in ("linear", "cosine"):
            table |= {"to": self.last, "steps": self.steps}
        if self.shape == "step":
            table["at"] = {str(step): value for step, value in self.at}
        if self.exact_after is not None:
            table["exact_after"] = self.exact_after
        return table

    def __format__(self, spec: str) -> str:
        """In words, its values formatted as numbers are: `f"{keep:.0%}"` serves numbers and schedules."""
        first = format(self.first, spec or "g")
        if self.shape in ("linear", "cosine"):
            first += f" → {format(self.last, spec or 'g')} {self.shape} in {self.steps} steps"
        told = [first, *(f"{format(value, spec or 'g')} from step {step}" for step, value in self.at)]
        if self.exact_after is not None:
            told.append(f"exact from step {self.exact_after}")
        return ", ".join(told)

    def __str__(self) -> str:
        return format(self)


def read_keep(value: object, problems: list[Problem]) -> float | Schedule | None:
    """What a `keep` says; None where it is not given, and where it is wrong."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        found: list[Problem] = []
        schedule = _read_schedule({key: item for key, item in value.items() if item is not None}, found)
        problems += (Problem(f"keep: {p.message}", ("keep", *p.key), p.remedy) for p in found)
        return None if found else schedule
    if isinstance(value, bool) or not isinstance(value, int | float):
        remedy = f"a schedule is a table such as {EXAMPLE}"
        problems.append(Problem(f"keep must be a number or a schedule, not {value!r}", ("keep",), remedy))
    elif not 0 < value <= 1:
        problems.append(Problem(f"keep = {value} is outside 0 < keep <= 1", ("keep",)))
    else:
        return float(value)
    return None


def _read_schedule(table: Mapping[str, Any], problems: list[Problem]) -> Schedule | None:
    shape = typed(table, "schedule", (str,), problems) or "constant"
    if shape not in SHAPES:
        problems.append(Problem(f"unknown schedule {shape!r}", ("schedule",), one_of(shape, SHAPES)))
        return None
    own = OWN[cast(Shape, shape)]
    for key in table:
        if key not in (*COMMON, *own):
            problems.append(_misplaced(key, shape))
    problems.extend(
        Problem(f"a {shape} schedule needs {key}", (), f"for example {_EXAMPLES[cast(Shape, shape)]}")
        for key in ("from", *own)
        if key not in table
    )
    first, last = _share(table, "from", problems), _share(table, "to", problems)
    steps, exact_after = _count(table, "steps", problems), _count(table, "exact_after", problems)
    at = _read_at(table["at"], problems) if "at" in table else ()
    if problems or first is None:
        return None
    return Schedule(
        cast(Shape, shape), first, 1.0 if last is None else last, steps or 0, at, exact_after=exact_after
    )


_EXAMPLES: dict[Shape, str] = {
    "constant": EXAMPLE,
    "linear": '{ schedule = "linear", from = 0.25, to = 1.0, steps = 1000 }',
    "cosine": '{ schedule = "cosine", from = 0.25, to = 1.0, steps = 1000 }',
    "step": '{ schedule = "step", from = 0.25, at = { 500 = 0.5, 800 = 1.0 } }',
}


def _misplaced(key: object, shape: str) -> Problem:
    owners = [name for name, keys in OWN.items() if key in keys]
    if owners:
        message = f"{key} belongs to a {' or '.join(owners)} schedule, not to a {shape} one"
        return Problem(message, (str(key),), f"name the schedule: {_EXAMPLES[owners[0]]}")
    known = (*COMMON, *OWN[cast(Shape, shape)])
    return Problem(f"unknown key {key!r}", (str(key),), one_of(str(key), known))


def _share(table: Mapping[str, Any], key: str, problems: list[Problem]) -> float | None:
    value = typed(table, key, (float, int), problems)
    if value is not None and not 0 < value <= 1:
        problems.append(Problem(f"{key} = {value} is outside 0 < {key} <= 1", (key,)))
    return None if value is None else float(value)


def _count(table: Mapping[str, Any], key: str, problems: list[Problem]) -> int | None:
    value = typed(table, key, (int,), problems)
    if value is not None and value < 1:
        problems.append(Problem(f"{key} = {value} is less than 1", (key,)))
    return cast("int | None", value)


def _read_at(value: object, problems: list[Problem]) -> tuple[tuple[int, float], ...]:
    """`at`, a table from steps to values; its keys are text in TOML, may be numbers in Python."""
    if not isinstance(value, Mapping) or not value:
        message = f"at must be a table from steps to values, not {value!r}"
        problems.append(Problem(message, ("at",), "for example { 500 = 0.5, 800 = 1.0 }"))
        return ()
    found: dict[int, float] = {}
    for key, item in value.items():
        step = int(key) if not isinstance(key, bool) and str(key).isdecimal() else 0
        if step < 1 or step in found:
            message = f"at: {key!r} is no step" if step < 1 else f"at: step {step} occurs twice"
            problems.append(Problem(message, ("at",), "steps are whole numbers from 1 on, each once"))
        share = _share({f"at.{key}": item}, f"at.{key}", problems)
        found[step] = share if share is not None else 1.0
    return tuple(sorted(found.items()))
