"""After the gate, is any model slower than exact? Whole training steps of the coverage models, at keep 0.5.

    python -m benchmarks.gate                                   # all models of zoo.py
    python -m benchmarks.gate --only 'torchvision/*' --batch 16 --threads 2

Each model runs in a process of its own: rewrite (topk, keep 0.5, scope forward, every site) with the gate and
without it, and for both the training step against the exact model's, in turn in one process, each side in its
best memory format. A model of which the gate leaves nothing is the exact model: ratio 1.
Run it on a machine that does nothing else. Results: docs/results/gate.json.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from .machine import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "gate.json"


def measure(name: str, batch: int | None, seconds: float) -> dict[str, Any]:
    """The row of one model."""
    import torch
    from torch.utils._pytree import tree_map

    from .zoo import ZOO

    torch.manual_seed(0)
    model, args, kwargs = next(entry for entry in ZOO if entry.name == name).build()
    model.train()
    if batch is not None:

        def grown(leaf: Any) -> Any:
            return (
                leaf.repeat(batch // 2, *[1] * (leaf.dim() - 1)) if isinstance(leaf, torch.Tensor) else leaf
            )

        args, kwargs = tree_map(grown, (args, kwargs))
    return {
        "name": name,
        "gated": _ratio(model, args, kwargs, seconds, gate=True),
        "ungated": _ratio(model, args, kwargs, seconds, gate=False),
    }


def _ratio(model: Any, args: Any, kwargs: Any, seconds: float, *, gate: bool) -> dict[str, Any]:
    """Exact over rewritten, with quartiles; what the gate did, and how long the rewrite took."""
    import time

    import fxapprox
    from fxapprox.measure import bench

    began = time.perf_counter()
    plan = fxapprox.plan(model, args, kwargs, policy="topk", keep=0.5, gate=gate)
    told = {"sites": len(plan.decisions), "sampled": len(plan.rewritten),
            "plan_seconds": round(time.perf_counter() - began, 2),
            "gate": fxapprox.summary(plan).facts["gate"]}  # fmt: skip
    if not plan.rewritten:
        return told | {"ratio": 1.0, "quartiles": [1.0, 1.0]}
    fast = fxapprox.rewrite(model, args, kwargs, rules=plan)
    found = bench(model, fast, args, kwargs, seconds=seconds / 0.4, sites=False, memory=False)
    ratio = found.step.ratio
    return told | {"ratio": round(ratio.median, 4), "quartiles": [round(one, 4) for one in ratio.quartiles]}


def try_one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one model, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gate", "--one", name, "--seconds", str(options.seconds)]
    for key in ("batch", "threads"):
        command += [f"--{key}", str(getattr(options, key))] if getattr(options, key) else []
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return {"name": name, "error": f"not done after {options.limit} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    errors = done.stderr.strip().splitlines()
    return json.loads(lines[-1]) if lines else {"name": name, "error": errors[-1] if errors else "no output"}


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="a glob on the models' names")
    parser.add_argument("--batch", type=int, help="examples (an even number); default: the list's own 2")
    parser.add_argument("--threads", type=int, help="threads of torch; default: as torch chooses")
    parser.add_argument("--seconds", type=float, default=10.0, help="for the steps of each model and arm")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which a model is given up")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure(options.one, options.batch, options.seconds)))
        return
    from .zoo import ZOO

    names = [entry.name for entry in ZOO if fnmatch.fnmatch(entry.name, options.only)]
    rows = [try_one(name, options) for name in track(names, "models", transient=True)]
    settings = {"policy": "topk", "keep": 0.5, "scope": "forward", "batch": options.batch or 2}
    about = machine(f"python -m benchmarks.gate {' '.join(sys.argv[1:])}".strip())
    result = {"about": about, "settings": settings, "totals": totals(rows), "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    for row in rows:
        console.print(row["name"], row.get("error") or f"{row['gated']['ratio']:.2f}× gated, "
                      f"{row['gated']['sampled']} of {row['gated']['sites']} sites sampled; "
                      f"{row['ungated']['ratio']:.2f}× ungated")  # fmt: skip
    console.print(result["totals"])


if __name__ == "__main__":
    main()
