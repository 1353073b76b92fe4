"""Sites and rules to a plan: the first rule that matches a site decides."""

from __future__ import annotations

from collections.abc import Sequence

from ..advice import Measure, advise
from ..choices import idle, unserved
from ..plan import Decision, Gate, Plan, gated
from ..problems import raise_problems
from ..sites import Site
from ._gate import wants_gate
from ._lint import unable, unmatched
from ._rule import Match, NoMatch, Rule, Rules

_NAMED_REASONS = 2  # rules whose near miss is spelled out for a site that none matched


def decide(
    sites: Sequence[Site],
    rules: Sequence[Rule],
    *,
    model: str,
    fingerprint: str,
    measure: Measure | None = None,
    gate: Gate | None = None,
    asked: bool | None = None,
) -> Plan:
    """The plan that the rules make for these sites.

    A site is left alone, with the reason, where it can never be sampled, where no rule matches, where
    the rule says "exact", where the policy cannot serve it or keeps all of its pairs, and where its
    kind is opt-in and the rule does not name the kind. Then `gate` measures those that would be sampled,
    where the call (`asked`), the rule or the head of the rules wants it, and leaves the slow ones alone.

    `measure` is what warnings that need numbers from the model itself call for them.

    Raises RequestError that lists every rule that matches no site, or names a kind that its policy cannot
    serve anywhere."""
    if sites:
        raise_problems([*unmatched(rules, sites, model), *unable(rules, sites)], "the rules")
    head = rules if isinstance(rules, Rules) else Rules.of(rules)
    made = [_decided(site, rules) for site in sites]
    wanted = [
        decision.site.id for decision, rule in made if rule is not None and wants_gate(rule, head.gate, asked)
    ]
    decisions = gated([decision for decision, _ in made], wanted, gate)
    return Plan(model, fingerprint, decisions, advise(decisions, rules, measure), head.silence)


def decide_site(site: Site, rules: Sequence[Rule]) -> Decision:
    """One site's decision, before the gate."""
    return _decided(site, rules)[0]


def _decided(site: Site, rules: Sequence[Rule]) -> tuple[Decision, Rule | None]:
    """One site's decision, and the rule that claimed it."""
    if site.refusal is not None:
        return Decision(site, None, None, site.refusal), None
    misses = []
    for rule in rules:
        outcome = outcome_of(rule, site)
        if isinstance(outcome, Match):
            return _claimed(site, rule, outcome), rule
        misses.append(outcome)
    return Decision(site, None, None, _no_rule(misses)), None


def outcome_of(rule: Rule, site: Site) -> Match | NoMatch:
    """Whether the rule claims the site: its conditions, and that opt-in kinds are asked for by name."""
    outcome = rule.match(site)
    if isinstance(outcome, Match) and site.opt_in and rule.kind is None and rule.choice is not None:
        reason = f"kind {site.kind} is sampled only where a rule names it ({rule} names no kind)"
        return NoMatch("kind", reason)
    return outcome


def _claimed(site: Site, rule: Rule, outcome: Match) -> Decision:
    if rule.choice is None:
        return Decision(site, None, rule.label, f"left exact: {outcome.reason}")
    reason = unserved(site, rule.choice) or idle(site, rule.choice)
    if reason is not None:
        return Decision(site, None, rule.label, f"{reason} ({rule})")
    return Decision(site, rule.choice, rule.label, outcome.reason)


def _no_rule(misses: Sequence[NoMatch]) -> str:
    if not misses:
        return "no rule matched: there are no rules"
    if len(misses) == 1:
        return misses[0].reason
    # rules that fail fewest conditions say most about why the site was left
    near = sorted(misses, key=lambda miss: miss.failed)[:_NAMED_REASONS]
    others = len(misses) - len(near)
    told = "; ".join(miss.reason for miss in near)
    return f"no rule matched: {told}" + (f"; {others} more" if others else "")
