"""Deep copies of a user's model that leave the original exactly as it was."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ..capture.copies import copied
from ..errors import CaptureError


def deep_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` with its ties kept, also where torch's own deepcopy refuses.

    Tensors in the middle of an autograd graph that modules keep as attributes (the `weight` of the
    older `torch.nn.utils.weight_norm`, cached activations) are copied by value: what made them makes
    them again in the next forward. Python attributes that users set on parameters
    (`p.no_weight_decay = True`) are kept, and hooks on their gradients; torch's deepcopy drops both.

    Raises CaptureError that names the attribute which cannot be copied."""
    try:
        replica: nn.Module = copied(model, _by_value)
    except Exception as failure:
        raise _cannot_copy(model, failure) from failure
    for original, parameter in zip(model.parameters(), replica.parameters(), strict=True):
        for name, value in original.__dict__.items():
            parameter.__dict__.setdefault(name, value)
        if original.requires_grad:
            for hook in (original._backward_hooks or {}).values():
                parameter.register_hook(hook)
    return replica


def _by_value(tensor: Tensor) -> Tensor:
    return copy.deepcopy(tensor) if tensor.grad_fn is None else tensor.detach().clone()


def _cannot_copy(model: nn.Module, failure: Exception) -> CaptureError:
    """The error for a model that deepcopy refuses: finds the attribute by copying one at a time."""
    for path, module in reversed(list(model.named_modules())):
        children = {id(child): None for child in module.modules()}
        for name, value in module.__dict__.items():
            try:
                copied(value, _by_value, dict(children))
            except Exception as reason:
                return CaptureError(
                    f"the model cannot be copied: {type(value).__name__} is not copyable: {reason}",
                    where=f"attribute {name!r} of {path or 'the model'} ({type(module).__name__})",
                    remedy="set the attribute after rewriting, or give the module a __deepcopy__",
                )
    return CaptureError(
        f"the model cannot be copied: {failure}",
        where=type(model).__name__,
        remedy="copy.deepcopy(model) must work; give the module a __deepcopy__",
    )
