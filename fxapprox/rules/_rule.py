"""A rule: conditions on a site, and the choice for the sites that meet them."""

from __future__ import annotations

import difflib
import fnmatch
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..choices import Choice
from ..errors import one_of
from ..kinds import kinds
from ..problems import Problem, raise_problems, typed
from ..sites import Site
from ..syntax import read_choice
from ._levels import Levels, parse_levels

CONDITION_KEYS = ("name", "kind", "path", "depth", "min_channels")


@dataclass(frozen=True)
class Match:
    """A site meets every condition of a rule; `reason` lists them with both values."""

    reason: str


@dataclass(frozen=True)
class NoMatch:
    """A site fails a rule. `condition` is the key of the first condition it fails, `reason` a sentence with
    both values; `failed` counts the conditions failed, `distance` says how far off the first one is (0 to
    1, comparable between sites and one condition only)."""

    condition: str
    reason: str
    failed: int = 1
    distance: float = 0.0


@dataclass(frozen=True, init=False)
class Rule:
    """Conditions on a site, and what is done with its three products where all of them hold.

    Conditions: `kind` (a name or a list), `path` (a glob on the site's id, or "re:" and a regular
    expression that must match all of it), `depth` (a level, or indices and slices as in "0, -1" and
    "1:-1"), `min_channels` (least number of pairs of the forward product). None holds everywhere.

    The choice: `policy` ("exact" leaves a site alone), `keep`, `min_k`, `scope`, `center`, `memory` and the
    policy's own options; or, a product at a time, `forward`, `grad_input`, `grad_weight`, each "exact",
    "reuse" or a dict of those keys. `gate` leaves sites exact where sampling is not faster here (None: as
    the call says). docs/rules.md has every key.

    Raises RequestError that lists everything that is wrong."""

    name: str | None
    kind: tuple[str, ...] | None
    path: str | None
    depth: Levels | None
    min_channels: int | None
    choice: Choice | None  # None: the rule leaves its sites exact
    gate: bool | None  # None: as the whole request says
    origin: str | None = field(compare=False)  # "rules.toml:14", where the rule was written

    def __init__(
        self,
        *,
        name: str | None = None,
        kind: str | list[str] | tuple[str, ...] | None = None,
        path: str | None = None,
        depth: int | str | None = None,
        min_channels: int | None = None,
        policy: str | None = None,
        keep: float | Mapping[str, object] | None = None,
        min_k: int | None = None,
        scope: str | None = None,
        center: bool | None = None,
        memory: bool | Mapping[str, float] | None = None,
        forward: str | Mapping[str, object] | None = None,
        grad_input: str | Mapping[str, object] | None = None,
        grad_weight: str | Mapping[str, object] | None = None,
        gate: bool | None = None,
        **options: object,
    ) -> None:
        frame = sys._getframe(1)  # the line that wrote the rule, for messages and tables
        origin = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        keys = {
            "name": name, "kind": kind, "path": path, "depth": depth, "min_channels": min_channels,
            "policy": policy, "keep": keep, "min_k": min_k, "scope": scope, "center": center,
            "memory": memory, "gate": gate,
            "forward": forward, "grad_input": grad_input, "grad_weight": grad_weight, **options,
        }  # fmt: skip
        values, problems = read_rule(keys)
        what = f"rule {name!r}" if name else "the rule"
        raise_problems(
            [Problem(f"{what}: {p.message}", p.key, p.remedy, origin) for p in problems], "the rule"
        )
        self._fill(values, origin)

    @classmethod
    def of(cls, values: Mapping[str, Any], origin: str | None) -> Rule:
        """A rule from what `read_rule` returned without problems."""
        rule = cls.__new__(cls)
        rule._fill(values, origin)
        return rule

    def _fill(self, values: Mapping[str, Any], origin: str | None) -> None:
        for key, value in {**values, "origin": origin}.items():
            object.__setattr__(self, key, value)

    @property
    def label(self) -> str:
        """As tables and plans call the rule: its name, else where it was written."""
        return self.name or f"rule at {self.origin}"

    def __str__(self) -> str:
        """As sentences call it: `rule "wide only", rules.toml:14`."""
        if self.name is None:
            return self.label
        return f'rule "{self.name}"' + (f", {self.origin}" if self.origin else "")

    def match(self, site: Site) -> Match | NoMatch:
        """Whether the site meets all conditions, with the reason. Refusals and opt-in kinds are no
        conditions: `decide` looks at them."""
        checks = [check for check in (_kind, _path, _depth, _min_channels) if _asked(self, check)]
        outcomes = [check(self, site) for check in checks]
        failures = [outcome for outcome in outcomes if isinstance(outcome, NoMatch)]
        if failures:
            first = failures[0]
            return NoMatch(first.condition, f"{first.reason} ({self})", len(failures), first.distance)
        met = ", ".join(outcome.reason for outcome in outcomes)
        return Match(f"{met or 'every site'} ({self})")


