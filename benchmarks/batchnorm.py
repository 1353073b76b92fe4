"""Test accuracy with the running statistics of sampled training, and with re-estimated ones.

    python -m benchmarks.batchnorm               # CIFAR-10, examples/resnet.py, two seeds

Every run of a seed starts from the same weights and sees the same batches with the same hyper-parameters. All
convolutions but the first are sampled. Results: docs/results/batchnorm.json, written after every run;
runs that it holds are not repeated.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

import fxapprox

from .datasets import cifar10
from .machine import machine
from .train_examples import RESULTS, ROOT, Task, accuracies, epochs, import_file

TASK = Task("examples/resnet.py", {}, epochs=3, batch=64, rate=0.05, images=4_000)
TEST_IMAGES = 4_000
ARMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "topk": {"policy": "topk", "keep": 0.5},
    "pps": {"policy": "pps", "keep": 0.5},
}
FILE = RESULTS / "batchnorm.json"


def made(arm: str, seed: int) -> nn.Module:
    """The model of an arm, with the weights of the seed."""
    torch.manual_seed(seed)
    model: nn.Module = import_file(ROOT / TASK.model).ResNet()
    if not ARMS[arm]:
        return model
    rule = fxapprox.Rule(kind="conv2d", depth="1:", **ARMS[arm])
    return fxapprox.rewrite(model, (torch.randn(8, 3, 32, 32),), rules=[rule], gate=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="the data folder; default: FXAPPROX_DATA")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    settings = {
        "model": TASK.model, "epochs": TASK.epochs, "batch": TASK.batch, "rate": TASK.rate,
        "training_images": TASK.images, "test_images": TEST_IMAGES, "keys": ARMS,
    }  # fmt: skip
    found = json.loads(FILE.read_text()) if FILE.exists() else {"settings": settings, "runs": []}
    if {**found["settings"], "keys": ARMS} != settings:
        raise SystemExit(f"error: {FILE} was made with other settings\n  move it away")
    done = {(run["arm"], run["seed"]) for run in found["runs"]}
    data = cifar10(options.data, TASK.images, test_count=TEST_IMAGES)
    with Progress() as progress:
        for seed in options.seeds:
            for arm in ARMS:
                if (arm, seed) in done:
                    continue
                model = made(arm, seed)
                bar = progress.add_task(
                    f"{arm}, seed {seed}", total=TASK.epochs * (len(data.train) // TASK.batch)
                )
                points = list(epochs(model, data, TASK, seed, lambda bar=bar: progress.advance(bar)))
                last = {
                    "loss": points[-1]["loss"],
                    "seconds": points[-1]["seconds"],
                    **accuracies(model, data),
                }
                run = {"arm": arm, "seed": seed, **last, "about": machine("python -m benchmarks.batchnorm")}
                found["runs"].append(run)
                progress.console.print(run)
                FILE.write_text(json.dumps({**found, "settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
