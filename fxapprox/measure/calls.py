"""The calls that a rewritten model samples, met in one training forward, each as it can be made again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..capture._types import Inputs
from ..capture.nests import is_plain, leaves, rebuilt, tensors
from ..capture.rng import kept_random_state
from ..capture.trials import Modes, transformed
from ..choices import Choice, flops_after
from ..errors import CaptureError
from ..kinds import Bilinear, Call, Operation, Refusal
from ..kinds._arguments import is_weight
from ..passes.copying import deep_copy
from ..passes.layers import FunctionSite, sampling_modules
from ..passes.parts import Sites
from ..sites import PRODUCTS, Product, ProductName

BLOCK = 65_521
"""Numbers drawn for a tensor at most; a prime, so that no two of its rows are alike."""


@dataclass(frozen=True)
class Contracted:
    """One product of a call: its geometry, its operands' shapes, what it costs and what is done there."""

    part: str
    bilinear: Bilinear
    left: tuple[int, ...]
    right: tuple[int, ...]
    products: Mapping[ProductName, Product]
    choice: Choice

    @property
    def flops(self) -> int:
        return sum(one.flops for one in self.products.values())

    @property
    def flops_after(self) -> int:
        return sum(flops_after(self.products, self.choice, name) for name in PRODUCTS)


@dataclass(frozen=True)
class SampledCall:
    """One call of a sampled layer or function, as one training forward met it.

    `module` belongs to a copy of the model: measuring may run it. Activations in
    `args` and `kwargs` are without values, on the device "meta" (`real` makes them); weights and what is
    not floating are the copy's own. Calls of equal `key` take
    equally long: kind, geometry, shapes, layouts, dtypes, wanted gradients and treatment are the same."""

    sites: tuple[str, ...]  # ids, one a sampled part
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: tuple[int, ...]
    device: torch.device
    modes: Modes
    contracted: tuple[Contracted, ...]
    key: str

    @property
    def flops(self) -> int:
        """FLOPs of the exact call, forward and backward, 2 per multiply-add."""
        return sum(one.flops for one in self.contracted)

    @property
    def flops_after(self) -> int:
        return sum(one.flops_after for one in self.contracted)


def sampled_calls(model: nn.Module, inputs: Inputs, *, copy: bool = True) -> tuple[SampledCall, ...]:
    """The calls that sample in a training forward of `model` on `inputs`, in the order they are made; a
    layer that runs twice is there twice. `model` is a rewritten model, or one that an emitted file
    built; a copy of it runs, once, and neither it nor the global random state changes. Without `copy` it
    runs itself, and the calls are its own.

    Raises CaptureError where the model does not run on the inputs."""
    replica = deep_copy(model) if copy else model
    noted: list[SampledCall] = []
    with kept_random_state(), torch.inference_mode(False), torch.enable_grad(), _noting(replica, noted):
        try:
            given = transformed(inputs, lambda tensor: tensor.clone())  # the forward may write into them
            replica(*given.args, **(given.kwargs or {}))
        except Exception as failure:
            raise CaptureError(
                f"the model does not run on the inputs: {type(failure).__name__}: {failure}",
                where=type(model).__name__,
            ) from failure
    return tuple(noted)


@contextmanager
def _noting(model: nn.Module, noted: list[SampledCall]) -> Iterator[None]:
    """Every sampled call of the model is noted, and computed exactly, for the time of the block."""
    standing = [(module, module.__dict__["_fxapprox"]) for module in sampling_modules(model)]
    for module, sites in standing:
        module.__dict__["_fxapprox"] = _Noting(sites.kind, sites.parts, module, noted)
    try:
        yield
    finally:
        for module, sites in standing:
            module.__dict__["_fxapprox"] = sites


@dataclass
class _Noting(Sites):
    module: nn.Module
    noted: list[SampledCall]

    def run(self, call: Call) -> Any:
        met: list[Contracted] = []

        def product(name: str, operation: Operation | Refusal) -> Tensor:
            if isinstance(operation, Refusal):
                return torch.empty(0)  # not looked at: the kind runs the call as it was written
            if name in self.parts:
                met.append(_contracted(name, operation, self.parts[name].choice))
            result = operation.bilinear.forward(operation.left, operation.right, operation.bias)
            return operation.finish(result) if operation.finish else result

        result = self.kind.run(call, product)
        if met:
            self.noted.append(self._noted_call(call, result, tuple(met)))
        return result

    def _noted_call(self, call: Call, result: Any, met: tuple[Contracted, ...]) -> SampledCall:
        modes, made = Modes.now(), next(tensors(result))
        what = getattr(call.function, "__name__", type(self.module).__name__)
        own = [_layout(tensor) for tensor in layer_tensors(self.module)]
        facts = (self.kind.name, what, _spelled((call.args, call.kwargs)), own, met, modes)
        return SampledCall(
            sites=tuple(self.parts[one.part].stream.site for one in met),
            module=self.module,
            args=rebuilt(call.args, _without_values),
            kwargs=rebuilt(dict(call.kwargs), _without_values),
            output=tuple(made.shape),
            device=made.device,
            modes=modes,
            contracted=met,
            key=repr(facts),
        )


def _contracted(part: str, operation: Operation, choice: Choice) -> Contracted:
    left, right = tuple(operation.left.shape), tuple(operation.right.shape)
    flops = operation.bilinear.flops(left, right)
    grad = torch.is_grad_enabled()
    wanted = {
        "forward": True,
        "grad_input": grad and operation.left.requires_grad,
        "grad_weight": grad and operation.right.requires_grad,
    }
    products: dict[ProductName, Product] = {}
    for name in PRODUCTS:
        groups, pairs, over = operation.bilinear.sizes(name, left, right)
        products[name] = Product(pairs, groups, flops if wanted[name] else 0, over)
    return Contracted(part, operation.bilinear, left, right, products, choice)


def layer_tensors(module: nn.Module) -> list[Tensor]:
    """The tensors that a layer's own forward may read: its parameters, and those kept as attributes (the
    weight that torch's older `weight_norm` computes before each forward)."""
    own = [value for value in vars(module).values() if isinstance(value, Tensor)]
    return [*module.parameters(), *own] if not isinstance(module, FunctionSite) else []


def real(tensor: Tensor, device: torch.device) -> Tensor:
    """A leaf like a tensor without values, of normally distributed numbers in the same memory layout.

    They repeat after BLOCK: to draw each of a large activation's takes longer than to contract it."""
    extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    extent = extent if tensor.numel() else 0
    block = torch.randn(min(extent, BLOCK), dtype=tensor.dtype, device=device)
    flat = block.repeat(-(-extent // BLOCK))[:extent] if extent > BLOCK else block
    return flat.as_strided(tensor.shape, tensor.stride()).requires_grad_(tensor.requires_grad)


def _without_values(value: Any) -> Any:
    if not isinstance(value, Tensor) or is_weight(value):
        return value
    if not value.is_floating_point():
        return value.detach().clone()
    shell = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return shell.requires_grad_(value.requires_grad)


def _spelled(nest: Any) -> Any:
    return [(path, _spelled_leaf(leaf)) for path, leaf in leaves(nest)]


def _spelled_leaf(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _layout(value)
    return value if is_plain(value) else type(value)


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device), tensor.requires_grad
