"""Calls of autograd Functions, seen however they are made.

`apply = MyFunction.apply` at import time binds torch's own `apply` before any trace begins, and a
replaced attribute of the class would not be met. What all of these share is the code of one Python
function, so that is what is exchanged while a trace runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch

_apply: FunctionType = torch.autograd.Function.__dict__["apply"].__func__
_watchers: list[Callable[[type, tuple[Any, ...], dict[str, Any]], Any]] = []

# The function as torch has it, whatever code `_apply` runs at the moment.
original_apply = FunctionType(
    _apply.__code__, _apply.__globals__, _apply.__name__, _apply.__defaults__, _apply.__closure__
)


class _Watched:
    """A class, because torch's `apply` calls super(): code that is exchanged needs the same cell."""

    def apply(cls, *args, **kwargs):  # type: ignore[no-untyped-def]
        __class__  # type: ignore[name-defined] # noqa: B018
        from fxapprox.capture.functions import watched_apply

        return watched_apply(cls, args, kwargs)  # type: ignore[arg-type]


def watched_apply(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _watchers[-1](cls, args, kwargs)


@contextmanager
def watching_functions(watcher: Callable[[type, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Every `Function.apply` goes to `watcher(cls, args, kwargs)`, which may call `original_apply`."""
    code = _apply.__code__
    _watchers.append(watcher)
    _apply.__code__ = _Watched.apply.__code__
    try:
        yield
    finally:
        _apply.__code__ = code
        _watchers.pop()
