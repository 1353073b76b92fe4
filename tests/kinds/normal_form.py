"""What a call becomes, for tests that look at its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fxapprox.kinds import Call, Operation, Refusal, recognise
from fxapprox.testing.kinds import exact_product


def parts_of(
    what: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, Operation | Refusal]]:
    """The call's result by way of its kind with exact products, and its products by part."""
    module, function = (what, None) if isinstance(what, nn.Module) else (None, what)
    kind = recognise(module=module, function=function)
    assert kind is not None
    parts: dict[str, Operation | Refusal] = {}

    def product(part: str, operation: Operation | Refusal) -> Any:
        parts[part] = operation
        return None if isinstance(operation, Refusal) else exact_product(operation)

    return kind.run(Call(args, kwargs, module, function), product), parts


def operation_of(what: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any) -> Operation:
    operation = parts_of(what, *args, **kwargs)[1][""]
    assert isinstance(operation, Operation), operation
    return operation


def refusal_of(what: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any) -> Refusal:
    refusal = parts_of(what, *args, **kwargs)[1][""]
    assert isinstance(refusal, Refusal), refusal
    return refusal


def sizes_of(operation: Operation) -> dict[str, tuple[int, int, str]]:
    shapes = tuple(operation.left.shape), tuple(operation.right.shape)
    names: Any = ("forward", "grad_input", "grad_weight")
    return {name: operation.bilinear.sizes(name, *shapes) for name in names}


def flops_of(found: Operation | Refusal) -> int:
    if isinstance(found, Refusal):
        return found.flops
    left: Tensor = found.left
    return found.bilinear.flops(tuple(left.shape), tuple(found.right.shape))
