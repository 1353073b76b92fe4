"""Plans: site → choice, with the rule that made it, or the reason the site was left alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from .choices import Choice, Sampled, unserved
from .errors import PlanMismatch
from .sites import PRODUCTS, Site
from .verdict import Verdict

if TYPE_CHECKING:
    from .advice import Measure

_SHOWN = 5  # differences that a refusal spells out; the rest are counted


@dataclass(frozen=True)
class PlanWarning:
    """Something about a plan that will hurt, or that the user did not mean. `name` is stable
    ("batch-norm"), `sites` are the ids it is about, `remedy` is what to do. Prints as a sentence."""

    name: str
    message: str
    sites: tuple[str, ...] = ()
    remedy: str = ""

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Decision:
    """One site's part of the plan: `choice` is None where the site stays exact, and `reason` says why
    (which rule claimed it, or what kept it exact), with both values. `gate` is what the gate found."""

    site: Site
    choice: Choice | None
    rule: str | None
    reason: str
    gate: Verdict | None = None

    @property
    def gateable(self) -> bool:
        """Whether sampling may turn out slower: keep = 1 runs the exact call, asked for by name."""
        treatments = (self.choice.treatment(name) for name in PRODUCTS) if self.choice else ()
        return any(isinstance(how, Sampled) and not how.keeps_all for how in treatments)

    def judged(self, verdict: Verdict | None) -> Decision:
        """The decision after the gate: exact where sampling is not faster, with that as the reason."""
        if verdict is None or verdict.passes:
            return replace(self, gate=verdict)
        return replace(self, choice=None, reason=str(verdict), gate=verdict)


Gate = Callable[[Sequence[Decision]], Mapping[str, Verdict]]
"""What measures sites that would be sampled; by id, those that it met."""


def gated(decisions: Sequence[Decision], wanted: Collection[str], gate: Gate | None) -> tuple[Decision, ...]:
    """The decisions after the gate has looked at the sites (ids) where it is `wanted`."""
    asked = [one for one in decisions if one.site.id in wanted and one.gateable]
    if gate is None or not asked:
        return tuple(decisions)
    found, ids = gate(asked), {one.site.id for one in asked}
    return tuple(one.judged(found.get(one.site.id)) if one.site.id in ids else one for one in decisions)


@dataclass(frozen=True)
class Plan:
    """The whole decision for a model, in the order of its sites.

    `findings` are the warnings it earns, `silence` the names of those that its user does not want to hear."""

    model: str
    fingerprint: str
    decisions: tuple[Decision, ...]
    findings: tuple[PlanWarning, ...] = ()
    silence: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[PlanWarning, ...]:
        """The findings that are to be said."""
        return tuple(warning for warning in self.findings if warning.name not in self.silence)

    @property
    def silenced(self) -> tuple[PlanWarning, ...]:
        """The findings that are not."""
        return tuple(warning for warning in self.findings if warning.name in self.silence)

    @cached_property
    def by_id(self) -> dict[str, Decision]:
        return {decision.site.id: decision for decision in self.decisions}

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(decision.site for decision in self.decisions)

    @property
    def rewritten(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.choice is not None)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the plan as TOML, whole or not at all. A plan may be written over another plan; any
        other file only with `force`. Raises RequestError where it cannot be written."""
        from .planfile import save_plan  # it needs the classes above

        save_plan(self, path, force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan in a file that `save` wrote, perhaps edited since. Raises RequestError with every
        problem and its line."""
        from .planfile import load_plan

        return load_plan(path)

    def diff(self, other: Plan) -> tuple[str, ...]:
        """What changes from this plan to the other; see the function `diff`."""
        return diff(self, other)


def fingerprint(sites: Iterable[Site], model: str = "") -> str:
    """16 hex digits that two models share when a plan of one fits the other: from the name of the
    model, and the ids, kinds and weight shapes of its sites. Batch size, dtype and weights do not count."""
    facts = [model, [_identity(site) for site in sites]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _identity(site: Site) -> tuple[str, str, tuple[int, ...] | None]:
    # where the right operand is an activation its shape follows the inputs
    return site.id, site.kind, site.weight_shape if site.weight is not None else None


def bind(plan: Plan, sites: Sequence[Site], measure: Measure | None = None, gate: Gate | None = None) -> Plan:
    """The plan's choices for a model's present sites (other batch size, dtype or source lines), and the
    warnings that they earn there. `gate` looks at them all anew; without it the plan's own word holds.

    Raises PlanMismatch that lists the difference where the model has other sites than the plan, or one
    of them cannot do what the plan asks of it."""
    from .advice import advise  # it needs the classes above

    differences = _site_differences(plan.sites, sites)
    if not differences:
        differences = [
            f"{site.id}: {reason}" for site in sites if (reason := _unable(site, plan.by_id[site.id].choice))
        ]
    if differences:
        shown, more = differences[:_SHOWN], len(differences) - _SHOWN
        remedy = "\n  ".join([*shown, *([f"and {more} more"] if more > 0 else [])])
        raise PlanMismatch(f"the plan was made for another model ({plan.model})", remedy=remedy)
    decisions = tuple(replace(plan.by_id[site.id], site=site) for site in sites)
    decisions = gated(decisions, {site.id for site in sites}, gate)
    return replace(plan, decisions=decisions, findings=advise(decisions, measure=measure))


def _site_differences(planned: Sequence[Site], present: Sequence[Site]) -> list[str]:
    """Sites of the plan that the model lacks, sites of the model that the plan lacks, sites that changed."""
    plan, model = ({site.id: site for site in sites} for sites in (planned, present))
    lines = [
        f"{site.id} ({site.kind}): in the plan, not in the model" for site in planned if site.id not in model
    ]
    for site in present:
        if site.id not in plan:
            lines.append(f"{site.id} ({site.kind}): in the model, not in the plan")
        elif _identity(site) != _identity(plan[site.id]):
            lines.append(f"{site.id}: {_facts(plan[site.id])} in the plan, {_facts(site)} in the model")
    return lines


def _facts(site: Site) -> str:
    weight = "×".join(map(str, site.weight_shape)) if site.weight is not None else "no weight"
    return f"{site.kind} {weight}"


def _unable(site: Site, choice: Choice | None) -> str | None:
    return None if choice is None else site.refusal or unserved(site, choice)


def diff(before: Plan, after: Plan) -> tuple[str, ...]:
    """What changes from one plan to another, a line a site: sites gone and new, and changed choices.

    Plans that choose the same give no lines, whatever their rules and reasons."""
    lines = []
    for decision in before.decisions:
        site_id = decision.site.id
        if site_id not in after.by_id:
            lines.append(f"- {site_id}: {in_words(decision.choice)}")
        elif after.by_id[site_id].choice != decision.choice:
            lines.append(
                f"~ {site_id}: {in_words(decision.choice)} → {in_words(after.by_id[site_id].choice)}"
            )
    new = (decision for decision in after.decisions if decision.site.id not in before.by_id)
    lines.extend(f"+ {decision.site.id}: {in_words(decision.choice)}" for decision in new)
    return tuple(lines)


def in_words(choice: Choice | None) -> str:
    """A choice on one line, as it is written in rules: `topk keep 0.5 scope forward`."""
    from .syntax import spell_choice

    if choice is None:
        return "exact"
    keys = spell_choice(choice)
    if "policy" in keys:
        return _keys_in_words(keys)
    parts = (
        (key, _keys_in_words(value) if isinstance(value, dict) else str(value)) for key, value in keys.items()
    )
    return ", ".join(f"{key}: {words}" for key, words in parts)


def _keys_in_words(keys: Mapping[str, object]) -> str:
    rest = (
        _in_words(key, value)
        for key, value in keys.items()
        if key != "policy" and (key, value) != ("min_k", 1)
    )
    return " ".join([str(keys["policy"]), *rest])


def _in_words(key: str, value: object) -> str:
    """`keep 0.5`, `center`, `memory (decay 0.9)`."""
    if value is True:
        return key
    if isinstance(value, Mapping):
        return f"{key} ({' '.join(_in_words(*item) for item in value.items())})"
    return f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
