"""What each way to a faster step buys: the operation as it is first thought of, and as it was tried instead.

    python -m benchmarks.ways [--json ways.json]

On one thread, microseconds of the thread's own time, lower quartile. The layer is a linear one of 1000 to
1000 with half of its pairs kept, the plane that of a channels_last convolution of 128 channels, 16×16,
64 examples; what was kept and what was not is in docs/performance.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fxapprox.kinds import _strides
from fxapprox.policies import policies
from fxapprox.sampling import draws
from fxapprox.sampling.streams import Draw

from .machine import machine
from .turns import keep_memory

Way = tuple[str, Callable[[], object], Callable[[], object]]


def linear() -> list[Way]:
    """Name, before, after: what a linear layer does around its products."""
    n, k, rows = 1000, 500, 20
    x, weight = torch.randn(rows, n), torch.randn(n, n)
    laid = weight.t().contiguous().t()
    index = torch.randperm(n)[:k].sort().values
    shuffled = index[torch.randperm(k)]
    kept, grad = torch.randn(k, n), torch.randn(rows, k)
    scores = torch.rand(1, n) + 0.5
    blocks = torch.randperm(n // 8)[: k // 8].sort().values
    short, small = x[:, :k].contiguous(), weight[:, :k].contiguous()
    turned = small.t().contiguous()
    norms = torch.compile(lambda: x.square().sum(0).sqrt() * laid.square().sum(0).sqrt(), dynamic=False)

    def eager() -> torch.Tensor:
        return x.square().sum(0).sqrt_().mul_(torch.linalg.vector_norm(laid, dim=0))

    def step() -> torch.Tensor:
        chosen = policies.get("topk")().select(eager().unsqueeze(0), k, Draw("a", 0, 0).stream("forward"))
        return chosen.index

    return [
        ("norms of the weight: norm(dim=0) → transposed, vector_norm", lambda: weight.norm(dim=0),
         lambda: torch.linalg.vector_norm(laid, dim=0)),
        ("the same: square().sum(0) → transposed", lambda: weight.square().sum(0),
         lambda: torch.linalg.vector_norm(laid, dim=0)),
        ("gather the weight's columns → its rows, transposed", lambda: weight.index_select(1, index),
         lambda: laid.t().index_select(0, index)),
        ("gather rows in any order → ascending", lambda: laid.t().index_select(0, shuffled),
         lambda: laid.t().index_select(0, index)),
        ("weight gradient: index_copy → bags", lambda: torch.zeros(n, n).index_copy_(0, index, kept),
         lambda: _strides.bags(kept, index, 1, n)),
        ("input gradient: index_copy → scatter", lambda: torch.zeros(rows, n).index_copy_(1, index, grad),
         lambda: torch.zeros(rows, n).scatter_(1, index.expand(rows, -1), grad)),
        ("the product itself: weight as it is → transposed", lambda: short @ small.t(),
         lambda: short @ turned),
        ("draw of pps: in torch → in numpy", lambda: in_torch(scores, k, "pps"),
         lambda: drawn(scores, k, "pps")),
        ("draw of bernoulli: in torch → in numpy", lambda: in_torch(scores, k, "bernoulli"),
         lambda: drawn(scores, k, "bernoulli")),
        ("kept weight in backward: gathered again → kept",
         lambda: laid.t().index_select(0, index), lambda: None),
        ("pairs chosen at every step → kept for several", step, lambda: None),
        ("norms of the weight: at every step → cached",
         lambda: torch.linalg.vector_norm(laid, dim=0), lambda: None),
        ("scores in eager mode → compiled", eager, norms),
        ("gather single rows → blocks of 8", lambda: laid.t().index_select(0, index),
         lambda: laid.t().reshape(n // 8, -1).index_select(0, blocks)),
    ]  # fmt: skip


def plane() -> list[Way]:
    """Name, before, after: what a channels_last convolution does."""
    channels, size = 128, 16384
    x = torch.randn(64, channels, 16, 16).to(memory_format=torch.channels_last)
    flat = x.permute(0, 2, 3, 1)
    rows = flat.reshape(size, channels)
    index = torch.randperm(channels)[: channels // 2].sort().values
    blocks = torch.randperm(channels // 8)[: channels // 16].sort().values
    kept = torch.randn(size, channels // 2)
    return [
        ("gather channels: index_select(1) → on the last axis", lambda: x.index_select(1, index),
         lambda: flat.index_select(3, index)),
        ("the same on four dimensions → on a matrix", lambda: flat.index_select(3, index),
         lambda: _strides.select(x, 1, index)),
        ("norms of channels: square().sum → in parts", lambda: x.square().sum((0, 2, 3)),
         lambda: _strides.energy(x, 1)),
        ("the same: vector_norm → square().sum in parts", lambda: torch.linalg.vector_norm(x, dim=(0, 2, 3)),
         lambda: _strides.energy(x, 1)),
        ("input gradient: index_copy → scatter",
         lambda: torch.zeros(size, channels).index_copy_(1, index, kept),
         lambda: torch.zeros(size, channels).scatter_(1, index.expand(size, -1), kept)),
        ("gather single channels → blocks of 8", lambda: _strides.select(x, 1, index),
         lambda: rows.view(size, -1, 8).index_select(1, blocks)),
    ]  # fmt: skip


def drawn(scores: torch.Tensor, k: int, policy: str) -> object:
    return policies.get(policy)().select(scores, k, Draw("a", 0, 0).stream("forward"))


def in_torch(scores: torch.Tensor, k: int, policy: str) -> object:
    """The same draw by the way that other devices go."""
    held, draws._numpy_can = draws._numpy_can, lambda _: False
    try:
        return drawn(scores, k, policy)
    finally:
        draws._numpy_can = held


def microseconds(call: Callable[[], object], repeats: int = 60) -> float:
    times = []
    for _ in range(repeats + 5):
        started = time.thread_time()
        call()
        times.append(time.thread_time() - started)
    return round(1e6 * float(np.quantile(times[5:], 0.25)), 1)


def main(
    out: Annotated[Path | None, typer.Option("--json", help="Also write the results here.")] = None,
) -> None:
    """Time what was tried against what it was to replace."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    work = [("linear", way) for way in linear()] + [("channels_last", way) for way in plane()]
    rows: list[dict[str, Any]] = [
        {"where": where, "way": name, "before_us": microseconds(before), "after_us": microseconds(after)}
        for where, (name, before, after) in track(work, "measuring", console=Console(stderr=True))
    ]
    table = Table("where", "way", "before µs", "after µs")
    for row in rows:
        table.add_row(row["where"], row["way"], f"{row['before_us']:g}", f"{row['after_us']:g}")
    Console().print(table)
    if out is not None:
        about = machine("python -m benchmarks.ways")
        out.write_text(json.dumps({"about": about, "rows": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    typer.run(main)
