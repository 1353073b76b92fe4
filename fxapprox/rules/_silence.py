"""Warnings that a request silences, beside those that its rules or its plan do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..advice import read_silence
from ..plan import Plan
from ..problems import raise_problems
from ._rule import Rule, Rules


def silenced(rules: Sequence[Rule] | Plan, names: str | Sequence[str]) -> Rules | Plan:
    """The rules or the plan, with these warnings silenced, too. Raises RequestError that lists the known
    names where one is unknown."""
    read, problems = read_silence(names)
    raise_problems(problems, "silence")
    if isinstance(rules, Plan):
        return replace(rules, silence=tuple(dict.fromkeys([*rules.silence, *read])))
    head = rules if isinstance(rules, Rules) else Rules.of(rules)
    return Rules.of(rules, [*head.silence, *read], head.gate)
