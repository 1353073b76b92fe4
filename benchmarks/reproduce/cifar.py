"""Test accuracy on CIFAR-10 against the seconds of training: sampled ways, and what one would do instead.

A wide residual network with batch norm; every arm has a learning rate of its own, the best of three in a
short search on validation images. All 3×3 convolutions but the first are sampled: a 1×1 shortcut has 2% of
the arithmetic, and choosing its channels costs more than it saves. Seconds (`--timing`) are steps × the
median step, phase by phase of a keep schedule, of all arms in turn in one process; each arm in the memory
format that is faster for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.measure.timing import Budget, in_turn

from ..datasets import Images, cifar10
from ..turns import keep_memory
from . import _cifar_shown, _store
from ._arms import BACKWARD, CENTRED, EPOCHS, FORWARD, GRAD_WEIGHT, WIDTH, Arm, sampled, then_exact
from ._experiment import SEARCH, Experiment, Given, Row, Run
from ._frame import Places
from ._models import ResidualNet, in_precision
from ._pages import where
from ._train import accuracy, shifted_and_flipped, train

SETTINGS: dict[str, Any] = {
    "images": 10_000, "test": 10_000, "curve": 1_000, "width": WIDTH, "epochs": EPOCHS, "batch": 64,
    "momentum": 0.9, "weight_decay": 5e-4, "schedule": "OneCycleLR", "augmentation": "shift 4, flip",
    "statistics": 1_000, "rates": [0.01, 0.03, 0.1], "search_images": 3_200, "search_epochs": 2,
    "validation": 2_000, "rounds": 25,
}  # fmt: skip
THIRD, FIFTH = 2 / 3, 0.8  # of the steps, after which the rest is exact

ARMS: dict[str, Arm] = {  # those that tell most come first
    "exact": Arm(),
    "narrower, half the arithmetic": Arm(width=45),
    "centred topk 0.5, exact last third": sampled(CENTRED, 0.5, THIRD),
    "centred topk 0.25, exact last third": sampled(CENTRED, 0.25, THIRD),
    "exact, 4 of 6 epochs": Arm(epochs=4),
    "topk 0.5": sampled(FORWARD, 0.5),
    "bfloat16": Arm(bfloat16=True),
    "bfloat16, topk 0.5": sampled(FORWARD, 0.5, bfloat16=True),
    "bfloat16, topk 0.5, exact last third, 9 epochs": sampled(FORWARD, 0.5, THIRD, epochs=9, bfloat16=True),
    "bfloat16, topk 0.5, exact last fifth, 9 epochs": sampled(FORWARD, 0.5, FIFTH, epochs=9, bfloat16=True),
    "bfloat16, topk 0.5, exact last fifth, 7 epochs": sampled(FORWARD, 0.5, FIFTH, epochs=7, bfloat16=True),
    "bfloat16, 8 epochs": Arm(epochs=8, bfloat16=True),
    "bfloat16, 7 epochs": Arm(epochs=7, bfloat16=True),
    "topk 0.5, exact last fifth": sampled(FORWARD, 0.5, FIFTH),
    "topk 0.5, exact last fifth, 7 epochs": sampled(FORWARD, 0.5, FIFTH, epochs=7),
    "centred topk 0.5": sampled(CENTRED, 0.5),
    "pps 0.5": sampled({"policy": "pps"}, 0.5),
    "bernoulli 0.5": sampled({"policy": "bernoulli"}, 0.5),
    "topk 0.25": sampled(FORWARD, 0.25),
    "topk 0.75": sampled(FORWARD, 0.75),
    "pps grad-weight 0.25": sampled(GRAD_WEIGHT, 0.25),
    "pps backward 0.25": sampled(BACKWARD, 0.25),
    "topk grad-weight 0.25": sampled({"policy": "topk", "scope": "grad-weight"}, 0.25),
    "topk backward 0.5": sampled({"policy": "topk", "scope": "backward"}, 0.5),
}  # fmt: skip
STEPS = SETTINGS["images"] // SETTINGS["batch"]  # an epoch


def runs(seeds: Sequence[int]) -> list[Run]:
    """Seed by seed; an arm's rate is searched, once, before its first run."""
    found = []
    for seed in seeds:
        for name, arm in ARMS.items():
            if seed == seeds[0]:
                found.append(Run(SEARCH + name, 0, arm.keys))
            found.append(Run(name, seed, arm.keys))
    return [*found, Run("seconds", 0, {"alone": True})]


def perform(run: Run, given: Given) -> list[Row]:
    if run.alone:
        return seconds(given)
    if run.arm.startswith(SEARCH):
        return search(ARMS[run.arm.removeprefix(SEARCH)], given)
    arm = ARMS[run.arm]
    known = where(_store.read(Places().results, "cifar").rows, arm=SEARCH + run.arm)
    rate = best(known or search(arm, given))
    data = cifar10(str(given.data), SETTINGS["images"], test_count=SETTINGS["test"])
    rows: list[Row] = []
    model = trained(arm, run.seed, data, rate, given, rows, arm.epochs)
    final = measured(model, data, len(data.test))
    return [*rows, {"phase": "final", "rate": rate, "epoch": arm.epochs, **final}]


