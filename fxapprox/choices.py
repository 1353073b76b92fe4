"""What a site does: for each of its three products exact, reused from the forward draw, or sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from .policies import SCOPES, AnyPolicy, NodePolicy, Scope
from .schedules import Schedule
from .sites import PRODUCTS, Product, ProductName, Site

__all__ = [
    "SCOPES",
    "Choice",
    "Memory",
    "Sampled",
    "Scope",
    "Treatment",
    "drawn_from",
    "flops_after",
    "forgetful",
    "idle",
    "never_served",
    "unserved",
]


@dataclass(frozen=True)
class Memory:
    """Rows that a sampled weight gradient leaves out wait, and take part in later steps (Mem-AOP-GD,
    Hernandez, Rini, Duman 2021). A row that waits is multiplied by `decay` in (0, 1] a step."""

    decay: float = 1.0


@dataclass(frozen=True)
class Sampled:
    """One product under a policy. `keep` in (0, 1], or such a number at every step of training;
    k = max(min_k, floor(keep·n)), at most n. A policy with options of its own for the size (`sized_by`)
    says `keep` itself. `center` adds the control variate of the mean (forward product of a policy over
    pairs only), `memory` error feedback (grad_weight only)."""

    policy: AnyPolicy
    keep: float | Schedule = 0.5
    min_k: int = 1
    center: bool = False
    memory: Memory | None = None

    def __post_init__(self) -> None:
        if self.policy.own_keep is not None:
            object.__setattr__(self, "keep", self.policy.own_keep)

    def k(self, pairs: int, step: int = 0) -> int:
        """Pairs (or nodes) kept of `pairs` at a step. The product is exact where this equals `pairs`."""
        return self._floor(self.keep_at(step), pairs)

    def keep_at(self, step: int) -> float:
        """The share that is kept at a step."""
        return self.keep.keep_at(step) if isinstance(self.keep, Schedule) else self.keep

    @property
    def keeps_all(self) -> bool:
        """Whether keep = 1 at every step: asked for by name, and obeyed."""
        return self._span[0] == 1

    @property
    def ends_exact(self) -> bool:
        """Whether keep is 1 in the end."""
        return (self.keep.final if isinstance(self.keep, Schedule) else self.keep) == 1

    def range(self, pairs: int) -> tuple[int, int]:
        """The fewest and the most kept of `pairs` at any step."""
        least, most = self._span
        return self._floor(least, pairs), self._floor(most, pairs)

    @property
    def _span(self) -> tuple[float, float]:
        return self.keep.span if isinstance(self.keep, Schedule) else (self.keep, self.keep)

    def ks(self, pairs: int) -> tuple[tuple[int, float], ...]:
        """(kept of `pairs`, share of the steps) of a schedule: what averages are made of."""
        parts = self.keep.parts if isinstance(self.keep, Schedule) else ((self.keep, 1.0),)
        return tuple((self._floor(keep, pairs), share) for keep, share in parts)

    def _floor(self, keep: float, pairs: int) -> int:
        # the 1e-9 keeps floor(0.29 * 100) at 29 where 0.29 * 100 is 28.999999999999996
        return min(max(self.min_k, int(keep * pairs + 1e-9)), pairs)

    @property
    def size_in_words(self) -> str:
        """`keep 0.5`, or the options that stand in its place: `max_active 0.05`."""
        if not self.policy.sized_by:
            return f"keep {self.keep:g}"
        return ", ".join(f"{name} {getattr(self.policy, name):g}" for name in self.policy.sized_by)


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
        """The treatments a scope stands for (operators.md, "Where an approximation is applied"). A memory
        is the weight gradient's alone."""
        others = replace(sampled, memory=None)
        table: dict[str, tuple[Treatment, Treatment, Treatment]] = {
            "forward": (sampled, "reuse", "reuse"),
            "backward": ("exact", others, sampled),
            "grad-weight": ("exact", "exact", sampled),
            "straight-through": (sampled, "exact", "exact"),
        }
        return cls(*table[scope], scope=scope)

    def treatment(self, product: ProductName) -> Treatment:
        return getattr(self, product)

    def sampled(self, product: ProductName) -> Sampled | None:
        """What the product is sampled by, in the end: None for an exact one."""
        treatment = self.treatment(product)
        treatment = self.forward if treatment == "reuse" else treatment
        return treatment if isinstance(treatment, Sampled) else None


