"""Modules that keep the user's own class, because their forward could not be captured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ..capture.rng import kept_random_state
from ..errors import EmitError
from . import members
from .expressions import Argument, Build, Expression, Member, Plain
from .recover import constructor, user_class

if TYPE_CHECKING:
    from .reader import Reader


def kept(reader: Reader, module: nn.Module, path: str, reason: str) -> Expression:
    """A module of the user's (or torch's) own class, without its constructor if that can be.

    First way: a subclass in the file whose constructor sets the attributes that the instance has now.
    Where one of them has no source text, or the class is choosy about subclasses: the constructor's
    call, recovered from attributes of its parameters' names and verified like those of torch's layers.
    Raises EmitError, naming the attribute, where neither will do, or the class cannot be imported."""
    cls = user_class(module)
    imports = reader.imports
    try:
        with imports.tentative():
            base = imports.spell_in_module(cls)
    except EmitError as failure:
        where = f"{path or 'the model'}, which keeps its own forward: {reason}"
        raise EmitError(failure.message, where=where, remedy=failure.remedy) from failure
    try:
        _must_subclass(cls, path)
        with imports.tentative():
            body = list(members.plain_attributes(module, path, imports))
    except EmitError:
        made = _constructed(reader, module, path, cls)
        if made is None:
            raise
        return made
    body += [
        *members.parameters(module, imports),
        *members.buffers(module, imports),
        *members.absent(module),
        *reader.children(module, path),
    ]
    setup = Build(f"{imports.spell('torch.nn')}.Module.__init__", (Argument("", Plain("self")),))
    remark = "" if cls.__module__.startswith("torch.") else f"The user's own forward: {reason.rstrip('.')}."
    return reader.finish(module, path, cls, base, setup, body, remark or "Rebuilt from its attributes.")


def _must_subclass(cls: type[nn.Module], path: str) -> None:
    if any("__init_subclass__" in vars(base) for base in cls.__mro__[:-1]):
        raise EmitError(
            f"{path or 'the model'} keeps its own class {cls.__name__}, which does not let itself be subclassed freely",
            remedy="a file cannot make an instance of it: keep this part out of the model that is emitted",
        )


def _constructed(reader: Reader, module: nn.Module, path: str, cls: type[nn.Module]) -> Expression | None:
    """The user's own constructor's call, None where its arguments cannot be told from the instance."""
    with kept_random_state():
        found = constructor(module, cls, reader.imports)
    if found is None or reader.needs_own_class(module, path):
        return None
    if {*module._parameters, *module._buffers, *module._modules} - found.makes:
        return None
    reader.has_seen(module, path)
    return found.build


def shares(reader: Reader, path: str) -> list[Member]:
    """Modules below `path` that stand in two places there, as statements of its class; none are left for
    the classes above."""
    prefix = f"{path}." if path else ""
    inside = [(a, b) for a, b in reader.shared if a.startswith(prefix) and b.startswith(prefix)]
    reader.shared = [pair for pair in reader.shared if pair not in inside]
    return [
        Member("", Plain(f"{reader.reach(path, a)} = {reader.reach(path, b)}"), "statement")
        for a, b in inside
    ]
