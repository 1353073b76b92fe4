"""How far each policy's product is from the exact one, and what a draw costs.

[A] Figure 1: 100×100 matrices with both means 1, and with one of them 0; an input with columns of very
different size, as ReLU activations have; and the hidden layers of a net that is trained in the run, on
MNIST, where it matters. Seconds (`--timing`): one row of 1,000 fresh scores, k = 500.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, quantiles, stdev
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from examples.mlp import MLP
from fxapprox.policies import Policy, policies
from fxapprox.testing.policies import SeededStream

from ..datasets import mnist
from ._experiment import Experiment, Given, Row, Run
from ._pages import markdown, spread, where
from ._plots import colours, curve, legend, panels
from ._train import accuracy, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE, PAIRS = 100, 1_000
KEPT = (5, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90)  # in percent
TOLD = (10, 25, 50, 75)  # those in the tables
LAYERS = ("fc2", "fc3", "head")
EPOCHS, BATCH, RATE, BATCHES = 5, 64, 0.05, 100
SETTINGS = {
    "size": SIZE, "pairs": PAIRS, "kept": KEPT, "net": "examples/mlp.py", "layers": LAYERS,
    "epochs": EPOCHS, "batch": BATCH, "rate": RATE, "momentum": 0.9, "batches": BATCHES,
}  # fmt: skip
TRAINED = "trained MLP"
FIGURE = ("crs", "bernoulli", "topk", "pps", "wta", "topk, center = true")


@dataclass(frozen=True)
class Variant:
    """A policy with its options, and whether its product is centred."""

    policy: Policy
    center: bool = False

    def errors(self, left: Tensor, right: Tensor, k: int, seed: int) -> tuple[float, float]:
        """‖sampled − AB‖ for A `[N, n]`, B `[n, M]`, over ‖A‖·‖B‖ and over ‖AB‖, Frobenius norms."""
        sampled = left - left.mean(0) if self.center else left
        rows = right.norm(dim=1)
        scores = {"pair": sampled.norm(dim=0) * rows, "weight": rows, "none": torch.ones(len(rows))}
        drawn = self.policy.select(scores[self.policy.scores][None], k, SeededStream(seed))
        scale = torch.ones(1, drawn.index.shape[1]) if drawn.scale is None else drawn.scale
        weight = torch.zeros(len(rows)).index_add_(0, drawn.index[0], scale[0])
        difference = float((sampled * (weight - 1.0) @ right).norm())
        return difference / float(left.norm() * right.norm()), difference / float((left @ right).norm())


def variants() -> dict[str, Variant]:
    """Every policy over pairs but `exact` with its default options, those with a choice of scale both ways,
    and two of them centred."""
    found: dict[str, Variant] = {}
    for name, cls in policies.all().items():
        if cls.size == "all" or not issubclass(cls, Policy):  # output nodes have no pairs to be wrong about
            continue
        found[name] = Variant(cls())
        if any(field.name == "scale" for field in fields(cls)):  # type: ignore[arg-type]
            other = {"inverse": "none", "none": "horvitz-thompson"}[cls().scale]  # type: ignore[attr-defined]
            found[f'{name}, scale = "{other}"'] = Variant(cls(scale=other))  # type: ignore[call-arg]
        if name in ("topk", "pps"):
            found[f"{name}, center = true"] = Variant(cls(), center=True)
    return found


Made = Callable[[torch.Generator], Tensor]


def normal(mean: float) -> Made:
    return lambda numbers: torch.randn(SIZE, SIZE, generator=numbers) + mean


def activations(numbers: torch.Generator) -> Tensor:
    """ReLU of normal entries, columns of very different size (lognormal, sigma 1)."""
    return torch.randn(SIZE, SIZE, generator=numbers).relu() * torch.randn(SIZE, generator=numbers).exp()


INPUTS: dict[str, tuple[Made, Made]] = {
    "both N(1,1)": (normal(1.0), normal(1.0)),
    "N(0,1), N(1,1)": (normal(0.0), normal(1.0)),
    "uneven ReLU, N(0,1)": (activations, normal(0.0)),
}


def runs(seeds: Sequence[int]) -> list[Run]:
    """A thousand pairs of matrices are one run for all seeds; nets are trained for each."""
    return [
        *(Run(name, 0) for name in INPUTS),
        *(Run(TRAINED, seed) for seed in seeds),
        Run("seconds", 0, {"alone": True}),
    ]


def perform(run: Run, given: Given) -> list[Row]:
    if run.alone:
        return [draw_time(name, variant) for name, variant in variants().items()]
    if run.arm == TRAINED:
        return on_trained(run, given)
    numbers = SeededStream(0).generator()
    left, right = INPUTS[run.arm]
    pairs = [(left(numbers), right(numbers)) for _ in range(PAIRS)]
    return rows_of(pairs, "", given.tick)


def rows_of(pairs: list[tuple[Tensor, Tensor]], layer: str, tick: Callable[[int, int], None]) -> list[Row]:
    """Mean and deviation over the pairs, by policy and share kept, and the error of keeping nothing."""
    at = {"layer": layer} if layer else {}
    nothing = (((a @ b).norm() / (a.norm() * b.norm())).item() for a, b in pairs)
    rows: list[Row] = [
        {"policy": "nothing kept", "keep": 0, **at, **_summed((error, 1.0) for error in nothing)}
    ]
    every = variants()
    for done, (name, variant) in enumerate(every.items()):
        tick(done, len(every))
        for kept in KEPT:
            k = max(1, kept * pairs[0][1].shape[0] // 100)
            found = _summed(variant.errors(*pair, k, seed) for seed, pair in enumerate(pairs))
            rows.append({"policy": name, "keep": kept, **at, **found})
    return rows


def _summed(found: Iterable[tuple[float, float]]) -> Row:
    error, relative = zip(*found, strict=True)
    means = {"error": fmean(error), "deviation": stdev(error), "relative": fmean(relative)}
    return {column: round(value, 5) for column, value in means.items()}


def on_trained(run: Run, given: Given) -> list[Row]:
    """Train the MLP exactly, then look at what its hidden layers multiply on batches of the test images."""
    torch.manual_seed(run.seed)
    images, model = mnist(str(given.data)), MLP()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    curve = train(
        model, images, optimizer, given, epochs=EPOCHS, batch=BATCH, seed=run.seed,
        evaluate=lambda m: {"accuracy": accuracy(m, images.test, images.test_label)},
    )  # fmt: skip
    rows: list[Row] = [{"policy": "the net", "accuracy": curve[-1]["accuracy"]}]
    for layer in LAYERS:
        module = model.get_submodule(layer)
        assert isinstance(module, nn.Linear)
        seen: list[Tensor] = []
        hook = module.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            for x in images.test[: BATCHES * BATCH].split(BATCH):
                model(x)
        hook.remove()
        weight = module.weight.detach().t()
        rows += rows_of([(x, weight) for x in seen], layer, given.tick)
    return rows


def draw_time(name: str, variant: Variant) -> Row:
    """Median time of a draw and its quartiles, of 1,000."""
    scores = torch.rand(1000, 1, 1000, generator=SeededStream(1).generator())
    times = []
    for row in scores:
        stream = SeededStream(2)
        started = time.perf_counter()
        variant.policy.select(row, 500, stream)
        times.append(1e6 * (time.perf_counter() - started))
    low, middle, high = (round(value, 1) for value in quantiles(times, n=4))
    return {"policy": name, "low": low, "microseconds": middle, "high": high}


def figures(rows: list[Row]) -> dict[str, Figure]:
    shown = [*INPUTS, TRAINED]
    figure, axes = panels(len(shown), width=3.4)
    colour = colours(FIGURE)
    for axis, arm in zip(axes, shown, strict=True):
        of_arm = where(rows, arm=arm, **({"layer": "fc2"} if arm == TRAINED else {}))
        for name in FIGURE:
            curve(axis, where(of_arm, policy=name), "keep", "error", name, color=colour[name])
        for row in where(of_arm, policy="nothing kept")[:1]:
            axis.axhline(row["error"], color="grey", linestyle=":", label="nothing kept")
        axis.set(title=arm if arm != TRAINED else f"{arm}, layer fc2", xlabel="pairs kept, %", yscale="log")
    axes[0].set(ylabel="‖error‖ / (‖A‖·‖B‖)")
    legend(axes[0])
    return {"keep": figure}


def tables(rows: list[Row]) -> dict[str, str]:
    """One for each kind of matrices, the draws' times, and what is lost of each layer of the trained net."""
    names = list(dict.fromkeys(row["policy"] for row in rows if row.get("keep")))
    found: dict[str, str] = {}
    for arm in INPUTS:
        if of_arm := where(rows, arm=arm):
            cells = [
                [name, *(_mean(where(of_arm, policy=name, keep=kept), "error") for kept in TOLD)]
                for name in names
            ]
            found[arm] = markdown(["policy", *(f"k = {kept}" for kept in TOLD)], cells)
    if trained := where(rows, arm=TRAINED):
        places = [(layer, kept) for layer in LAYERS for kept in (10, 50)]
        cells = [
            [name, *(_mean(where(trained, policy=name, layer=at, keep=k), "relative") for at, k in places)]
            for name in names
        ]
        found["trained"] = markdown(["policy", *(f"{layer}, {kept}%" for layer, kept in places)], cells)
        right = spread((100 * row["accuracy"] for row in where(trained, policy="the net")), 1)
        found["net"] = f"The nets answer {right}% of the test images rightly."
    if times := where(rows, arm="seconds"):
        columns = ("microseconds", "low", "high")
        cells = [[row["policy"], *(f"{row[column]:.0f}" for column in columns)] for row in times]
        found["draws"] = markdown(["policy", "µs", "first quartile", "third quartile"], cells)
    return found


def _mean(rows: list[Row], column: str) -> str:
    return spread((row[column] for row in rows), 3)


EXPERIMENT = Experiment(
    "error",
    "[A] Figure 1: error of the product against the share kept, by policy",
    6,
    SETTINGS,
    runs,
    perform,
    figures,
    tables,
)
