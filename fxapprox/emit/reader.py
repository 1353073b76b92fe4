"""A rewritten model, read back into what a file must build."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..capture._types import Forward
from ..capture.watchers import watcher
from ..kinds import recognise
from ..passes.layers import FunctionSite
from ..record import Record
from . import members
from .expressions import Argument, Blueprint, Build, Expression, Items, Member, Named, Part, Plain
from .guarding import deferring, refusing
from .imports import Imports, installed
from .kept import kept, shares
from .methods import attributes, methods
from .recover import Recovered, constructor, user_class
from .tidy import tidied
from .tree import forwards_class, held_names, is_torchs, join, origin, reach, redirected
from .wrappers import wrapped_layer

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
OWN_STATE = ("get_extra_state", "_save_to_state_dict", "state_dict")
PLAIN_SETUP = Build("super().__init__")
HARMLESS = frozenset({"__init__", "extra_repr", "reset_parameters", "__repr__", "__doc__", "__module__"})


class Reader:
    """Reads `model` once. Afterwards `blueprints` holds every module that needs a class, parts first, and
    `shared` the modules that stand in several places: (path, first path)."""

    def __init__(self, model: nn.Module, record: Record, imports: Imports) -> None:
        tidy = {
            path: replace(forward, source=tidied(forward.source, model.get_submodule(path), forward.imports))
            for path, forward in record.forwards.items()
        }
        record = replace(record, forwards=tidy)
        self.model, self.record, self.imports = model, record, imports
        self.blueprints: list[Blueprint] = []
        self.shared: list[tuple[str, str]] = []
        self.kept: dict[str, str] = {}  # paths that keep the user's own class, and why
        self.extra: dict[str, Tensor] = {}  # tensors that are buffers of the file's classes only
        self.unwatched: dict[str, dict[str, None]] = {}  # module of a hook's function → paths that had it
        self._seen: dict[int, str] = {}
        self._opaque = {note.module: note.message for note in record.notes if note.topic == "opaque"}
        self._redirected = redirected(record)
        owners = (path.split(".") for path, calls in self._redirected.items() if calls)
        self._holds_sites = {".".join(parts[:count]) for parts in owners for count in range(len(parts) + 1)}
        self._read: dict[int, set[str]] = defaultdict(set)  # plain attributes that captured forwards read
        for path, forward in record.forwards.items():
            for owner, name in attributes(forward, model.get_submodule(path)):
                self._read[id(owner)].add(name)
        self.root = self.expression(model, "")

    # ---- which way a module goes

    def expression(self, module: nn.Module, path: str) -> Expression:
        """The expression that makes `module`; a module met before is put in its place later."""
        if id(module) in self._seen:
            self.shared.append((path, self._seen[id(module)]))
            return self._call("Identity")
        self._seen[id(module)] = path
        computed = wrapped_layer(
            module, path, self.imports, self._kept, lambda hook: self._idle(module, path, hook)
        )
        if computed is not None:
            return computed
        cls = user_class(module)
        return self._torchs(module, path, cls) if is_torchs(cls) else self._users(module, path, cls)

    def _idle(self, module: nn.Module, path: str, hook: object) -> bool:
        """Whether a library's hook can be left out: it only watches, and for a forward that is captured."""
        found = watcher(path, hook)
        if found is None or found not in self.record.idle or not installed(found[1]):
            return False
        if self._stays(path, user_class(module)):
            return False
        self.unwatched.setdefault(found[1], {})[path] = None
        return True

    def _torchs(self, module: nn.Module, path: str, cls: type[nn.Module]) -> Expression:
        if cls in CONTAINERS and not self._inlines(module, path):
            return self._container(module, path, cls)
        if cls not in CONTAINERS and not self.needs_own_class(module, path):
            found = constructor(module, cls, self.imports)
            if found is not None and not held_names(module) - found.makes:
                self.has_seen(module, path)
                return found.build
        if path in self.record.forwards:
            return self._captured(module, path, cls)
        return self._kept(module, path)

    def _users(self, module: nn.Module, path: str, cls: type[nn.Module]) -> Expression:
        if self._stays(path, cls):
            return self._kept(module, path)
        if path in self.record.forwards:
            if forwards_class(cls) is nn.Sequential and not self._inlines(module, path):
                return self._sequence(module, path, cls, captured=False)
            return self._captured(module, path, cls)
        base = forwards_class(cls)
        if base is nn.Sequential:
            return self._sequence(module, path, cls)
        if is_torchs(base) and base not in (nn.Module, *CONTAINERS):
            return self._inherited(module, path, cls, base)
        container = next((c for c in CONTAINERS if issubclass(cls, c)), None)
        if container is not None and not self._read[id(module)]:
            return self._container(module, path, container)
        return self._part(module, path, cls, remark="Its parent's forward does what it does.")

    def _stays(self, path: str, cls: type[nn.Module]) -> bool:
        """Whether the user's own class must be imported: its forward was not captured, or it stands in such
        a module, whose forward may ask it for more than a call."""
        if any(getattr(cls, name) is not getattr(nn.Module, name) for name in OWN_STATE):
            self._opaque.setdefault(path, "its state_dict is made in ways of its own")
        parts = path.split(".") if path else []
        return any(".".join(parts[:count]) in self._opaque for count in range(len(parts) + 1))

    @property
    def has_constants(self) -> bool:
        """Whether there are tensors that no checkpoint holds."""
        transient = any(
            module._non_persistent_buffers_set & module._buffers.keys() for module in self.model.modules()
        )
        return bool(self.extra) or transient

    def _inlines(self, module: nn.Module, path: str) -> bool:
        """Whether a captured forward of a container does more than call its children."""
        if path not in self.record.forwards:
            return False
        for name, child in module._modules.items():
            below, cls = join(path, name), user_class(child) if child is not None else nn.Identity
            own = is_torchs(forwards_class(cls)) and forwards_class(cls) not in (nn.Module, *CONTAINERS)
            if not own and below not in self.record.forwards and not self._stays(below, cls):
                return True
        return False

    def needs_own_class(self, module: nn.Module, path: str) -> bool:
        """Whether a function call in `module` or below it is a site."""
        return path in self._holds_sites

    def has_seen(self, module: nn.Module, path: str) -> None:
        for name, below in module.named_modules(prefix=path):
            self._seen.setdefault(id(below), name)

    # ---- the ways

    def _container(self, module: nn.Module, path: str, cls: type[nn.Module]) -> Expression:
        if issubclass(cls, nn.ParameterList | nn.ParameterDict):
            return self._parameters(module, path, cls)
        found = self.children(module, path)
        names = [member.name for member in found]
        items = tuple(member.value for member in found)
        in_order = names == [str(number) for number in range(len(names))]
        if cls is nn.Sequential:
            if in_order:
                return self._call("Sequential", Items(items, brackets=False))
            return self._call("Sequential", self._ordered(found))
        if cls is nn.ModuleList and in_order:
            return self._call("ModuleList", Items(items)) if items else self._call("ModuleList")
        if cls is nn.ModuleDict:
            return self._call("ModuleDict", Named(tuple((m.name, m.value) for m in found)))
        return self._kept(module, path)

    def _ordered(self, found: Iterable[Member]) -> Build:
        ordered = self.imports.spell("collections", "OrderedDict")
        children = list(found)
        if all(child.name.isidentifier() for child in children):
            return Build(ordered, tuple(Argument(child.name, child.value, "") for child in children))
        return Build(ordered, (Argument("", Named(tuple((m.name, m.value) for m in children))),))

    def _parameters(self, module: nn.Module, path: str, cls: type[nn.Module]) -> Expression:
        held = dict(module.items()) if isinstance(module, nn.ParameterDict) else dict(enumerate(module))  # type: ignore[arg-type]
        if not all(isinstance(value, nn.Parameter) for value in held.values()):
            return self._kept(module, path)
        made = [(str(key), members.parameter(str(key), value, self.imports)) for key, value in held.items()]
        if cls is nn.ParameterDict:
            return self._call("ParameterDict", Named(tuple(made)))
        return self._call("ParameterList", Items(tuple(value for _, value in made)))

    def _sequence(
        self, module: nn.Module, path: str, cls: type[nn.Module], *, captured: bool = True
    ) -> Expression:
        """A subclass of nn.Sequential: a class of its own, so that repeated ones come once. `captured`:
        with the captured forward, if there is one, rather than torch's."""
        made = self._container(module, path, nn.Sequential)
        assert isinstance(made, Build)
        setup = Build("super().__init__", made.arguments)
        body = [
            *members.plain_attributes(module, path, self.imports, only=self._read[id(module)]),
            *members.parameters(module, self.imports),
            *members.buffers(module, self.imports),
        ]
        base = self._nn("Sequential")
        return self.finish(module, path, cls, base, setup, body, "", captured=captured)

    def _inherited(
        self, module: nn.Module, path: str, cls: type[nn.Module], base: type[nn.Module]
    ) -> Expression:
        """A subclass of a torch layer without a forward of its own."""
        changed = [
            n
            for c in cls.__mro__[: cls.__mro__.index(base)]
            for n in vars(c)
            if n not in HARMLESS and hasattr(base, n)
        ]
        found = None if changed else constructor(module, base, self.imports)
        if found is None or held_names(module) - found.makes:
            return self._kept(module, path)
        self.has_seen(module, path)
        return found.build

    def _captured(self, module: nn.Module, path: str, cls: type[nn.Module]) -> Expression:
        """A class with the captured forward, on torch's own class where it is a subclass of one."""
        if issubclass(cls, nn.Sequential):
            return self._sequence(module, path, cls)  # the forward indexes it
        found = None
        base = next(
            (b for b in cls.__mro__ if is_torchs(b) and b is not nn.Module and b not in CONTAINERS), None
        )
        if base is not None and not any(
            self.needs_own_class(c, join(path, n)) for n, c in module._modules.items() if c
        ):
            found = constructor(module, base, self.imports)
        if found is not None and base is not None:
            for name in found.makes & module._modules.keys():
                child = module._modules[name]
                if child is not None:
                    self.has_seen(child, join(path, name))
            spelled = self.imports.spell_object(getattr(nn, base.__name__, base))
            setup = Build("super().__init__", found.build.arguments)
            return self._part(module, path, cls, base=spelled, setup=setup, found=found)
        return self._part(module, path, cls)

    def _part(
        self, module: nn.Module, path: str, cls: type[nn.Module], *, base: str | None = None,
        setup: Build = PLAIN_SETUP, found: Recovered | None = None, remark: str = "",
    ) -> Expression:  # fmt: skip
        """A class of the file, with the captured forward if there is one."""
        without = found.makes if found else frozenset()
        body = [
            *members.plain_attributes(module, path, self.imports, only=self._read[id(module)]),
            *members.parameters(module, self.imports, without),
            *members.buffers(module, self.imports, without),
            *self.children(module, path, without),
        ]
        return self.finish(module, path, cls, base or self._nn("Module"), setup, body, remark)

    def _kept(self, module: nn.Module, path: str) -> Expression:
        """The user's own class, or torch's where its constructor's call is not known."""
        reason = self._opaque.get(path, "it stands in a module that could not be captured")
        if not is_torchs(user_class(module)):
            self.kept[path] = reason if path in self._opaque else ""
        return kept(self, module, path, reason)

    def finish(
        self,
        module: nn.Module,
        path: str,
        cls: type[nn.Module],
        base: str,
        setup: Build,
        body: list[Member],
        remark: str,
        *,
        captured: bool = True,
    ) -> Expression:
        """Add a class of the file; with the captured forward, unless not wanted, or the user's own does."""
        forward = self.record.forwards.get(path)
        calls = self._redirected[path]
        text, numbers = "", tuple[str, ...]()
        body += shares(self, path)
        if forward is not None and captured and (calls or path not in self.kept):
            if path in self.kept:
                forward = replace(forward, source=deferring(forward, user_class(module).forward))
            elif not path:  # captured parents call the others as they did when they were recorded
                forward = replace(forward, source=refusing(forward, user_class(module).forward))
            done = methods(forward, calls, self.imports)
            text, numbers = done.template, done.numbers
            body += members.constants(forward, module, self.imports)
            body += [Member(call.name, self._site(forward, call.target), "child") for call in done.sites]
        for member in body:  # tensors of buffers that the model itself does not have as buffers
            if member.tensor is not None and member.name not in module._buffers:
                self.extra[join(path, member.name)] = member.tensor
        blueprint = Blueprint(
            path,
            cls.__name__,
            origin(cls),
            base,
            setup,
            tuple(body),
            text,
            numbers,
            members.facts(module),
            remark,
        )
        return self._add(blueprint)

    def _site(self, forward: Forward, target: str) -> Build:
        module, name = forward.imports[target]
        function = getattr(torch, name.removeprefix("Tensor."), None) if module == "torch" else None
        # a method of Tensor and the function of that name are one operation; the latter reads better
        if name.startswith("Tensor.") and function is not None and recognise(function=function) is not None:
            name = name.removeprefix("Tensor.")
        function = self.imports.spell(module, name)
        return Build(
            self.imports.spell("fxapprox.emit.runtime", "FunctionCall"), (Argument("", Plain(function)),)
        )

    # ---- parts of them

    def reach(self, path: str, below: str) -> str:
        """`self.layers[0].attn` for the module `below`, in the class of the module at `path`."""
        return reach("self", self.model.get_submodule(path), below[len(path) + 1 :] if path else below)

    def children(self, module: nn.Module, path: str, without: Iterable[str] = ()) -> list[Member]:
        skip = set(without)
        return [
            Member(name, self.expression(child, join(path, name)), "child")
            for name, child in module._modules.items()
            if child is not None and name not in skip and not isinstance(child, FunctionSite)
        ]

    def _add(self, blueprint: Blueprint) -> Part:
        self.blueprints.append(blueprint)
        return Part(blueprint)

    def _nn(self, name: str) -> str:
        return f"{self.imports.spell('torch.nn')}.{name}"

    def _call(self, name: str, *arguments: Expression) -> Build:
        return Build(self._nn(name), tuple(Argument("", value) for value in arguments))
