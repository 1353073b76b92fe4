"""Ways to fine-tune a network: what of it trains, and how its products are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import fxapprox

from ._adapters import adapted, only_trains
from ._arms import Arm
from ._models import ResidualNet, RowTransformer, in_precision

EXACT = Arm()


@dataclass(frozen=True)
class Way:
    """How a network goes on: how its products are sampled, and which parameters train: all, the `last` block
    and the head, the `head`, or `adapters` and the head."""

    arm: Arm = EXACT
    trains: str = "all"

    @property
    def keys(self) -> dict[str, Any]:
        keeps = [list(pair) for pair in self.arm.keeps]
        precision = {"bfloat16": True} if self.arm.bfloat16 else {}
        return {"rule": dict(self.arm.rule), "keeps": keeps, "trains": self.trains, **precision}


def network(task: str) -> nn.Module:
    if task == "rows":
        return RowTransformer()
    return ResidualNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def prepared(task: str, way: Way, model: nn.Module, steps: int, rank: int) -> nn.Module:
    """The model as the way trains it. Exact stay the first layer and the shortcuts, as in `cifar.py`, and a
    transformer's products of activations."""
    if way.trains == "adapters":
        return adapted(model, rank)
    if way.trains != "all":
        return only_trains(model, ("fc",) if way.trains == "head" else ("fc", *model.last))  # type: ignore[misc]
    if way.arm.rule:
        rules = [
            fxapprox.Rule(depth="0, -1", policy="exact"),
            fxapprox.Rule(path="*shortcut*", policy="exact") if task == "images" else None,
            fxapprox.Rule(kind=["conv2d", "linear"], keep=way.arm.keep(steps), **way.arm.rule),
        ]
        inputs = torch.zeros(8, 3, 32, 32) if task == "images" else torch.zeros(8, 1, 28, 28)
        model = fxapprox.rewrite(model, (inputs,), rules=[rule for rule in rules if rule], gate=False)
    return in_precision(model, way.arm.bfloat16)
