"""Paths through a model's sites, and how errors grow along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from ..plan import Decision

ASSUMED = 5.0
"""c where it is not measured: the example of [E]."""


def growth(ratios: Iterable[float]) -> float:
    """Relative error after sampled layers with these c_j by [E] Theorem 2, Π(1 + 1/c_j) − 1.

    The theorem: linear activations; the sum over a layer's active terms is c times that over the inactive
    ones, so each layer gives c/(c + 1) of what it should, and what is missing relative to what is there
    grows as ((c + 1)/c)^j − 1. Infinite where floats end."""
    total = sum(map(weight, ratios))
    return math.expm1(total) if total < 700 else math.inf


def weight(ratio: float) -> float:
    """log(1 + 1/c): what one layer adds to the logarithm of the growth."""
    return math.log1p(1 / ratio) if ratio > 0 else math.inf


def heaviest_path(decisions: Sequence[Decision], weigh: Callable[[Decision], float | None]) -> list[Decision]:
    """Along the path through the sites with the greatest sum of weights, the sites that have one.

    Sites that `weigh` gives None lie on paths and count nothing: an exact layer between two sampled ones
    passes the relative error of the first on."""
    total: dict[str, float] = {}
    before: dict[str, str | None] = {}
    by_id = {decision.site.id: decision for decision in decisions}
    weights = {decision.site.id: weigh(decision) for decision in decisions}
    # depth grows along every edge, except where a module is called again: those edges close no path
    for site in sorted((decision.site for decision in decisions), key=lambda site: site.depth):
        previous = max((other for other in site.after if other in total), key=total.__getitem__, default=None)
        before[site.id] = previous
        total[site.id] = (weights[site.id] or 0.0) + (total[previous] if previous is not None else 0.0)
    path: list[Decision] = []
    last = max(total, key=total.__getitem__, default=None)
    while last is not None:
        if weights[last] is not None:
            path.append(by_id[last])
        last = before[last]
    return path[::-1]
