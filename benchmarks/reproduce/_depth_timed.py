"""Seconds of an epoch of the methods of [E]: the forward pass, the backward pass and the update."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import torch
from torch import nn

from fxapprox.measure.timing import Budget, in_turn, quartiles

from ..turns import keep_memory
from ._experiment import Given, Row

EPOCH = 10_000
PARTS = ("forward", "backward", "update")


def seconds(cases: Mapping[str, Any], settings: Mapping[str, Any], given: Given) -> list[Row]:
    """Mean seconds of an epoch of 10,000 images by part, and the quartiles of the whole, all in turn. Means,
    because `alsh` builds its tables anew at every hundredth example."""
    keep_memory()
    parts: dict[str, list[tuple[float, ...]]] = {}
    steps = {name: _step(one, parts.setdefault(name, [])) for name, one in cases.items()}
    budget = Budget(repeat=settings["rounds"])
    in_turn(steps, budget, tick=lambda part: given.tick(int(100 * part), 100))
    rows: list[Row] = []
    for name, one in cases.items():
        counted = parts[name][budget.warm_up :]
        per_epoch = EPOCH / one.batch
        found = {
            part: round(per_epoch * fmean(times), 3)
            for part, times in zip(PARTS, zip(*counted, strict=True), strict=True)
        }
        low, high = (round(per_epoch * q, 3) for q in quartiles([sum(times) for times in counted]))
        about = {"mode": one.mode, "method": one.method, "layers": one.layers, "batch": one.batch}
        rows.append({**about, "phase": "seconds", "case": name, **found, "low": low, "high": high})
    return rows


def _step(one: Any, times: list[tuple[float, ...]]) -> Callable[[], None]:
    """A training step that writes down how long its parts took."""
    model = one.model()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    shape = (3, 32, 32) if one.mode == "CIFAR-10" else (1, 28, 28)
    x, y = torch.randn(one.batch, *shape), torch.randint(0, 10, (one.batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        started = time.perf_counter()
        loss = nn.functional.cross_entropy(model(x), y)
        ran = time.perf_counter()
        loss.backward()
        returned = time.perf_counter()
        optimizer.step()
        times.append((ran - started, returned - ran, time.perf_counter() - returned))

    return step
