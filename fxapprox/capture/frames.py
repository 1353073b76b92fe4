"""A frame: one call of a module, recorded as a local fx graph."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy
import torch
from torch import Tensor, fx, nn

from .facts import META, Attribute, Facts, Foreign, OddValue, Region, SiteName, described, facts_of
from .guards import Alias, Pattern, aliases, pattern_of
from .names import can_spell
from .nests import (
    Path,
    all_tensors,
    children,
    fingerprint,
    holders,
    is_object,
    is_plain,
    is_record,
    leaves,
)
from .objects import made
from .signatures import star
from .tree import Tree


@functools.lru_cache(maxsize=4096)
def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a forward without `self`; `(*args, **kwargs)` where it has none."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return _ANYTHING
    return found.replace(parameters=list(found.parameters.values())[1:])


_ANYTHING = inspect.Signature([
    inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
    inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
])  # fmt: skip


@dataclass
class Frame:
    """One call of the module at `path`. `recording` ends when something cannot be captured."""

    module: nn.Module
    path: str
    tree: Tree
    parent: Frame | None
    recording: bool
    grad: bool  # whether gradients were on when it began
    inference: bool
    training: bool = False
    graph: fx.Graph = field(default_factory=fx.Graph)
    signature: inspect.Signature = _ANYTHING
    regions: list[Region] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    scalars: list[tuple[fx.Node, Path, Any]] = field(default_factory=list)
    given: dict[str, Pattern] = field(default_factory=dict)
    aliases: tuple[Alias, ...] = ()
    reads: dict[Path, Pattern] = field(default_factory=dict)  # attributes that the forward looked at
    constants: dict[str, Tensor] = field(default_factory=dict)
    hints: dict[tuple[fx.Node, Path], str] = field(default_factory=dict)
    file: str | None = None
    line: str | None = None  # where it was called

    def __post_init__(self) -> None:
        self.training = self.module.training
        self._values: dict[int, tuple[fx.Node, Path]] = {}
        self._holders: dict[int, tuple[fx.Node, Path, Any]] = {}
        self._kept: list[Any] = []
        self._reached: dict[tuple[fx.Node, Path], fx.Node] = {}
        self._last_placeholder: fx.Node | None = None

    # ---- what comes in

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make a placeholder of every parameter of the user's forward and note what was passed."""
        forward = self.module.__dict__.get("forward")
        self.signature = signature_of(type(self.module).forward if forward is None else _plain(forward))
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError:
            self.signature = _ANYTHING  # a decorator takes other arguments than it shows
            bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, parameter in self.signature.parameters.items():
            node = self.graph.create_node("placeholder", star(parameter) + name, name=name)
            value = bound.arguments[name]
            node.meta[META] = Facts(described(value))
            self.given[name] = pattern_of(value)
            self._last_placeholder = node
            self._know_all(value, node, again=False)
            self.scalars += [(node, path, leaf) for path, leaf in leaves(value) if is_plain(leaf)]
        self.aliases = aliases(bound.arguments)

    def know(self, value: Tensor, node: fx.Node, path: Path = ()) -> None:
        """From now on `value` is what `path` leads to in the result of `node`."""
        self._values[id(value)] = (node, path)
        self._kept.append(value)

    def _know_all(self, value: Any, node: fx.Node, *, again: bool = True) -> None:
        """Know the tensors in `value`, and the containers and objects that hold them."""
        for path, tensor in all_tensors(value):
            if again or id(tensor) not in self._values:
                self.know(tensor, node, path)
        for path, holder in holders(value):
            if is_object(holder) or next(all_tensors(holder), None) is not None:
                self._holders[id(holder)] = (node, path, fingerprint(holder))
                self._kept.append(holder)

    def knows(self, tensor: Tensor) -> bool:
        return id(tensor) in self._values

    # ---- what is used

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that is this tensor. Raises Foreign where the frame cannot name it."""
        found = self._values.get(id(tensor))
        if found is not None:
            return self._reach(*found)
        if (thing := self.tree.thing_below(self.path, tensor)) is not None:
            return self._attribute(tensor, *thing)
        raise Foreign(tensor)

    def _attribute(self, thing: Any, target: str, steps: Path) -> fx.Node:
        node = self.graph.create_node("get_attr", target)
        node.meta[META] = Facts(described(thing) if not steps else None)
        if isinstance(thing, Tensor):
            self.know(thing, node, steps)
            return self._reach(node, steps)
        for step in steps:
            node = self._step(node, step)
        return node

    def _reach(self, node: fx.Node, path: Path) -> fx.Node:
        """The node at the end of `path`, with the steps to it right behind their source."""
        for length in range(1, len(path) + 1):
            key = (node, path[length - 1 : length])
            if key not in self._reached:
                anchor = self._last_placeholder if node.op == "placeholder" else node
                assert anchor is not None
                with self.graph.inserting_after(anchor):
                    self._reached[key] = self._step(node, path[length - 1])
            node = self._reached[key]
        return node

    def _step(self, node: fx.Node, step: tuple[str, Any]) -> fx.Node:
        kind, key = step
        made = self.graph.create_node(
            "call_function", operator.getitem if kind == "item" else getattr, (node, key)
        )
        source = facts_of(node)
        value = source.value
        try:
            value = value[key] if value is not None else None
        except (LookupError, TypeError):
            value = None
        made.meta[META] = Facts(value, source.regions, source.line)
        return made

    def hint(self, names: Mapping[str, Any]) -> None:
        """Remember what the user's code calls its tensors: {variable: value}."""
        for name, value in names.items():
            if isinstance(value, Tensor) and (known := self._values.get(id(value))) is not None:
                self.hints.setdefault(known, name)

    def hinted(self) -> dict[fx.Node, str]:
        """The user's names, by node."""
        found = {}
        for (node, path), name in self.hints.items():
            end: fx.Node | None = node
            for step in path:
                end = None if end is None else self._reached.get((end, (step,)))
            if end is not None and name.isidentifier():
                found[end] = name
        return found

    def constant(self, tensor: Tensor, real: Tensor) -> fx.Node:
        """Keep a tensor from outside as a constant of the forward."""
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = real
        node = self.graph.create_node("get_attr", name)
        node.meta[META] = Facts(described(tensor))
        self.know(tensor, node)
        return node

    def spelled(self, value: Any, *, making: bool = False) -> Any:
        """A nest of arguments as the graph holds them: nodes for tensors, constants as they are.

        With `making`, objects that came from nowhere are made anew from their attributes. Raises OddValue
        for what text cannot say, Foreign for tensors from elsewhere."""
        if isinstance(value, Tensor):
            return self.node_of(value)
        if type(value) is float and (thing := self.tree.number_at(self.path, value)) is not None:
            return Attribute(thing, value)
        held = self._holders.get(id(value))
        if held is not None and held[2] == fingerprint(value):  # as it came, nothing in it replaced
            return self._reach(held[0], held[1])
        if isinstance(value, numpy.generic):
            return value.item()
        if isinstance(value, slice):
            return slice(*(self.spelled(part) for part in (value.start, value.stop, value.step)))
        if is_plain(value):
            return value
        if type(value) in (tuple, list):
            return type(value)(self.spelled(item, making=making) for item in value)
        if type(value) is torch.Size:
            return tuple(value)
        if type(value) is dict:
            return {key: self.spelled(item, making=making) for key, item in value.items()}
        return self._spelled_object(value, making)

    def _spelled_object(self, value: Any, making: bool) -> Any:
        if isinstance(value, nn.Module) and (below := self.tree.module_below(self.path, value)):
            node = self.graph.create_node("get_attr", below)
            node.meta[META] = Facts()
            return node
        if (thing := self.tree.thing_below(self.path, value)) is not None:
            return self._attribute(value, *thing)
        inner = children(value)
        if inner is not None and can_spell(type(value)):
            return self._built(value, inner, making)
        if not isinstance(value, nn.Module | functools.partial) and can_spell(value):
            return value
        if making and is_object(value) and can_spell(type(value)):
            fields = {name: self.spelled(item, making=True) for name, item in value.__dict__.items()}
            node = self.graph.create_node("call_function", made, cast(Any, (type(value),)), fields)
            node.meta[META] = Facts(described(value), self.active_regions())
            return node
        raise OddValue(value)

    def _built(self, value: Any, inner: list[tuple[tuple[str, Any], Any]], making: bool) -> fx.Node:
        """A node that makes the container anew: `Output(logits=…)`, `OrderedDict([…])`."""
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if is_record(value):
            defaults = {f.name: f.default for f in dataclasses.fields(value) if f.init}
            kwargs = {
                name: self.spelled(item, making=making)
                for (_, name), item in inner
                if name in defaults and not (item is None and defaults[name] is None)
            }
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            args = tuple(self.spelled(item, making=making) for _, item in inner)
        elif isinstance(value, dict):
            args = ({key: self.spelled(item, making=making) for (_, key), item in inner},)
        else:
            args = ([self.spelled(item, making=making) for _, item in inner],)
        node = self.graph.create_node("call_function", type(value), args, kwargs)
        node.meta[META] = Facts(described(value), self.active_regions())
        return node

    # ---- what is recorded

    def active_regions(self) -> tuple[Region, ...]:
        """The regions entered within this frame that are active now, outermost first."""
        found = list(self.regions)
        if torch.is_inference_mode_enabled() != self.inference:
            found.insert(0, Region("inference_mode"))
        elif torch.is_grad_enabled() != self.grad:
            found.insert(0, Region("no_grad" if self.grad else "enable_grad"))
        return tuple(found)

    def record(
        self,
        op: str,
        target: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        line: str | None,
        site: SiteName | None = None,
    ) -> fx.Node:
        """Append a node and remember the tensors of its result."""
        node = self.graph.create_node(op, target, tuple(args), dict(kwargs))
        node.meta[META] = Facts(described(result), self.active_regions(), line, site)
        self._know_all(result, node)
        return node

    def close(self, result: Any) -> None:
        """Append the output. Raises OddValue or Foreign where the result cannot be spelled."""
        node = self.graph.create_node("output", "output", (self.spelled(result, making=True),))
        node.meta[META] = Facts(described(result))

    def number(self, name: str) -> int:
        self.counts[name] = self.counts.get(name, 0) + 1
        return self.counts[name]


def _plain(forward: Any) -> Callable[..., Any]:
    """The function behind a forward that was set on an instance, as if it took `self`."""
    function = getattr(forward, "__func__", None)
    return function if function is not None else functools.partial(_with_self, forward)


def _with_self(forward: Callable[..., Any], _self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)
