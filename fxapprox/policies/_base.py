"""A policy: scores and k in, a Selection out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ..registry import Registry

Scores = Literal["pair", "weight", "none"]
Size = Literal["k", "about k", "all"]


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


class Policy(ABC):
    """A score, a draw and a scale. Subclasses are frozen dataclasses whose fields are their options.

    Class facts, set by the `policy` decorator: `name`; `source` (paper and section); `unbiased`
    (E[product] is the exact product); `random` (draws from the stream); `scores`: what the score
    is made of — "pair" is ‖A_i‖·‖B_i‖, "weight" is ‖B_i‖ where B is the layer's weight (so a product
    without the weight among its operands cannot be served), "none" passes a row of ones; `size`:
    "k" keeps exactly k pairs, "about k" a random number of mean k (rows are padded with pairs of scale
    0), "all" every pair. Where an option changes a fact (`scale="none"` makes `uniform` biased) the
    instance carries its own value, so read facts from the instance once there is one."""

    name: ClassVar[str]
    source: ClassVar[str]
    unbiased: ClassVar[bool]
    random: ClassVar[bool]
    scores: ClassVar[Scores]
    size: ClassVar[Size]

    @abstractmethod
    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        """Choose pairs.

        Args:
            scores: float32 or float64 `[groups, n]`, finite and not negative (what was NaN or inf
                in the operands arrives as the largest score of its row).
            k: pairs to keep per group, 1 ≤ k < n (k = n never arrives: that is the exact product).
            stream: random numbers; `stream.generator()` gives the one generator of this draw.
        """


policies: Registry[type[Policy]] = Registry("policy", "fxapprox.policies")
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
