"""Run a model with every captured forward installed, and compare it with the model itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fxapprox.capture._types import Inputs, Traced
from fxapprox.capture.nests import tensors
from fxapprox.passes.copying import deep_copy
from fxapprox.passes.install import install


def with_captured(model: nn.Module, traced: Traced) -> nn.Module:
    """A copy of the model that runs the captured forwards."""
    replica = deep_copy(model)
    for path, forward in traced.forwards.items():
        install(replica.get_submodule(path), forward)
    return replica


def step(model: nn.Module, inputs: Inputs, training: bool, seed: int) -> dict[str, Any]:
    """Outputs, gradients and buffers of one run."""
    model.train(training)
    model.zero_grad()
    args, kwargs = copy.deepcopy((inputs.args, dict(inputs.kwargs or {})))
    torch.manual_seed(seed)
    outputs = [t for t in tensors(model(*args, **kwargs)) if isinstance(t, Tensor)]
    loss = sum(
        (t.float() * t.float().detach().cos()).sum()
        for t in outputs
        if t.requires_grad and not t.is_complex()
    )
    if isinstance(loss, Tensor):
        loss.backward()
    found: dict[str, Any] = {f"output {number}": t.detach() for number, t in enumerate(outputs)}
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    found |= {f"buffer {name}": b.clone() for name, b in model.named_buffers() if "_constant_" not in name}
    return found


def assert_same(
    expected: dict[str, Any], actual: dict[str, Any], what: str = "", tolerance: float = 1e-5
) -> None:
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        other = actual[name]
        assert (value is None) == (other is None), f"{what}: {name}: {value is None} {other is None}"
        if value is not None:
            torch.testing.assert_close(
                other,
                value,
                rtol=tolerance,
                atol=tolerance,
                equal_nan=True,
                msg=lambda m, n=name: f"{what} {n}: {m}",
            )


def check_replay(model: nn.Module, traced: Traced, *inputs: Inputs, tolerance: float = 1e-5) -> None:
    """The captured forwards compute what the model computes: train (two steps) and eval, on each input."""
    theirs, ours = deep_copy(model), with_captured(model, traced)
    for number, given in enumerate(inputs):
        for training in (True, True, False):
            expected = step(theirs, given, training, number)
            actual = step(ours, given, training, number)
            assert_same(expected, actual, f"input {number}, {'train' if training else 'eval'}", tolerance)
