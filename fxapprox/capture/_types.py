"""What a capture holds. Plain data: it prints, compares and pickles; no fx graph outlives tracing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..sites import Site
from .guards import Guard, Read
from .watchers import Watcher


@dataclass(frozen=True)
class Inputs:
    """Example inputs: positional, then keyword; any nest of tensors and plain values. `drawn` where their
    values are random numbers that stand for no data."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    drawn: bool = False


@dataclass(frozen=True)
class FunctionCall:
    """A function site inside a captured forward: the source text that calls it is
    `{target}(` there, and a rewrite replaces that text by `self.{name}(`."""

    site_ids: tuple[str, ...]  # one id a part
    function: str  # importable name of the function, "torch.nn.functional.linear"
    target: str  # the unique placeholder in the source, e.g. "_call_3_linear"
    name: str  # the attribute that holds the sampled form, e.g. "linear_1"


@dataclass(frozen=True)
class Forward:
    """A module's forward as source text, captured: children stay calls of modules.

    `source` is the text of `def forward(self, ...)` (and of `def _forward_eval(self, ...)` where train
    and eval differ in structure), with the user's signature; `imports` binds every free name in it:
    name → (module, qualified name), qualified name "" for the module itself. It holds for arguments
    that fit `guard` and while `reads` are as they were; other calls are for the user's own forward."""

    path: str  # the module's path in the model, "" for the root
    source: str
    imports: Mapping[str, tuple[str, str]]
    calls: tuple[FunctionCall, ...]
    constants: Mapping[str, Any]  # attribute → tensor that the forward made out of nothing the trace saw
    guard: Guard | None = None
    reads: tuple[Read, ...] = ()  # attributes it was recorded with


@dataclass(frozen=True)
class Note:
    """Something a user must know of the capture. `topic`: "frozen", "opaque", "refused", "unchecked" (a
    part of the check that could not be made), "never run" (layers that are no sites)."""

    topic: str
    message: str
    module: str = ""
    source: str | None = None  # "file.py:12"


@dataclass(frozen=True)
class Edge:
    """Data that flows from one operation of the drawn graph to another."""

    source: str
    target: str


@dataclass(frozen=True)
class Operator:
    """A node of the drawn graph: any operation or leaf module of the forward, a site or not."""

    id: str
    op: str
    owner: str
    site: str | None
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Capture:
    """A model as fxapprox sees it.

    `rung` is the front-end that served: "trace" (every forward captured), "partial" (some modules
    keep the user's own forward: `opaque` notes say which and why) or "modules" (no graph: only layers
    are sites, their order from hooks)."""

    model: nn.Module  # the user's own, untouched
    inputs: Inputs
    origin: str  # what the user named: "model.py:Net", or the class
    rung: str
    sites: tuple[Site, ...]
    forwards: Mapping[str, Forward]  # by module path; inlined and opaque modules have none
    notes: tuple[Note, ...]
    operators: tuple[Operator, ...]
    edges: tuple[Edge, ...]
    total_flops: int  # of a training step: sites, and what lies outside them as far as it can be counted
    seconds: Mapping[str, float]  # by stage; "check" is mostly the user's model running
    idle: frozenset[Watcher] = frozenset()  # hooks that captured forwards do not need


@dataclass(frozen=True)
class SiteCall:
    """A recognised product as the trace met it, before depth and sharing are known.

    `sizes`: product name → (groups, pairs, what is contracted); `flops` is one product's in one call;
    `needs_grad`: whether (left, right) need a gradient, else that product is never computed."""

    id: str
    kind: str
    owner: str
    op: str
    call: int | None
    part: str
    operator: str  # id of the Operator node it stands in
    sizes: Mapping[str, tuple[int, int, str]]
    flops: int
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: str
    needs_grad: tuple[bool, bool]
    weight: str | None
    calls: int
    source: str | None
    refusal: str | None
    opt_in: bool


@dataclass(frozen=True)
class Traced:
    """What a front-end returns; `capture()` turns it into a checked Capture."""

    rung: str
    calls: tuple[SiteCall, ...]
    forwards: Mapping[str, Forward]
    notes: tuple[Note, ...]
    operators: tuple[Operator, ...]
    edges: tuple[Edge, ...]
    idle: frozenset[Watcher] = frozenset()  # hooks that captured forwards do not need
