"""`fxapprox advise`: which method fits a model, and why."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, TextIO

import typer

from . import _options as o
from ._model import captured
from ._running import command, show, show_json, step

BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Examples in a training step. Default: those of the example inputs.",
        rich_help_panel="What it is trained on",
    ),
]
Cores = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="CPU cores for training. Default: those that this process may use.",
        rich_help_panel="What it is trained on",
    ),
]
SaveRules = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Save the advice as a rules file.", rich_help_panel="Output"),
]


@command
def advise(
    out: TextIO,
    asked: o.AskedModel,
    *,
    batch_size: BatchSize = None,
    cores: Cores = None,
    save_rules: SaveRules = None,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Advise on a method for a model: walk the papers' decisions with its numbers, and say why.

    Ebrahimi et al. 2023, Figure 16, for CPUs: mini-batches → MC-approx (the backward pass sampled by
    bernoulli); one example at a time, at most 4 hidden layers, several cores → ALSH-approx; otherwise the
    question is open. Then which layers (Adelman et al. 2021, section 8), and whether the forward pass may be
    sampled, too: how its error would grow, measured on the example inputs where they are data.

    The advice is a rules file, to read, to edit and to apply; docs/advice.md explains the warnings.

    Examples:
      fxapprox advise model.py
      fxapprox advise model.py:Net --batch-size 1 --cores 8
      fxapprox advise model.py --save-rules advised.toml && fxapprox rewrite model.py --rules advised.toml

    Exit codes: 0 done, 2 the request or the input is wrong, 3 there is nothing to sample.
    """
    from fxapprox.errors import RequestError

    if save_rules and save_rules.exists() and not force:
        raise RequestError(f"{save_rules} exists", remedy="choose another name, or overwrite it with --force")
    with captured(asked) as found:
        from fxapprox.capture.trials import batch_size as examples
        from fxapprox.guide import guide
        from fxapprox.planfile import write_whole
        from fxapprox.report.guidance import guide_facts, guide_text

        with step("measuring"):
            made = guide(
                found,
                batch_size=batch_size or max(examples(found.inputs), 1),
                cores=cores or _cores(),
                silence=tuple(asked.silence),
            )
    if save_rules:
        try:
            write_whole(save_rules, made.rules_text)
        except OSError as error:
            raise RequestError(f"{save_rules} cannot be written: {error.strerror}") from error
    told = guide_facts(made, _command(asked, batch_size, cores, save_rules))
    if json:
        show_json(out, told)
    else:
        show(out, lambda width: guide_text(told))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _command(asked: o.Asked, batch_size: int | None, cores: int | None, saved: Path | None) -> str:
    """What to type now: the rewrite, after saving the rules where that is still to be done."""
    rules = shlex.quote(str(saved or "advised.toml"))
    rewrite = f"fxapprox rewrite {asked.words()} --rules {rules}"
    if saved:
        return rewrite
    given = "".join(
        f" {name} {number}" for name, number in (("--batch-size", batch_size), ("--cores", cores)) if number
    )
    return f"fxapprox advise {asked.words()}{given} --save-rules {rules} && {rewrite}"
