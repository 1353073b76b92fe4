"""What a site does: for each of its three products exact, reused from the forward draw, or sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .policies import Policy
from .sites import PRODUCTS, ProductName, Site

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
        return getattr(self, product)


def never_served(choice: Choice) -> str | None:
    """Why the choice can be carried out at no site whatever; None where it can at some."""
    treatment = choice.grad_weight
    if isinstance(treatment, Sampled) and treatment.policy.scores == "weight":
        return (
            f"policy {treatment.policy.name!r} scores pairs by the weight, which is no operand of grad_weight"
            + (f" (scope {choice.scope!r} samples it)" if choice.scope != "per product" else "")
        )
    return None


def unserved(site: Site, choice: Choice) -> str | None:
    """Why the choice cannot be carried out at this site; None where it can."""
    reason = never_served(choice)
    if reason is not None or site.weight is not None:
        return reason
    for treatment in (choice.forward, choice.grad_input):
        if isinstance(treatment, Sampled) and treatment.policy.scores == "weight":
            return (
                f"policy {treatment.policy.name!r} scores pairs by the weight, "
                f"and {site.op} here has no parameter among its operands"
            )
    return None


def idle(site: Site, choice: Choice) -> str | None:
    """Why the choice samples nothing at this site, with the numbers; None where it samples something.

    grad_weight is contracted over the batch, whose size changes from step to step: how many pairs the
    example inputs have there decides nothing. `keep = 1` asks for all pairs by name, and is obeyed."""
    reasons = []
    for product in PRODUCTS:
        treatment, facts = choice.treatment(product), site.products[product]
        if not isinstance(treatment, Sampled):
            continue
        if product != "forward" and facts.flops == 0 and site.products["forward"].flops > 0:
            reasons.append(f"a training step never computes {product} here")
        elif product == "grad_weight" or treatment.keep == 1 or treatment.k(facts.pairs) < facts.pairs:
            return None
        else:
            reasons.append(
                f"{product} keeps all {facts.pairs} pairs "
                f"({facts.over}; keep {treatment.keep:g}, min_k {treatment.min_k})"
            )
    return "; ".join(reasons) or "every product is exact"
