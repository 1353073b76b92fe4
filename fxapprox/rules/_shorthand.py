"""The shorthand: `policy`, `keep`, `scope` … as one rule over every site."""

from __future__ import annotations

from collections.abc import Mapping

from ..problems import Problem, raise_problems
from ._rule import Rule, read_rule


def rules_from(
    *,
    policy: str | None = None,
    keep: float | None = None,
    min_k: int | None = None,
    scope: str | None = None,
    center: bool | None = None,
    options: Mapping[str, object] | None = None,
) -> tuple[Rule, ...]:
    """One rule over every site; None stands for the default. `options` are the policy's own.

    Raises RequestError that lists everything that is wrong."""
    keys = {
        "name": "every site", "policy": policy, "keep": keep, "min_k": min_k, "scope": scope,
        "center": center,
    }  # fmt: skip
    options = options or {}
    misplaced = [
        Problem(f"{key} is no option of a policy", (key,), "the conditions of a rule need a rules file")
        for key in options
        if key in ("name", "kind", "path", "depth", "min_channels")
    ]
    raise_problems(misplaced, "the request")
    values, problems = read_rule({**options, **keys})
    raise_problems(problems, "the request")
    return (Rule.of(values, None),)
