"""What a forward reads of modules and objects while it is traced: a trace followed one way for these values.

A value that is another at run time sends the call to the user's own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from .facts import Attribute
from .guards import ANY, Pattern, Read, pattern_of
from .merge import Merged
from .nests import Path, children, is_object
from .recorder import Recorder

_READ = (type(None), bool, int, float, str)
_HOLDERS = (list, tuple, dict)
_SETTINGS = {*_READ, *_HOLDERS}
_TORCHS_OWN = frozenset(dir(nn.Module()))
# Containers with more in them are data rather than settings, and are not compared at every call.
MOST_ITEMS = 16


def watching_reads(recorder: Recorder) -> Iterator[tuple[type, str, Callable[[Any, str], Any]]]:
    """(class, name, replacement) of what must be patched for `recorder` to see reads: of modules, and of the
    objects that they hold (a configuration)."""
    yield nn.Module, "__getattribute__", lambda module, name: _of_module(recorder, module, name)
    held = (value for module in recorder.tree.model.modules() for value in vars(module).values())
    for cls in dict.fromkeys(type(value) for value in held if is_object(value)):
        yield cls, "__getattribute__", _of_object(recorder, cls.__getattribute__)


def _of_module(recorder: Recorder, module: nn.Module, name: str) -> Any:
    try:
        value = object.__getattribute__(module, name)
    except AttributeError:
        if recorder.reading and _registered_none(module, name):
            _note(recorder, module, name, None)
        raise
    if type(value) in _SETTINGS and name not in _TORCHS_OWN and recorder.reading:
        _note(recorder, module, name, value)
    return value


def _registered_none(module: nn.Module, name: str) -> bool:
    own = object.__getattribute__(module, "__dict__")
    return any(own[kind].get(name, module) is None for kind in ("_parameters", "_buffers", "_modules"))


def _of_object(recorder: Recorder, original: Callable[..., Any]) -> Callable[[Any, str], Any]:
    def read(thing: Any, name: str) -> Any:
        value = original(thing, name)
        if type(value) in _READ and not name.startswith("__") and recorder.reading:
            _note(recorder, thing, name, value)
        return value

    return read


def _note(recorder: Recorder, thing: Any, name: str, value: Any) -> None:
    """Keep the first value that the forward on top reads, where it is a plain attribute that can be named."""
    frame = recorder.top
    assert frame is not None
    with recorder.running():
        own = object.__getattribute__(thing, "__dict__")
        if name not in own and value is not None and getattr(type(thing), name, None) is not value:
            return  # computed: what it is computed from is read, too
        if type(value) in _HOLDERS and len(children(value) or ()) > MOST_ITEMS:
            return
        path = _way(recorder, frame.path, thing)
        if path is not None:
            frame.reads.setdefault((*path, ("attr", name)), pattern_of(value, depth=2))


def _way(recorder: Recorder, owner: str, thing: Any) -> Path | None:
    """The steps to a module or object from the module at `owner`; None where it is not below it."""
    steps: Path = ()
    if isinstance(thing, nn.Module):
        below = recorder.tree.module_below(owner, thing)
    else:
        below, steps = recorder.tree.thing_below(owner, thing) or (None, ())
    return None if below is None else (*(("attr", part) for part in below.split(".") if part), *steps)


def reads_of(merged: Iterable[Merged]) -> tuple[Read, ...]:
    """What forwards read, with the pattern that it must have for their text to hold.

    What differs from call to call is no condition. Of a number that the text itself reads at run time only
    the sign counts (`if self.p > 0`)."""
    found: dict[Path, Pattern] = {}
    followed: set[str] = set()
    for one in merged:
        for arguments in one.arguments.values():
            followed.update(_attributes(arguments))
        for sample in one.samples:
            for path, pattern in sample.frame.reads.items():
                found[path] = pattern if found.get(path, pattern) == pattern else ANY
    for path, pattern in found.items():
        if ".".join(str(key) for _, key in path) in followed and pattern[:2] == ("plain", float):
            found[path] = ("signed", pattern[2] > 0)
    return tuple((path, pattern) for path, pattern in found.items() if pattern != ANY)


def _attributes(value: Any) -> Iterator[str]:
    if isinstance(value, Attribute):
        yield value.target
    elif isinstance(value, dict):
        for item in value.values():
            yield from _attributes(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _attributes(item)
