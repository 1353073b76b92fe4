"""A module's class under a generated one, whatever torch has made of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def rebased(module: nn.Module, over: Callable[[type], type]) -> type[nn.Module]:
    """The class of the module with `over(class)` in its place.

    For a parametrized tensor torch makes a class for the one module, to hold the tensor's property, and
    removes it again with the last of them: it stays the outermost, and what is under it is replaced."""
    cls = type(module)
    if "parametrizations" not in module._modules or len(cls.__bases__) != 1:
        return over(cls)
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (over(cls.__bases__[0]),), own)
