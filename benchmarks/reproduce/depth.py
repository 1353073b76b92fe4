"""[E] Tables 3 to 5 and Figures 4 to 12, 14, 15: methods for training deep networks on few cores, by depth.

Networks of 1, 3, 5 and 7 hidden layers of 1,000 on MNIST, trained in the ordinary way, with dropout and
adaptive dropout whose dropped nodes are not computed, with `alsh`, and with MC-approx (`bernoulli`,
backward). M is batch 20, S batch 1. Then MC-approx against batch size, CIFAR-10 with exact convolutions and a
sampled classifier, and how errors grow with depth, against Theorem 2 (`_growth.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..datasets import Images, cifar10, mnist
from . import _growth, _store
from ._depth_shown import figures, tables
from ._depth_timed import seconds
from ._experiment import SEARCH, Experiment, Given, Row, Run
from ._frame import Places
from ._models import hidden_layers, rewritten
from ._pages import where
from ._train import accuracy, train

SETTINGS: dict[str, Any] = {
    "width": 1000, "layers": [1, 3, 5, 7],
    "rates": [0.00001, 0.0001, 0.001, 0.01, 0.03, 0.1, 1.0],
    "M": {"batch": 20, "images": 10_000, "epochs": 3}, "S": {"batch": 1, "images": 2_000, "epochs": 1},
    "batches": [5, 10, 20, 50, 100], "batch_epochs": 2,
    "CIFAR-10": {"batch": 20, "images": 5_000, "epochs": 3, "test": 5_000},
    "search_steps": 300, "validation": 1_000, "confusion": [3, 7], "rounds": 200,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "standard": {},
    "dropout": {"policy": "dropout", "keep": 0.05},
    "dropout 0.5": {"policy": "dropout", "keep": 0.5},
    "adaptive-dropout": {"policy": "adaptive-dropout", "beta": -3.0},
    "alsh": {"policy": "alsh"},
    "alsh 0.25": {"policy": "alsh", "max_active": 0.25},
    "MC-approx": {
        "forward": "exact",
        "grad_input": {"policy": "bernoulli", "keep": 0.1},
        "grad_weight": {"policy": "bernoulli", "keep": 0.5},
    },
}


@dataclass(frozen=True)
class Case:
    """A network and a way to train it. `mode`: M and S are [E]'s; CIFAR-10 has convolutions in front."""

    method: str
    mode: str
    layers: int = 3
    batch: int = 0
    epochs: int = 0

    @property
    def keys(self) -> dict[str, Any]:
        return {**vars(self), **METHODS[self.method]}

    @property
    def search(self) -> str:
        return f"{SEARCH}{self.method} {self.mode}, {self.layers} layers"

    @property
    def searched(self) -> Case:
        """The case whose rate this one takes."""
        return case(self.method, self.mode, layers=self.layers)

    def model(self) -> nn.Module:
        """From the global generator's next numbers; all linear layers but the last are sampled."""
        keys, width = METHODS[self.method], SETTINGS["width"]
        if self.mode != "CIFAR-10":
            model = hidden_layers(784, self.layers, width)
            return rewritten(model, torch.randn(self.batch, 1, 28, 28), keys, depth=":-1")
        front = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        behind = hidden_layers(64 * 8 * 8, self.layers, width)
        inputs = torch.randn(self.batch, 64, 8, 8)
        return nn.Sequential(front, rewritten(behind, inputs, keys, depth=":-1"))


def case(method: str, mode: str, **options: int) -> Case:
    of_mode = SETTINGS[mode]
    return Case(method, mode, **{"batch": of_mode["batch"], "epochs": of_mode["epochs"], **options})


def cases() -> dict[str, Case]:
    """Every network by the name of its arm. `alsh` is for single examples, and not run with batches."""
    found: dict[str, Case] = {}
    for layers in SETTINGS["layers"]:
        for mode in ("M", "S"):
            for method in METHODS:
                if mode == "S" or not method.startswith("alsh"):
                    found[f"{method} {mode}, {layers} layers"] = case(method, mode, layers=layers)
    for batch in SETTINGS["batches"]:
        for method in ("standard", "MC-approx"):
            options = {"batch": batch, "epochs": SETTINGS["batch_epochs"]}
            found[f"{method}, batch {batch}"] = case(method, "M", **options)
    for method in METHODS:
        if not method.startswith("alsh"):
            found[f"{method}, CIFAR-10"] = case(method, "CIFAR-10")
    return found


