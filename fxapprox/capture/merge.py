"""Several traced calls of one module, made one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from .facts import TensorFacts, facts_of
from .solve import Expression, Sample, Solver, same


class Mismatch(Exception):
    """Two calls of a module do different things; `line` is where they part."""

    def __init__(self, message: str, line: str | None, value: Any = None) -> None:
        super().__init__(message)
        self.message, self.line, self.value = message, line, value


@dataclass
class Merged:
    """A forward that holds for all its samples: the first sample's nodes, with their arguments after
    constants that differ were explained."""

    samples: Sequence[Sample]
    arguments: dict[fx.Node, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def base(self) -> Sample:
        return self.samples[0]


def merge(samples: Sequence[Sample]) -> Merged:
    """One forward for all samples. Raises Mismatch where there is none."""
    base = samples[0]
    for other in samples[1:]:
        _same_steps(base, other)
    solver = Solver(samples)
    merged = Merged(samples)
    for position, node in enumerate(base.nodes):
        values = [(sample.nodes[position].args, sample.nodes[position].kwargs) for sample in samples]
        merged.arguments[node] = _unified(values, samples, solver, position)
    return merged


def _same_steps(base: Sample, other: Sample) -> None:
    for mine, theirs in zip(base.nodes, other.nodes, strict=False):
        if (
            mine.op != theirs.op
            or mine.target != theirs.target
            or facts_of(mine).regions != facts_of(theirs).regions
        ):
            line = facts_of(mine).line or facts_of(theirs).line or base.frame.line
            raise Mismatch(f"{_word(mine)} in one run, {_word(theirs)} in another", line)
    if len(base.nodes) != len(other.nodes):
        raise Mismatch("more operations in one run than in another", base.frame.line)
    for name, constant in base.frame.constants.items():
        if not torch.equal(constant, other.frame.constants[name]):
            raise Mismatch("a constant tensor that differs from run to run", base.frame.line)


def _unified(values: list[Any], samples: Sequence[Sample], solver: Solver, position: int) -> Any:
    first = values[0]
    node = samples[0].nodes[position]
    if isinstance(first, fx.Node):
        number = samples[0].index[first]
        for value, sample in zip(values, samples, strict=True):
            if not isinstance(value, fx.Node) or sample.index[value] != number:
                raise Mismatch(f"{_word(node)} of different operands", facts_of(node).line)
        return first
    if isinstance(first, tuple | list) and all(
        isinstance(value, tuple | list) and len(value) == len(first) for value in values
    ):
        items = [
            _unified([value[n] for value in values], samples, solver, position) for n in range(len(first))
        ]
        return tuple(items) if isinstance(first, tuple) else items
    if isinstance(first, dict) and all(
        isinstance(value, dict) and value.keys() == first.keys() for value in values
    ):
        return {key: _unified([value[key] for value in values], samples, solver, position) for key in first}
    if isinstance(first, slice) and all(isinstance(value, slice) for value in values):
        parts = ("start", "stop", "step")
        return slice(*(_unified([getattr(v, p) for v in values], samples, solver, position) for p in parts))
    if same(values):
        return _device(first, samples[0], node) if isinstance(first, torch.device) else first
    found = solver.explain(values, position)
    if found is None:
        raise Mismatch(f"{_word(node)} with {values[0]!r} in one run, {_other(values)!r} in another",
                       facts_of(node).line, first)  # fmt: skip
    return found


def _device(device: torch.device, sample: Sample, node: fx.Node) -> Any:
    """The device of a tensor at hand rather than that of the trace, so that the model can be moved."""
    inputs = [n for n in sample.nodes[: sample.index[node]] if n.op in ("placeholder", "get_attr")]
    for source in (*node.all_input_nodes, *inputs):
        value = facts_of(source).value
        if isinstance(value, TensorFacts) and value.device == device:
            return Expression("{0}.device", (source,))
    return device


def _other(values: Sequence[Any]) -> Any:
    return next((value for value in values if not same([values[0], value])), None)


def _word(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"self.{node.target}"
    if node.op == "output":
        return "return"
    return getattr(node.target, "__name__", str(node.target))
