"""A module's parameters, buffers and plain attributes as what a constructor makes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..capture._types import Forward
from ..capture.nests import tensors
from ..errors import EmitError
from .expressions import Argument, Build, Expression, Member, Plain
from .imports import Imports
from .literals import Unspeakable, literal
from .recover import INTERNAL
from .wrap import quoted


def parameters(module: nn.Module, imports: Imports, without: Collection[str] = ()) -> Iterator[Member]:
    """Parameters that are set, in their order. Values and `requires_grad` come later."""
    for name, value in module._parameters.items():
        if value is not None and name not in without:
            yield Member(name, parameter(name, value, imports), "parameter")


def parameter(name: str, value: Tensor, imports: Imports) -> Expression:
    arguments = [Argument("", zeros(name, value, imports))]
    if not (value.is_floating_point() or value.is_complex()):
        arguments.append(Argument("requires_grad", Plain("False"), "True"))
    return Build(f"{imports.spell('torch.nn')}.Parameter", tuple(arguments))


def buffers(module: nn.Module, imports: Imports, without: Collection[str] = ()) -> Iterator[Member]:
    for name, value in module._buffers.items():
        if value is not None and name not in without:
            transient = name in module._non_persistent_buffers_set
            yield Member(name, zeros(name, value, imports), "transient buffer" if transient else "buffer")


def zeros(name: str, value: Tensor, imports: Imports) -> Build:
    """`torch.zeros(…)` of the tensor's shape and dtype. Raises EmitError for tensors that are not dense."""
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        raise EmitError(
            f"{name} is a {value.layout} tensor, which a weights file cannot hold",
            remedy="make it dense before rewriting",
        )
    shape = [Argument("size", Plain(str(size))) for size in value.shape] or [Argument("", Plain("()"))]
    if value.dtype is not imports.dtype:
        shape.append(Argument("dtype", Plain(literal(value.dtype, imports)), "None"))
    return Build(imports.spell("torch", "zeros"), tuple(shape))


def absent(module: nn.Module) -> Iterator[Member]:
    """Parameters, buffers and children that are None: a user's own forward may ask for them."""
    for name, value in module._parameters.items():
        if value is None:
            yield Member(
                name, Build("self.register_parameter", (Argument("", Plain(quoted(name))), NONE)), "statement"
            )
    for name, buffer in module._buffers.items():
        if buffer is None:
            yield Member(name, Plain("None"), "buffer")
    for name, child in module._modules.items():
        if child is None:
            yield Member(
                name, Build("self.register_module", (Argument("", Plain(quoted(name))), NONE)), "statement"
            )


NONE = Argument("", Plain("None"))


def plain_attributes(
    module: nn.Module, path: str, imports: Imports, only: Collection[str] | None = None
) -> Iterator[Member]:
    """The user's own attributes (all, or those in `only`): literals, and single tensors as buffers that
    are not persistent. Raises EmitError that names what has no source text."""
    for name, value in own_attributes(module).items():
        if only is not None and name not in only:
            continue
        if isinstance(value, Tensor):
            yield apart(name, value, imports)
            continue
        inner = _held_tensors(name, value, module)
        for own, tensor in inner.items():
            yield apart(own, tensor, imports)
        names = {id(tensor): f"self.{own}" for own, tensor in inner.items()}
        try:
            yield Member(name, Plain(literal(value, imports, names=names)), "plain")
        except Unspeakable as failure:
            raise EmitError(
                f"attribute {quoted(name)} of {path or 'the model'} ({type(module).__name__}) has no source "
                f"text: {failure.message}",
                remedy="the emitted file rebuilds this module from its attributes: keep plain values there",
            ) from failure


def apart(name: str, value: Tensor, imports: Imports) -> Member:
    """A tensor that is a buffer in the file only, and that no checkpoint holds."""
    return Member(name, zeros(name, value, imports), "transient buffer", value)


def _held_tensors(name: str, value: Any, module: nn.Module) -> dict[str, Tensor]:
    """Each tensor in the nest that the attribute `name` is (a cache, say), by a name of its own."""
    registered = {id(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())}
    found = {id(tensor): tensor for tensor in tensors(value) if id(tensor) not in registered}
    while any(hasattr(module, f"{name}_{position}") for position in range(len(found))):
        name += "_"
    return {f"{name}_{position}": tensor for position, tensor in enumerate(found.values())}


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """What the user's constructor has set besides parameters, buffers and children."""
    return {
        name: value
        for name, value in module.__dict__.items()
        if name not in INTERNAL and not name.startswith("_fxapprox")
    }


def facts(module: nn.Module) -> dict[str, str]:
    """Plain numbers among the attributes, as text."""
    found: dict[str, str] = {}
    for name, value in own_attributes(module).items():
        if isinstance(value, tuple) and value and all(item == value[0] for item in value):
            value = value[0]
        if type(value) in (int, float):
            found[name] = repr(value)
    return found


def constants(forward: Forward, module: nn.Module, imports: Imports) -> Iterator[Member]:
    """Tensors the forward made out of nothing, unless the module holds them by now."""
    for name, value in forward.constants.items():
        if name in module._buffers:
            continue
        if isinstance(value, Tensor):
            yield apart(name, value, imports)
        else:
            yield Member(name, Plain(repr(value)), "plain")
