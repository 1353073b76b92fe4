"""Constants that differ between traces, explained: by the mode, an argument, or the sizes of tensors."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from .facts import TensorFacts, facts_of
from .fits import Dimension, Fit, affine, equal, multiple, padding, quotient, rounded, shifted
from .frames import Frame
from .nests import Path

# How many earlier results are searched for a size; a constant of a long forward is rarely older.
REACH = 400

LIMITS = ("min", "max", "eps", "tiny")


@dataclass(frozen=True)
class Expression:
    """Source text with holes: `{0}.size(0)` over nodes, constants and other expressions."""

    template: str
    values: tuple[Any, ...] = ()


@dataclass(eq=False)
class Sample:
    """One traced call, as a list of nodes."""

    frame: Frame
    nodes: list[fx.Node] = field(default_factory=list)
    index: dict[fx.Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = list(self.frame.graph.nodes)
        self.index = {node: position for position, node in enumerate(self.nodes)}


def same(values: Sequence[Any]) -> bool:
    """Whether all constants are equal and of one type (`1` is not `True`, nan is nan)."""
    first = values[0]
    return all(
        type(value) is type(first) and (value == first or (value != value and first != first))
        for value in values
    )


class Solver:
    """Explains constants over the samples of one forward. Base names in expressions are of `samples[0]`."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.training = [sample.frame.training for sample in samples]
        self.named = samples[0].nodes  # whose names stand in expressions
        self._placeholders: list[Dimension] | None = None
        self._varying: dict[int, list[Dimension]] = {}

    def explain(self, values: Sequence[Any], position: int) -> Expression | None:
        """An expression that gives each sample its own of `values`, for the node at `position`."""
        if any(isinstance(value, fx.Node) for value in values):
            return None
        return (
            self._by_argument(values)
            or self._by_mode(values, position, sized=False)
            or self._by_size(values, position)
            or self._by_mode(values, position, sized=True)
        )

    def _by_argument(self, values: Sequence[Any]) -> Expression | None:
        for number, (node, path, _) in enumerate(self.samples[0].frame.scalars):
            given = self._argument(number)
            pairs = zip(given, values, strict=True)
            if not same(given) and all(type(a) is type(b) and a == b for a, b in pairs):
                return Expression("{0}" + _steps(path), (node,))
        return None

    def _by_mode(self, values: Sequence[Any], position: int, *, sized: bool) -> Expression | None:
        if len(set(self.training)) < 2:
            return None
        sides = []
        for mode in (True, False):
            kept = [number for number, training in enumerate(self.training) if training is mode]
            chosen = [values[number] for number in kept]
            if same(chosen):
                sides.append(chosen[0])
                continue
            found = self._within(kept)._by_size(chosen, position) if sized else None
            if found is None:
                return None
            sides.append(found)
        if sides == [True, False]:
            return Expression("self.training")
        if sides == [False, True]:
            return Expression("not self.training")
        return Expression("{0} if self.training else {1}", tuple(sides))

    def _within(self, kept: Sequence[int]) -> Solver:
        """A solver for some of the samples; its expressions name the base's nodes."""
        part = Solver([self.samples[number] for number in kept])
        part.named = self.named
        return part

    # ---- sizes

    def _by_size(self, values: Sequence[Any], position: int) -> Expression | None:
        if all(isinstance(value, torch.dtype) for value in values):
            return self._by_dtype(values, position)
        if all(type(value) is int for value in values):
            return self._integer(values, position)
        if all(type(value) is float for value in values):
            return self._float(values, position)
        return None

    def _by_dtype(self, values: Sequence[Any], position: int) -> Expression | None:
        for number in self._search_order(position):
            facts = [_tensor_facts(sample, number) for sample in self.samples]
            if all(f is not None and f.dtype == v for f, v in zip(facts, values, strict=True)):
                return Expression("{0}.dtype", (self.named[number],))
        return None

    def _integer(self, values: Sequence[int], position: int) -> Expression | None:
        near = [*self._operands(position), *self._inputs()]
        for fit in (equal, multiple, shifted):
            if (found := self._first(near, values, fit)) is not None:
                return found
        far = list(self._before(position))
        return (
            self._first(far, values, equal)
            or self._first(near, values, quotient)
            or self._product(near, values, position)
            or self._first(far, values, multiple)
            or self._first(far, values, shifted)
            or self._first(far, values, quotient)
            or self._first(near, values, rounded)
            or self._first([*near, *far], values, padding)
            or self._first(near, values, affine)
        )

    def _first(self, dimensions: list[Dimension], values: Sequence[int], fit: Fit) -> Expression | None:
        """The first dimension that `fit` can make the values of."""
        for dimension in dimensions:
            if (text := fit(dimension, values)) is not None:
                return self._at(dimension, text)
        return None

    def _at(self, dimension: Dimension, text: str) -> Expression:
        return Expression(text.replace("{d}", dimension.text), (self.named[dimension.position],))

    def _float(self, values: Sequence[float], position: int) -> Expression | None:
        near = [*self._operands(position), *self._inputs(), *self._before(position)]
        forms: tuple[tuple[str, Callable[[int], float]], ...] = (
            ("float({d})", float),
            ("1 / {d}", lambda size: 1 / size),
            ("{d} ** -0.5", lambda size: size**-0.5),
            ("{d} ** 0.5", math.sqrt),
        )
        for dimension in near:
            for text, function in forms:
                if all(size and function(size) == v for size, v in zip(dimension.sizes, values, strict=True)):
                    return self._at(dimension, text)
        return self._limit(values, position)

    def _limit(self, values: Sequence[float], position: int) -> Expression | None:
        """What torch.finfo says of the dtype of a tensor: the masks of attention hold its smallest number."""
        for number in self._search_order(position):
            facts = [_tensor_facts(sample, number) for sample in self.samples]
            if any(fact is None or not fact.dtype.is_floating_point for fact in facts):
                continue
            limits = [torch.finfo(fact.dtype) for fact in facts if fact is not None]
            for name in LIMITS:
                if all(getattr(one, name) == value for one, value in zip(limits, values, strict=True)):
                    return Expression(f"torch.finfo({{0}}.dtype).{name}", (self.named[number],))
        return None

    def _product(self, near: list[Dimension], values: Sequence[int], position: int) -> Expression | None:
        """A product of two numbers at hand, or of three sizes of an operand (batch · rows · columns)."""
        triples = itertools.combinations(list(self._operands(position)), 3)
        for chosen in itertools.chain(itertools.combinations(near, 2), triples):
            products = [math.prod(sizes) for sizes in zip(*(one.sizes for one in chosen), strict=True)]
            if not all(products) or len({one.sizes for one in chosen}) < 2:
                continue
            factor, rest = divmod(values[0], products[0])
            if factor and not rest and all(v == factor * p for v, p in zip(values, products, strict=True)):
                texts = [one.text.replace("{0}", f"{{{number}}}") for number, one in enumerate(chosen)]
                head = [str(factor)] if factor != 1 else []
                return Expression(" * ".join(head + texts), tuple(self.named[one.position] for one in chosen))
        return None

    def _search_order(self, position: int) -> list[int]:
        near = [d.position for d in (*self._operands(position), *self._inputs())]
        operands = [self.samples[0].index[n] for n in _nodes(self.samples[0].nodes[position])]
        inputs = [n for n, node in enumerate(self.samples[0].nodes) if node.op == "placeholder"]
        return list(
            dict.fromkeys([*operands, *inputs, *near, *range(position - 1, max(position - REACH, -1), -1)])
        )

    def _dimensions(self, number: int) -> list[Dimension]:
        """The dimensions of a node's tensor that vary over the samples."""
        if number not in self._varying:
            self._varying[number] = list(self._find_dimensions(number))
        return self._varying[number]

    def _find_dimensions(self, number: int) -> Iterator[Dimension]:
        facts = [_tensor_facts(sample, number) for sample in self.samples]
        shapes = [fact.shape for fact in facts if fact is not None]
        if len(shapes) == len(facts) and len({len(shape) for shape in shapes}) == 1:
            for axis, sizes in enumerate(zip(*shapes, strict=True)):
                if len(set(sizes)) > 1:
                    yield Dimension(number, f"{{0}}.size({axis})", sizes)

    def _operands(self, position: int) -> Iterator[Dimension]:
        base = self.samples[0]
        for node in _nodes(base.nodes[position]):
            yield from self._dimensions(base.index[node])

    def _inputs(self) -> list[Dimension]:
        if self._placeholders is None:
            found: list[Dimension] = []
            for number, node in enumerate(self.samples[0].nodes):
                if node.op == "placeholder" or _is_step_of_input(node):
                    found.extend(self._dimensions(number))
            found.extend(self._integers())
            self._placeholders = found
        return self._placeholders

    def _integers(self) -> Iterator[Dimension]:
        """Integer arguments that vary."""
        base = self.samples[0]
        for number, (node, path, _) in enumerate(base.frame.scalars):
            values = self._argument(number)
            if all(type(value) is int for value in values) and len(set(values)) > 1:
                yield Dimension(base.index[node], "{0}" + _steps(path), tuple(values))

    def _argument(self, number: int) -> list[Any]:
        """A constant argument of the forward, in each sample."""
        return [s.frame.scalars[number][2] if number < len(s.frame.scalars) else None for s in self.samples]

    def _before(self, position: int) -> Iterator[Dimension]:
        for number in range(position - 1, max(position - REACH, -1), -1):
            yield from self._dimensions(number)