class Rules(tuple[Rule, ...]):
    """Rules in their order, and what their file says above them: `silence`, names of warnings that their
    user does not want to hear, and `gate`, for rules that do not say it themselves."""

    silence: tuple[str, ...] = ()
    gate: bool | None = None

    @classmethod
    def of(cls, rules: Iterable[Rule], silence: Iterable[str] = (), gate: bool | None = None) -> Rules:
        made = cls(rules)
        made.silence, made.gate = tuple(dict.fromkeys(silence)), gate
        return made


def _asked(rule: Rule, check: Any) -> bool:
    return getattr(rule, check.__name__[1:]) is not None


def _kind(rule: Rule, site: Site) -> Match | NoMatch:
    wanted = rule.kind or ()
    if site.kind in wanted:
        return Match(f"kind {site.kind}")
    near = difflib.SequenceMatcher(None, site.kind, wanted[0]).ratio()
    return NoMatch("kind", f"kind {site.kind}, wanted {' or '.join(wanted)}", distance=1 - near)


def _path(rule: Rule, site: Site) -> Match | NoMatch:
    pattern = rule.path or ""
    if pattern.startswith("re:"):
        holds = re.fullmatch(pattern[3:], site.id) is not None
    else:
        holds = fnmatch.fnmatchcase(site.id, pattern)
    if holds:
        return Match(f'path {site.id} fits "{pattern}"')
    near = difflib.SequenceMatcher(None, site.id, pattern).ratio()
    return NoMatch("path", f'path {site.id} does not fit "{pattern}"', distance=1 - near)


def _depth(rule: Rule, site: Site) -> Match | NoMatch:
    levels = rule.depth
    assert levels is not None
    at = f"depth {site.depth}"
    if any((bound or 0) < 0 for span in levels.spans for bound in (span.start, span.stop)):
        at += f" and height {site.height}"
    if levels.holds(site.depth, site.height):
        return Match(f'{at} in "{levels.text}"')
    away = levels.distance(site.depth, site.height)
    return NoMatch("depth", f"{at}, wanted {levels}", distance=away / (away + 1))


def _min_channels(rule: Rule, site: Site) -> Match | NoMatch:
    least, over = rule.min_channels or 0, site.products["forward"].over
    if site.channels >= least:
        return Match(f"{over} {site.channels} >= {least}")
    return NoMatch("min_channels", f"{over} {site.channels} < {least}", distance=1 - site.channels / least)


def read_rule(keys: Mapping[str, object]) -> tuple[dict[str, Any], list[Problem]]:
    """The fields of a rule from its keys, and everything that is wrong with them."""
    problems: list[Problem] = []
    conditions = {key: keys[key] for key in CONDITION_KEYS if keys.get(key) is not None}
    own = (*CONDITION_KEYS, "gate")
    rest = {key: value for key, value in keys.items() if key not in own and value is not None}
    values = {
        "name": typed(conditions, "name", (str,), problems) or None,
        "kind": _read_kinds(conditions.get("kind"), problems),
        "path": _read_path(typed(conditions, "path", (str,), problems), problems),
        "depth": _read_depth(typed(conditions, "depth", (int, str), problems), problems),
        "min_channels": typed(conditions, "min_channels", (int,), problems),
        "gate": typed(keys, "gate", (bool,), problems),
    }
    if values["min_channels"] is not None and values["min_channels"] < 1:
        problems.append(Problem(f"min_channels = {values['min_channels']} is less than 1", ("min_channels",)))
    values["choice"], wrong = read_choice(rest, also=own)
    return values, problems + wrong


def _read_kinds(value: object, problems: list[Problem]) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) for n in names):
        problems.append(Problem(f"kind must be a name or a list of names, not {value!r}", ("kind",)))
        return None
    known = kinds.all()
    unknown = [name for name in names if name not in known]
    problems.extend(Problem(f"unknown kind {name!r}", ("kind",), one_of(name, known)) for name in unknown)
    return None if unknown else tuple(names)


def _read_path(value: str | None, problems: list[Problem]) -> str | None:
    if value is not None and value.startswith("re:"):
        try:
            re.compile(value[3:])
        except re.error as error:
            problems.append(Problem(f"path = {value!r} is no regular expression: {error}", ("path",)))
    elif value == "":
        problems.append(Problem('path = "" fits no site', ("path",), 'leave it out, or write path = "*"'))
    return value


def _read_depth(value: int | str | None, problems: list[Problem]) -> Levels | None:
    if value is None:
        return None
    try:
        return parse_levels(value)
    except ValueError as error:
        remedy = 'write indices and slices as in Python, with commas between them: "0, -1", "1:-1", "2:"'
        problems.append(Problem(f"depth = {value!r}: {error}", ("depth",), remedy))
        return None
