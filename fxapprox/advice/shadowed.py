"""Rules in the shade of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator

from ..rules._rule import Match, Rule
from ._base import Context, Found, warning


@warning("shadowed-rule")
def shadowed_rule(context: Context) -> Iterator[Found]:
    """A rule that matches sites, all of them claimed by earlier rules."""
    claimed: dict[str, Rule] = {}
    for rule in context.rules:
        matched = [d for d in context.decisions if isinstance(rule.match(d.site), Match)]
        if matched and all(d.site.id in claimed for d in matched):
            earlier = list(dict.fromkeys(str(claimed[d.site.id]) for d in matched))
            what = "its only site" if len(matched) == 1 else f"all {len(matched)} sites that it matches"
            yield Found(
                matched,
                f"{rule} decides nothing: earlier rules claim {what} ({'; '.join(earlier)})",
                "move it above them, narrow them, or drop it",
            )
        for decision in matched:
            claimed.setdefault(decision.site.id, rule)
