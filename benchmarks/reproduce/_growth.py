"""How a forward error grows from layer to layer, and as [E] Theorem 2 predicts it with c measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.advice._paths import growth
from fxapprox.capture import capture
from fxapprox.capture._types import Inputs
from fxapprox.passes.ratios import ratios

from ..datasets import Images
from ._experiment import Given, Row
from ._models import hidden_layers
from ._train import train

LAYERS, WIDTH, BATCH = 7, 1000, 100
KEEPS = (0.05, 0.25, 0.5, 0.8333)  # the last is c = 5 where all terms are alike
RATE, EPOCHS, TRAINING_BATCH = 0.05, 2, 20


def same_sign(model: nn.Module) -> None:
    """Weights |N(0, 1)|/n: every term of every sum is positive, as the theorem's c supposes."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = torch.randn_like(layer.weight).abs() / layer.in_features


NETS: dict[str, tuple[bool, Callable[[nn.Module], None] | None]] = {
    "linear, weights of one sign": (False, same_sign),
    "linear": (False, None),
    "ReLU": (True, None),
    "ReLU, trained": (True, None),
}


def rows(data: Images, seed: int, given: Given) -> list[Row]:
    """For each net, keep and layer: the error relative to the sampled net's output (as the theorem counts)
    and to the exact net's, and what the theorem predicts from the c that fxapprox measures at the layers
    up to there."""
    x = data.test[:BATCH] - data.test.min()  # no negative inputs
    found: list[Row] = []
    for name, (relu, initialise) in NETS.items():
        torch.manual_seed(seed)
        net = hidden_layers(784, LAYERS, WIDTH, relu=relu)
        if initialise is not None:
            initialise(net)
        if "trained" in name:
            optimizer = torch.optim.SGD(net.parameters(), RATE)
            options: dict[str, Any] = {"epochs": EPOCHS, "batch": TRAINING_BATCH, "seed": seed}
            train(net, data, optimizer, given, evaluate=lambda _: {}, **options)
        for keep in KEEPS:
            found += ({"phase": "growth", "net": name, "keep": keep, **row} for row in by_layer(net, x, keep))
    return found


def by_layer(net: nn.Module, x: Tensor, keep: float) -> list[Row]:
    """The errors behind each hidden layer where all of them are sampled by `topk`."""
    rules = [fxapprox.Rule(depth=":-1", policy="topk", keep=keep)]
    decisions = fxapprox.plan(net, (x,), rules=rules, gate=False).decisions
    measured = ratios(capture(net, Inputs((x,)), origin="net"), decisions[:-1], costly=True).by_site
    fast = fxapprox.rewrite(net, (x,), rules=rules, gate=False)
    exact, ours = outputs(net, x), outputs(fast, x)
    found: list[Row] = []
    for j, site in enumerate(exact):
        error = float((exact[site] - ours[site]).norm())
        before = [measured[one] for one in list(exact)[: j + 1]]
        found.append({
            "layer": j + 1, "c": round(before[-1], 4), "predicted": round(growth(before), 5),
            "error": round(error / float(ours[site].norm()), 5),
            "of_exact": round(error / float(exact[site].norm()), 5),
        })  # fmt: skip
    return found


def outputs(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What the hidden layers give in training mode, by their paths."""
    found: dict[str, Tensor] = {}
    layers = [(path, layer) for path, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    hooks = [
        layer.register_forward_hook(lambda _, __, result, path=path: found.update({path: result}))
        for path, layer in layers[:-1]
    ]
    with torch.no_grad():
        net.train()(x)
    for hook in hooks:
        hook.remove()
    return found
