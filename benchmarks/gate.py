"""After the gate, is any model slower than exact? Whole training steps of the coverage models, at keep 0.5.

    python -m benchmarks.gate                                   # all models of zoo.py, some 35 minutes
    python -m benchmarks.gate --missing --minutes 8             # a part of those that have no row yet
    python -m benchmarks.gate --only 'torchvision/*' --batch 16 --threads 2 --ungated

Each model runs in a process of its own: rewrite (topk, keep 0.5, scope forward, every site) with the gate,
and the training step against the exact model's, in turn in one process, each side in its best memory
format; `--ungated` does the same without the gate, for comparison. A model of which the gate leaves
nothing is the exact model: ratio 1. A row is kept as soon as its model is done, with its settings: rows
that were made with others are measured anew by `--missing`.
Run it on a machine that does nothing else. Results: docs/results/gate.json.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from .machine import machine
from .store import put, rows_of
from .turns import keep_memory

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "gate.json"


def measure(name: str, settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The row of one model."""
    import torch
    from torch.utils._pytree import tree_map

    from .zoo import ZOO

    keep_memory()
    torch.manual_seed(0)
    model, args, kwargs = next(entry for entry in ZOO if entry.name == name).build()
    model.train()
    times = settings["batch"] // 2

    def grown(leaf: Any) -> Any:
        return leaf.repeat(times, *[1] * (leaf.dim() - 1)) if isinstance(leaf, torch.Tensor) else leaf

    if times > 1:
        args, kwargs = tree_map(grown, (args, kwargs))
    row = {"gated": _ratio(model, args, kwargs, rounds, gate=True)}
    if settings["ungated"]:
        row["ungated"] = _ratio(model, args, kwargs, rounds, gate=False)
    return {"about": machine("python -m benchmarks.gate"), **row}


def _ratio(model: Any, args: Any, kwargs: Any, rounds: int, *, gate: bool) -> dict[str, Any]:
    """Exact over rewritten, with quartiles; what the gate did, and how long the rewrite took."""
    import fxapprox
    from fxapprox.api import planned, rewritten
    from fxapprox.capture import capture
    from fxapprox.capture._types import Inputs
    from fxapprox.measure import bench

    began = time.perf_counter()
    captured = capture(model, Inputs(args, kwargs), origin=type(model).__name__)
    plan = planned(captured, [fxapprox.Rule(policy="topk", keep=0.5)], gate=gate)
    told = {"sites": len(plan.decisions), "sampled": len(plan.rewritten),
            "plan_seconds": round(time.perf_counter() - began, 2),
            "gate": fxapprox.summary(plan).facts["gate"]}  # fmt: skip
    if not plan.rewritten:
        return told | {"ratio": 1.0, "quartiles": [1.0, 1.0]}
    fast = rewritten(captured, plan)
    found = bench(model, fast, args, kwargs, repeat=rounds, sites=False, memory=False)
    ratio = found.step.ratio
    return told | {"ratio": round(ratio.median, 4), "quartiles": [round(one, 4) for one in ratio.quartiles]}


def try_one(name: str, settings: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The row of one model, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gate", "--one", name, "--rounds", str(options.rounds)]
    command += ["--batch", str(settings["batch"]), *(["--ungated"] if settings["ungated"] else [])]
    command += ["--threads", str(options.threads)] if options.threads else []
    row: dict[str, Any] = {"name": name, "settings": settings}
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return row | {"error": f"not done after {options.limit:g} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    errors = done.stderr.strip().splitlines()
    return row | (json.loads(lines[-1]) if lines else {"error": errors[-1] if errors else "no output"})


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Worst, median and best of the ratios with the gate and without it."""
    told: dict[str, Any] = {}
    for arm in ("gated", "ungated"):
        measured = sorted((row[arm]["ratio"], row["name"]) for row in rows if arm in row)
        if measured:
            ratios = [ratio for ratio, _ in measured]
            told[arm] = {"models": len(ratios), "worst": measured[0],
                         "median": round(statistics.median(ratios), 4), "best": measured[-1]}  # fmt: skip
    return told


def line(row: dict[str, Any]) -> str:
    """What is printed of a row as it ends."""
    if "error" in row:
        return f"{row['name']}: {row['error']}"
    told = [f"{row['gated']['ratio']:.2f}× gated, {row['gated']['sampled']} of {row['gated']['sites']} sites"]
    told += [f"{row['ungated']['ratio']:.2f}× ungated"] if "ungated" in row else []
    return f"{row['name']}: {'; '.join(told)}"


def wanted(names: Sequence[str], settings: dict[str, Any], *, missing: bool) -> list[str]:
    """The models to measure: all, or those without a row of these settings."""
    have = rows_of(RESULTS) if missing else {}
    return [
        name
        for name in names
        if name not in have or have[name]["settings"] != settings or "error" in have[name]
    ]


def run(options: argparse.Namespace) -> None:
    """Measure model after model; each row is kept as it ends, and the totals of all rows with it."""
    from .zoo import ZOO

    began = time.perf_counter()
    settings = {"policy": "topk", "keep": 0.5, "scope": "forward", "batch": options.batch,
                "ungated": options.ungated}  # fmt: skip
    every = [entry.name for entry in ZOO]
    names = [name for name in every if fnmatch.fnmatchcase(name, options.only)]
    console = Console(stderr=True)
    todo = wanted(names, settings, missing=options.missing)
    for place, name in enumerate(track(todo, "models", console=console)):
        if options.minutes and time.perf_counter() - began > 60 * options.minutes:
            console.print(f"{len(todo) - place} models are left: the same command with --missing goes on")
            break
        row = try_one(name, settings, options)
        rows = rows_of(RESULTS) | {name: row}
        put(RESULTS, row, every, totals=totals(list(rows.values())))
        console.print(line(row), highlight=False)
    console.print(totals(list(rows_of(RESULTS).values())))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="a glob on the models' names")
    parser.add_argument("--missing", action="store_true", help="only models without a result")
    parser.add_argument("--minutes", type=float, help="begin no further model after so long")
    parser.add_argument("--ungated", action="store_true", help="without the gate, too")
    parser.add_argument("--batch", type=int, default=2, help="examples, an even number; default %(default)s")
    parser.add_argument("--threads", type=int, help="threads of torch; default: as torch chooses")
    parser.add_argument("--rounds", type=int, default=21, help="steps of each side; default %(default)s")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds after which a model is given up")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch < 2 or options.batch % 2:
        parser.error(f"--batch {options.batch} is not an even number of 2 or more")
    if options.one:
        import torch

        if options.threads:
            torch.set_num_threads(options.threads)
        settings = {"batch": options.batch, "ungated": options.ungated}
        print(json.dumps(measure(options.one, settings, options.rounds)))
    else:
        run(options)


if __name__ == "__main__":
    main()
