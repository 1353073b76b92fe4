"""Plain values as source text: numbers, nests, dtypes, importable classes and functions, small objects."""

from __future__ import annotations

import enum
import functools
import math
from collections import OrderedDict
from collections.abc import Mapping
from keyword import iskeyword
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..capture.objects import made
from ..errors import EmitError
from .imports import Imports
from .wrap import quoted

DEPTH = 12
"""Nests deeper than this are taken for cycles."""

BUILT_IN = (dict, list, tuple, set, frozenset, str, bytes, int, float, complex)


NONE: Mapping[int, str] = MappingProxyType({})


class Unspeakable(EmitError):
    """A value that no source text can make again."""


def literal(value: Any, imports: Imports, depth: int = 0, names: Mapping[int, str] = NONE) -> str:
    """An expression that makes an equal value, with `names` (by id) for what has one already. Raises
    Unspeakable that names the type of what cannot."""
    if id(value) in names:
        return names[id(value)]
    if depth > DEPTH:
        raise Unspeakable(f"{type(value).__name__} nested more than {DEPTH} deep")
    inner = functools.partial(literal, imports=imports, depth=depth + 1, names=names)
    kind = type(value)
    if value is None or value is Ellipsis or value is NotImplemented or kind in (bool, int, str, bytes):
        return "..." if value is Ellipsis else quoted(value) if kind is str else repr(value)
    if kind is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if kind is complex:
        return f"complex({inner(value.real)}, {inner(value.imag)})"
    if kind in (tuple, list, set, frozenset, torch.Size):
        return _sequence(value, [inner(item) for item in value], imports)
    if kind is dict:
        return "{" + ", ".join(f"{inner(key)}: {inner(item)}" for key, item in value.items()) + "}"
    if kind is OrderedDict:
        return f"{imports.spell('collections', 'OrderedDict')}({inner(dict(value))})"
    if kind in (slice, range):
        return f"{kind.__name__}({inner(value.start)}, {inner(value.stop)}, {inner(value.step)})"
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return imports.spell("torch", str(value).removeprefix("torch."))
    if kind is torch.device:
        return f"{imports.spell('torch', 'device')}({quoted(str(value))})"
    if isinstance(value, enum.Enum):
        return _dotted(type(value), imports) + f"[{quoted(value.name)}]"
    if kind is functools.partial:
        given = [inner(item) for item in value.args] + [f"{k}={inner(v)}" for k, v in value.keywords.items()]
        return f"{imports.spell('functools', 'partial')}({', '.join([inner(value.func), *given])})"
    if (name := imports.spell_object(value)) is not None:
        return name
    return _restored(value, imports, depth, names)


def _sequence(value: Any, items: list[str], imports: Imports) -> str:
    if type(value) is torch.Size:
        return f"{imports.spell('torch', 'Size')}([{', '.join(items)}])"
    if type(value) is list:
        return f"[{', '.join(items)}]"
    if type(value) is tuple:
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if type(value) is set and items:
        return "{" + ", ".join(sorted(items)) + "}"
    return f"{type(value).__name__}({{{', '.join(sorted(items))}}})" if items else f"{type(value).__name__}()"


def _dotted(cls: type, imports: Imports) -> str:
    name = imports.spell_object(cls)
    if name is None:
        raise Unspeakable(f"{cls.__qualname__} of {cls.__module__} cannot be imported")
    return name


def _restored(value: Any, imports: Imports, depth: int, names: Mapping[int, str]) -> str:
    """An object through its class and attributes; its constructor is not called."""
    cls, state = type(value), getattr(value, "__dict__", None)
    if isinstance(value, torch.Tensor | nn.Module) or callable(value):
        raise Unspeakable(f"a {cls.__qualname__} is no plain value")
    ways = ("__reduce_ex__", "__reduce__", "__slots__")
    if isinstance(value, BUILT_IN) or any(way in vars(base) for base in cls.__mro__[:-1] for way in ways):
        raise Unspeakable(f"a {cls.__qualname__} is more than its attributes")
    if not isinstance(state, Mapping):
        raise Unspeakable(f"a {cls.__qualname__} has no plain attributes")
    if not all(isinstance(name, str) and name.isidentifier() and not iskeyword(name) for name in state):
        raise Unspeakable(f"a {cls.__qualname__} has attributes without a name")
    parts = [f"{name}={literal(item, imports, depth + 1, names)}" for name, item in state.items()]
    return f"{imports.spell_object(made)}({', '.join([_dotted(cls, imports), *parts])})"
