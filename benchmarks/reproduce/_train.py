"""A training loop that can be killed: after every epoch all that the next one depends on is in a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import fxapprox
from fxapprox.errors import RequestError

from ..datasets import Images
from ._experiment import Given, Row
from ._store import whole

Augment = Callable[[Tensor, torch.Generator], Tensor]


def train(
    model: nn.Module,
    images: Images,
    optimizer: Optimizer,
    given: Given,
    *,
    epochs: int,
    batch: int,
    seed: int,
    evaluate: Callable[[nn.Module], Row],
    schedule: LRScheduler | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    augment: Augment | None = None,
) -> list[Row]:
    """Train, and give a row for every epoch: its number, the mean training loss, and what `evaluate` finds.

    Rows in an incomplete last batch wait for the next epoch's order, which follows `seed` alone. `schedule`
    steps with every batch. Goes on from `given.checkpoint` where there is one, to the bit."""
    order = torch.Generator().manual_seed(seed)
    if _sampled(model):
        fxapprox.attach(model, optimizer)
    rows = _resume(model, optimizer, schedule, order, given)
    steps = len(images.train) // batch
    for epoch in range(len(rows), epochs):
        model.train()
        total = 0.0
        shuffled = torch.randperm(len(images.train), generator=order)
        for step, chosen in enumerate(shuffled[: steps * batch].split(batch)):
            x = images.train[chosen]
            found = loss(model(augment(x, order) if augment else x), images.train_label[chosen])
            optimizer.zero_grad(set_to_none=True)
            found.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += float(found.detach())
            given.tick(epoch * steps + step + 1, epochs * steps)
        rows.append({"epoch": epoch + 1, "loss": round(total / steps, 6), **evaluate(model)})
        _save(model, optimizer, schedule, order, given, rows)
    return rows


def accuracy(model: nn.Module, images: Tensor, label: Tensor, batch: int = 500) -> float:
    """The share of right answers in evaluation mode."""
    model.eval()
    with torch.no_grad():
        parts = zip(images.split(batch), label.split(batch), strict=True)
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(label)


def shifted_and_flipped(images: Tensor, numbers: torch.Generator, by: int = 4) -> Tensor:
    """Every image `[N, C, H, W]` moved by up to `by` pixels, zeros coming in, and flipped at even odds."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (by, by, by, by))
    top, left = torch.randint(0, 2 * by + 1, (2, count), generator=numbers)
    flip = torch.rand(count, generator=numbers) < 0.5
    down = top[:, None] + torch.arange(height)
    across = torch.arange(width).expand(count, -1)
    across = left[:, None] + torch.where(flip[:, None], width - 1 - across, across)
    return padded[torch.arange(count)[:, None, None], :, down[:, :, None], across[:, None, :]].permute(
        0, 3, 1, 2
    )


def _sampled(model: nn.Module) -> bool:
    try:
        fxapprox.run_state(model)
    except RequestError:
        return False
    return True


def _save(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler | None,
    order: torch.Generator,
    given: Given,
    rows: list[Row],
) -> None:
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict() if schedule is not None else None,
        "run": fxapprox.run_state(model) if _sampled(model) else None,
        "order": order.get_state(),
        "generator": torch.get_rng_state(),
        "rows": rows,
    }
    with whole(given.checkpoint) as path:
        torch.save(state, path)


def _resume(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler | None,
    order: torch.Generator,
    given: Given,
) -> list[Row]:
    """The rows of the epochs that are done, everything else being as it was after the last of them."""
    if not given.checkpoint.exists():
        return []
    state = torch.load(given.checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if schedule is not None:
        schedule.load_state_dict(state["schedule"])
    if state["run"] is not None:
        fxapprox.load_run_state(model, state["run"])
    order.set_state(state["order"])
    torch.set_rng_state(state["generator"])
    rows: list[Row] = state["rows"]
    return rows
