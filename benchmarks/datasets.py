"""Readers of the data folder that `FXAPPROX_DATA` (or `--data`) names.

cifar10_{train,test}.npz hold JPEG files end to end (`jpeg`, `offset`, `label`); mnist_10k.npz holds
`{train,test}_{image,label}`; energy_efficiency.csv a line of names and then numbers, the eight features and
the heating and cooling load of a building. Images come back as float32, normalised per channel over the
training set.
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Training and test images `[N, C, H, W]` float32, and labels int64 `[N]`; where examples are rows of
    features, `[N, features]`, and what is to be predicted of them, float32 `[N, 1]`."""

    train: Tensor
    train_label: Tensor
    test: Tensor
    test_label: Tensor


def folder(data: str | os.PathLike[str] | None = None) -> Path:
    """The data folder. Raises SystemExit that says how to name one."""
    named = data or os.environ.get("FXAPPROX_DATA")
    if not named:
        raise SystemExit("error: no data folder\n  set FXAPPROX_DATA, or pass --data FOLDER")
    path = Path(named)
    if not path.is_dir():
        raise SystemExit(
            f"error: the data folder {path} does not exist\n  set FXAPPROX_DATA, or pass --data FOLDER"
        )
    return path


def _file(data: str | os.PathLike[str] | None, name: str) -> Path:
    path = folder(data) / name
    if not path.is_file():
        raise SystemExit(f"error: the data folder {path.parent} has no {name}")
    return path


def _normalised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    axes = (0, 2, 3)
    mean, deviation = train.mean(axes, keepdim=True), train.std(axes, keepdim=True)
    return (train - mean) / deviation, (test - mean) / deviation


def mnist(data: str | None = None, *, normalised: bool = True) -> Images:
    """10,000 training and 10,000 test images, 1×28×28; from 0 to 1 where not normalised."""
    with np.load(_file(data, "mnist_10k.npz")) as file:
        image = {
            part: torch.from_numpy(file[f"{part}_image"]).float().unsqueeze(1) for part in ("train", "test")
        }
        label = {part: torch.from_numpy(file[f"{part}_label"]).long() for part in ("train", "test")}
    scaled = image["train"] / 255, image["test"] / 255
    train, test = _normalised(image["train"], image["test"]) if normalised else scaled
    return Images(train, label["train"], test, label["test"])


def energy(data: str | None = None, *, split: int = 0) -> Images:
    """The heating load of 576 buildings for training and 192 to test with, split by the seed `split`.

    16 features: six numbers, standardised over the training part, and the orientation (4 values) and the
    distribution of the glazing (6 values) each as one feature a value."""
    with _file(data, "energy_efficiency.csv").open(newline="") as file:
        table = torch.tensor([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]])
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(split))
    table = table[order]
    numbers, count = table[:, [0, 1, 2, 3, 4, 6]], 576
    numbers = (numbers - numbers[:count].mean(0)) / numbers[:count].std(0)
    orientation = torch.nn.functional.one_hot(table[:, 5].long() - 2, 4)
    glazing = torch.nn.functional.one_hot(table[:, 7].long(), 6)
    x, y = torch.cat([numbers, orientation, glazing], dim=1), table[:, 8:9]
    return Images(x[:count], y[:count], x[count:], y[count:])


def _decode(path: Path, count: int | None) -> tuple[Tensor, Tensor]:
    from PIL import Image

    with np.load(path) as file:
        jpeg, offset, label = file["jpeg"], file["offset"], file["label"]
    total = len(label) if count is None else min(count, len(label))
    images = np.empty((total, 32, 32, 3), dtype=np.uint8)
    for i in range(total):
        images[i] = np.asarray(
            Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())).convert("RGB")
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2).float(), torch.from_numpy(label[:total]).long()


def cifar10(data: str | None = None, count: int | None = None, test_count: int | None = None) -> Images:
    """The first `count` of 50,000 training images and `test_count` of 10,000 test images, 3×32×32."""
    train, train_label = _decode(_file(data, "cifar10_train.npz"), count)
    test, test_label = _decode(_file(data, "cifar10_test.npz"), test_count)
    train, test = _normalised(train, test)
    return Images(train, train_label, test, test_label)
