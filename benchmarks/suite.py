"""What is promised of speed, measured: every row with its target, and whether it is reached.

    python -m benchmarks.suite                               # all rows, some twenty minutes
    python -m benchmarks.suite --only 'layers/conv-*' --only 'steps/wrn'
    python -m benchmarks.suite --missing                     # goes on where a run stopped
    python -m benchmarks.suite --tables                      # measures nothing; fills the tables of the pages

Contenders run in turn in one process; a ratio is the median over the rounds, with quartiles. The exact
side is the best exact form (both memory formats). `layers/…`: forward and backward of a layer, exact, topk
and the limit of the scope in the same rounds, the policies in others; `steps/…`: whole training steps;
`memory/…`: peak resident memory of a step, each side in a process of its own; `start/…`: commands and
imports; `gate/…`: the gate's calibration. Run it on a machine that does nothing else. Results:
docs/results/suite.json.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from typing import Annotated, Any

import torch
import typer

from fxapprox import native
from fxapprox.system import CACHE

from . import around, kernels, nets, pages
from .nets import Net
from .store import RESULTS, Measure, chosen, make
from .turns import Claim, keep_memory, line, rounds, told

FILE = RESULTS / "suite.json"
LAYER_SECONDS, STEP_SECONDS = 6.0, 60.0
POLICIES = ("topk", "pps", "bernoulli")
POLICY_CLAIMS = [Claim("topk", policy, 0.95) for policy in POLICIES[1:]]  # they may take 5% longer
REACH = {"conv-64-32": 0.9, "conv-128-16": 0.92, "conv-512-8": 0.95}
"""Shares of the limit's speed, forward, keep 0.5."""
RATIO: dict[str, tuple[float, float | None]] = {
    "linear-1000-1000-20": (1.15, 2.5),
    "linear-1000-1000-64": (1.5, 4.5),
    "linear-1024-1024-128": (1.6, None),
    "linear-2048-2048-256": (1.85, None),
    "linear-768-3072-16x128": (1.85, None),
}
"""Exact over ours, forward, at keep 0.5 and at 0.1."""
GRADIENTS = 0.85
"""Share of the limit's speed where only gradients are sampled."""
STEPS = {
    "wrn": {"topk-0.5": 1.85, "topk-0.25": 3.2},
    "resnet50": {"topk-0.5": 1.4},
    "transformer": {"topk-0.5": 1.4},
    "mlp": {"topk-0.1": 1.3, "bernoulli-0.1": 1.3},
}
"""Exact over ours, whole steps."""
GATED = ("resnet50", "transformer", "mlp")
"""Nets that are timed as a rewrite leaves them by default, too: where the gate left sites exact."""


def layer_claims(name: str, keep: float, scope: str) -> list[Claim]:
    """What is promised of a layer against exact and limit."""
    reach = GRADIENTS if scope != "forward" else REACH.get(name.rpartition("-")[0])
    ratio = None
    if scope == "forward" and name in RATIO:
        ratio = RATIO[name][0 if keep == 0.5 else 1]
    return [Claim("exact", "topk", ratio), Claim("exact", "limit"), Claim("limit", "topk", reach)]


def layer(case: kernels.Case, keep: float, scope: str, seconds: float) -> dict[str, Any]:
    """Exact, topk and limit in rounds of their own, and then the policies: the fewer sweep the caches between
    two steps, the nearer is a step to one in training, where nothing but the model does."""
    contenders = kernels.contenders(case, keep, POLICIES, scope)
    others = {name: rival for name, rival in contenders.items() if name not in POLICIES[1:]}
    found = told(rounds(others, 2 / 3 * seconds), layer_claims(case.name, keep, scope))
    policies = {name: contenders[name] for name in POLICIES}
    again = told(rounds(policies, seconds / 3), POLICY_CLAIMS)
    return {
        **found,
        "milliseconds": again["milliseconds"] | found["milliseconds"],
        "claims": found["claims"] + again["claims"],
    }


def steps(net: Net, seconds: float) -> dict[str, Any]:
    """Exact, and each sampled form of the net: every site that the rules name, and ("…-gated") as the gate
    leaves it. The promise is that of the default where a net is listed in GATED."""
    contenders = {}
    left = {}
    for form in net.forms:
        suffix = f" {form}" if form else ""
        contenders[f"exact{suffix}"] = nets.training_step(net, net.model(form), form)
        for name in net.sampled:
            contenders[name + suffix] = nets.training_step(net, nets.rewritten(net, name, form), form)
            if net.name in GATED:
                gated, plan = nets.gated(net, name, form)
                contenders[f"{name}-gated{suffix}"] = nets.training_step(net, gated, form)
                left[name + suffix] = f"{len(plan.rewritten)} of {len(plan.decisions)} sites sampled"
    claims = []
    for name, target in STEPS[net.name].items():
        gated_too = net.name in GATED
        claims.append(Claim("exact", name, None if gated_too else target))
        claims += [Claim("exact", f"{name}-gated", target)] if gated_too else []
    return {"title": net.title, **told(rounds(contenders, seconds), claims), "gate": left}


def suite(seconds: float | None = None) -> dict[str, Measure]:
    """Every row by its name, in the order of the tables."""
    for_layer, for_step = seconds or LAYER_SECONDS, seconds or STEP_SECONDS
    rows: dict[str, Measure] = {}
    for case in kernels.CASES:
        for scope in ("forward", "backward", "grad-weight"):
            keeps = (0.5, 0.1) if scope == "forward" and RATIO.get(case.name, (0, None))[1] else (0.5,)
            for keep in keeps:
                rows[f"layers/{case.name} {scope} {keep:g}"] = partial(layer, case, keep, scope, for_layer)
    rows |= {f"steps/{net.name}": partial(steps, net, for_step) for net in nets.NETS}
    rows |= {f"memory/{net.name}": partial(around.memory, net) for net in (nets.WRN, nets.RESNET50)}
    rows |= {"start/help": around.helped, "start/import": around.imported}
    rows["gate/resnet50"] = partial(around.calibrated, nets.RESNET50)
    return rows


def main(
    only: Annotated[list[str] | None, typer.Option(help="A glob on the rows' names; repeatable.")] = None,
    missing: Annotated[bool, typer.Option(help="Only rows that have no result yet.")] = False,
    seconds: Annotated[float | None, typer.Option(help="For each row; default 6 a layer, 60 a net.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    tables: Annotated[bool, typer.Option(help="Only write the pages' tables.")] = False,
) -> None:
    """Measure what is promised of speed; rows that are measured again replace their former results."""
    if not tables:
        torch.set_num_threads(threads)
        keep_memory()
        native.kernels()  # found while the cache is still the machine's own
        rows = suite(seconds)
        with tempfile.TemporaryDirectory() as folder:
            os.environ.setdefault(CACHE, folder)  # the gate measures anew
            make(FILE, rows, chosen(rows, only or [], FILE, missing=missing), line)
    pages.write()


if __name__ == "__main__":
    typer.run(main)
