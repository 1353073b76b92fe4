"""A policy: scores and k in, a Selection out. What samples output nodes instead is in `_nodes.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ..registry import Registry
from ..sites import ProductName

Scores = Literal["pair", "weight", "none", "hash", "result", "grad"]
Size = Literal["k", "about k", "all"]
Scope = Literal["forward", "backward", "grad-weight", "straight-through", "per product"]
SCOPES: tuple[Scope, ...] = ("forward", "backward", "grad-weight", "straight-through")


@dataclass(frozen=True)
class Selection:
    """Which pairs are kept, and what each is multiplied with.

    `index` int64 `[groups, k]`, ascending in each row; `scale` `[groups, k]` in the scores' dtype, or
    None for 1 everywhere; `unique` is False where an index may occur twice (draws with replacement).
    k is the same for every group; a draw of random size pads its rows with pairs of scale 0."""

    index: Tensor
    scale: Tensor | None = None
    unique: bool = True


class Stream(Protocol):
    """A source of random numbers that belongs to one site, one step and one product."""

    def generator(self) -> torch.Generator: ...


class AnyPolicy(ABC):
    """What every policy is: facts, and options. Subclasses are frozen dataclasses whose fields are options.

    Class facts, most of them set by the decorators `policy` and `node_policy`: `name`; `source` (paper and
    section); `unbiased` (E[product] is the exact product); `random` (draws from the stream); `samples`:
    "pairs" of the contracted dimension, or "nodes" of the output (rows of the weight); `scores`: what a
    choice goes by; `size`: "k" keeps exactly k, "about k" a random number of mean k, "all" everything;
    `scopes`: the scopes it can serve, the first of them its default; `sized_by`: options of its own that say
    how much is kept in place of `keep`, which is then an error; `evaluation`: "exact", or "own" where
    evaluation computes something else than the exact model does.

    Where an option changes a fact (`scale="none"` makes `uniform` biased) the instance carries its own
    value, so read facts from the instance once there is one."""

    name: ClassVar[str]
    source: ClassVar[str]
    unbiased: ClassVar[bool]
    random: ClassVar[bool]
    samples: ClassVar[Literal["pairs", "nodes"]]
    scores: ClassVar[Scores]
    size: ClassVar[Size]
    scopes: ClassVar[tuple[Scope, ...]] = SCOPES
    sized_by: ClassVar[tuple[str, ...]] = ()
    evaluation: ClassVar[Literal["exact", "own"]] = "exact"

    @property
    def own_keep(self) -> float | None:
        """The share that is kept, where the options in `sized_by` say it; None where `keep` does."""
        return None

    def work(self, product: ProductName, k: int, n: int, rows: int) -> float:
        """The expected share of the exact product's FLOPs when k of n are kept, for a batch of `rows`."""
        return k / n


class Policy(AnyPolicy):
    """A score, a draw and a scale for column-row pairs.

    `scores` says what the score is made of: "pair" is ‖A_i‖·‖B_i‖, "weight" is ‖B_i‖ where B is the
    layer's weight (so a product without the weight among its operands cannot be served), "none" passes a
    row of ones. A draw of size "about k" pads its rows with pairs of scale 0."""

    samples = "pairs"

    @abstractmethod
    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        """Choose pairs.

        Args:
            scores: float32 or float64 `[groups, n]`, finite and not negative (what was NaN or inf
                in the operands arrives as the largest score of its row).
            k: pairs to keep per group, 1 ≤ k < n (k = n never arrives: that is the exact product).
            stream: random numbers; `stream.generator()` gives the one generator of this draw.
        """


policies: Registry[type[AnyPolicy]] = Registry("policy", "fxapprox.policies")
P = TypeVar("P", bound=type[Policy])


def policy(
    name: str, *, source: str, unbiased: bool, random: bool, scores: Scores = "pair", size: Size = "k"
) -> Callable[[P], P]:
    """Register a policy under `name`, with the facts that tables and checks print."""

    def register(cls: P) -> P:
        cls.name, cls.source, cls.unbiased = name, source, unbiased
        cls.random, cls.scores, cls.size = random, scores, size
        policies.add(name, cls)
        return cls

    return register
