"""Names by which source text can say what a trace met: functions, classes and constants."""

from __future__ import annotations

import builtins
import enum
import functools
import importlib
import math
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional
from torch import Tensor

Name = tuple[str, str]
"""(module, qualified name): what `import` needs; the qualified name is "" for the module itself."""

_PUBLIC = ("torch", "torch.nn.functional", "torch.special", "torch.linalg", "torch.fft", "torch.nn.init")

# How the operators of Python arrive: the name of Tensor's slot → the operator, and whether it is reflected.
OPERATORS: dict[str, tuple[Callable[..., Any], bool]] = {
    **{
        f"__{name}__": (getattr(operator, f"__{name}__"), False)
        for name in (
            "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift", "rshift",
            "and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "invert", "abs", "getitem",
            "setitem",
        )
    },
    **{
        f"__r{name}__": (getattr(operator, f"__{name}__"), True)
        for name in (
            "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift", "rshift",
            "and", "or", "xor",
        )
    },
    "__div__": (operator.truediv, False),
    "__rdiv__": (operator.truediv, True),
}  # fmt: skip


@functools.cache
def _index() -> dict[int, tuple[object, Name]]:
    """id → (function, its shortest public name), for what torch makes of C functions."""
    found: dict[int, tuple[object, Name]] = {}
    for module_name in _PUBLIC:
        module = importlib.import_module(module_name)
        for name, value in vars(module).items():
            if callable(value) and not name.startswith("_") and id(value) not in found:
                found[id(value)] = (value, (module_name, name))
    return found


@functools.cache
def _tensor_methods() -> dict[int, tuple[object, str]]:
    """id → (method, its name) of torch.Tensor."""
    methods = ((name, getattr(Tensor, name, None)) for name in dir(Tensor))
    return {id(value): (value, name) for name, value in methods if callable(value)}


def tensor_method(function: object) -> str | None:
    """The name of a method of Tensor, None for any other function."""
    found = _tensor_methods().get(id(function))
    return found[1] if found is not None and found[0] is function else None


def name_of(value: Any) -> Name | None:
    """The import that gives exactly this object, None where there is none."""
    known = _index().get(id(value))
    if known is not None and known[0] is value:
        return known[1]
    if (method := tensor_method(value)) is not None:
        return ("torch", f"Tensor.{method}")
    if isinstance(value, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return ("torch", "ops." + str(value))
    name = getattr(value, "__name__", None)
    candidates: list[tuple[Any, Any]] = [
        (module, name) for module in ("operator", "torch._C._nn", "torch._VF", "math")
    ]
    candidates.append((getattr(value, "__module__", None), getattr(value, "__qualname__", None)))
    for module, qualified in candidates:
        if isinstance(module, str) and isinstance(qualified, str) and resolves(module, qualified, value):
            return (module, qualified)
    return None


def resolves(module: str, qualified: str, value: Any) -> bool:
    """Whether importing the name gives `value` itself."""
    if module not in sys.modules:
        return False
    found: Any = sys.modules[module]
    for part in qualified.split("."):
        found = getattr(found, part, None)
    return found is value


class Imports:
    """The names a source text uses, as they are given out: name → where it comes from."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken  # names that mean something else in the text; grows as variables are named
        self.names: dict[str, Name] = {}
        self._given: dict[Name, str] = {}

    def use(self, name: Name) -> str:
        """The expression that gives `name`, which is imported from here on."""
        module, qualified = name
        if module == "builtins" and qualified not in self.taken:
            return qualified
        if module == "torch":
            root = self._bind(("torch", ""), "torch")
            return f"{root}.{qualified}" if qualified else root
        if module == "torch.nn.functional":
            return f"{self._bind((module, ''), 'F')}.{qualified}"
        if module in ("operator", "math") or module.startswith("torch."):
            alias = module.rpartition(".")[2].lstrip("_") or "torch"
            return f"{self._bind((module, ''), alias)}.{qualified}"
        first, dot, rest = qualified.partition(".")
        return self._bind((module, first), first) + dot + rest

    def bind_as(self, name: Name, wanted: str) -> str:
        """Import `name` under a name of its own (a placeholder that may be replaced)."""
        free = self._free(wanted)
        self.names[free] = name
        return free

    def _bind(self, name: Name, wanted: str) -> str:
        if name not in self._given:
            self._given[name] = self.bind_as(name, wanted)
        return self._given[name]

    def _free(self, wanted: str) -> str:
        free, count = wanted, 1
        while free in self.taken or free in self.names or (hasattr(builtins, free)):
            count += 1
            free = f"{wanted}_{count}"
        return free


def literal(value: Any, imports: Imports) -> str | None:
    """Source text that makes an equal constant; None where there is none."""
    if value is None or value is ... or isinstance(value, bool | bytes) or type(value) in (int, str):
        return "..." if value is ... else repr(value)
    if isinstance(value, enum.Enum):
        name = name_of(type(value))
        return f"{imports.use(name)}.{value.name}" if name and value.name else None
    if isinstance(value, float):
        number = float(value)
        return repr(number) if math.isfinite(number) else f'float("{number}")'
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, str):
        return repr(str(value))
    if isinstance(value, complex):
        return f"complex({literal(value.real, imports)}, {literal(value.imag, imports)})"
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return imports.use(("torch", str(value).removeprefix("torch.")))
    if isinstance(value, torch.device):
        return f'{imports.use(("torch", "device"))}("{value}")'
    if isinstance(value, slice | range):
        parts = [literal(part, imports) for part in (value.start, value.stop, value.step)]
        return None if None in parts else f"{type(value).__name__}({', '.join(map(str, parts))})"
    if isinstance(value, type) or callable(value):
        name = name_of(value)
        return imports.use(name) if name else None
    return None


def can_spell(value: Any) -> bool:
    """Whether `literal` can write this constant."""
    return literal(value, Imports(set())) is not None
