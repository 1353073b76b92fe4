"""What the gate finds at a site: how fast it would be sampled, and how that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

How = Literal["measured", "judged", "unmeasured"]


FASTER = 1.05
"""What a site must gain to be sampled. It is measured alone; among others, whose weights sweep the caches,
the calls around a sampled product cost a little more."""


@dataclass(frozen=True)
class Verdict:
    """Seconds of forward and backward of a site's calls in a training step, exact over sampled.

    `ratio` is the median over repetitions. "measured": on this machine with `threads` threads of torch,
    perhaps in an earlier process; "judged": the number is that of `by`, the call like it that is nearest in
    FLOPs, for there was no time; "unmeasured": there is none, and `by` says why."""

    how: How
    threads: int
    ratio: float | None = None
    by: str = ""

    @property
    def passes(self) -> bool:
        """Whether the site is sampled: where that was measured to be faster, or nothing was."""
        return self.ratio is None or self.ratio >= FASTER

    def __str__(self) -> str:
        """The sentence of a decision's reason: `would be 0.80×, left exact (gate: measured at 2 threads)`."""
        at = f"at {self.threads} thread{'s' * (self.threads != 1)}"
        if self.ratio is None:
            return f"not measured by the gate: {self.by}"
        source = f"judged by {self.by}, {at}" if self.how == "judged" else f"measured {at}"
        about = "about " if self.how == "judged" else ""
        if self.passes:
            return f"{about}{self.ratio:.2f}× (gate: {source})"
        return f"would be {about}{self.ratio:.2f}×, left exact (gate: {source})"

    def spelled(self) -> dict[str, Any]:
        """The table that `read_verdict` turns into this verdict."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


def read_verdict(table: Mapping[str, Any]) -> Verdict:
    """The verdict of a plan file. Raises TypeError or ValueError for a table that holds none."""
    verdict = Verdict(**table)
    if verdict.how not in get_args(How) or (verdict.ratio is None) != (verdict.how == "unmeasured"):
        raise ValueError(f"no verdict of the gate: {dict(table)}")
    return verdict
