"""What is wrong with rules once the sites are known: those that match nothing, or ask for what cannot be."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence

from ..choices import unserved
from ..problems import Problem
from ..sites import Site
from ._rule import Match, NoMatch, Rule


def unmatched(rules: Sequence[Rule], sites: Sequence[Site], model: str) -> list[Problem]:
    """A problem for every rule whose conditions no site meets, with the closest site."""
    return [
        _unmatched(rule, sites, model)
        for rule in rules
        if not any(isinstance(rule.match(site), Match) for site in sites)
    ]


def unable(rules: Sequence[Rule], sites: Sequence[Site]) -> list[Problem]:
    """A problem for every kind that a rule names, and whose sites its policy can serve nowhere.

    Rules that name no kind take what they can: the reason then stands at each site left alone."""
    problems = []
    for rule in rules:
        for kind in rule.kind or () if rule.choice is not None else ():
            named = [
                s for s in sites if s.kind == kind and s.refusal is None and isinstance(rule.match(s), Match)
            ]
            reasons = [unserved(site, rule.choice) for site in named if rule.choice is not None]
            if reasons and all(reasons):
                what = f'rule "{rule.name}"' if rule.name else "the rule"
                problems.append(
                    Problem(
                        f"{what} can sample no {kind} site: {reasons[0]}",
                        ("kind",),
                        f"take {kind} out of its kinds, or choose another policy for it",
                        rule.origin,
                    )
                )
    return problems


def _unmatched(rule: Rule, sites: Sequence[Site], model: str) -> Problem:
    misses = [(site, miss) for site in sites if isinstance(miss := rule.match(site), NoMatch)]
    site, miss = min(misses, key=lambda pair: (pair[1].failed, pair[1].distance))
    what = f'rule "{rule.name}"' if rule.name else "the rule"
    lines = [
        f"{_candidates(rule, sites)}; the closest is {site.id}: {miss.reason.removesuffix(f' ({rule})')}",
        f"try {_suggestion(rule, site, miss, sites)}",
    ]
    if ".py" in model or ":" in model:  # what was named on a command line can be named there again
        lines[-1] += f", or: fxapprox explain {model} {site.id}"
    return Problem(f"{what} matches no site", (), "\n  ".join(lines), rule.origin)


def _candidates(rule: Rule, sites: Sequence[Site]) -> str:
    """How many sites there are of the kinds that the rule wants, else of which kinds there are."""
    number = Counter(site.kind for site in sites)
    if rule.kind is None:
        return f"{len(sites)} site{'s' * (len(sites) != 1)}"
    wanted = [kind for kind in rule.kind if number[kind]]
    if wanted:
        total = sum(number[kind] for kind in wanted)
        return f"{total} {' or '.join(wanted)} site{'s' * (total != 1)}"
    has = ", ".join(f"{kind} ({count})" for kind, count in number.most_common())
    return f"no {' or '.join(rule.kind)} site, the model has {has}"


def _suggestion(rule: Rule, site: Site, miss: NoMatch, sites: Sequence[Site]) -> str:
    """The failed condition, changed so that the closest site meets it."""
    if miss.condition == "kind":
        return f'kind = "{site.kind}"'
    if miss.condition == "min_channels":
        return f"min_channels = {site.channels}"
    if miss.condition == "depth" and rule.depth is not None:
        return f'depth = "{rule.depth.reaching(site.depth)}"'
    bare = (rule.path or "").removeprefix("re:").strip("*^$")
    near = difflib.get_close_matches(bare, [other.id for other in sites], n=3, cutoff=0.0)
    return "path = " + " or ".join(f'"{site_id}"' for site_id in near)
