"""Python state that a forward may change: attributes, globals, generators. A graph would freeze it."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import nn

from .lines import author
from .nests import is_object, is_plain

_REGISTRIES = ("_parameters", "_buffers", "_modules")


def snapshot(module: nn.Module) -> dict[str, Any]:
    """What a forward must leave alone: the module's own attributes, containers by their items."""
    seen = {
        name: contents(value)
        for name, value in module.__dict__.items()
        if name not in _REGISTRIES and not name.endswith("_hooks")
    }
    seen |= {name: id(value) for name, value in module.__dict__["_buffers"].items()}
    return seen


def contents(value: Any) -> Any:
    """Something that compares unequal once a container got other items, or a generator was drawn from."""
    if is_plain(value):
        return value
    if isinstance(value, dict):
        return (id(value), [(key, id(item)) for key, item in value.items()])
    if isinstance(value, list | set | deque):
        return (id(value), [id(item) for item in value])
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, numpy.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if is_object(value):
        return (id(value), [(name, id(item)) for name, item in value.__dict__.items()])
    return id(value)


# ---- random numbers


def random_state() -> tuple[Any, Any, int]:
    """Where Python's and numpy's generators are, and torch's seed (torch's draws are recorded)."""
    legacy = numpy.random.get_state(legacy=False)
    place = legacy["state"]["pos"], int(legacy["state"]["key"][0]), legacy["has_gauss"]
    return random.getstate(), place, torch.initial_seed()


def random_moved(before: tuple[Any, Any, int], now: tuple[Any, Any, int]) -> str | None:
    """What happened between two states, as a reason; None where nothing did."""
    if before[:2] != now[:2]:
        return "draws from Python's or numpy's random generator"
    return None if before[2] == now[2] else "seeds torch's random generator"


# ---- globals and class attributes


@contextmanager
def kept_globals(model: nn.Module, changed: dict[str, str]) -> Iterator[None]:
    """Numbers in the user's Python modules and classes are put back afterwards. What was changed is
    added to `changed`: Python module → the name of the value."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__ if _is_users(cls)}
    owners: dict[str, Any] = {
        cls.__module__: sys.modules[cls.__module__] for cls in classes if cls.__module__ in sys.modules
    }
    places = [*owners.items(), *((cls.__module__, cls) for cls in classes)]
    before = [_plain_values(owner) for _, owner in places]
    try:
        yield
    finally:
        for (name, owner), values in zip(places, before, strict=True):
            now = _plain_values(owner)
            for key, value in values.items():
                if key in now and (type(now[key]) is not type(value) or now[key] != value):
                    changed[name] = key
                    setattr(owner, key, value)


def _is_users(cls: type) -> bool:
    return not cls.__module__.startswith(("torch.", "builtins", "abc", "typing"))


def _plain_values(owner: Any) -> dict[str, Any]:
    """Numbers only: a flag is set once, to warn or to prepare, by code that computes the same ever after."""
    return {
        name: value
        for name, value in vars(owner).items()
        if type(value) in (int, float) and not name.startswith("__") and value == value
    }


def blamed(module: nn.Module, changed: dict[str, str]) -> str | None:
    """The global that code of this module's author changed, None where it changed none."""
    return changed.get(author(module).__module__)
