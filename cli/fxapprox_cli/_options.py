"""The options that commands share, each written once."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_HELP = (
    "path/to/model.py, path/to/model.py:name or package.module:name. The name is a module instance, a "
    "module class or a function without arguments; it may be left out where the file holds one model."
)
_WHAT = "What is sampled"
_CAPTURE = "How the model is run"
_OUTPUT = "Output"

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Policy = Annotated[
    str | None,
    typer.Option(
        metavar="POLICY",
        help="One rule over every site: this policy (see: fxapprox policies).",
        rich_help_panel=_WHAT,
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Share of the column-row pairs kept, 0 < keep ≤ 1, or a schedule as in a rules file: "
        '"{ from = 0.5, exact_after = 800 }". Default: 0.5.',
        rich_help_panel=_WHAT,
    ),
]
Scope = Annotated[
    str | None,
    typer.Option(
        metavar="SCOPE",
        help="Which products are sampled: forward, backward, grad-weight, straight-through."
        " Default: forward.",
        rich_help_panel=_WHAT,
    ),
]
MinK = Annotated[
    int | None,
    typer.Option(metavar="N", help="Least number of pairs kept. Default: 1.", rich_help_panel=_WHAT),
]
Center = Annotated[
    bool, typer.Option("--center", help="Sample around the mean, which is exact.", rich_help_panel=_WHAT)
]
Memory = Annotated[
    bool,
    typer.Option(
        "--memory",
        help="Rows that a sampled weight gradient leaves out wait for later steps (--scope grad-weight).",
        rich_help_panel=_WHAT,
    ),
]
PolicyOption = Annotated[
    list[str],
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="An option of the policy's own; repeatable.",
        rich_help_panel=_WHAT,
    ),
]
Rules = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A rules file: rules are tried top to bottom, the first that matches a site decides.",
        rich_help_panel=_WHAT,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Rules with a name, for a kind of network (see: fxapprox recipes).",
        rich_help_panel=_WHAT,
    ),
]
TrainSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="How many optimizer steps the run has, for a recipe whose keep follows them.",
        rich_help_panel=_WHAT,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="A saved plan, for this model.", rich_help_panel=_WHAT),
]
Gate = Annotated[
    bool | None,
    typer.Option(
        "--gate/--no-gate",
        help="Leave a site exact where sampling is not faster on this machine, which is measured. "
        "Default: as the rules say, else yes.",
        show_default=False,
        rich_help_panel=_WHAT,
    ),
]
Silence = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help="Do not say this warning (docs/advice.md lists the names); repeatable.",
        rich_help_panel=_OUTPUT,
    ),
]
Input = Annotated[
    list[str],
    typer.Option(
        "--input",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="An example input: 32x3x32x32, or 8x16:int64:0..999 for indices; with NAME= a keyword input. "
        "Repeatable, in the order of the model's inputs. Default: the file's example_inputs().",
        rich_help_panel=_CAPTURE,
    ),
]
Leaf = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help="Do not look into this module (a path or a class; globs); repeatable.",
        rich_help_panel=_CAPTURE,
    ),
]
FrontEnd = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Force how the model is captured: trace or modules.", rich_help_panel=_CAPTURE
    ),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", help="Seed of the weights and of --input's values.", rich_help_panel=_CAPTURE),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Write over a file that fxapprox did not write.", rich_help_panel=_OUTPUT),
]
Json = Annotated[
    bool, typer.Option("--json", help="The same facts as JSON, for scripts.", rich_help_panel=_OUTPUT)
]
AllSites = Annotated[
    bool,
    typer.Option(
        "--all-sites", help="A row for each site; equal ones are not grouped.", rich_help_panel=_OUTPUT
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_OUTPUT)
]


RULE_KEYS = ("policy", "keep", "scope", "min_k", "center", "memory")
"""Options that are keys of the one rule over every site."""
CHOICE_OPTIONS = (*RULE_KEYS, "option", "rules", "recipe", "train_steps", "plan", "gate")
"""Options that say what is sampled."""


@dataclass(frozen=True)
class Asked:
    """What a command was asked to do with a model. A command with a parameter of this class takes the
    model and every option here; a key of rules is a field, and its name in RULE_KEYS."""

    model: Model
    policy: Policy = None
    keep: Keep = None
    scope: Scope = None
    min_k: MinK = None
    center: Center = False
    memory: Memory = False
    option: PolicyOption = field(default_factory=list)
    rules: Rules = None
    recipe: Recipe = None
    train_steps: TrainSteps = None
    plan: PlanFile = None
    gate: Gate = None
    input: Input = field(default_factory=list)
    leaf: Leaf = field(default_factory=list)
    front_end: FrontEnd = None
    seed: Seed = 0
    silence: Silence = field(default_factory=list)

    @property
    def keys(self) -> dict[str, Any]:
        """The keys given of the one rule over every site, less the policy's own options."""
        given = {name: getattr(self, name) for name in RULE_KEYS}
        return {name: value for name, value in given.items() if value is not None and value is not False}

    @property
    def shorthand(self) -> list[str]:
        """The options given of the one rule over every site."""
        return [_spelled(name) for name in (*self.keys, *(["option"] if self.option else []))]

    @property
    def decides(self) -> bool:
        """Whether anything says what is sampled."""
        return bool(self.shorthand or self.rules or self.recipe or self.plan)

    def words(self, *, choice: bool = True) -> str:
        """The request as it is typed, without or with what is sampled."""
        left_out = () if choice else CHOICE_OPTIONS
        told: list[str] = [self.model]
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "model" or one.name in left_out or value in (None, []) or value == one.default:
                continue
            for each in value if isinstance(value, list) else [value]:
                flag = isinstance(each, bool)
                told += (
                    [_spelled(one.name if each else f"no_{one.name}")]
                    if flag
                    else [_spelled(one.name), str(each)]
                )
        return shlex.join(told)


AskedModel = Annotated[Asked, "without CHOICE_OPTIONS"]
"""For a parameter of a command that takes a model and decides itself what is sampled."""


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")
