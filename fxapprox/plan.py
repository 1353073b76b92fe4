"""Plans: site → choice, with the rule that made it, or the reason the site was left alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .choices import Choice
from .sites import Site


@dataclass(frozen=True)
class Decision:
    """One site's part of the plan: `choice` is None where the site stays exact, and `reason` says why
    (which rule claimed it, or what kept it exact), with both values."""

    site: Site
    choice: Choice | None
    rule: str | None
    reason: str


@dataclass(frozen=True)
class Plan:
    """The whole decision for a model, in the order of its sites."""

    model: str
    fingerprint: str
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, Decision]:
        return {decision.site.id: decision for decision in self.decisions}

    @property
    def rewritten(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.choice is not None)
