"""How far each policy's product is from the exact one, and what a draw costs.

    python -m benchmarks.policy_error        # under a minute; writes docs/results/policy_error.json
                                             # and the tables of docs/policies.md

Error is ‖sampled − AB‖ / (‖A‖·‖B‖), Frobenius norms, for 100×100 matrices: mean over fresh pairs of
matrices and draws. A draw's time is for one row of 1,000 fresh scores, k = 500, one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fxapprox.policies import Policy, policies
from fxapprox.testing.policies import SeededStream

from .machine import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "policy_error.json"
PAGE = ROOT / "docs" / "policies.md"
BEGIN, END = "<!-- tables: written by benchmarks.policy_error -->", "<!-- end of tables -->"
SIZE, RUNS = 100, 200
KEPT = (10, 25, 50, 75)


def normal(mean: float) -> Callable[[torch.Generator], Tensor]:
    return lambda numbers: torch.randn(SIZE, SIZE, generator=numbers) + mean


def activations(numbers: torch.Generator) -> Tensor:
    """ReLU of normal entries, columns of very different size (lognormal, sigma 1)."""
    return torch.randn(SIZE, SIZE, generator=numbers).relu() * torch.randn(SIZE, generator=numbers).exp()


INPUTS: dict[str, tuple[Callable[[torch.Generator], Tensor], Callable[[torch.Generator], Tensor]]] = {
    "both N(1,1)": (normal(1.0), normal(1.0)),
    "N(0,1), N(1,1)": (normal(0.0), normal(1.0)),
    "uneven ReLU, N(0,1)": (activations, normal(0.0)),
}


def variants() -> dict[str, Policy]:
    """Every policy but `exact` with its default options, and the two with a choice of scale both ways."""
    found: dict[str, Policy] = {}
    for name, cls in policies.all().items():
        if cls.size == "all" or not issubclass(cls, Policy):  # output nodes have no pairs to be wrong about
            continue
        found[name] = cls()
        if any(field.name == "scale" for field in fields(cls)):  # type: ignore[arg-type]
            other = {"inverse": "none", "none": "horvitz-thompson"}[cls().scale]  # type: ignore[attr-defined]
            found[f'{name}, scale = "{other}"'] = cls(scale=other)  # type: ignore[call-arg]
    return found


def error(policy: Policy, left: Tensor, right: Tensor, k: int, seed: int) -> float:
    rows = right.norm(dim=1)
    scores = {"pair": left.norm(dim=0) * rows, "weight": rows, "none": torch.ones(SIZE)}[policy.scores]
    drawn = policy.select(scores[None], k, SeededStream(seed))
    scale = torch.ones(1, drawn.index.shape[1]) if drawn.scale is None else drawn.scale
    weight = torch.zeros(SIZE).index_add_(0, drawn.index[0], scale[0])
    return float((left * (weight - 1.0) @ right).norm() / (left.norm() * right.norm()))


def errors(policy: Policy) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation over the runs, by input and by k."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for label, (make_left, make_right) in INPUTS.items():
        numbers = SeededStream(0).generator()
        pairs = [(make_left(numbers), make_right(numbers)) for _ in range(RUNS)]
        table[label] = {}
        for k in KEPT:
            found = torch.tensor([error(policy, *pair, k, seed) for seed, pair in enumerate(pairs)])
            table[label][str(k)] = {
                "mean": round(float(found.mean()), 5),
                "deviation": round(float(found.std()), 5),
            }
    return table


def nothing() -> dict[str, float]:
    """The error of leaving every pair out, by input: ‖AB‖ / (‖A‖·‖B‖)."""
    found: dict[str, float] = {}
    for label, (make_left, make_right) in INPUTS.items():
        numbers = SeededStream(0).generator()
        pairs = [(make_left(numbers), make_right(numbers)) for _ in range(RUNS)]
        ratios = [float((left @ right).norm() / (left.norm() * right.norm())) for left, right in pairs]
        found[label] = round(sum(ratios) / RUNS, 5)
    return found


def microseconds(policy: Policy) -> float:
    """Median time of a draw, of 1,000."""
    scores = torch.rand(1000, 1, 1000, generator=SeededStream(1).generator())
    times = []
    for row in scores:
        stream = SeededStream(2)
        started = time.perf_counter()
        policy.select(row, 500, stream)
        times.append(time.perf_counter() - started)
    return round(median(times) * 1e6, 1)


def tables(rows: dict[str, Any], about: dict[str, Any]) -> str:
    """The measured part of docs/policies.md."""
    lines = [
        f"Measured with `{about['command']}`: mean of {RUNS} pairs of 100×100 matrices,"
        " ‖sampled − AB‖ / (‖A‖·‖B‖); the full table is `docs/results/policy_error.json`.",
    ]
    for label in INPUTS:
        lines += ["", f"**{label}**", "", "| policy | " + " | ".join(f"k = {k}" for k in KEPT) + " |"]
        lines.append("|---|" + "---:|" * len(KEPT))
        for name, row in rows.items():
            cells = [f"{row['error'][label][str(k)]['mean']:.3f}" for k in KEPT]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "**Time of a draw**, one row of 1,000 scores, k = 500, one thread", ""]
    lines += ["| policy | µs |", "|---|---:|"]
    lines += [f"| {name} | {row['microseconds']:.0f} |" for name, row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = {
        name: {"error": errors(each), "microseconds": microseconds(each)} for name, each in variants().items()
    }
    about = machine("python -m benchmarks.policy_error")
    torch.set_num_threads(threads)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(
        json.dumps({"about": about, "runs": RUNS, "nothing": nothing(), "rows": rows}, indent=1) + "\n"
    )
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(rows, about)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
