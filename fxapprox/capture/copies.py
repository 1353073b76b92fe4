"""Copies of a model and its inputs for tracing: fake tensors that share no memory, or clones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ..errors import CaptureError

Convert = Callable[[Tensor], Tensor]


def clone(tensor: Tensor) -> Tensor:
    """A real copy that starts no history: a leaf, of the same class, that needs a gradient as before."""
    copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied.detach(), requires_grad=tensor.requires_grad)
    return copied


def fake_by(mode: FakeTensorMode) -> Convert:
    """Tensors without storage: only shape, dtype and device are computed from here on."""

    def fake(tensor: Tensor) -> Tensor:
        made = mode.from_tensor(tensor if tensor.is_leaf else tensor.detach(), static_shapes=True)
        if not tensor.is_leaf and tensor.requires_grad:
            made.requires_grad_()
        return made

    return fake


def in_another_precision(convert: Convert) -> Convert:
    """`convert`, and floating tensors in float64 (those in float64 in float32)."""

    def changed(tensor: Tensor) -> Tensor:
        made = convert(tensor)
        if not made.is_floating_point():
            return made
        dtype = torch.float32 if made.dtype == torch.float64 else torch.float64
        cast = made.detach().to(dtype)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(cast, requires_grad=tensor.requires_grad)
        return cast.requires_grad_(made.requires_grad)

    return changed


class _Converting(TorchFunctionMode):
    """Lets `copy.deepcopy` meet a tensor (also one with a history) and copy it by `convert`."""

    def __init__(self, convert: Convert) -> None:
        super().__init__()
        self.convert = convert

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self.convert(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def copied(value: Any, convert: Convert, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy of any object in which every tensor is `convert(tensor)`; ties are kept."""
    memo = {} if memo is None else memo
    with _Converting(convert):
        return copy.deepcopy(value, memo)


def copied_model(model: nn.Module, convert: Convert) -> nn.Module:
    """A deep copy of the model with its parameters and buffers (and tensors kept as attributes) converted.

    Registered tensors are converted first: `Parameter.__deepcopy__` would clone them. Raises CaptureError
    for a model that cannot be copied."""
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise CaptureError(
            f"{type(model).__name__} has lazy layers, whose shapes are not known yet",
            remedy="call the model once on its inputs first",
        )
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in memo:
            memo[id(tensor)] = converted = convert(tensor)
            for name, value in tensor.__dict__.items():  # users mark parameters (`p.no_weight_decay`)
                converted.__dict__.setdefault(name, value)
    for module in model.modules():
        for value in module.__dict__.values():
            if isinstance(value, torch.Generator):  # its state is a tensor that must stay real
                memo[id(value)] = value.clone_state()
    try:
        replica: nn.Module = copied(model, convert, memo)
    except Exception:
        from ..passes.copying import deep_copy  # it uses this module

        deep_copy(model)  # says which attribute cannot be copied
        raise
    return replica


def resized(tensor: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """A tensor of the same values with some dimensions made longer, by repeating the last slices."""
    for dimension, size in sizes.items():
        index = torch.arange(size, device=tensor.device).clamp(max=tensor.shape[dimension] - 1)
        tensor = tensor.index_select(dimension, index)
    return tensor
