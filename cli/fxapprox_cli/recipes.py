"""`fxapprox recipes`: rules with a name, and the evidence that each stands on."""

from __future__ import annotations

from typing import Annotated, TextIO

import typer

from . import _options as o
from ._running import command, show, show_json

Name = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="Print this one as a rules file.", show_default=False),
]


@command
def recipes(
    out: TextIO, name: Name = None, *, train_steps: o.TrainSteps = None, json: o.Json = False
) -> None:
    """List the recipes: rules for a kind of network, by what was measured of them.

    With a name the recipe is printed as a rules file, to save, to change and to give to --rules.

    Examples:
      fxapprox recipes
      fxapprox recipes mlp > rules.toml
      fxapprox rewrite model.py --recipe mlp --input 64x1x28x28
    """
    from fxapprox.recipes import find, recipes
    from fxapprox.report.listings import recipes_table

    if name is not None:
        out.write(find(name).rules_file(train_steps))
        return
    told = [
        {"name": one.name, "title": one.title, "evidence": one.evidence, "scheduled": one.scheduled}
        for one in recipes().values()
    ]
    if json:
        show_json(out, told)
    else:
        show(out, lambda width: recipes_table(told))
