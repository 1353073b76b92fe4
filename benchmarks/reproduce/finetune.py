"""Fine-tuning, where architecture and weights are given: sampled, against what else is cheaper than exact.

Two networks are trained exactly in the run, and go on with the same images turned by 90°: the residual
network of `cifar.py` on CIFAR-10, and a transformer that reads MNIST's digits row by row. Sampled ways
change every weight; the others train the last layers, the head, or low-rank adapters beside all layers
(`_adapters.py`). Every way has the best learning rate of a search. Peak memory is of a training step in a
process of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import fxapprox
from fxapprox.capture._types import Inputs
from fxapprox.measure.peak import Peak, peak_memory
from fxapprox.measure.step import optimizer_of, training_step
from fxapprox.measure.timing import Budget, in_turn

from ..datasets import Images, cifar10, mnist
from ..turns import keep_memory
from . import _store
from ._arms import BACKWARD, CENTRED, FORWARD, GRAD_WEIGHT, Arm, sampled
from ._experiment import SEARCH, Experiment, Given, Row, Run
from ._finetune_shown import again, figures, tables
from ._frame import Places
from ._pages import where
from ._train import accuracy, shifted_and_flipped, train
from ._ways import Way, network, prepared

SETTINGS: dict[str, Any] = {
    "images": {"network": "ResidualNet(64)", "pretraining": 8_000, "pretraining_epochs": 3,
               "pretraining_rate": 0.03, "rates": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
    "rows": {"network": "RowTransformer(256, 4)", "pretraining": 10_000, "pretraining_epochs": 3,
             "pretraining_rate": 0.001, "rates": [0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03]},
    "search": "the three rates in the middle, then beyond the end that is best",
    "shift": "turned by 90°", "count": 2_400, "epochs": 3, "batch": 32, "search_count": 1_200,
    "validation": 1_000, "test": 4_000, "statistics": 800, "rank": 8, "rounds": 25,
}  # fmt: skip


WAYS: dict[str, Way] = {
    "exact": Way(),
    "centred topk 0.5": Way(sampled(CENTRED, 0.5)),
    "topk 0.5": Way(sampled(FORWARD, 0.5)),
    "pps backward 0.25": Way(sampled(BACKWARD, 0.25)),
    "low-rank adapters": Way(trains="adapters"),
    "last layers": Way(trains="last"),
    "pps grad-weight 0.25": Way(sampled(GRAD_WEIGHT, 0.25)),
    "pps grad-weight 0.1": Way(sampled(GRAD_WEIGHT, 0.1)),
    "head": Way(trains="head"),
    "bfloat16": Way(Arm(bfloat16=True)),
    "bfloat16, pps grad-weight 0.25": Way(sampled(GRAD_WEIGHT, 0.25, bfloat16=True)),
}
TASKS = ("images", "rows")
BEFORE = "pretrained"


def runs(seeds: Sequence[int]) -> list[Run]:
    """For each task the networks and the ways, seed by seed; a rate is searched before a way's first run."""
    found = []
    for task in TASKS:
        for seed in seeds:
            found.append(Run(f"{task}: {BEFORE}", seed))
            for name, way in WAYS.items():
                if seed == seeds[0]:
                    found.append(Run(f"{task}: {SEARCH}{name}", 0, way.keys))
                found.append(Run(f"{task}: {name}", seed, way.keys))
    return [*found, Run("memory", 0), Run("seconds", 0, {"alone": True})]


def perform(run: Run, given: Given) -> list[Row]:
    if run.alone:
        return seconds(given)
    if run.arm == "memory":
        return memory(given)
    task, name = run.arm.split(": ")
    if name == BEFORE:
        return before(task, run.seed, given)
    if name.startswith(SEARCH):
        return search(task, WAYS[name.removeprefix(SEARCH)], given)
    known = where(_store.read(Places().results, "finetune").rows, arm=f"{task}: {SEARCH}{name}")
    rate = best(known or search(task, WAYS[name], given))
    data = shifted(images_of(task, given, SETTINGS["count"]))
    rows, model = tuned(task, WAYS[name], data, rate, run.seed, given)
    end = {"phase": "final", "rate": rate, **measured(model, data)}
    return [{"task": task, "way": name, **row} for row in [*rows, end]]


