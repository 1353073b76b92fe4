"""What a site does: for each of its three products exact, reused from the forward draw, or sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .policies import Policy
from .sites import ProductName

Scope = Literal["forward", "backward", "grad-weight", "straight-through", "per product"]
SCOPES: tuple[Scope, ...] = ("forward", "backward", "grad-weight", "straight-through")


@dataclass(frozen=True)
class Sampled:
    """One product under a policy. `keep` in (0, 1]; k = max(min_k, floor(keep·n)), at most n.
    `center` adds the control variate of the mean (forward product only)."""

    policy: Policy
    keep: float = 0.5
    min_k: int = 1
    center: bool = False

    def k(self, pairs: int) -> int:
        """Pairs kept of `pairs`. The product is exact where this equals `pairs`."""
        # the 1e-9 keeps floor(0.29 * 100) at 29 where 0.29 * 100 is 28.999999999999996
        return min(max(self.min_k, int(self.keep * pairs + 1e-9)), pairs)


Treatment = Sampled | Literal["exact", "reuse"]
"""How one product is done. "reuse" (gradients only): through the pairs drawn forward, no second draw."""


@dataclass(frozen=True)
class Choice:
    """The three treatments of a site, and the name of the scope they came from."""

    forward: Treatment = "exact"
    grad_input: Treatment = "exact"
    grad_weight: Treatment = "exact"
    scope: Scope = "per product"

    @classmethod
    def of_scope(cls, scope: Scope, sampled: Sampled) -> Choice:
        """The treatments a scope stands for (operators.md, "Where an approximation is applied")."""
        table: dict[str, tuple[Treatment, Treatment, Treatment]] = {
            "forward": (sampled, "reuse", "reuse"),
            "backward": ("exact", sampled, sampled),
            "grad-weight": ("exact", "exact", sampled),
            "straight-through": (sampled, "exact", "exact"),
        }
        return cls(*table[scope], scope=scope)

    def treatment(self, product: ProductName) -> Treatment:
        return getattr(self, product)  # type: ignore[no-any-return]
