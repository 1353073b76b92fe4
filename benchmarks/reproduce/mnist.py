"""Sampled training of an MLP and a CNN on MNIST, with the exact run's hyper-parameters.

[A] Table 1 (accuracy at 50% and 66% reduction) and Figures 3, 4, 6 (accuracy and learning curves by the share
kept, and sampling in the backward pass only, down to 10%). The first layer stays exact, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from examples.mlp import MLP

from ..datasets import mnist
from ._experiment import Experiment, Given, Row, Run
from ._models import rewritten
from ._pages import last, markdown, spread, where
from ._plots import colours, curve, legend, panels
from ._train import accuracy, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CNN(nn.Module):
    """Two 5×5 convolutions with max pooling, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc1 = nn.Linear(64 * 7 * 7, 512)
        self.fc2 = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv1(images)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


@dataclass(frozen=True)
class Net:
    """A network, how long it is trained, and the shares kept that are tried, in percent, by scope."""

    model: type[nn.Module]
    epochs: int
    forward: tuple[int, ...]
    backward: tuple[int, ...]


BATCH, RATE, MOMENTUM = 64, 0.05, 0.9  # the rate falls along a line to a hundredth
NETS = {
    "MLP": Net(MLP, 10, forward=(50, 34, 20, 10), backward=(50, 20, 10)),
    "CNN": Net(CNN, 3, forward=(50, 34), backward=(10,)),
}
SETTINGS = {
    "batch": BATCH, "rate": RATE, "schedule": "linear", "momentum": MOMENTUM,
    **{f"{name} epochs": net.epochs for name, net in NETS.items()},
}  # fmt: skip
FORWARD: dict[str, dict[str, Any]] = {
    "crs": {"policy": "crs"},
    "bernoulli": {"policy": "bernoulli"},
    "topk": {"policy": "topk"},
    "pps": {"policy": "pps"},
    "topk, centred": {"policy": "topk", "center": True},
}
BACKWARD = {name: keys for name, keys in FORWARD.items() if "center" not in keys}  # it is of forward products


# crs does not learn at the exact run's rate: is it the rate?
SLOWER = "MLP: crs, forward, 34%, a fifth of the rate"


def arm(net: str, name: str, scope: str, kept: int) -> str:
    return f"{net}: {name}, {scope}, {kept}%"


def arms() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, net in NETS.items():
        found[f"{name}: exact"] = {}
        for scope, policies, shares in (
            ("forward", FORWARD, net.forward),
            ("backward", BACKWARD, net.backward),
        ):
            for kept in shares:
                for policy, keys in policies.items():
                    found[arm(name, policy, scope, kept)] = {**keys, "keep": kept / 100, "scope": scope}
    found[SLOWER] = {**FORWARD["crs"], "keep": 0.34, "scope": "forward", "rate": RATE / 5}
    return found


def runs(seeds: Sequence[int]) -> list[Run]:
    return [Run(name, seed, keys) for seed in seeds for name, keys in arms().items()]


def perform(run: Run, given: Given) -> list[Row]:
    net, images = NETS[run.arm.partition(":")[0]], mnist(str(given.data))
    torch.manual_seed(run.seed)
    treatment = {key: value for key, value in run.keys.items() if key != "rate"}
    model = rewritten(net.model(), images.train[:BATCH], treatment)
    optimizer = torch.optim.SGD(model.parameters(), run.keys.get("rate", RATE), momentum=MOMENTUM)
    steps = net.epochs * (len(images.train) // BATCH)
    return train(
        model, images, optimizer, given, epochs=net.epochs, batch=BATCH, seed=run.seed,
        schedule=torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps),
        evaluate=lambda m: {"accuracy": accuracy(m, images.test, images.test_label)},
    )  # fmt: skip


def figures(rows: list[Row]) -> dict[str, Figure]:
    found = {
        "MLP-keep": _by_keep(rows, "MLP"),
        "MLP-forward": _curves(rows, "MLP", "forward"),
        "MLP-backward": _curves(rows, "MLP", "backward"),
    }
    if any(row["arm"].startswith("CNN") for row in rows):
        found["CNN-forward"] = _curves(rows, "CNN", "forward")
    return found


def _curves(rows: list[Row], net: str, scope: str) -> Figure:
    """Test accuracy by epoch, a panel for each share kept."""
    policies = FORWARD if scope == "forward" else BACKWARD
    shares = NETS[net].forward if scope == "forward" else NETS[net].backward
    figure, axes = panels(len(shares), width=3.2)
    colour = colours(list(policies))
    for axis, kept in zip(axes, shares, strict=True):
        curve(axis, where(rows, arm=f"{net}: exact"), "epoch", "accuracy", "exact", scale=100, color="black")
        for name in policies:
            of_arm = where(rows, arm=arm(net, name, scope, kept))
            curve(axis, of_arm, "epoch", "accuracy", name, scale=100, color=colour[name])
        axis.set(title=f"{net}, {scope}, {kept}% kept", xlabel="epoch", ylim=(85, 99.5))
    axes[0].set(ylabel="test accuracy, %")
    legend(axes[0])
    return figure


def _by_keep(rows: list[Row], net: str) -> Figure:
    """Test accuracy after the last epoch by share kept, a panel for each scope."""
    figure, axes = panels(2)
    colour = colours(list(FORWARD))
    ends = last(rows)
    for axis, scope, policies, shares in (
        (axes[0], "forward", FORWARD, NETS[net].forward),
        (axes[1], "backward", BACKWARD, NETS[net].backward),
    ):
        for name in policies:
            points = [
                {**row, "kept": kept}
                for kept in shares
                for row in where(ends, arm=arm(net, name, scope, kept))
            ]
            curve(axis, points, "kept", "accuracy", name, scale=100, color=colour[name], marker="o")
        exact = [row["accuracy"] for row in where(ends, arm=f"{net}: exact")]
        if exact:
            axis.axhline(100 * sum(exact) / len(exact), color="black", linestyle=":", label="exact")
        axis.set(title=f"{net}, {scope}", xlabel="pairs kept, %", ylim=(90, 99))
    axes[0].set(ylabel="test accuracy, %")
    legend(axes[1])
    return figure


def tables(rows: list[Row]) -> dict[str, str]:
    """Test accuracy after the last epoch: policies by share kept, for each net and scope."""
    ends, found = last(rows), {}
    for name, net in NETS.items():
        exact = where(ends, arm=f"{name}: exact")
        if not exact:
            continue
        head = [f"{name}, exact {_percent(exact)}"]
        columns = [("forward", kept) for kept in net.forward] + [("backward", kept) for kept in net.backward]
        cells = [
            [policy, *(_percent(where(ends, arm=arm(name, policy, scope, kept))) for scope, kept in columns)]
            for policy in FORWARD
        ]
        found[name] = markdown([*head, *(f"{scope}, {kept}%" for scope, kept in columns)], cells)
    if slower := where(ends, arm=SLOWER):
        found["slower"] = f"`crs`, forward, 34% with a fifth of the rate: {_percent(slower)}."
    return found


def _percent(rows: list[Row]) -> str:
    return spread(100 * row["accuracy"] for row in rows)


EXPERIMENT = Experiment(
    "mnist",
    "[A] Table 1, Figures 3, 4, 6: an MLP and a CNN on MNIST, sampled forward or backward",
    60,
    SETTINGS,
    runs,
    perform,
    figures,
    tables,
)
