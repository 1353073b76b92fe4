"""Constructor calls of torch.nn layers, recovered from their attributes and verified."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import EmitError
from .expressions import Argument, Build, Plain
from .imports import Imports
from .literals import literal

MISSING = object()
INTERNAL = frozenset(nn.Module().__dict__)
"""What every module's __dict__ holds."""

# constructor parameters whose value is not an attribute of the same name
DERIVED: dict[str, Callable[[Any], Any]] = {
    "bias": lambda m: _present(m, "bias", "in_proj_bias"),
    "add_bias_kv": lambda m: m.bias_k is not None,
    "init": lambda m: getattr(m, "init", 0.25),
    "num_parameters": lambda m: m.weight.numel(),
    "inplace": lambda m: getattr(m, "inplace", False),
}
IGNORED = frozenset({"self", "device", "dtype", "size_average", "reduce"})


@dataclass(frozen=True)
class Recovered:
    """A constructor call, and the names of the parameters, buffers and children that it makes."""

    build: Build
    makes: frozenset[str]


def constructor(
    module: nn.Module, cls: type[nn.Module], imports: Imports, spelled: str | None = None
) -> Recovered | None:
    """The call of the class `cls` (in the text: `spelled`) that makes a module like `module`, None where
    none does.

    "Like" is verified on the meta device: the same attributes, and the same parameters, buffers and
    children by name, shape, dtype and persistence, but for what `module` has besides. Values and
    `requires_grad` are restored elsewhere."""
    name = spelled or imports.spell_object(cls)
    if name is None:
        return None
    values, parameters = None, list[inspect.Parameter]()
    for bases, simplify in ((False, True), (False, False), (True, True), (True, False)):
        parameters = list(_parameters(cls, bases=bases))
        values = _values(module, cls, parameters, imports.dtype, simplify=simplify)
        if values is not None:
            break
    if values is None:
        return None
    try:
        # what is left out is listed, too: it may differ in another instance of the same class
        arguments = [
            _argument(p, values.get(p.name, p.default), imports)
            for p in parameters
            if p.name in values or _spelled_default(p) is not None
        ]
        if "dtype" in values:
            arguments.append(Argument("dtype", Plain(literal(values["dtype"], imports)), "None"))
    except EmitError:
        return None
    made = _made(cls, values, imports.dtype)
    assert made is not None
    makes = frozenset((*made._parameters, *made._buffers, *made._modules))
    return Recovered(Build(name, tuple(arguments)), makes)


def _values(
    module: nn.Module,
    cls: type[nn.Module],
    parameters: list[inspect.Parameter],
    standard: torch.dtype,
    *,
    simplify: bool,
) -> dict[str, Any] | None:
    """Arguments by name that make a module like `module`, without any that can be left out."""
    found = {p.name: _value(module, p, simplify) for p in parameters}
    values = {
        p.name: found[p.name]
        for p in parameters
        if found[p.name] is not MISSING and not (_optional(p) and _same(found[p.name], p.default))
    }
    dtype = _dtype(module)
    if dtype not in (None, standard) and "dtype" in _names(cls):
        values["dtype"] = dtype
    if not _makes(module, cls, values, standard):
        return None
    for p in parameters:
        if p.name in values and _optional(p):
            without = {name: value for name, value in values.items() if name != p.name}
            if _makes(module, cls, without, standard):
                values = without
    return values


