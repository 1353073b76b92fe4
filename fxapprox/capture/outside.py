"""FLOPs that a capture does not see: contractions inside modules which keep the user's own forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..kinds import recognise
from ..sites import Site
from ._types import Inputs
from .copies import clone, copied, copied_model, fake_by
from .rng import kept_random_state

# Kinds for which torch's counter says 0 or something that depends on the machine: left out on both sides.
UNCOUNTED = ("recurrent", "grouped_mm", "bilinear")


def outside_flops(model: nn.Module, inputs: Inputs, sites: Sequence[Site]) -> int:
    """FLOPs of a training step that lie in no site, as far as they can be counted; 0 where they cannot.

    One forward pass on fake tensors (on real ones where the model reads data) is counted with torch's
    formulas for matrix products and convolutions, which are right for forward passes, and our own for
    attention. What exceeds the sites' forward products is taken three times: both gradients cost as much."""
    counted = forward_flops(model, inputs)
    seen = sum(site.products["forward"].flops for site in sites if site.kind not in UNCOUNTED)
    return 3 * max(counted - seen, 0)


def forward_flops(model: nn.Module, inputs: Inputs) -> int:
    """FLOPs of one forward pass, 2 per multiply-add; 0 where they cannot be counted."""
    for convert_in in (_fakes, _clones):
        try:
            with kept_random_state(), torch.no_grad():
                return convert_in(model, inputs)
        except Exception:
            continue  # data-dependent code does not run on fakes; what runs nowhere is not counted
    return 0


def _fakes(model: nn.Module, inputs: Inputs) -> int:
    mode = FakeTensorMode(allow_non_fake_inputs=True, static_shapes=True)
    convert = fake_by(mode)
    replica, args = copied_model(model, convert), copied((inputs.args, dict(inputs.kwargs or {})), convert)
    with mode:
        return _counted(replica, *args)


def _clones(model: nn.Module, inputs: Inputs) -> int:
    return _counted(copied_model(model, clone), *copied((inputs.args, dict(inputs.kwargs or {})), clone))


def _counted(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    counter = _Operations()
    with counter, _Functions(counter):
        model.train()(*args, **kwargs)
    return counter.flops


class _Operations(TorchDispatchMode):
    """Counts ATen operations that torch has a formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.suspended = 0, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None and not self.suspended:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=result))
        return result


class _Functions(TorchFunctionMode):
    """Counts attention by its shapes, and keeps the ATen operations inside it (and inside the functions
    of uncounted kinds) from being counted, too: which there are depends on the kernel that is taken."""

    def __init__(self, counter: _Operations) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kind = recognise(function=func)
        name = None if kind is None else kind.name
        if self.counter.suspended or name not in ("attention", *UNCOUNTED):
            return func(*args, **(kwargs or {}))
        if name == "attention":
            self.counter.flops += _attention_flops(*(*args, *(kwargs or {}).values())[:3])
        self.counter.suspended = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.counter.suspended = False


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    return 2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
