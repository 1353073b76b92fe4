"""What a rewritten model remembers of its making, and how to find it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .capture._types import Capture, Edge, Forward, Note, Operator
from .capture.watchers import Watcher
from .errors import RequestError
from .plan import Plan, PlanWarning

ATTRIBUTE = "_fxapprox_record"


@dataclass(frozen=True)
class Record:
    """Kept in the rewritten model's `__dict__`: pickled and copied with it, never in its state_dict."""

    plan: Plan
    forwards: Mapping[str, Forward]  # every captured forward, for emission
    installed: tuple[str, ...]  # paths of the modules that run their captured forward in memory
    notes: tuple[Note, ...]
    operators: tuple[Operator, ...]
    edges: tuple[Edge, ...]
    rung: str
    total_flops: int
    seconds: Mapping[str, float]
    warnings: tuple[PlanWarning, ...] = ()
    idle: frozenset[Watcher] = frozenset()  # hooks that captured forwards do not need

    @classmethod
    def of(cls, capture: Capture, plan: Plan, installed: tuple[str, ...]) -> Record:
        return cls(plan, capture.forwards, installed, capture.notes, capture.operators, capture.edges,
                   capture.rung, capture.total_flops, capture.seconds, idle=capture.idle)  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        return self  # nothing in it changes, and a copy of a large plan takes seconds

    def with_warnings(self, warnings: tuple[PlanWarning, ...]) -> Record:
        return replace(self, warnings=warnings)


def record_of(model: nn.Module) -> Record:
    """The record of a model that `fxapprox.rewrite` returned. Raises RequestError for any other."""
    record: Any = model.__dict__.get(ATTRIBUTE)
    if not isinstance(record, Record):
        raise RequestError(
            f"{type(model).__name__} was not made by fxapprox.rewrite",
            remedy="pass the model that fxapprox.rewrite returned",
        )
    return record
