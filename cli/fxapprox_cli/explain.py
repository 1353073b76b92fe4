"""`fxapprox explain`: which rule claimed a site, and why the others did not."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Annotated, TextIO

import typer

from . import _options as o
from ._model import captured, decision_rules
from ._running import command, progress, show, show_json

Site = Annotated[
    str,
    typer.Argument(metavar="SITE", help="The site's id, as fxapprox inspect lists it.", show_default=False),
]


@command
def explain(
    out: TextIO,
    asked: o.Asked,
    site: Site,
    *,
    json: o.Json = False,
) -> None:
    """Explain one site: which rule claimed it, and why every earlier rule did not.

    Rules are tried top to bottom; the first that matches the site decides.

    Examples:
      fxapprox explain model.py layer1.0.conv1 --rules rules.toml
      fxapprox explain model.py:Net encoder.attn.matmul_1 --policy topk --scope backward
    """
    wanted = decision_rules(asked)
    from fxapprox.api import planned
    from fxapprox.errors import RequestError
    from fxapprox.plan import Plan
    from fxapprox.report.facts import explanation_facts
    from fxapprox.report.listings import explanation_text
    from fxapprox.rules import explain as explained

    with captured(asked) as found, progress() as tick:
        if isinstance(wanted, Plan):
            plan = planned(found, wanted, costly=True, gate=asked.gate, tick=tick)
            explanation, warnings = explained(plan, (), site), plan.warnings
        else:
            explanation, warnings = explained(found.sites, wanted, site), ()
            with contextlib.suppress(RequestError):  # rules that match nothing are explained, too
                plan = planned(found, wanted, costly=True, gate=asked.gate, tick=tick)
                explanation, warnings = replace(explanation, decision=plan.by_id[site]), plan.warnings
    told = explanation_facts(explanation, warnings)
    if json:
        show_json(out, told)
    else:
        show(out, lambda width: explanation_text(told))