def images_of(task: str, given: Given, count: int, skip: int = 0) -> Images:
    """`count` training images after the first `skip`, and the test images."""
    wanted = skip + count
    source = (
        cifar10(str(given.data), wanted, SETTINGS["test"]) if task == "images" else mnist(str(given.data))
    )
    kept, test = slice(skip, wanted), SETTINGS["test"]
    return Images(source.train[kept], source.train_label[kept], source.test[:test], source.test_label[:test])


def shifted(data: Images) -> Images:
    """The task to go on with: the same images, turned by 90°."""
    train, test = (images.rot90(1, (2, 3)).contiguous() for images in (data.train, data.test))
    return replace(data, train=train, test=test)


def optimizer_for(task: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if task == "rows":
        return torch.optim.AdamW(parameters, rate)
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4)


def fitted(
    task: str, model: nn.Module, data: Images, rate: float, seed: int, given: Given, epochs: int
) -> list[Row]:
    """Train, and give a row for each epoch."""
    optimizer = optimizer_for(task, model, rate)
    steps = epochs * (len(data.train) // SETTINGS["batch"])
    return train(
        model, data, optimizer, given, epochs=epochs, batch=SETTINGS["batch"], seed=seed,
        evaluate=lambda _: {},
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps),
        augment=shifted_and_flipped if task == "images" else None,
    )  # fmt: skip


def pretrained(task: str, seed: int, given: Given) -> nn.Module:
    """The network after exact training, from a file beside the checkpoints where it has been made before."""
    options = SETTINGS[task]
    decides = {key: value for key, value in options.items() if key != "rates"}
    made = hashlib.sha256(json.dumps([decides, SETTINGS["batch"], seed]).encode()).hexdigest()[:16]
    file = given.checkpoint.parent / f"{task}-{made}.weights"
    torch.manual_seed(seed)
    model = network(task)
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model
    data = images_of(task, given, options["pretraining"])
    own = replace(given, checkpoint=file.with_suffix(".part"))
    fitted(task, model, data, options["pretraining_rate"], seed, own, options["pretraining_epochs"])
    with _store.whole(file) as path:
        torch.save(model.state_dict(), path)
    own.checkpoint.unlink()
    return model


def before(task: str, seed: int, given: Given) -> list[Row]:
    """What the network knows of its own task, and of the shifted one."""
    model, data = pretrained(task, seed, given), images_of(task, given, SETTINGS["count"])
    about = {"task": task, "way": BEFORE}
    return [
        {**about, "phase": "own task", **measured(model, data)},
        {**about, "phase": "final", **measured(model, shifted(data))},
    ]


