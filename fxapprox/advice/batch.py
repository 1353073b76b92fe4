"""Scores that a small batch cannot tell."""

from __future__ import annotations

from collections.abc import Iterator

from ..choices import Sampled
from ..plan import Decision
from ..sites import PRODUCTS
from ._base import Context, Found, count, policies_of, reduces, warning

LEAST = 10


@warning("small-batch")
def small_batch(context: Context) -> Iterator[Found]:
    """[E] §9.3: norms of rows from a batch under 10 do not tell which pairs matter."""
    rows = {d.site.id: found for d in context.chosen if (found := _fewest_rows(d)) < LEAST}
    hit = [d for d in context.chosen if d.site.id in rows]
    if hit:
        yield Found(
            hit,
            f"scores from norms over {min(rows.values()):g} rows at {count(hit)} ({policies_of(hit)}), the "
            f"batch of the example inputs: unreliable under {LEAST} (Ebrahimi et al. 2023, §9.3)",
            f"train with batches of {LEAST} or more (and give example inputs of that size), or use scores "
            "that need no batch: topk-weights, uniform",
        )


def _fewest_rows(decision: Decision) -> float:
    """How many rows the norms of a site's sampled products are taken over, for the fewest.

    A norm over the forward's left operand (the activations) has one entry for each example and position,
    and so has one over the gradient; for grad_weight the batch is what is chosen from."""
    site, choice = decision.site, decision.choice
    fewest = float("inf")
    for name in PRODUCTS if choice else ():
        treatment = choice.treatment(name) if choice else "exact"
        if not isinstance(treatment, Sampled) or not reduces(treatment) or treatment.policy.scores != "pair":
            continue
        facts = site.products[name]
        entries = 1
        for size in site.output_shape if name == "grad_input" else site.input_shape:
            entries *= size
        rows = facts.pairs if name == "grad_weight" else entries / max(facts.pairs * facts.groups, 1)
        fewest = min(fewest, rows)
    return fewest
