"""Which rule claimed a site, and why every earlier one did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError, one_of
from ..plan import Decision, Plan
from ..sites import Site
from ._decide import decide_site, outcome_of
from ._rule import Match, NoMatch, Rule


@dataclass(frozen=True)
class Tried:
    """One rule against the site."""

    rule: Rule
    outcome: Match | NoMatch


@dataclass(frozen=True)
class Explanation:
    """A site's decision and how it came about: the rules that were tried in their order, the claiming one
    last, and the rules below it. `tried` is empty where the site can never be sampled."""

    site: Site
    decision: Decision
    tried: tuple[Tried, ...]
    untried: tuple[Rule, ...]


def explain(sites: Sequence[Site] | Plan, rules: Sequence[Rule], site_id: str) -> Explanation:
    """Explain one site. Works for rules that `decide` refuses, too: that is when it is asked for.

    Of a plan without its rules only the decision is known. Raises RequestError for an unknown site."""
    plan = sites if isinstance(sites, Plan) else None
    known = {site.id: site for site in (sites.sites if isinstance(sites, Plan) else sites)}
    if site_id not in known:
        raise RequestError(f"the model has no site {site_id!r}", remedy=_nearest(site_id, list(known)))
    site = known[site_id]
    if plan is not None and not rules:
        return Explanation(site, plan.by_id[site_id], (), ())
    decision = decide_site(site, rules)
    if site.refusal is not None:
        return Explanation(site, decision, (), tuple(rules))
    tried: list[Tried] = []
    for rule in rules:
        tried.append(Tried(rule, outcome_of(rule, site)))
        if isinstance(tried[-1].outcome, Match):
            break
    return Explanation(site, decision, tuple(tried), tuple(rules[len(tried) :]))


def _nearest(site_id: str, known: list[str]) -> str:
    if not known:
        return "the model has no sites at all"
    listed = one_of(site_id, known)
    # a large model's ids would fill the screen: the nearest is what a typing error needs
    return listed if len(known) <= 20 else listed.split("known: ")[0] + f"{len(known)} sites in all"
