"""Try every model of the zoo as a user would, and write docs/coverage.md.

    python -m benchmarks.coverage                    # all; goes on where a run stopped, failures again
    python -m benchmarks.coverage --only 'timm/*'    # some of them
    python -m benchmarks.coverage --fresh            # forget earlier results

Each model runs in a process of its own: rewrite (topk, keep 0.5, scope forward, every site) → eval
equality → strict state_dict both ways → one training step → another batch size → emit → import in a fresh
process in which the model's own package cannot be imported → eval and training outputs and gradients equal
those in memory.
Needs the packages named in zoo.py; a model whose package is missing is listed as skipped.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.progress import Progress

from .machine import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "coverage.json"
PAGE = ROOT / "docs" / "coverage.md"


def try_one(name: str, seconds: int) -> dict[str, Any]:
    """The row of one model, from a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.coverage_one", name]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"name": name, "stage": "time", "error": f"not done after {seconds} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"name": name, "stage": "crash", "error": done.stderr.strip()[-300:]}
    return {**json.loads(lines[-1]), "wall": round(time.perf_counter() - started, 1)}


def page(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """docs/coverage.md from the rows."""
    tried = [row for row in rows if row.get("stage") != "skipped"]
    good = [row for row in tried if not row.get("error")]
    emitted = [row for row in good if row.get("emitted", "").startswith("yes")]
    lines = [
        "# Coverage: third-party models through the whole way",
        "",
        "Each model is rewritten (`topk`, keep 0.5, scope `forward`, every site), checked for equal"
        " evaluation outputs, its state_dict loaded strictly both ways, trained one step, run at another"
        " batch size, emitted,"
        " and the emitted file imported in a fresh process where the model's own package is blocked.",
        "",
        _result(tried, good, emitted),
        "",
        f"Made by `python -m benchmarks.coverage` on {about['date']}: {about['cpu']}, {about['cores']} cores,"
        f" torch {about['torch']}.",
        "",
        "`rung`: *trace*, every forward captured; *partial*, the named modules keep their own forward;"
        " *modules*, no graph. `sites`: recognised products / those that can be sampled. `share`: of the"
        " forward's matrix-product FLOPs, counted independently at the kernels, what lies in sites / in sites"
        " that can be sampled. `ours`: our own seconds (trace, plan, rewrite), without the model's.",
        "",
        "| model | rung | sites | share | ours | emitted | remarks |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(_line(row))
    return "\n".join(lines) + "\n"


def _result(tried: list[Any], good: list[Any], emitted: list[Any]) -> str:
    shares = sorted(row["share"] for row in tried if "share" in row) or [0.0]
    return (
        f"**{len(good)} of {len(tried)}** pass everything in memory; **{len(emitted)}** of these also pass"
        " as an emitted file. Share of the forward FLOPs that became sites:"
        f" median {shares[len(shares) // 2]:.1%},"
        f" worst {shares[0]:.1%}."
    )


def _line(row: dict[str, Any]) -> str:
    if "share" not in row:
        return f"| {row['name']} | | | | | | {row.get('stage')}: {_cell(row.get('error', ''))} |"
    remarks = [f"**{row['stage']}**: {row['error']}"] if row.get("error") else []
    remarks += row.get("notes", [])
    return (
        f"| {row['name']} | {row['rung']} | {row['sites']} / {row['samplable']} |"
        f" {row['share']:.0%} / {row['samplable_share']:.0%} | {row['ours']:.1f} s |"
        f" {row.get('emitted', '')} | {_cell('; '.join(remarks))} |"
    )


def _cell(text: str) -> str:
    flat = " ".join(text.replace("|", "\\|").split())
    return flat if len(flat) <= 260 else flat[:257] + "…"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="glob on the model's name")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time")
    parser.add_argument("--seconds", type=int, default=300, help="bound for one model")
    options = parser.parse_args()

    from .zoo import ZOO

    names = [entry.name for entry in ZOO if fnmatch.fnmatch(entry.name, options.only)]
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    rows: dict[str, Any] = {} if options.fresh else stored["rows"]
    todo = [name for name in names if name not in rows or rows[name].get("error")]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with Progress() as progress, ThreadPoolExecutor(options.jobs) as pool:
        task = progress.add_task("models", total=len(todo))
        for row in pool.map(lambda name: try_one(name, options.seconds), todo):
            rows[row["name"]] = row
            progress.console.print(f"{row['name']}: {row.get('error') or 'ok'}", highlight=False)
            about = machine("python -m benchmarks.coverage")
            RESULTS.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
            progress.advance(task)
    stored = json.loads(RESULTS.read_text())
    order = {entry.name: position for position, entry in enumerate(ZOO)}
    PAGE.write_text(
        page(sorted(stored["rows"].values(), key=lambda row: order[row["name"]]), stored["about"])
    )


if __name__ == "__main__":
    main()