def tuned(
    task: str, way: Way, data: Images, rate: float, seed: int, given: Given
) -> tuple[list[Row], nn.Module]:
    steps = SETTINGS["epochs"] * (len(data.train) // SETTINGS["batch"])
    model = pretrained(task, seed, given)
    torch.manual_seed(seed)
    model = prepared(task, way, model, steps, SETTINGS["rank"])
    rows = fitted(task, model, data, rate, seed, given, SETTINGS["epochs"])
    return [{"phase": "training", "rate": rate, **row} for row in rows], model


def measured(model: nn.Module, data: Images) -> Row:
    """Test accuracy, and where there is batch norm that with its statistics re-estimated."""
    found = {"accuracy": accuracy(model, data.test, data.test_label)}
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        return found
    model.train()  # in a model that is evaluated as a whole, norms whose weights do not train count as frozen
    numbers = torch.Generator().manual_seed(0)
    shown = shifted_and_flipped(data.train[: SETTINGS["statistics"]], numbers).split(200)
    with fxapprox.batchnorm_reestimated(model, shown):
        return {**found, "reestimated": accuracy(model, data.test, data.test_label)}


def search(task: str, way: Way, given: Given) -> list[Row]:
    """Accuracy on held-out images of the shifted task after a run on half of the images, at each rate."""
    count, held = SETTINGS["search_count"], SETTINGS["validation"]
    data = shifted(images_of(task, given, count))
    unseen = shifted(images_of(task, given, held, skip=SETTINGS["count"]))
    small = replace(data, test=unseen.train, test_label=unseen.train_label)
    rows: list[Row] = []
    while (rate := next_rate(SETTINGS[task]["rates"], rows)) is not None:
        given.checkpoint.unlink(missing_ok=True)  # of the rate before
        _, model = tuned(task, way, small, rate, 0, given)
        rows.append({"task": task, "phase": "rate", "rate": rate, **measured(model, small)})
    given.checkpoint.unlink(missing_ok=True)
    return rows


def next_rate(rates: Sequence[float], tried: Sequence[Row]) -> float | None:
    """The three in the middle, then beyond the end that is best until another one is; None: that is all."""
    first = len(rates) // 2 - 1
    if len(tried) < 3:
        return rates[first + len(tried)]
    places = sorted(rates.index(row["rate"]) for row in tried)
    found = rates.index(best(tried))
    beyond = {places[0]: places[0] - 1, places[-1]: places[-1] + 1}.get(found, -1)
    return rates[beyond] if 0 <= beyond < len(rates) else None


def best(rows: Sequence[Row]) -> float:
    return float(max(rows, key=again)["rate"])


def phases() -> list[tuple[str, str, Way, float]]:
    """Task, name, way and keep of every kind of step; exact steps of a schedule count as exact's."""
    return [
        (task, name, way, keep)
        for task in TASKS
        for name, way in WAYS.items()
        for _, keep in way.arm.phases
        if keep < 1 or not way.arm.rule
    ]


def at_keep(task: str, way: Way, keep: float) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    at = replace(way, arm=replace(way.arm, keeps=((0.0, keep),)))
    model = prepared(task, at, network(task), 1, SETTINGS["rank"])
    shape = (3, 32, 32) if task == "images" else (1, 28, 28)
    x = torch.randn(SETTINGS["batch"], *shape)
    return model, Inputs((x.contiguous(memory_format=torch.channels_last) if task == "images" else x,))


OPTIMIZER = {"images": "sgd", "rows": "adam"}


def memory(given: Given) -> list[Row]:
    """Bytes that a step of each kind needs at most, above weights and inputs."""
    rows: list[Row] = []
    every = phases()
    for done, (task, name, way, keep) in enumerate(every):
        given.tick(done, len(every))
        peak = peak_memory(*at_keep(task, way, keep), OPTIMIZER[task])
        if not isinstance(peak, Peak):
            raise SystemExit(f"error: the memory of {task}: {name} cannot be measured\n  {peak}")
        rows.append({"task": task, "way": name, "phase": "memory", "keep": keep, "bytes": peak.step})
    return rows


def seconds(given: Given) -> list[Row]:
    """The median step of each kind and its quartiles, all in turn."""
    keep_memory()
    steps = {}
    for task, name, way, keep in phases():
        model, inputs = at_keep(task, way, keep)
        steps[task, name, keep] = training_step(model, inputs, optimizer_of(OPTIMIZER[task], model))
    budget = Budget(repeat=SETTINGS["rounds"])
    rows: list[Row] = []
    times = in_turn(steps, budget, tick=lambda part: given.tick(int(100 * part), 100))
    for (task, name, keep), timing in times.items():
        low, high = timing.quartiles
        found = {"seconds": round(timing.median, 5), "low": round(low, 5), "high": round(high, 5)}
        rows.append({"task": task, "way": name, "phase": "seconds", "keep": keep, **found})
    return rows


EXPERIMENT = Experiment(
    "finetune",
    "fine-tuning: sampled, against last layers and low-rank adapters",
    150,
    SETTINGS,
    runs,
    perform,
    lambda rows: figures(rows, WAYS, SETTINGS),
    lambda rows: tables(rows, WAYS, SETTINGS),
)
