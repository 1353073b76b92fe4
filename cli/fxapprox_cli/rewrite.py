"""`fxapprox rewrite`: a model's file in, a file that trains with less arithmetic out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from . import _options as o
from ._model import captured, decision_rules
from ._running import command, progress, show, show_json, step

if TYPE_CHECKING:
    from torch import nn

    from fxapprox.capture._types import Capture
    from fxapprox.plan import Plan

Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT.py",
        help="The file to write, its weights beside it. Default: MODEL_POLICY.py, in this folder.",
        rich_help_panel="Output",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Decide and tell, write no model.", rich_help_panel="Output")
]
SavePlan = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Save the plan, to review, edit and apply.", rich_help_panel="Output"),
]


@command
def rewrite(
    out: TextIO,
    asked: o.Asked,
    *,
    output: Output = None,
    dry_run: DryRun = False,
    save_plan: SavePlan = None,
    force: o.Force = False,
    json: o.Json = False,
    all_sites: o.AllSites = False,
) -> None:
    """Rewrite a model so that it trains with sampled products, and write it as a Python file.

    The new file is source to read and to import: from model_topk import build_model. Its state_dict is
    the model's, and in evaluation mode it computes what the model computes.

    Say what is sampled in one of three ways: --policy (with --keep, --scope …) is one rule over every
    site; --rules is a file of rules, tried top to bottom, the first that matches a site decides;
    --plan applies a saved plan.

    Examples:
      fxapprox rewrite model.py --policy topk --keep 0.5 --input 32x3x32x32
      fxapprox rewrite model.py:Net --rules rules.toml --dry-run --save-plan plan.toml
      fxapprox rewrite model.py:Net --plan plan.toml -o fast.py

    Exit codes: 0 done, 2 the request or the input is wrong, 3 nothing was rewritten.
    """
    wanted = decision_rules(asked)
    _check_targets(output, save_plan, dry_run=dry_run, force=force)
    from fxapprox.api import planned, require_some
    from fxapprox.errors import NothingRewritten
    from fxapprox.report import facts

    with captured(asked) as found:
        with progress() as tick:
            decided = planned(found, wanted, gate=asked.gate, tick=tick)
        try:
            require_some(decided, found.origin)
        except NothingRewritten:
            if json:
                show_json(out, facts(decided, found) | {"written": []})
            raise
        told, written = facts(decided, found), []
        if not dry_run:
            fast, told = _rewritten(found, decided)
            written = _emitted(fast, output or _default_output(found.origin, decided), force=force)
        if save_plan:
            decided.save(save_plan, force=force)
            written.append(save_plan)
    if json:
        show_json(out, told | {"written": [str(path) for path in written]})
    else:
        _show(out, told, asked, written, every=all_sites, dry_run=dry_run)


def _check_targets(output: Path | None, save_plan: Path | None, *, dry_run: bool, force: bool) -> None:
    """Refuse before the work what would be refused after it."""
    from fxapprox.emit.files import check_free, target_of
    from fxapprox.planfile import check_plan_target

    if output and not dry_run:
        target = target_of(output)
        check_free((target, target.with_suffix(".safetensors")), force=force)
    if save_plan:
        check_plan_target(save_plan, force=force)


def _rewritten(found: Capture, decided: Plan) -> tuple[nn.Module, dict[str, Any]]:
    from fxapprox.api import rewritten
    from fxapprox.record import record_of
    from fxapprox.report import facts

    with step("rewriting"):
        fast = rewritten(found, decided)
    return fast, facts(decided, found, warnings=record_of(fast).warnings)


def _emitted(fast: nn.Module, target: Path, *, force: bool) -> list[Path]:
    from fxapprox.emit import emit

    with step(f"writing {target}"):
        return list(emit(fast, target, force=force))


def _default_output(origin: str, decided: Plan) -> Path:
    """`model_topk.py` for a model in model.py; `model_sampled.py` where there are several policies."""
    from fxapprox.choices import Sampled
    from fxapprox.sites import PRODUCTS

    treatments = [d.choice.treatment(p) for d in decided.rewritten if d.choice for p in PRODUCTS]
    names = {treatment.policy.name for treatment in treatments if isinstance(treatment, Sampled)}
    file = Path(origin.rpartition(":")[0])
    stem = file.stem if file.suffix == ".py" else file.name.rpartition(".")[2]
    stem = "".join(letter if letter.isalnum() else "_" for letter in stem)
    policy = names.pop().replace("-", "_") if len(names) == 1 else "sampled"
    return Path(f"{stem}_{policy}.py")


def _show(
    out: TextIO, told: dict[str, Any], asked: o.Asked, written: list[Path], *, every: bool, dry_run: bool
) -> None:
    from fxapprox.report.tables import summary_table

    if dry_run:
        following = f"fxapprox rewrite {asked.words()}"
    else:
        following = f"from {written[0].stem} import build_model"
    show(out, lambda width: summary_table(told, width, every=every, written=written, next_step=following))
