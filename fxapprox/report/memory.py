"""Bytes that sites keep of their inputs for the backward pass: one site's, and a model's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch

from ..capture._types import Edge, Operator
from ..choices import Choice
from ..plan import Decision
from ..sampling.rectifiers import SMALLEST
from ..sites import Site

RECTIFIERS = frozenset({"relu", "relu_", "leaky_relu", "leaky_relu_", "ReLU", "LeakyReLU"})
"""Operators that hold a bit for each entry where only sampled products read their result."""


class Graph(Protocol):
    """What a Capture and a Record know of the flow of data."""

    @property
    def operators(self) -> tuple[Operator, ...]: ...
    @property
    def edges(self) -> tuple[Edge, ...]: ...


def kept_bytes(site: Site, choice: Choice | None) -> tuple[int, int]:
    """Bytes of its input that a site keeps for the backward pass: (exact, as chosen).

    Only a site whose weight gradient goes through the pairs of the forward keeps the sampled part
    alone; nothing is kept for a weight that gets no gradient. A schedule counts with the step that
    keeps most: memory must hold that one, too."""
    if not site.products["grad_weight"].flops:
        return 0, 0
    whole = math.prod(site.input_shape) * _itemsize(site.dtype) * site.calls
    sampled = choice.sampled("forward") if choice else None
    forward = site.products["forward"].pairs
    cut = sampled is not None and sampled.policy.samples == "pairs" and forward
    if choice is None or sampled is None or choice.grad_weight != "reuse" or not cut:
        return whole, whole
    return whole, round(whole * sampled.range(forward)[1] / forward)


def kept_in_all(decisions: Iterable[Decision], graph: Graph | None) -> tuple[int, int]:
    """Bytes of their inputs that all sites keep: (exact, as chosen). With a graph a tensor that several
    sites read (a block and its shortcut) counts once where it is kept whole, and the bits of a ReLU before
    sampled sites count.

    What something else keeps of the same tensors (max pooling, an activation like tanh) is not known here, so
    the difference is the most there can be."""
    before = _before(graph)
    operators = {one.id: one.op for one in graph.operators} if graph else {}
    readers: dict[object, list[Decision]] = defaultdict(list)
    for decision in decisions:
        site = decision.site
        made_by = before.get(site.id.removesuffix(f".{site.part}") if site.part else site.id)
        readers[(made_by, site.input_shape) if made_by else site.id].append(decision)
    exact = chosen = 0
    for key, found in readers.items():
        kept = [kept_bytes(one.site, one.choice) for one in found]
        exact += max(whole for whole, _ in kept)
        chosen += max((whole for whole, part in kept if part == whole), default=0)
        chosen += sum(part for whole, part in kept if part < whole)
        entries = math.prod(found[0].site.input_shape)
        made_by = key[0] if isinstance(key, tuple) else ()
        rectified = any(operators[one] in RECTIFIERS for one in made_by)
        if rectified and entries >= SMALLEST and all(part < whole for whole, part in kept):
            chosen += entries // 8
    return exact, chosen


def _before(graph: Graph | None) -> Mapping[str, tuple[str, ...]]:
    """Operator → those whose results it reads."""
    found: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for edge in graph.edges if graph else ():
        found[edge.target] = (*found[edge.target], edge.source)
    return found


def _itemsize(dtype: str) -> int:
    found = getattr(torch, dtype.removeprefix("torch."), torch.float32)
    return found.itemsize if isinstance(found, torch.dtype) else 4
