"""Hooks on modules that change nothing: a library's own, which only record what passes.

A library may put hooks on its modules for its own forward to read (transformers records hidden states so).
A captured forward has what they recorded as values of its graph and needs them no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

Watcher = tuple[str, str, str]
"""The module's path; the module and the qualified name of the function that is its hook."""

REGISTRIES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks(module: nn.Module) -> Iterator[Any]:
    """What is hooked to the module's forward and backward."""
    for registry in REGISTRIES:
        yield from getattr(module, registry).values()


def watcher(path: str, hook: Any) -> Watcher | None:
    """The hook by name; None for an object, which may hold what the forward needs (weight norm's does)."""
    module, name = getattr(hook, "__module__", None), getattr(hook, "__qualname__", None)
    return (path, module, name) if isinstance(module, str) and isinstance(name, str) else None


def watchers(model: nn.Module) -> frozenset[Watcher]:
    """The functions hooked to any of the model's modules."""
    named = (watcher(path, hook) for path, module in model.named_modules() for hook in hooks(module))
    return frozenset(one for one in named if one is not None)


def unwatch(model: nn.Module) -> nn.Module:
    """The model itself, without the functions that are hooked to its modules."""
    for path, module in model.named_modules():
        for registry in REGISTRIES:
            found = getattr(module, registry)
            for key in [key for key, hook in found.items() if watcher(path, hook) is not None]:
                del found[key]
    return model
