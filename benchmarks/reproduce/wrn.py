"""A wide residual network on CIFAR-10, half of the pairs of every convolution but the first.

[A] Table 1's last block. Test accuracy with the running statistics of sampled training, and with statistics
that exact forward passes over 1,000 training images re-estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import fxapprox

from ..datasets import Images, cifar10
from ._experiment import Experiment, Given, Row, Run
from ._models import WideResNet, rewritten
from ._pages import last, markdown, spread, where
from ._plots import curve, legend, panels
from ._train import accuracy, shifted_and_flipped, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDEN, EPOCHS, BATCH, RATE = 10, 2, 5, 64, 0.1
TRAINING, TEST, AGAIN = 10_000, 4_000, 1_000
SETTINGS = {
    "depth": DEPTH, "widen": WIDEN, "epochs": EPOCHS, "batch": BATCH, "rate": RATE, "schedule": "one cycle",
    "momentum": 0.9, "weight decay": 5e-4, "augmented": True,
    "training images": TRAINING, "test images": TEST, "images to re-estimate on": AGAIN,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "topk": {"kind": "conv2d", "policy": "topk", "keep": 0.5},
    "bernoulli": {"kind": "conv2d", "policy": "bernoulli", "keep": 0.5},
    "topk, centred": {"kind": "conv2d", "policy": "topk", "keep": 0.5, "center": True},
}


def runs(seeds: Sequence[int]) -> list[Run]:
    return [Run(arm, seed, keys) for seed in seeds for arm, keys in ARMS.items()]


def perform(run: Run, given: Given) -> list[Row]:
    images = cifar10(str(given.data), TRAINING, TEST)
    torch.manual_seed(run.seed)
    model = rewritten(WideResNet(DEPTH, WIDEN), images.train[:BATCH], run.keys)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    steps = EPOCHS * (TRAINING // BATCH)
    return train(
        model, images, optimizer, given, epochs=EPOCHS, batch=BATCH, seed=run.seed,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps),
        augment=shifted_and_flipped, evaluate=lambda m: _accuracies(m, images),
    )  # fmt: skip


def _accuracies(model: nn.Module, images: Images) -> Row:
    plain = accuracy(model, images.test, images.test_label)
    with fxapprox.batchnorm_reestimated(model, images.train[:AGAIN].split(250)):
        return {"accuracy": plain, "reestimated": accuracy(model, images.test, images.test_label)}


def figures(rows: list[Row]) -> dict[str, Figure]:
    figure, axes = panels(3)
    for arm in ARMS:
        of_arm = where(rows, arm=arm)
        curve(axes[0], of_arm, "epoch", "loss", arm)
        curve(axes[1], of_arm, "epoch", "accuracy", arm, scale=100)
        curve(axes[2], of_arm, "epoch", "reestimated", arm, scale=100)
    axes[0].set(xlabel="epoch", title="training loss")
    axes[1].set(xlabel="epoch", title="test accuracy, %", ylim=(10, 75))
    axes[2].set(xlabel="epoch", title="the same, batch norm re-estimated", ylim=(10, 75))
    legend(axes[0])
    return {"curves": figure}


def tables(rows: list[Row]) -> dict[str, str]:
    ends = last(rows)
    cells = [
        [
            arm,
            spread((row["loss"] for row in where(ends, arm=arm)), 3),
            *(
                spread(100 * row[column] for row in where(ends, arm=arm))
                for column in ("accuracy", "reestimated")
            ),
        ]
        for arm in ARMS
    ]
    return {
        "accuracy": markdown(["", "training loss", "test accuracy, %", "batch norm re-estimated, %"], cells)
    }


EXPERIMENT = Experiment(
    "wrn",
    "[A] Table 1: a wide residual network on CIFAR-10 at 50%",
    60,
    SETTINGS,
    runs,
    perform,
    figures,
    tables,
)