def flops_after(products: Mapping[ProductName, Product], choice: Choice | None, product: ProductName) -> int:
    """FLOPs of one product as chosen: k of n pairs or nodes; "reuse" goes through the forward's k.

    A centred forward adds its mean term, one row of the batch, to the products that go through it. Where
    keep follows a schedule this is the average over its steps, until it changes no more."""
    one = products[product]
    sampled = choice.sampled(product) if choice else None
    if choice is None or sampled is None or one.pairs == 0:
        return one.flops
    counted = drawn_from(products, "forward" if choice.treatment(product) == "reuse" else product, sampled)
    rows = max(products["grad_weight"].pairs, 1)
    mean = 1 / rows if sampled.center else 0.0

    def share(k: int) -> float:
        if k == counted.pairs:
            return 1.0
        return min(1.0, sampled.policy.work(product, k, counted.pairs, rows) + mean)

    return round(one.flops * sum(share(k) * weight for k, weight in sampled.ks(counted.pairs)))


def drawn_from(products: Mapping[ProductName, Product], product: ProductName, sampled: Sampled) -> Product:
    """What a policy chooses from: the product's pairs, or the site's output nodes."""
    return products["grad_input" if sampled.policy.samples == "nodes" else product]


def never_served(choice: Choice) -> str | None:
    """Why the choice can be carried out at no site whatever; None where it can at some."""
    for product in PRODUCTS:
        treatment = choice.treatment(product)
        if isinstance(treatment, Sampled) and treatment.policy.samples == "nodes":
            return _nodes_misplaced(choice, treatment)
    treatment = choice.grad_weight
    if isinstance(treatment, Sampled) and treatment.policy.scores == "weight":
        return (
            f"policy {treatment.policy.name!r} scores pairs by the weight, which is no operand of grad_weight"
            + (f" (scope {choice.scope!r} samples it)" if choice.scope != "per product" else "")
        )
    return None


def _nodes_misplaced(choice: Choice, sampled: Sampled) -> str | None:
    """Why output nodes cannot be sampled as the choice says; None where they can."""
    name, scopes = sampled.policy.name, sampled.policy.scopes
    words = " or ".join(f'"{scope}"' for scope in scopes)
    if sampled.center:
        return f"policy {name!r} samples output nodes: center is of sampled pairs, whose mean it adds"
    if choice.scope == "per product":
        return (
            f"policy {name!r} samples output nodes: all products of a site go through the same ones, so it "
            f"is named for the site, with scope {words}, not for one product"
        )
    if choice.scope not in scopes or choice != Choice.of_scope(choice.scope, sampled):
        return f'policy {name!r} samples output nodes: it serves scope {words}, not "{choice.scope}"'
    return None


def forgetful(policy: AnyPolicy) -> str | None:
    """Why a memory cannot go with the policy, None where it can: it must keep k rows as they are."""
    if policy.samples == "nodes":
        why = "chooses output nodes, not rows of the batch"
    elif policy.unbiased:
        why = "scales what it keeps to stand for the rest, which the memory would then apply a second time"
    elif policy.size != "k":
        why = "keeps a number of rows that is not k"
    else:
        return None
    return f"memory does not go with policy {policy.name!r}, which {why}"


def unserved(site: Site, choice: Choice) -> str | None:
    """Why the choice cannot be carried out at this site; None where it can."""
    reason = never_served(choice)
    if reason is not None:
        return reason
    for treatment in (choice.forward, choice.grad_input):
        if isinstance(treatment, Sampled) and isinstance(treatment.policy, NodePolicy):
            return treatment.policy.refuses(site)
    if site.weight is not None:
        return None
    if isinstance(choice.grad_weight, Sampled) and choice.grad_weight.memory:
        return (
            f"memory is for the gradient of a weight, and {site.op} here has no parameter among its operands"
        )
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
        treatment = choice.treatment(product)
        if not isinstance(treatment, Sampled):
            continue
        facts, nodes = drawn_from(site.products, product, treatment), treatment.policy.samples == "nodes"
        if product != "forward" and site.products[product].flops == 0 and site.products["forward"].flops > 0:
            reasons.append(f"a training step never computes {product} here")
        elif (
            (product == "grad_weight" and not nodes)
            or treatment.keeps_all
            or treatment.range(facts.pairs)[0] < facts.pairs
        ):
            return None
        else:
            reasons.append(
                f"{product} keeps all {facts.pairs} {treatment.policy.samples} "
                f"({facts.over}; keep {treatment.keep:g}, min_k {treatment.min_k})"
            )
    return "; ".join(reasons) or "every product is exact"