def _steps(path: Path) -> str:
    return (
        "".join(f"[{key!r}]" if kind == "item" else f".{key}" for kind, key in path)
        .replace("{", "{{")
        .replace("}", "}}")
    )


def _nodes(node: fx.Node) -> list[fx.Node]:
    return list(node.all_input_nodes)


def _tensor_facts(sample: Sample, number: int) -> TensorFacts | None:
    value = facts_of(sample.nodes[number]).value if number < len(sample.nodes) else None
    return value if isinstance(value, TensorFacts) else None


def _is_step_of_input(node: fx.Node) -> bool:
    while node.op == "call_function" and node.target in (getattr, operator.getitem) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.op == "placeholder"


def depends_on_precision(samples: Iterator[Sample]) -> bool:
    """Whether a constant in these calls is a floating dtype or a limit of one, so may follow a tensor's."""

    def of_dtype(value: Any) -> bool:
        if isinstance(value, torch.dtype):
            return value.is_floating_point
        if isinstance(value, tuple | list):
            return any(of_dtype(item) for item in value)
        if isinstance(value, dict):
            return any(of_dtype(item) for item in value.values())
        return isinstance(value, float) and value in _ALL_LIMITS

    return any(of_dtype((node.args, node.kwargs)) for sample in samples for node in sample.nodes)


_ALL_LIMITS = {
    getattr(torch.finfo(dtype), name)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    for name in LIMITS
}
