"""How long rewriting takes: ResNet-50, and nets of 100, 1,000 and 5,000 layers.

    python -m benchmarks.rewrite_time

"ours" is tracing, deciding and rewriting; "model" is the check and the verification, which run the
model beside its captured and its rewritten form. The first row is a single layer in a new process: what
torch and networkx take to import their tracing parts, which is counted nowhere else.
Results: docs/results/rewrite_time.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import fxapprox
from fxapprox.record import record_of

from .machine import machine

RESULTS = Path(__file__).parent.parent / "docs" / "results"


class Chain(nn.Module):
    """`layers` linear layers with a ReLU each, in blocks of ten."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(*[part for _ in range(10) for part in (nn.Linear(16, 16), nn.ReLU())])
            for _ in range(layers // 10)
        ]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def measure(name: str, model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    started = time.perf_counter()
    fast = fxapprox.rewrite(model, inputs, policy="topk", keep=0.5, gate=False)
    total = time.perf_counter() - started
    seconds = record_of(fast).seconds
    running = seconds.get("check", 0.0) + seconds.get("verify", 0.0)
    return {"model": name, "sites": len(record_of(fast).plan.decisions), "total_s": round(total, 2),
            "ours_s": round(total - running, 2), "model_s": round(running, 2),
            "stages_s": {stage: round(value, 3) for stage, value in seconds.items()}}  # fmt: skip


def main() -> None:
    rows = []
    cases: list[tuple[str, nn.Module, tuple[Any, ...]]] = [
        ("one layer, first in the process", nn.Linear(16, 16), (torch.randn(2, 16),))
    ]
    try:
        import torchvision

        cases.append(
            ("ResNet-50, 2×3×224×224", torchvision.models.resnet50(), (torch.randn(2, 3, 224, 224),))
        )
    except ImportError:
        Console().print("torchvision is not installed: ResNet-50 is left out")
    cases += [(f"{layers} layers", Chain(layers), (torch.randn(2, 16),)) for layers in (100, 1000, 5000)]
    for name, model, inputs in cases:
        rows.append(measure(name, model, inputs))
        Console().print(rows[-1])
    result = {"about": machine("python -m benchmarks.rewrite_time"), "rows": rows}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "rewrite_time.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
