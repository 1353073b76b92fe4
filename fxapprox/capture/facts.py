"""What a trace notes on the nodes of its graphs, and the values that stand in their arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .nests import is_plain, members

META = "fxapprox"


@dataclass(frozen=True)
class TensorFacts:
    """What is known of a tensor while tracing."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Region:
    """A context manager that is active: "no_grad", "enable_grad", "inference_mode" or "autocast"."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class SiteName:
    """A recognised function call: number `number` of its function's name in this forward."""

    ids: tuple[str, ...]
    function: str
    number: int


@dataclass
class Facts:
    """The one thing kept in `node.meta`: what happened when the node ran."""

    value: Any = None  # the result's nest, TensorFacts for tensors
    regions: tuple[Region, ...] = ()
    line: str | None = None
    site: SiteName | None = None


@dataclass(frozen=True)
class Applied:
    """`cls.apply` of an autograd Function, as a target that compares."""

    cls: type

    @property
    def __name__(self) -> str:
        return self.cls.__name__

    def __call__(self, *args: Any) -> Any:
        return self.cls.apply(*args)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Attribute:
    """A number that *is* (the same object) an attribute of the module: read at run time, not frozen."""

    target: str
    value: float


class OddValue(Exception):
    """A value that source text cannot spell."""

    def __init__(self, value: Any) -> None:
        super().__init__(f"a {type(value).__name__}")
        self.value = value


class Foreign(Exception):
    """A tensor that the frame cannot name: it comes from elsewhere."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__("a tensor from elsewhere")
        self.tensor = tensor


def facts_of(node: fx.Node) -> Facts:
    found: Facts = node.meta[META]
    return found


def described(value: Any, depth: int = 8) -> Any:
    """The nest with TensorFacts in place of tensors."""
    if isinstance(value, Tensor):
        return TensorFacts(tuple(value.shape), value.dtype, value.device)
    inner = members(value) if depth else None
    if inner is None:
        return value if is_plain(value) else None
    if isinstance(value, tuple | list):
        return [described(item, depth - 1) for _, item in inner]
    return {step[1]: described(item, depth - 1) for step, item in inner}
