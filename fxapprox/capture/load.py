"""Load a user's model from what stands on the command line.

`path/to/model.py`, `path/to/model.py:name`, `package.module:name` or `package.module`. The name is a
module instance, a module class or a function that needs no arguments (dots reach into it:
`model.py:Net.small`). Without a name the file's candidates are looked at in three tiers, and the
first tier that holds any must hold exactly one:

1. module instances (not those that are parts of another one);
2. factories that say so: functions of the file that need no arguments and are called `build_model`
   or annotated to return a module;
3. module classes of the file whose constructor needs no arguments.

Names that begin with an underscore are never candidates. Anything else is an error that lists what
there is and how to name it.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import CaptureError, RequestError, one_of
from ._types import Inputs
from .blame import short, where
from .importing import import_file, import_module, importable

EXAMPLE = "example_inputs"
FACTORY = "build_model"


@dataclass(frozen=True)
class Loaded:
    """A user's model: `origin` is what would name it on the command line ("model.py:Net"), `folder`
    what must be on sys.path for its imports to work (see `importable`)."""

    model: nn.Module
    inputs: Inputs | None
    origin: str
    folder: Path


def load(spec: str, *, example_inputs: bool = True) -> Loaded:
    """The model that `spec` names, and its file's `example_inputs()` unless the caller has others.

    The file is run under its own name (`sys.modules["model"]`), with its folder on sys.path for the
    time of loading and no bytecode written beside it. Raises RequestError where the request is wrong
    (no such file or name, no candidate or several, not a module) and CaptureError where the user's
    code fails, with the user's line."""
    target, name = _split(spec)
    module, folder = _module(target)
    shown = short(target) if isinstance(target, Path) else target
    with importable(folder):
        if name is None:
            name = _only_candidate(module, shown)
        origin = f"{shown}:{name}"
        model = _instance(_look_up(module, name, shown), origin, module)
        inputs = _examples(module, shown) if example_inputs else None
    return Loaded(model, inputs, origin, folder)


def _split(spec: str) -> tuple[Path | str, str | None]:
    """(file or dotted module name, name in it or None)."""
    head, colon, name = spec.rpartition(":")
    if not colon or "/" in name or name.endswith(".py"):
        head, name = spec, ""
    if not head or (colon and not name):
        raise RequestError(
            f"{spec!r} does not name a model",
            remedy="write path/to/model.py, path/to/model.py:name or package.module:name",
        )
    is_file = head.endswith(".py") or "/" in head or Path(head).exists()
    return (Path(head) if is_file else head), name or None


def _module(target: Path | str) -> tuple[ModuleType, Path]:
    if isinstance(target, str):
        return import_module(target), Path.cwd()
    if not target.exists():
        raise RequestError(f"there is no file {target}", remedy=_nearby(target))
    if not target.is_file():
        raise RequestError(f"{target} is not a file", remedy="name the .py file that holds the model")
    return import_file(target)


def _nearby(target: Path) -> str:
    if not target.parent.is_dir():
        return f"there is no folder {target.parent} either"
    files = [path.name for path in target.parent.glob("*.py")][:20]
    return one_of(target.name, files) if files else f"the folder {target.parent} holds no .py file"


# candidates


def _only_candidate(module: ModuleType, shown: str) -> str:
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    tiers = (_instances(public), _factories(public, module), _classes(public, module))
    for tier in tiers:
        if len(tier) == 1:
            return tier[0]
        if tier:
            names = [name for each in tiers for name in each]
            raise RequestError(
                f"{shown} holds several models",
                remedy="name one: " + ", ".join(f"{shown}:{name}" for name in names),
            )
    raise RequestError(
        f"{shown} holds no model that can be made without arguments", remedy=_seen(public, module)
    )


def _instances(public: Mapping[str, Any]) -> list[str]:
    found = {name: value for name, value in public.items() if isinstance(value, nn.Module)}
    parts = {id(part) for value in found.values() for part in value.modules() if part is not value}
    first = {id(value): name for name, value in reversed(found.items())}
    return [name for name, value in found.items() if id(value) not in parts and first[id(value)] == name]


def _factories(public: Mapping[str, Any], module: ModuleType) -> list[str]:
    return [
        name
        for name, value in public.items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and name != EXAMPLE
        and _needs(value) == ""
        and (name == FACTORY or _returns_module(value))
    ]


