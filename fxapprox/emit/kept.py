"""Modules that keep the user's own class, because their forward could not be captured."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from torch import nn

from ..capture.rng import kept_random_state
from ..errors import EmitError
from . import members
from .expressions import Argument, Build, Expression, Member, Plain
from .recover import constructor, user_class
from .wrap import quoted

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
        with imports.tentative():
            body = list(members.plain_attributes(module, path, imports))
    except EmitError:
        made = _constructed(reader, module, path, cls, base)
        if made is None:
            raise
        return made
    body += [
        *members.parameters(module, imports),
        *members.buffers(module, imports),
        *members.absent(module),
        *reader.children(module, path),
    ]
    if _choosy(cls):
        return _assembled(reader, path, base, body)
    setup = Build(f"{imports.spell('torch.nn')}.Module.__init__", (Argument("", Plain("self")),))
    remark = "" if cls.__module__.startswith("torch.") else f"The user's own forward: {reason.rstrip('.')}."
    return reader.finish(module, path, cls, base, setup, body, remark or "Rebuilt from its attributes.")


def _choosy(cls: type[nn.Module]) -> bool:
    """Whether a subclass must pass arguments that only its author knows."""
    if not any("__init_subclass__" in vars(base) for base in cls.__mro__[:-1]):
        return False
    hook = inspect.signature(cls.__init_subclass__)
    required = [p for p in hook.parameters.values() if p.default is p.empty]
    return any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in required)


def _assembled(reader: Reader, path: str, cls: str, body: list[Member]) -> Expression:
    """A call that makes the instance from its attributes and parts."""
    imports = reader.imports
    plain = [
        f"{quoted(m.name)}: {m.value.text}" for m in body if m.how == "plain" and isinstance(m.value, Plain)
    ]
    parts = [m for m in body if m.how not in ("plain", "statement")]
    if any(m.how == "transient buffer" or not m.name.isidentifier() for m in parts):
        raise EmitError(
            f"{path or 'the model'} keeps its own class {cls}, which a file can neither subclass nor fill",
            remedy="keep this part out of the model that is emitted",
        )
    return Build(
        imports.spell("fxapprox.emit.runtime", "assembled"),
        (
            Argument("", Plain(cls)),
            Argument("", Plain("{" + ", ".join(plain) + "}")),
            *(Argument(m.name, m.value, "") for m in parts),
        ),
    )


def _constructed(
    reader: Reader, module: nn.Module, path: str, cls: type[nn.Module], base: str
) -> Expression | None:
    """The user's own constructor's call, None where its arguments cannot be told from the instance."""
    with kept_random_state():
        found = constructor(module, cls, reader.imports, base)
    if found is None or {*module._parameters, *module._buffers, *module._modules} - found.makes:
        return None
    children = {n: c for n, c in module._modules.items() if c is not None}
    own = {n for n, c in children.items() if reader.needs_own_class(c, f"{path}.{n}" if path else n)}
    for name in children.keys() - own:
        reader.has_seen(children[name], f"{path}.{name}" if path else name)
    if not own:
        return found.build
    # no subclass: a class that wrote itself methods, as those of PyG do, would write them for another name
    parts = reader.children(module, path, without=children.keys() - own)
    if not all(part.name.isidentifier() for part in parts):
        return None
    replaced = reader.imports.spell("fxapprox.emit.runtime", "with_parts")
    return Build(replaced, (Argument("", found.build), *(Argument(p.name, p.value, "") for p in parts)))


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
