"""Where the gate is asked for: sites that sample faster here are sampled, the others left exact."""

from __future__ import annotations

from ..system import switched_on
from ._rule import Rule

VARIABLE = "FXAPPROX_GATE"


def wants_gate(rule: Rule, head: bool | None, asked: bool | None) -> bool:
    """Whether the gate looks at the sites that a rule claims: as the call asks, else the rule, else the
    head of the rules, else the variable FXAPPROX_GATE of the environment ("0" is no), else it does."""
    said = next((one for one in (asked, rule.gate, head) if one is not None), None)
    return switched_on(VARIABLE) if said is None else said
