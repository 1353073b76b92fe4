"""A merged forward as source text: what a person would have written, with the user's own signature."""

from __future__ import annotations

import builtins
import keyword
import operator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ._types import FunctionCall
from .facts import Applied, Attribute, Region, SiteName, facts_of
from .merge import Merged
from .names import Imports, literal, name_of, tensor_method
from .solve import Expression
from .wording import (
    INFIX,
    INFIX_METHODS,
    PREFIX,
    VIEWS,
    common_regions,
    is_step,
    nodes_in,
    own_name,
    telling,
)

INDENT = "    "
RESERVED = {"self", "torch", "F", "operator", "math", *dir(builtins)}


class Unspellable(Exception):
    """A constant that has no text after all."""


@dataclass
class Body:
    """The text of one forward's body, and the sites in it."""

    lines: list[str]
    calls: list[FunctionCall] = field(default_factory=list)


class Printer:
    """Prints one merged forward. `placeholders`: whether recognised calls get a target of their own."""

    def __init__(
        self, merged: Merged, imports: Imports, *, placeholders: bool, constants: str = "_constant_"
    ) -> None:
        self.merged, self.imports, self.placeholders = merged, imports, placeholders
        self.constants = constants
        self.module = merged.base.frame.module
        self.nodes = merged.base.nodes
        self.hints = merged.base.frame.hinted()
        self.names: dict[fx.Node, str] = {}
        self.calls: list[FunctionCall] = []
        self._last_use: dict[fx.Node, int] = {}
        self._steps: dict[fx.Node, list[fx.Node]] = {}
        self._used_elsewhere: set[fx.Node] = set()
        self._live: dict[str, fx.Node] = {}

    def body(self) -> Body:
        self._find_uses()
        lines: list[str] = []
        open_regions: tuple[Region, ...] = ()
        for position, node in enumerate(self.nodes):
            if node.op == "placeholder":
                self._name_placeholder(node)
                continue
            text = self._statement(node, position)
            if text is None:
                continue
            regions = () if node.op == "output" else facts_of(node).regions
            shared = common_regions(open_regions, regions)
            for depth in range(shared, len(regions)):
                lines.append(INDENT * (depth + 1) + f"with {self._region(regions[depth])}:")
            open_regions = regions
            lines.append(INDENT * (len(regions) + 1) + text)
        return Body(lines, self.calls)

    # ---- uses and names

    def _find_uses(self) -> None:
        for position, node in enumerate(self.nodes):
            for used in nodes_in(self.merged.arguments[node]):
                self._use(used, position)
                if is_step(node) and self.merged.arguments[node][0][0] is used:
                    self._steps.setdefault(used, []).append(node)
                else:
                    self._used_elsewhere.add(used)

    def _use(self, node: fx.Node, position: int) -> None:
        self._last_use[node] = position
        if self._inline(node):  # what is printed in place uses its operands where it is printed
            for used in nodes_in(self.merged.arguments[node]):
                self._use(used, position)

    def _inline(self, node: fx.Node) -> bool:
        """Whether the node is printed in place: attributes of self, and what is taken out of them."""
        if node.op == "get_attr":
            return True
        return is_step(node) and isinstance(node.args[0], fx.Node) and self._inline(node.args[0])

    def _name_placeholder(self, node: fx.Node) -> None:
        name = str(node.target).lstrip("*")
        self.names[node] = name
        self._live[name] = node
        self.imports.taken.add(name)

    def _release(self, position: int) -> list[str]:
        """Names whose values are used here for the last time."""
        freed = [name for name, node in self._live.items() if self._last_use.get(node, -1) <= position]
        for name in freed:
            del self._live[name]
        return freed

    def _give_name(self, node: fx.Node, freed: list[str], wanted: str | None = None) -> str:
        name = self.hints.get(node) or wanted or self._wanted(node, freed)
        free, count = name, 1
        while free in self._live or free in self.imports.names or free in RESERVED:
            count += 1
            free = f"{name}_{count}"
        self.names[node] = free
        self._live[free] = node
        self.imports.taken.add(free)
        return free

    def _wanted(self, node: fx.Node, freed: list[str]) -> str:
        """The operand's name where it ends here and this is the next state of it; else what made it."""
        operands = [self.names[n] for n in nodes_in(self.merged.arguments[node]) if n in self.names]
        own = own_name(node)
        if operands and (own in VIEWS or own == "item"):
            return operands[0]
        keeps = node.target in INFIX or own in INFIX_METHODS or len(set(operands)) <= 1
        ended = [name for name in operands if name in freed]
        if keeps and ended and not (node.op == "call_module" and telling(own)):
            return ended[0]
        return own

    # ---- statements

    def _statement(self, node: fx.Node, position: int) -> str | None:
        if self._inline(node) or (is_step(node) and node in self.names):
            return None
        args, kwargs = self.merged.arguments[node]
        if node.op == "output":
            return f"return {self._value(args[0])}"
        text = self._call(node, args, kwargs)
        freed = self._release(position)
        if node.target is operator.setitem:
            return text
        steps = self._steps.get(node, [])
        value = facts_of(node).value
        if (
            steps
            and node not in self._used_elsewhere
            and isinstance(value, list)
            and self._unpacks(node, steps, value)
        ):
            by_item = {step.args[1]: step for step in steps}
            names = []
            for item in range(len(value)):
                step = by_item.get(item)
                names.append("_" if step is None else self._give_name(step, [], own_name(node) + f"_{item}"))
            return f"{', '.join(names)}{',' if len(names) == 1 else ''} = {text}"
        if node not in self._last_use:
            return text
        return f"{self._give_name(node, freed)} = {text}"

    def _unpacks(self, node: fx.Node, steps: list[fx.Node], value: list[Any]) -> bool:
        items = [step.args[1] for step in steps]
        return (
            len(value) <= 8
            and all(s.target is operator.getitem for s in steps)
            and len(set(items)) == len(items)
        )

    def _call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if node.op == "call_module":
            return f"{self._path(str(node.target))}({self._arguments(args, kwargs)})"
        site = facts_of(node).site
        if site is not None and self.placeholders:
            return f"{self._placeholder(node, site)}({self._arguments(args, kwargs)})"
        target = node.target
        assert callable(target)
        if isinstance(target, Applied):
            return f"{self._name(target.cls)}.apply({self._arguments(args, kwargs)})"
        if target is getattr:
            return f"{self._receiver(args[0])}.{args[1]}"
        if target is operator.getitem:
            return f"{self._receiver(args[0])}[{self._index(args[1])}]"
        if target is operator.setitem:
            return f"{self._receiver(args[0])}[{self._index(args[1])}] = {self._value(args[2])}"
        if target in INFIX and len(args) == 2 and not kwargs:
            return f"{self._operand(args[0])} {INFIX[target]} {self._operand(args[1])}"
        if target in PREFIX and len(args) == 1:
            return f"{PREFIX[target]}{self._operand(args[0])}"
        method = tensor_method(target)
        if method in INFIX_METHODS and len(args) == 2 and not kwargs and isinstance(args[0], fx.Node):
            return f"{self._operand(args[0])} {INFIX[INFIX_METHODS[method]]} {self._operand(args[1])}"
        if method is not None and args and isinstance(args[0], fx.Node):
            return f"{self._receiver(args[0])}.{method}({self._arguments(args[1:], kwargs)})"
        return f"{self._name(target)}({self._arguments(args, kwargs)})"

    def _placeholder(self, node: fx.Node, site: SiteName) -> str:
        name = name_of(node.target)
        if name is None:
            raise Unspellable(f"{node.target} cannot be imported by name")
        target = self.imports.bind_as(name, f"_call_{len(self.calls) + 1}_{site.function}")
        attribute = f"{site.function}_{site.number}"
        self.calls.append(FunctionCall(site.ids, ".".join(filter(None, name)), target, attribute))
        return target

    # ---- expressions

    def _name(self, value: Any) -> str:
        name = name_of(value)
        if name is None:
            raise Unspellable(f"{value} cannot be imported by name")
        return self.imports.use(name)

    def _arguments(self, args: Any, kwargs: Any) -> str:
        parts = [self._value(value) for value in args]
        plain = {
            key: value for key, value in kwargs.items() if key.isidentifier() and not keyword.iskeyword(key)
        }
        parts += [f"{key}={self._value(value)}" for key, value in plain.items()]
        if len(plain) < len(kwargs):
            rest = {key: value for key, value in kwargs.items() if key not in plain}
            parts.append(f"**{self._value(rest)}")
        return ", ".join(parts)

    def _value(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self._reference(value)
        if isinstance(value, Expression):
            return self._expression(value)
        if isinstance(value, Attribute):
            return self._path(value.target)
        if isinstance(value, tuple):
            inner = ", ".join(self._value(item) for item in value)
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        if isinstance(value, list):
            return f"[{', '.join(self._value(item) for item in value)}]"
        if isinstance(value, dict):
            return (
                "{"
                + ", ".join(f"{self._value(key)}: {self._value(item)}" for key, item in value.items())
                + "}"
            )
        if isinstance(value, slice):
            return f"slice({', '.join(self._value(part) for part in (value.start, value.stop, value.step))})"
        text = literal(value, self.imports)
        if text is None:
            raise Unspellable(f"{value!r} has no text")
        return text

    def _expression(self, value: Expression) -> str:
        if value.template.startswith("torch."):
            self.imports.use(("torch", ""))
        if "torch." in value.template:
            self.imports.use(("torch", ""))
        # operands of an operator in the template are names, sizes or constants: nothing binds weaker
        return value.template.format(*(self._operand(part) for part in value.values))

    def _operand(self, value: Any) -> str:
        text = self._value(value)
        loose = (isinstance(value, Expression) and " " in value.template) or text.startswith("-")
        return f"({text})" if loose else text

    def _receiver(self, value: Any) -> str:
        text = self._value(value)
        return text if isinstance(value, fx.Node) else f"({text})"

    def _index(self, value: Any) -> str:
        if isinstance(value, tuple) and value:
            inner = ", ".join(
                self._index(item) if not isinstance(item, tuple) else self._value(item) for item in value
            )
            return f"{inner}," if len(value) == 1 else inner
        if isinstance(value, slice):
            parts = [
                "" if part is None else self._value(part) for part in (value.start, value.stop, value.step)
            ]
            return ":".join(parts[:2]) + (f":{parts[2]}" if parts[2] else "")
        return self._value(value)

    def _reference(self, node: fx.Node) -> str:
        if node in self.names:
            return self.names[node]
        if node.op == "get_attr":
            target = str(node.target)
            if target in self.merged.base.frame.constants:
                return f"self.{target.replace('_constant_', self.constants)}"
            return self._path(target)
        if self._inline(node):
            args, kwargs = self.merged.arguments[node]
            return self._call(node, args, kwargs)
        raise AssertionError(f"{node} is used before it is made")

    def _path(self, path: str) -> str:
        """`self.layers[0].attn` for "layers.0.attn", from the module whose forward this is."""
        text = "self"
        here: nn.Module | None = self.module
        for part in path.split("."):
            if part.isidentifier() and not keyword.iskeyword(part):
                text += f".{part}"
            elif type(here).__module__.startswith("torch.nn.") and isinstance(
                here, nn.Sequential | nn.ModuleList
            ):
                text += f"[{part}]"
            else:
                text = f"getattr({text}, {part!r})"
            here = here._modules.get(part, here) if isinstance(here, nn.Module) else here
        return text

    def _region(self, region: Region) -> str:
        options = dict(region.options)
        torch_ = self.imports.use(("torch", ""))
        if region.name != "autocast":
            return f"{torch_}.{region.name}()"
        given = [repr(options["device"])]
        if options["dtype"] is not None:
            given.append(f"dtype={literal(options['dtype'], self.imports)}")
        if not options["enabled"]:
            given.append("enabled=False")
        if not options["cache"]:
            given.append("cache_enabled=False")
        return f"{torch_}.autocast({', '.join(given)})"
