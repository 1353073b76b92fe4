"""Train the emitted examples beside the exact ones, on real data.

    python -m benchmarks.train_examples mlp      # MNIST, examples/mlp.py
    python -m benchmarks.train_examples resnet   # CIFAR-10, examples/resnet.py

Every arm starts from the same weights, sees the same batches and has the same hyper-parameters; the
sampled arms are the files that `fxapprox rewrite` writes, imported.
Results: docs/results/train_NAME.json and .svg.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

import fxapprox

from .datasets import Images, cifar10, mnist
from .machine import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Task:
    """One example on one data set. `rules` keeps the first layer exact, as Adelman et al. section 8 do."""

    model: str
    arms: dict[str, list[str]]
    epochs: int
    batch: int
    rate: float
    images: int | None


RULES = """version = 1

[[rule]]
name = "first layer exact"
depth = "0"
policy = "exact"

[[rule]]
name = "the rest"
{treatment}
"""
ARMS = {
    "topk": 'policy = "topk"\nkeep = 0.5',
    "topk, centred": 'policy = "topk"\nkeep = 0.5\ncenter = true',
    "pps, backward": 'policy = "pps"\nkeep = 0.5\nscope = "backward"',
}
TASKS = {
    "mlp": Task("examples/mlp.py", ARMS, epochs=10, batch=64, rate=0.05, images=None),
    "resnet": Task("examples/resnet.py", ARMS, epochs=3, batch=64, rate=0.05, images=4_000),
}


def import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def emitted(model: str, treatment: str, scratch: Path) -> nn.Module:
    """The model that the command line writes, imported."""
    rules, out = scratch / "rules.toml", scratch / "sampled.py"
    rules.write_text(RULES.format(treatment=treatment))
    command = [
        "fxapprox",
        "rewrite",
        model,
        "--rules",
        str(rules),
        "--output",
        str(out),
        "--force",
        "--no-gate",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    built: nn.Module = import_file(out).build_model()
    return built


def accuracy(model: nn.Module, images: Tensor, label: Tensor) -> float:
    """The share of right answers in evaluation mode; the model is back in training mode afterwards."""
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(images.split(500), label.split(500), strict=True)
        )
    model.train()
    return right / len(label)


def epochs(model: nn.Module, data: Images, task: Task, seed: int, tick: Any) -> Iterator[dict[str, float]]:
    """Trains; after every epoch its number, the mean training loss and the seconds trained so far."""
    optimizer = torch.optim.SGD(model.parameters(), task.rate, momentum=0.9, weight_decay=5e-4)
    steps = task.epochs * (len(data.train) // task.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.rate, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    seconds = 0.0
    for epoch in range(task.epochs):
        total, count = 0.0, 0
        shuffled = torch.randperm(len(data.train), generator=order)
        for rows in shuffled[: len(shuffled) // task.batch * task.batch].split(task.batch):
            started = time.perf_counter()
            loss = nn.functional.cross_entropy(model(data.train[rows]), data.train_label[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            seconds += time.perf_counter() - started
            total, count = total + float(loss.detach()), count + 1
            tick()
        yield {"epoch": epoch + 1, "loss": total / count, "seconds": round(seconds, 2)}


def accuracies(model: nn.Module, data: Images) -> dict[str, float]:
    """Test accuracy as trained, and with batch norm re-estimated on the first 1,000 training images."""
    plain = accuracy(model, data.test, data.test_label)
    with fxapprox.batchnorm_reestimated(model, data.train[:1000].split(250)):
        again = accuracy(model, data.test, data.test_label)
    return {"test_accuracy": plain, "test_accuracy_reestimated": again}


def plot(name: str, curves: dict[str, list[dict[str, float]]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for arm, curve in curves.items():
        epochs = [point["epoch"] for point in curve]
        axes[0].plot(epochs, [point["loss"] for point in curve], marker="o", label=arm)
        drawn = axes[1].plot(epochs, [100 * point["test_accuracy"] for point in curve], marker="o", label=arm)
        again = [100 * point["test_accuracy_reestimated"] for point in curve]
        axes[1].plot(epochs, again, linestyle=":", color=drawn[0].get_color())
    for axis, label in zip(
        axes, ("training loss", "test accuracy, % (dotted: batch norm re-estimated)"), strict=True
    ):
        axis.set(xlabel="epoch", ylabel=label)
    axes[1].legend()
    figure.suptitle(f"{name}: exact and sampled at keep 0.5")
    figure.savefig(RESULTS / f"train_{name}.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(TASKS))
    parser.add_argument("--data", help="the data folder; default: FXAPPROX_DATA")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    task = TASKS[options.name]
    data = (
        mnist(options.data) if options.name == "mlp" else cifar10(options.data, task.images, test_count=2_000)
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    curves: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        for arm, treatment in {"exact": 'policy = "exact"', **task.arms}.items():
            torch.manual_seed(options.seed)
            example = import_file(ROOT / task.model)
            exact: nn.Module = example.MLP() if options.name == "mlp" else example.ResNet()
            model = exact
            if arm != "exact":
                model = emitted(task.model, treatment, Path(folder))
                model.load_state_dict(exact.state_dict(), strict=True)
            bar = progress.add_task(arm, total=task.epochs * (len(data.train) // task.batch))
            ticked = epochs(model, data, task, options.seed, lambda bar=bar: progress.advance(bar))
            curves[arm] = [point | accuracies(model, data) for point in ticked]
            progress.console.print(arm, curves[arm][-1])
    result = {"about": machine(f"python -m benchmarks.train_examples {options.name}"), "curves": curves}
    (RESULTS / f"train_{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(options.name, curves)


if __name__ == "__main__":
    main()
