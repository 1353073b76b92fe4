"""Readers of the data folder that `FXAPPROX_DATA` (or `--data`) names.

cifar10_{train,test}.npz hold JPEG files end to end (`jpeg`, `offset`, `label`); mnist_10k.npz holds
`{train,test}_{image,label}`. Images come back as float32, normalised per channel over the training set.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Training and test images `[N, C, H, W]` float32, and labels int64 `[N]`."""

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


def _normalised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    axes = (0, 2, 3)
    mean, deviation = train.mean(axes, keepdim=True), train.std(axes, keepdim=True)
    return (train - mean) / deviation, (test - mean) / deviation


def mnist(data: str | None = None) -> Images:
    """10,000 training and 10,000 test images, 1×28×28."""
    with np.load(folder(data) / "mnist_10k.npz") as file:
        image = {
            part: torch.from_numpy(file[f"{part}_image"]).float().unsqueeze(1) for part in ("train", "test")
        }
        label = {part: torch.from_numpy(file[f"{part}_label"]).long() for part in ("train", "test")}
    train, test = _normalised(image["train"], image["test"])
    return Images(train, label["train"], test, label["test"])


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
    train, train_label = _decode(folder(data) / "cifar10_train.npz", count)
    test, test_label = _decode(folder(data) / "cifar10_test.npz", test_count)
    train, test = _normalised(train, test)
    return Images(train, train_label, test, test_label)