def _returns_module(function: Callable[..., Any]) -> bool:
    try:
        answer = typing.get_type_hints(function).get("return")
    except Exception:  # an annotation that does not evaluate says nothing
        return False
    return inspect.isclass(answer) and issubclass(answer, nn.Module)


def _own_classes(public: Mapping[str, Any], module: ModuleType) -> dict[str, type[nn.Module]]:
    return {
        name: value
        for name, value in public.items()
        if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    }


def _classes(public: Mapping[str, Any], module: ModuleType) -> list[str]:
    return [name for name, cls in _own_classes(public, module).items() if _needs(cls) == ""]


def _needs(made: Callable[..., Any]) -> str:
    """The arguments without which it cannot be called, "" for none."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have no signature
        return ""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return ", ".join(p.name for p in parameters if p.default is p.empty and p.kind not in variadic)


def _seen(public: Mapping[str, Any], module: ModuleType) -> str:
    """What a file without a candidate does hold, and what to do about it."""
    needy = [f"{name}({_needs(cls)})" for name, cls in _own_classes(public, module).items()]
    functions = [
        name
        for name, value in public.items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name != EXAMPLE
    ]
    free = [name for name in functions if _needs(public[name]) == ""]
    lines = [f"its classes need arguments: {', '.join(needy)}"] if needy else []
    if free:
        lines.append(f"if one of these makes the model, name it with a colon: {', '.join(free)}")
    lines.append(f"or write a function without arguments in it: def {FACTORY}(): return Net(...)")
    return "\n  ".join(lines)


# from a name to an instance


def _look_up(module: ModuleType, name: str, shown: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            try:  # `package:module` without a line that imports it in the package
                value = importlib.import_module(f"{value.__name__}.{part}")
                continue
            except (AttributeError, ImportError):
                known = [known for known in dir(value) if not known.startswith("_")]
            raise RequestError(f"{shown} has no {name!r}", remedy=one_of(part, _models_first(value, known)))
        value = getattr(value, part)
    return value


def _models_first(holder: Any, names: list[str]) -> list[str]:
    models = [
        name
        for name in names
        if isinstance(getattr(holder, name), nn.Module)
        or (
            callable(getattr(holder, name))
            and getattr(getattr(holder, name), "__module__", "") == holder.__name__
        )
    ]
    return (models or names)[:30]


def _instance(value: Any, origin: str, module: ModuleType) -> nn.Module:
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, ModuleType) or not callable(value):
        raise RequestError(
            f"{origin} is {_article(type(value).__name__)}, not a model",
            remedy="name a module instance, a module class or a function without arguments that returns one",
        )
    needs = _needs(value)
    if needs:
        maker = f"def {FACTORY}(): return {origin.rpartition(':')[2]}(...)"
        raise RequestError(
            f"{origin} needs arguments: {needs}", remedy=f"write a function without arguments: {maker}"
        )
    model = calling(value, f"{origin}()", module)
    if not isinstance(model, nn.Module):
        raise RequestError(
            f"{origin}() returned {_article(type(model).__name__)}, not a torch.nn.Module",
            remedy="name a class or a function that makes the model itself",
        )
    return model


def calling(made: Callable[[], Any], what: str, module: ModuleType) -> Any:
    """The result of the user's function. Raises CaptureError with the user's line where it fails."""
    file = getattr(module, "__file__", None)
    try:
        return made()
    except (Exception, SystemExit) as error:
        message = f"{what} raised {type(error).__name__}: {str(error).strip() or 'no message'}"
        raise CaptureError(message, where=where(error.__traceback__, Path(file) if file else None)) from error


def _article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


# example inputs


def _examples(module: ModuleType, shown: str) -> Inputs | None:
    made = getattr(module, EXAMPLE, None)
    if made is None:
        return None
    return as_inputs(calling(made, f"{shown}:{EXAMPLE}()", module) if callable(made) else made)


def as_inputs(value: Any) -> Inputs:
    """What `example_inputs()` may return: a tuple or list of positional inputs; a dict of keyword
    inputs; both as `((x, …), {"mask": m})`; anything else is the one positional input."""
    if isinstance(value, Inputs):
        return value
    if isinstance(value, Mapping):
        return Inputs((), dict(value))
    if (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], tuple)
        and isinstance(value[1], dict)
    ):
        return Inputs(value[0], value[1])
    return Inputs(tuple(value)) if isinstance(value, (tuple, list)) else Inputs((value,))