def _optional(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty


def user_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before fxapprox gave it one of its own."""
    cls = type(module)
    while "_fxapprox_base" in vars(cls):
        cls = vars(cls)["_fxapprox_base"]
    return cls


def _parameters(cls: type[nn.Module], *, bases: bool) -> Iterator[inspect.Parameter]:
    """Parameters of the constructor; with `bases`, those of the bases' in place of *args and **kwargs."""
    seen = set(IGNORED) | ({"mode"} if issubclass(cls, nn.RNNBase) else set())
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is nn.Module:
            continue
        open_ended = False
        for p in inspect.signature(base.__init__).parameters.values():  # type: ignore[misc]
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                open_ended = True
            elif p.name not in seen and not p.name.startswith("_"):
                seen.add(p.name)
                yield p
        if not open_ended or not bases or cls is nn.Identity:
            return


def _names(cls: type[nn.Module]) -> Iterator[str]:
    for base in cls.__mro__:
        if "__init__" in vars(base):
            yield from inspect.signature(base.__init__).parameters  # type: ignore[misc]


def _value(module: nn.Module, parameter: inspect.Parameter, simplify: bool) -> Any:
    """What was passed for `parameter`; an n-tuple of one number as that number where `simplify`."""
    name = parameter.name
    try:
        value = DERIVED[name](module) if name in DERIVED else getattr(module, name, MISSING)
    except AttributeError:
        value = MISSING
    if isinstance(value, Tensor):
        return MISSING
    if simplify and isinstance(value, tuple) and value and all(item == value[0] for item in value):
        return value[0]
    return value


def _present(module: Any, *names: str) -> bool:
    """Whether the first of the attributes that exists is set, and not False."""
    value = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    return value is not None and value is not False


def _dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating tensor, None where there is none."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.dtype
    return None


def _argument(parameter: inspect.Parameter, value: Any, imports: Imports) -> Argument:
    default = _spelled_default(parameter)
    if not _optional(parameter) and parameter.kind is parameter.KEYWORD_ONLY:
        default = ""  # equals no text: printed by name
    same = _optional(parameter) and _same(value, parameter.default) and default is not None
    return Argument(parameter.name, Plain(default if same and default else literal(value, imports)), default)


def _spelled_default(parameter: inspect.Parameter) -> str | None:
    """The text of the default; None where there is none, "" where it has no text of its own."""
    if not _optional(parameter):
        return None
    try:
        return literal(parameter.default, Imports())
    except EmitError:
        return ""


def _makes(module: nn.Module, cls: type[nn.Module], values: dict[str, Any], standard: torch.dtype) -> bool:
    made = _made(cls, values, standard)
    return made is not None and like(module, made)


def _made(cls: type[nn.Module], values: dict[str, Any], standard: torch.dtype) -> nn.Module | None:
    """A module without storage, None where the constructor refuses the values."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(standard)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls(**values)
    except Exception:  # whatever the constructor thinks of these values, they are not the right ones
        return None
    finally:
        torch.set_default_dtype(before)


def like(module: nn.Module, candidate: nn.Module) -> bool:
    """Whether `module` has everything that `candidate` has, and the same number of children."""
    for name, value in candidate.__dict__.items():
        if name in INTERNAL or _holds_tensors(value):
            continue
        if not _same(module.__dict__.get(name, MISSING), value):
            return False
    theirs, ours = candidate._parameters, module._parameters
    if not all(name in ours and _alike(ours[name], tensor) for name, tensor in theirs.items()):
        return False
    for name, buffer in candidate._buffers.items():
        if name not in module._buffers or not _alike(module._buffers[name], buffer):
            return False
        if (name in module._non_persistent_buffers_set) != (name in candidate._non_persistent_buffers_set):
            return False
    return all(
        child is None
        or (
            isinstance(own := module._modules.get(name), nn.Module)
            and user_class(own) is type(child)
            and like(own, child)
        )
        for name, child in candidate._modules.items()
    )


def _holds_tensors(value: Any) -> bool:
    """Caches of tensors, such as `_flat_weights` of recurrent layers: the constructor's own business."""
    held = value if isinstance(value, list) else [value]
    return any(isinstance(item, Tensor | weakref.ref) for item in held)


def _alike(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and first.dtype == second.dtype


def _same(first: Any, second: Any, nesting: int = 6) -> bool:
    """Equal values, in nests `nesting` deep. Of objects whose class knows no equality only the class is
    compared: they hold caches and introspection, which no two instances share."""
    if first is second:
        return True
    if type(first) is not type(second) and not (isinstance(first, tuple) and isinstance(second, tuple)):
        return False
    if nesting and isinstance(first, list | tuple) and len(first) == len(second):
        return all(_same(one, other, nesting - 1) for one, other in zip(first, second, strict=True))
    if nesting and isinstance(first, dict):
        return first.keys() == second.keys() and all(
            _same(v, second[k], nesting - 1) for k, v in first.items()
        )
    if not any("__eq__" in vars(base) for base in type(first).__mro__[:-1]) and not callable(first):
        return True
    try:
        return bool(first == second)
    except Exception:  # a comparison that does not answer is no equality
        return False
