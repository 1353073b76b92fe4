"""Rules: conditions on a site and a choice, tried top to bottom; the first that matches decides."""

from ._decide import decide
from ._explain import Explanation, Tried, explain
from ._file import load_rules, read_rules
from ._rule import Match, NoMatch, Rule, Rules
from ._shorthand import rules_from
from ._silence import silenced

__all__ = [
    "Explanation",
    "Match",
    "NoMatch",
    "Rule",
    "Rules",
    "Tried",
    "decide",
    "explain",
    "load_rules",
    "read_rules",
    "rules_from",
    "silenced",
]