def runs(seeds: Sequence[int]) -> list[Run]:
    """The errors' growth, then seed by seed; a rate is searched once, before it is used."""
    found = [Run("growth", seed) for seed in seeds]
    searched = set()
    for seed in seeds:
        for name, one in cases().items():
            if one.search not in searched:
                searched.add(one.search)
                found.append(Run(one.search, 0, one.searched.keys))
            found.append(Run(name, seed, one.keys))
    return [*found, Run("seconds", 0, {"alone": True})]


def perform(run: Run, given: Given) -> list[Row]:
    if run.alone:
        return seconds(cases(), SETTINGS, given)
    if run.arm == "growth":
        return _growth.rows(mnist(str(given.data)), run.seed, given)
    if run.arm.startswith(SEARCH):
        return search(next(each.searched for each in cases().values() if each.search == run.arm), given)
    one = cases()[run.arm]
    known = where(_store.read(Places().results, "depth").rows, arm=one.search)
    rate = best(known or search(one.searched, given))
    data = images_of(one.mode, given, SETTINGS[one.mode]["images"])
    rows, model = trained(one, data, rate, run.seed, given)
    about = {"mode": one.mode, "method": one.method, "layers": one.layers, "batch": one.batch}
    found = [{**about, "phase": "training", "rate": rate, **row} for row in rows]
    guessed = guesses(model, data.test)
    counts = torch.bincount(guessed, minlength=10) / len(guessed)
    spread = -sum(share * math.log2(share) for share in counts.tolist() if share > 0)
    end = {
        "accuracy": rows[-1]["accuracy"],
        "entropy": round(spread, 4),
        "top": round(float(counts.max()), 4),
    }
    found.append({**about, "phase": "final", "rate": rate, "epoch": one.epochs, **end})
    if run.seed == 0 and "layers" in run.arm and one.layers in SETTINGS["confusion"]:
        found += [{**about, "phase": "confusion", **row} for row in confusion(guessed, data.test_label)]
    return found


def images_of(mode: str, given: Given, count: int) -> Images:
    """The first `count` training images, and the test images."""
    if mode == "CIFAR-10":
        return cifar10(str(given.data), count, test_count=SETTINGS[mode]["test"])
    data = mnist(str(given.data))
    return replace(data, train=data.train[:count], train_label=data.train_label[:count])


def trained(one: Case, data: Images, rate: float, seed: int, given: Given) -> tuple[list[Row], nn.Module]:
    torch.manual_seed(seed)
    model = one.model()
    optimizer = torch.optim.SGD(model.parameters(), rate)

    def measure(model: nn.Module) -> Row:
        return {"accuracy": accuracy(model, data.test, data.test_label)}

    found = train(
        model, data, optimizer, given, epochs=one.epochs, batch=one.batch, seed=seed, evaluate=measure
    )
    return found, model


def search(one: Case, given: Given) -> list[Row]:
    """Accuracy on held-out training images after a few steps at each rate."""
    mode, held = SETTINGS[one.mode], SETTINGS["validation"]
    data = images_of(one.mode, given, mode["images"] if one.mode != "S" else mode["images"] + held)
    count = min(len(data.train) - held, SETTINGS["search_steps"] * one.batch)
    small = Images(data.train[:count], data.train_label[:count], data.train[-held:], data.train_label[-held:])
    rows: list[Row] = []
    for rate in SETTINGS["rates"]:
        given.checkpoint.unlink(missing_ok=True)  # of the rate before
        found, _ = trained(replace(one, epochs=1), small, rate, 0, given)
        rows.append({"phase": "rate", "method": one.method, "mode": one.mode, "rate": rate, **found[-1]})
    given.checkpoint.unlink(missing_ok=True)
    return rows


def best(rows: Sequence[Row]) -> float:
    return float(max(rows, key=lambda row: row["accuracy"])["rate"])


def guesses(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) for x in images.split(500)])


def confusion(guessed: Tensor, label: Tensor) -> list[Row]:
    """How many test images of each label get each answer."""
    table = torch.bincount(label * 10 + guessed, minlength=100).reshape(10, 10)
    return [
        {"label": i, **{f"as {j}": int(count) for j, count in enumerate(counts)}}
        for i, counts in enumerate(table.tolist())
    ]


EXPERIMENT = Experiment(
    "depth",
    "[E]: dropout, alsh and MC-approx by depth, batch size and method",
    90,
    SETTINGS,
    runs,
    perform,
    figures,
    tables,
)
