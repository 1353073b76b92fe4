"""A way to train a network, as data: what is sampled, how much of it and from when on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WIDTH, EPOCHS = 64, 6
ALWAYS = ((0.0, 1.0),)
CENTRED = {"policy": "topk", "center": True}
FORWARD, BACKWARD = {"policy": "topk"}, {"policy": "pps", "scope": "backward"}
GRAD_WEIGHT = {"policy": "pps", "scope": "grad-weight"}


@dataclass(frozen=True)
class Arm:
    """A way to train. `rule` says how products are sampled (none: exactly), `keeps` what share from which
    part of the steps on; `width` and `epochs` are smaller for what one would do instead."""

    rule: Mapping[str, Any] = field(default_factory=dict)
    keeps: tuple[tuple[float, float], ...] = ALWAYS
    width: int = WIDTH
    epochs: int = EPOCHS
    bfloat16: bool = False

    def keep(self, steps: int) -> float | dict[str, Any]:
        """`keep` as a rule has it, for a run of so many steps."""
        (_, first), *later = self.keeps
        at = {round(part * steps): value for part, value in later}
        return {"schedule": "step", "from": first, "at": at} if at else first

    @property
    def keys(self) -> dict[str, Any]:
        return {**vars(self), "rule": dict(self.rule), "keeps": [list(pair) for pair in self.keeps]}

    @property
    def phases(self) -> list[tuple[float, float]]:
        """(share of the steps, keep) of each phase."""
        starts = [*(part for part, _ in self.keeps), 1.0]
        return [(starts[i + 1] - part, keep) for i, (part, keep) in enumerate(self.keeps)]

    @property
    def column(self) -> str:
        """The accuracy that counts: with batch norm re-estimated where forward products are sampled to the
        end. The arm decides, and not which is higher."""
        return "reestimated" if self.forward and self.keeps[-1][1] < 1 else "accuracy"

    @property
    def forward(self) -> bool:
        """Whether forward products are sampled, too."""
        return bool(self.rule) and self.rule.get("scope", "forward") == "forward"

    def step(self, keep: float) -> str:
        """What one of its steps at this `keep` is called among those that are timed."""
        words = [*(f"{key} {value}" for key, value in self.rule.items()), f"width {self.width}"]
        return ", ".join([*words, *(["bfloat16"] if self.bfloat16 else []), f"keep {keep:g}"])


def then_exact(keep: float, after: float) -> tuple[tuple[float, float], ...]:
    return ((0.0, keep), (after, 1.0))


def sampled(rule: Mapping[str, Any], keep: float, after: float | None = None, **options: Any) -> Arm:
    return Arm(rule, ((0.0, keep),) if after is None else then_exact(keep, after), **options)
