"""Where the gate is asked for: sites that sample faster here are sampled, the others left exact."""

from __future__ import annotations

import os

from ._rule import Rule

VARIABLE = "FXAPPROX_GATE"
_OFF = ("0", "false", "no", "off")


def wants_gate(rule: Rule, head: bool | None, asked: bool | None) -> bool:
    """Whether the gate looks at the sites that a rule claims: as the call asks, else the rule, else the
    head of the rules, else the variable FXAPPROX_GATE of the environment ("0" is no), else it does."""
    said = next((one for one in (asked, rule.gate, head) if one is not None), None)
    return os.environ.get(VARIABLE, "1").strip().lower() not in _OFF if said is None else said
