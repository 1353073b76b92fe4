"""The shorthand: `policy`, `keep`, `scope` … as one rule over every site."""

from __future__ import annotations

from ..problems import Problem, raise_problems
from ._rule import CONDITION_KEYS, Rule, read_rule


def rules_from(**keys: object) -> tuple[Rule, ...]:
    """One rule over every site: the keys of a choice, and the policy's own options. None stands for the
    default.

    Raises RequestError that lists everything that is wrong."""
    misplaced = [
        Problem(f"{key} is no option of a policy", (key,), "the conditions of a rule need a rules file")
        for key in keys
        if key in CONDITION_KEYS
    ]
    raise_problems(misplaced, "the request")
    values, problems = read_rule({**keys, "name": "every site"})
    raise_problems(problems, "the request")
    return (Rule.of(values, None),)
