"""Objects that a captured forward makes anew: what a class with plain attributes holds, without its code."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def made(cls: type[T], /, **attributes: Any) -> T:
    """An instance of `cls` with these attributes, as `copy.copy` would make one: `__init__` does not run."""
    instance = cls.__new__(cls)
    instance.__dict__.update(attributes)
    return instance
