"""Rows that a weight gradient leaves out wait for later steps, or are lost.

[H] Figures 2 and 3: one linear layer on UCI energy efficiency (16 → 1, batch 144, K = 18, 9, 3 rows) and on
MNIST (784 → 10, batch 64, K = 32, 16, 8), trained by SGD at a constant rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from ..datasets import Images, energy, mnist
from ._experiment import Experiment, Given, Row, Run
from ._models import rewritten
from ._pages import markdown, spread, where
from ._plots import colours, curve, legend, panels
from ._train import accuracy, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Task:
    """One of the paper's two. An energy run is so short that each seed stands for five splits of the data;
    of its epochs every fifth is written down."""

    sizes: tuple[int, int]
    batch: int
    kept: tuple[int, ...]
    epochs: int
    repeats: int
    every: int
    loss: Callable[[Tensor, Tensor], Tensor]

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "sizes": self.sizes, "batch": self.batch, "kept": self.kept, "epochs": self.epochs,
            "repeats": self.repeats, "every": self.every, "rate": RATE,
        }  # fmt: skip


RATE = 0.01
TASKS = {
    "energy": Task((16, 1), 144, (18, 9, 3), epochs=100, repeats=5, every=5, loss=mse_loss),
    "mnist": Task((784, 10), 64, (32, 16, 8), epochs=30, repeats=1, every=1, loss=cross_entropy),
}
# as in [H], unscaled; and beside them a policy that makes up for what it leaves out by its scale
POLICIES: dict[str, dict[str, Any]] = {
    "topk": {"policy": "topk"},
    "weighted": {"policy": "weighted"},
    "uniform": {"policy": "uniform", "scale": "none"},
    "pps": {"policy": "pps"},
}
TREATED = [
    (policy, memory) for policy in POLICIES for memory in (True, False) if policy != "pps" or not memory
]
# [H]: final validation MSE of the authors' recorded runs for energy, by policy, memory and K
PUBLISHED_EXACT = 9.2
PUBLISHED = {
    ("topk", True): (9.5, 9.9, 10.4), ("topk", False): (11.4, 11.4, 26.6),
    ("uniform", True): (9.7, 9.9, 32.0), ("uniform", False): (14.7, 25.8, 62.0),
}  # fmt: skip


def arm(task: str, policy: str, memory: bool, k: int) -> str:
    return f"{task}: {policy}, K = {k}, {'with' if memory else 'without'} memory"


def arms() -> dict[str, dict[str, Any]]:
    """Every arm with its keys; `min_k` is K, too, for keep·batch may round below it."""
    found: dict[str, dict[str, Any]] = {}
    for name, task in TASKS.items():
        found[f"{name}: exact"] = {}
        for policy, memory in TREATED:
            for k in task.kept:
                keys = {**POLICIES[policy], "keep": k / task.batch, "min_k": k, "scope": "grad-weight"}
                found[arm(name, policy, memory, k)] = {**keys, **({"memory": True} if memory else {})}
    return found


def runs(seeds: Sequence[int]) -> list[Run]:
    return [Run(name, seed, keys) for seed in seeds for name, keys in arms().items()]


def perform(run: Run, given: Given) -> list[Row]:
    name = run.arm.partition(":")[0]
    task = TASKS[name]
    rows: list[Row] = []
    checkpoints = [given.checkpoint.with_suffix(f".{repeat}") for repeat in range(task.repeats)]
    for repeat, checkpoint in enumerate(checkpoints):
        seed = run.seed * task.repeats + repeat
        images, scores = _task(name, seed, given)
        torch.manual_seed(seed)
        plain = nn.Sequential(nn.Flatten(), nn.Linear(*task.sizes))
        model = rewritten(plain, images.train[: task.batch], run.keys, depth="0")
        found = train(
            model, images, torch.optim.SGD(model.parameters(), RATE), replace(given, checkpoint=checkpoint),
            epochs=task.epochs, batch=task.batch, seed=seed, loss=task.loss, evaluate=scores,
        )  # fmt: skip
        rows += [{"repeat": repeat, **row} for row in found if row["epoch"] % task.every == 0]
    for checkpoint in checkpoints:
        checkpoint.unlink()
    return rows


def _task(name: str, split: int, given: Given) -> tuple[Images, Callable[[nn.Module], Row]]:
    """The data of a task, and what is looked at after every epoch."""
    if name == "mnist":
        digits = mnist(str(given.data), normalised=False)
        return digits, lambda model: {"accuracy": accuracy(model, digits.test, digits.test_label)}
    buildings = energy(str(given.data), split=split)

    def validated(model: nn.Module) -> Row:
        with torch.no_grad():
            return {"mse": round(mse_loss(model.eval()(buildings.test), buildings.test_label).item(), 5)}

    return buildings, validated


def figures(rows: list[Row]) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    colour = colours(list(POLICIES))
    for name, task in TASKS.items():
        of_task = [row for row in rows if row["arm"].startswith(name)]
        metric, scale = ("mse", 1.0) if name == "energy" else ("accuracy", 100.0)
        figure, axes = panels(len(task.kept))
        for axis, k in zip(axes, task.kept, strict=True):
            curve(
                axis,
                where(of_task, arm=f"{name}: exact"),
                "epoch",
                metric,
                "exact",
                scale=scale,
                color="black",
            )
            for policy, memory in TREATED:
                curve(
                    axis, where(of_task, arm=arm(name, policy, memory, k)), "epoch", metric,
                    f"{policy}, {'with' if memory else 'without'} memory", scale=scale,
                    color=colour[policy], linestyle="-" if memory else ":",
                )  # fmt: skip
            axis.set(title=f"{name}: K = {k} of {task.batch}", xlabel="epoch")
            axis.set(**({"yscale": "log", "ylim": (6, 200)} if name == "energy" else {"ylim": (80, 93)}))
        axes[0].set(ylabel="validation MSE" if name == "energy" else "test accuracy, %")
        legend(axes[0], 6)
        found[name] = figure
    return found


def tables(rows: list[Row]) -> dict[str, str]:
    """Energy: MSE above the exact run's on the same split, ours beside the authors'. MNIST: accuracy."""
    found: dict[str, str] = {}
    for name, task in TASKS.items():
        ends = [row for row in rows if row["arm"].startswith(name) and row["epoch"] == task.epochs]
        exact = where(ends, arm=f"{name}: exact")
        if not exact:
            continue
        metric = "mse" if name == "energy" else "accuracy"
        shown = _above if name == "energy" else _percent
        heads = [f"K = {k}" for k in task.kept]
        if name == "energy":
            heads += [f"[H], K = {k}" for k in task.kept]
        cells = []
        for policy, memory in TREATED:
            mine = [shown(where(ends, arm=arm(name, policy, memory, k)), exact, metric) for k in task.kept]
            theirs = PUBLISHED.get((policy, memory), ()) if name == "energy" else ()
            mine += [f"+{mse - PUBLISHED_EXACT:.1f}" for mse in theirs]
            mine += ["–"] * (len(heads) - len(mine))
            cells.append([f"{policy}, {'with' if memory else 'without'} memory", *mine])
        found[name] = markdown(["", *heads], cells)
        found[f"{name}-exact"] = _sentence(name, exact)
    return found


def _sentence(name: str, exact: list[Row]) -> str:
    if name == "mnist":
        return f"Exact: {spread(100 * row['accuracy'] for row in exact)}%."
    return f"Exact: {spread(row['mse'] for row in exact)} over the splits; [H]: {PUBLISHED_EXACT}."


def _above(rows: list[Row], exact: list[Row], metric: str) -> str:
    """The difference from the exact run of the same seed and repeat."""
    of: Mapping[tuple[int, int], float] = {(row["seed"], row["repeat"]): row[metric] for row in exact}
    differences = [row[metric] - of[key] for row in rows if (key := (row["seed"], row["repeat"])) in of]
    text = spread(differences)
    return text if text[0] in "-–" else f"+{text}"


def _percent(rows: list[Row], exact: list[Row], metric: str) -> str:
    return spread(100 * row[metric] for row in rows)


EXPERIMENT = Experiment(
    "memory",
    "[H] Figures 2, 3: training with and without memory",
    15,
    {name: task.settings for name, task in TASKS.items()},
    runs,
    perform,
    figures,
    tables,
)
