"""`fxapprox explain`: which rule claimed a site, and why the others did not."""

from __future__ import annotations

from typing import Annotated, TextIO

import typer

from . import _options as o
from ._model import captured, decision_rules
from ._running import command, show, show_json

Site = Annotated[
    str,
    typer.Argument(metavar="SITE", help="The site's id, as fxapprox inspect lists it.", show_default=False),
]


@command
def explain(
    out: TextIO,
    model: o.Model,
    site: Site,
    *,
    policy: o.Policy = None,
    keep: o.Keep = None,
    scope: o.Scope = None,
    min_k: o.MinK = None,
    center: o.Center = False,
    option: o.PolicyOption = None,
    rules: o.Rules = None,
    plan: o.PlanFile = None,
    input: o.Input = None,
    leaf: o.Leaf = None,
    front_end: o.FrontEnd = None,
    seed: o.Seed = 0,
    json: o.Json = False,
) -> None:
    """Explain one site: which rule claimed it, and why every earlier rule did not.

    Rules are tried top to bottom; the first that matches the site decides.

    Examples:
      fxapprox explain model.py layer1.0.conv1 --rules rules.toml
      fxapprox explain model.py:Net encoder.attn.matmul_1 --policy topk --scope backward
    """
    asked = o.Asked.of(
        model, policy=policy, keep=keep, scope=scope, min_k=min_k, center=center, option=option, rules=rules,
        plan=plan, input=input, leaf=leaf, front_end=front_end, seed=seed,
    )  # fmt: skip
    wanted = decision_rules(asked)
    from fxapprox.plan import Plan, bind
    from fxapprox.report.facts import explanation_facts
    from fxapprox.report.listings import explanation_text
    from fxapprox.rules import explain as explained

    with captured(asked) as found:
        if isinstance(wanted, Plan):
            explanation = explained(bind(wanted, found.sites), (), site)
        else:
            explanation = explained(found.sites, wanted, site)
    told = explanation_facts(explanation)
    if json:
        show_json(out, told)
    else:
        show(out, lambda width: explanation_text(told))