def model_of(arm: Arm, steps: int, *, last: bool = True) -> nn.Module:
    """The arm's network, from the global generator's next numbers; `last`: in channels_last."""
    model: nn.Module = ResidualNet(arm.width)
    if last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if arm.rule:
        rules = [
            fxapprox.Rule(depth="0", policy="exact"),
            fxapprox.Rule(path="*shortcut*", policy="exact"),
            fxapprox.Rule(kind="conv2d", keep=arm.keep(steps), **arm.rule),
        ]
        model = fxapprox.rewrite(model, (torch.zeros(8, 3, 32, 32),), rules=rules, gate=False)
    return in_precision(model, arm.bfloat16)


def optimizer_of(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(), rate, momentum=SETTINGS["momentum"], weight_decay=SETTINGS["weight_decay"]
    )


def trained(
    arm: Arm, seed: int, data: Images, rate: float, given: Given, rows: list[Row], epochs: int
) -> nn.Module:
    """The arm's model after training; a row for each epoch is added to `rows`."""
    steps = epochs * (len(data.train) // SETTINGS["batch"])
    torch.manual_seed(seed)
    model = model_of(arm, steps)
    optimizer = optimizer_of(model, rate)
    found = train(
        model, data, optimizer, given, epochs=epochs, batch=SETTINGS["batch"], seed=seed,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps),
        augment=shifted_and_flipped,
        evaluate=lambda model: measured(model, data, SETTINGS["curve"]),
    )  # fmt: skip
    rows += ({"phase": "training", "rate": rate, **row} for row in found)
    return model


def measured(model: nn.Module, data: Images, count: int) -> Row:
    """Accuracy on the first `count` test images, as trained and with batch norm re-estimated on training
    images that are shifted and flipped as in training."""
    numbers = torch.Generator().manual_seed(0)
    shown = shifted_and_flipped(data.train[: SETTINGS["statistics"]], numbers).split(250)
    images, label = data.test[:count], data.test_label[:count]
    found = {"accuracy": accuracy(model, images, label)}
    with fxapprox.batchnorm_reestimated(model, shown):
        return {**found, "reestimated": accuracy(model, images, label)}


def search(arm: Arm, given: Given) -> list[Row]:
    """Validation accuracy at each rate, after a short run that is the arm's in small: the same schedules, its
    share of the images. Validation images are training images that no run trains on."""
    count, epochs = SETTINGS["search_images"] * arm.epochs // SETTINGS["epochs"], SETTINGS["search_epochs"]
    last = SETTINGS["images"] + SETTINGS["validation"]
    data = cifar10(str(given.data), last, test_count=1)
    held = slice(SETTINGS["images"], last)
    small = Images(data.train[:count], data.train_label[:count], data.train[held], data.train_label[held])
    rows: list[Row] = []
    for rate in SETTINGS["rates"]:
        given.checkpoint.unlink(missing_ok=True)  # of the rate before
        curve: list[Row] = []
        trained(arm, 0, small, rate, given, curve, epochs)
        rows.append({**curve[-1], "phase": "rate"})
    given.checkpoint.unlink(missing_ok=True)
    return rows


def best(rows: Sequence[Row]) -> float:
    """The rate of the highest validation accuracy, with batch norm re-estimated."""
    return float(max(rows, key=lambda row: row["reestimated"])["rate"])


def seconds(given: Given) -> list[Row]:
    """The median step and its quartiles of every kind of step that an arm makes, in both memory formats."""
    keep_memory()
    images = torch.randn(SETTINGS["batch"], 3, 32, 32)
    label = torch.randint(0, 10, (SETTINGS["batch"],))
    steps = {}
    for arm in ARMS.values():
        for _, keep in arm.phases:
            for last in (False, True):
                if (arm.step(keep), last) not in steps:
                    steps[arm.step(keep), last] = step_of(arm, keep, images, label, last)
    times = in_turn(
        steps, Budget(repeat=SETTINGS["rounds"]), tick=lambda part: given.tick(int(100 * part), 100)
    )
    rows: list[Row] = []
    for (name, last), timing in times.items():
        low, high = timing.quartiles
        found = {"seconds": round(timing.median, 5), "low": round(low, 5), "high": round(high, 5)}
        rows.append({"phase": "seconds", "step": name, "channels_last": int(last), **found})
    return rows


def step_of(arm: Arm, keep: float, images: Tensor, label: Tensor, last: bool) -> Any:
    """A training step of the arm in its phase with this `keep`."""
    first = next(value for _, value in arm.keeps if value < 1 or not arm.rule)
    # a phase that comes to be exact is one of a sampled model, whose weights lie as sampling wants them
    keeps = then_exact(first, 0.5) if keep == 1 and arm.rule else ((0.0, keep),)
    model = model_of(Arm(arm.rule, keeps, arm.width, bfloat16=arm.bfloat16), 2, last=last)
    optimizer = optimizer_of(model, 0.01)
    if arm.rule:
        fxapprox.attach(model, optimizer)
    shown = images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def step() -> None:
        loss = nn.functional.cross_entropy(model(shown), label)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


EXPERIMENT = Experiment(
    "cifar",
    "accuracy per second on CIFAR-10: sampled ways, and what one would do instead",
    700,
    SETTINGS,
    runs,
    perform,
    lambda rows: _cifar_shown.figures(rows, ARMS, STEPS),
    lambda rows: _cifar_shown.tables(rows, ARMS, SETTINGS["rates"], STEPS),
)
