"""What the tests of promises share: models with their rewritten forms, steps, comparisons."""

from __future__ import annotations

import functools
from typing import Any

import torch
from small_models import built
from torch import Tensor, nn

import fxapprox
from fxapprox.capture.compare import leaves
from fxapprox.capture.trials import projection
from fxapprox.passes.copying import deep_copy

SCOPES = ("forward", "backward", "grad-weight", "straight-through")
Built = tuple[nn.Module, nn.Module, tuple[Any, ...], dict[str, Any]]


@functools.cache
def _rewritten(name: str, **keys: Any) -> tuple[nn.Module, nn.Module, tuple[Any, ...], dict[str, Any]]:
    model, args, kwargs = built(name)
    return model, fxapprox.rewrite(model, args, kwargs, **keys), args, kwargs


def fresh(name: str, **keys: Any) -> Built:
    """The user's model and its rewritten form, both in train mode and nobody else's."""
    model, fast, args, kwargs = _rewritten(name, **({"policy": "topk", "keep": 0.5} | keys))
    return deep_copy(model).train(), deep_copy(fast).train(), args, kwargs


def tensors(output: Any) -> list[Tensor]:
    return [leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor)]


def step(model: nn.Module, args: Any, kwargs: Any, seed: int = 0) -> tuple[list[Tensor], dict[str, Tensor]]:
    """One training step under a seed: outputs, and gradients by name."""
    torch.manual_seed(seed)
    model.zero_grad()
    outputs = tensors(model(*args, **kwargs))
    loss = projection(outputs)
    assert loss is not None
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return outputs, grads


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, equal_nan=True, rtol=0.0, atol=0.0)


def differ(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        one, other = list(one.values()), list(other.values())
    return any(not torch.equal(left, right) for left, right in zip(one, other, strict=True))
