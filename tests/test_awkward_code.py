"""Ordinary code that tracers get silently wrong: a rewritten model does it like the original."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from promises import assert_same, deep_copy, step, tensors
from torch import Tensor, nn

import fxapprox
from fxapprox.passes.layers import FunctionSite, Sampled
from fxapprox.record import record_of


class Doubled(torch.autograd.Function):
    """The identity, whose gradient is doubled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


class Awkward(nn.Module):
    """A layer, a product, and then what the case does with it."""

    def __init__(self, case: Callable[[Awkward, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8) / 3)
        self.stem, self.fc = nn.Linear(8, 8), nn.Linear(8, 8)
        self.case, self.calls = case, 0
        self.register_buffer("mean", torch.zeros(8))
        self.cache: dict[str, Tensor] = {}
        self.aux: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.case(self, self.stem(x) @ self.weight)


def no_grad_region(self: Awkward, y: Tensor) -> Tensor:
    with torch.no_grad():
        scale = self.fc(y).abs().mean()
    return y / (1 + scale)


def autocast_region(self: Awkward, y: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        z = self.fc(y)
    return y + z.float()


def counter(self: Awkward, y: Tensor) -> Tensor:
    self.calls += 1
    return y * self.calls


def warm_up(self: Awkward, y: Tensor) -> Tensor:
    self.calls += 1
    return y if self.calls < 3 else self.fc(y)


def buffer_in_place(self: Awkward, y: Tensor) -> Tensor:
    if self.training:
        self.mean += y.detach().mean(0)
    return y - self.mean


def buffer_assigned(self: Awkward, y: Tensor) -> Tensor:
    self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
    return y - self.mean


def auxiliary_loss(self: Awkward, y: Tensor) -> Tensor:
    self.aux = y.square().mean()
    return y


def cached(self: Awkward, y: Tensor) -> Tensor:
    self.cache["last"] = y
    return self.fc(self.cache["last"])


def through_numpy(self: Awkward, y: Tensor) -> Tensor:
    return y * float(numpy.tanh(y.detach().numpy().mean()))


def branch_on_data(self: Awkward, y: Tensor) -> Tensor:
    return self.fc(y) if y.mean() > 0 else y


def loop_on_data(self: Awkward, y: Tensor) -> Tensor:
    while y.norm() > 1:
        y = y * 0.5
    return y


def selected(self: Awkward, y: Tensor) -> Tensor:
    return self.fc(y[y.mean(1) > 0]).sum(0, keepdim=True) + y


def python_random(self: Awkward, y: Tensor) -> Tensor:
    return y * 2 if self.training and random.random() < 0.5 else y


def numpy_random(self: Awkward, y: Tensor) -> Tensor:
    return y + float(numpy.random.rand()) if self.training else y


def torch_random(self: Awkward, y: Tensor) -> Tensor:
    return y + torch.rand(8) if self.training else y


def drop_path(self: Awkward, y: Tensor) -> Tensor:
    if not self.training:
        return y
    return y * torch.bernoulli(torch.full((y.shape[0], 1), 0.5))


def layer_drop(self: Awkward, y: Tensor) -> Tensor:
    return y if self.training and torch.rand(()) < 0.5 else self.fc(y)


def sizes(self: Awkward, y: Tensor) -> Tensor:
    batch = len(y)
    steps = torch.arange(batch, device=y.device, dtype=y.dtype).unsqueeze(1)
    return y + steps / max(batch, 2) + torch.zeros(batch, 8).fill_(batch)


def print_and_list(self: Awkward, y: Tensor) -> Tensor:
    parts = [part * number for number, part in enumerate(y.unbind(1))]
    return torch.stack(parts, 1)


CASES: dict[str, Callable[[Awkward, Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        no_grad_region, autocast_region, counter, warm_up, buffer_in_place, buffer_assigned, auxiliary_loss,
        cached, through_numpy, branch_on_data, loop_on_data, selected, python_random, numpy_random,
        torch_random, drop_path, layer_drop, sizes, print_and_list,
    )
}  # fmt: skip
CASES["autograd_function"] = lambda self, y: Doubled.apply(y)  # type: ignore[no-untyped-call]
# What a captured forward can say; the others keep the user's own forward, and a note says why.
CAPTURED = {
    "no_grad_region", "autocast_region", "autograd_function", "torch_random", "drop_path", "sizes",
    "print_and_list", "buffer_in_place", "selected",
}  # fmt: skip


def seeded(model: nn.Module, x: Tensor, seed: int) -> Any:
    random.seed(seed)
    numpy.random.seed(seed)
    return step(model, (x,), {}, seed)


@pytest.mark.parametrize("name", CASES)
def test_it_trains_and_evaluates_like_the_original(name):
    torch.manual_seed(0)
    model, x = Awkward(CASES[name]), torch.randn(4, 8)
    fast = fxapprox.rewrite(model, (x,), policy="topk", keep=1.0)
    assert isinstance(fast.stem, Sampled)
    theirs = deep_copy(model)
    captured = isinstance(getattr(fast, "matmul_1", None), FunctionSite)
    assert captured == (name in CAPTURED), record_of(fast).notes
    for seed, given in enumerate((x, torch.randn(6, 8), -x, x + 1)):
        expected, found = seeded(theirs, given, seed), seeded(fast, given, seed)
        assert_same(expected[0], found[0])
        assert_same(expected[1], found[1])
        assert_same(dict(theirs.named_buffers()), {n: b for n, b in fast.named_buffers() if n == "mean"})
        assert fast.calls == theirs.calls
        assert_same(tensors((theirs.aux, theirs.cache)), tensors((fast.aux, fast.cache)))
    for given in (x, -x, torch.randn(3, 8)):
        assert_same(tensors(theirs.eval()(given)), tensors(fast.eval()(given)))


@pytest.mark.parametrize("name", sorted(set(CASES) - CAPTURED))
def test_the_note_names_the_line(name):
    torch.manual_seed(0)
    model, x = Awkward(CASES[name]), torch.randn(4, 8)
    notes = record_of(fxapprox.rewrite(model, (x,), policy="topk")).notes
    opaque = [note for note in notes if note.topic == "opaque"]
    assert opaque
    assert any(note.source and "test_awkward_code.py" in note.source for note in opaque), notes
