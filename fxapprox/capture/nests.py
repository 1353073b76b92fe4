"""Nests: what forwards take and return. Tensors and plain constants in containers and dataclasses."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# A step from a container to what it holds: ("item", key) is `value[key]`, ("attr", name) is `value.name`.
Step = tuple[str, Any]
Path = tuple[Step, ...]

PLAIN = (
    type(None), bool, int, float, complex, str, bytes, slice, range, type(Ellipsis), enum.Enum,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip


def is_plain(value: Any) -> bool:
    """Whether `value` is a constant that source text can spell."""
    return isinstance(value, PLAIN)


def is_record(value: Any) -> bool:
    """Whether `value` is an object made of named fields (a dataclass; transformers' ModelOutput is one)."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type | nn.Module)


def children(value: Any) -> list[tuple[Step, Any]] | None:
    """What a container holds, each with the step to it; None for what is no container we know."""
    if is_record(value):
        return [
            (("attr", field.name), getattr(value, field.name))
            for field in dataclasses.fields(value)
            if hasattr(value, field.name)
        ]
    if isinstance(value, tuple | list):
        return [(("item", position), item) for position, item in enumerate(value)]
    if isinstance(value, dict):
        return [(("item", key), item) for key, item in value.items()]
    return None


def is_object(value: Any) -> bool:
    """Whether `value` is an instance of a Python class whose attributes are all there is to it."""
    cls = type(value)
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, Tensor | nn.Module | type)
        and not is_plain(value)
        and not callable(value)
        and cls.__flags__ & _HEAP_TYPE != 0
        and not cls.__module__.startswith(("torch.", "numpy", "threading"))
    )


_HEAP_TYPE = 1 << 9  # classes made by a class statement


def members(value: Any) -> list[tuple[Step, Any]] | None:
    """`children`, and the attributes of objects, too."""
    inner = children(value)
    if inner is None and is_object(value):
        return [(("attr", name), item) for name, item in value.__dict__.items()]
    return inner


def holders(value: Any, path: Path = (), depth: int = 8) -> Iterator[tuple[Path, Any]]:
    """Every container and object in `value`, itself included, with the way to it."""
    inner = members(value) if depth else None
    if inner is not None:
        yield path, value
        for step, item in inner:
            yield from holders(item, (*path, step), depth - 1)


def all_tensors(value: Any, path: Path = (), depth: int = 8) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in `value`, in objects too, with the way to it."""
    if isinstance(value, Tensor):
        yield path, value
        return
    for step, item in (members(value) if depth else None) or ():
        yield from all_tensors(item, (*path, step), depth - 1)


def at(value: Any, path: Path) -> Any:
    """What stands at the end of `path` in `value`."""
    for kind, key in path:
        value = value[key] if kind == "item" else getattr(value, key)
    return value


def unshared(value: Any) -> Any:
    """The nest with a copy of each tensor that stands in an earlier place, too: a caller who passes one
    tensor twice as an example may pass two."""
    found = list(tensors(value))
    if len({id(tensor) for tensor in found}) == len(found):
        return value
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or id(leaf) not in seen:
            seen.add(id(leaf))
            return leaf
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)

    return rebuilt(value, own)


def fingerprint(value: Any, depth: int = 8) -> Any:
    """Something that compares unequal once anything in a nest of containers and objects was replaced."""
    inner = members(value) if depth else None
    if inner is None:
        return value if is_plain(value) else id(value)
    return [(step[1], fingerprint(item, depth - 1)) for step, item in inner]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf of a nest with the way to it."""
    inner = children(value)
    if inner is None:
        yield path, value
    else:
        for step, item in inner:
            yield from leaves(item, (*path, step))


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a nest."""
    if isinstance(value, Tensor):
        yield value
        return
    for _, item in children(value) or ():
        yield from tensors(item)


def rebuilt(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """The nest with every leaf replaced by `leaf(it)`; containers keep their classes."""
    if is_record(value):
        changed = {name: rebuilt(item, leaf) for (_, name), item in children(value) or ()}
        if isinstance(value, OrderedDict):  # a ModelOutput keeps its fields as items, too
            return type(value)(**changed)
        return dataclasses.replace(
            value, **{f.name: changed[f.name] for f in dataclasses.fields(value) if f.init}
        )
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rebuilt(item, leaf) for item in value))
    if isinstance(value, tuple | list):
        items = [rebuilt(item, leaf) for item in value]
        return type(value)(items) if type(value) is not torch.Size else tuple(items)
    if isinstance(value, dict):
        items_ = {key: rebuilt(item, leaf) for key, item in value.items()}
        return items_ if type(value) is dict else type(value)(items_)
    return leaf(value)
