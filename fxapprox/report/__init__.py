"""What was decided and done, told: `summary` for people, `facts` for scripts, `draw` for the eyes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import RequestError
from ..plan import Plan
from ..record import record_of
from .console import columns, text_of
from .drawing import draw
from .facts import facts, undecided
from .tables import summary_table

__all__ = ["Summary", "draw", "facts", "summary", "undecided"]


@dataclass(frozen=True, repr=False)
class Summary:
    """A summary that prints: `str()` gives the table at the terminal's width, `facts` the same as data."""

    facts: dict[str, Any]

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def text(self, width: int | None = None) -> str:
        """The table as plain text, no line longer than `width`."""
        width = width or columns()
        return text_of(summary_table(self.facts, width), width)


def summary(model_or_plan: nn.Module | Plan) -> Summary:
    """The summary of a rewritten model, or of a plan (which knows nothing of what lies outside sites).

    Raises RequestError for a model that `fxapprox.rewrite` did not return."""
    if isinstance(model_or_plan, Plan):
        return Summary(facts(model_or_plan))
    if not isinstance(model_or_plan, nn.Module):
        raise RequestError(
            f"cannot summarise {type(model_or_plan).__name__}",
            remedy="pass the model that fxapprox.rewrite returned, or a Plan",
        )
    record = record_of(model_or_plan)
    return Summary(facts(record.plan, record, warnings=record.warnings))
