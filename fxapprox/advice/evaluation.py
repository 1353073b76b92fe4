"""Policies whose evaluation is not the exact model's."""

from __future__ import annotations

from collections.abc import Iterator

from ._base import Context, Found, count, policies_of, treatments, warning


@warning("own-evaluation")
def own_evaluation(context: Context) -> Iterator[Found]:
    """A rewritten model evaluates as the user's does, except under such a policy: that must be said."""
    hit = [d for d in context.chosen if any(how.policy.evaluation == "own" for how in treatments(d))]
    if hit:
        yield Found(
            hit,
            f"{count(hit)} under a policy that evaluates in a way of its own ({policies_of(hit)}): "
            "evaluation uses the expectation over the nodes, not what the exact model computes",
            "for the exact model's evaluation load the state_dict into the model that was rewritten",
        )
