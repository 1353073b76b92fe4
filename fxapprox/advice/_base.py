"""A warning: a stable name, and a function from what was decided to what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..choices import Sampled
from ..errors import one_of
from ..plan import Decision, PlanWarning
from ..problems import Problem
from ..registry import Registry

if TYPE_CHECKING:
    from ..rules import Rule


@dataclass(frozen=True)
class Ratios:
    """[E] Theorem 2's c by site, as measured (see `_measure`), and why there is none where there is none."""

    by_site: Mapping[str, float] = field(default_factory=dict)
    why_not: str | None = None


Measure = Callable[[Sequence[Decision]], Ratios]


def unmeasured(_: Sequence[Decision]) -> Ratios:
    """The measure of those who have no model at hand."""
    return Ratios(why_not="no batch at hand")


@dataclass(frozen=True)
class Context:
    """What a warning may look at: every decision, the rules they came from (none for a saved plan), and a
    way to measure c, which costs a forward pass and is only called by who needs it."""

    decisions: tuple[Decision, ...]
    rules: tuple[Rule, ...] = ()
    measure: Measure = unmeasured

    @property
    def chosen(self) -> list[Decision]:
        return [decision for decision in self.decisions if decision.choice is not None]

    @property
    def forward(self) -> list[Decision]:
        """Those whose forward product leaves pairs out."""
        return [decision for decision in self.chosen if reduces(forward_of(decision))]


@dataclass(frozen=True)
class Found:
    """One thing found: the sites, a sentence with its number, the remedy."""

    hit: Sequence[Decision]
    message: str
    remedy: str


Check = Callable[[Context], Iterable[Found]]
warnings: Registry[Check] = Registry("warning", "fxapprox.advice")
warning = warnings.decorator
"""Decorator: `@warning("batch-norm")` registers a Check under its stable name."""


def advise(
    decisions: Sequence[Decision], rules: Sequence[Rule] = (), measure: Measure | None = None
) -> tuple[PlanWarning, ...]:
    """Every warning that the decisions earn, in the order of the names."""
    context = Context(tuple(decisions), tuple(rules), measure or unmeasured)
    return tuple(
        PlanWarning(name, found.message, tuple(decision.site.id for decision in found.hit), found.remedy)
        for name, check in warnings.all().items()
        for found in check(context)
    )


def read_silence(value: object) -> tuple[tuple[str, ...], list[Problem]]:
    """The names of warnings to silence, from a name or a list of them, each once; and what is wrong."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        remedy = 'for example: silence = ["batch-norm"]'
        return (), [
            Problem(f"silence must be a list of names of warnings, not {value!r}", ("silence",), remedy)
        ]
    known = warnings.all()
    problems = [
        Problem(f"unknown warning {name!r}", ("silence",), one_of(name, known))
        for name in names
        if name not in known
    ]
    return tuple(dict.fromkeys(names)), problems


def treatments(decision: Decision) -> Iterator[Sampled]:
    """The products of a site that are sampled by a policy of their own."""
    choice = decision.choice
    for treatment in (choice.forward, choice.grad_input, choice.grad_weight) if choice else ():
        if isinstance(treatment, Sampled):
            yield treatment


def forward_of(decision: Decision) -> Sampled | None:
    choice = decision.choice
    return choice.forward if choice is not None and isinstance(choice.forward, Sampled) else None


def reduces(sampled: Sampled | None) -> bool:
    """Whether anything is left out: keep = 1 is the exact product."""
    return sampled is not None and not sampled.keeps_all


def biased(sampled: Sampled | None) -> bool:
    return sampled is not None and reduces(sampled) and not sampled.policy.unbiased


def count(hit: Sequence[Decision]) -> str:
    return f"{len(hit)} site{'s' * (len(hit) != 1)}"


def policies_of(hit: Iterable[Decision]) -> str:
    """The names of the policies at these sites, with commas between them."""
    return ", ".join(sorted({sampled.policy.name for decision in hit for sampled in treatments(decision)}))
