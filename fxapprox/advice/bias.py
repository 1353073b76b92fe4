"""Combinations of policy and scope whose gradients are biased."""

from __future__ import annotations

from collections.abc import Iterator

from ..plan import Decision
from ._base import Context, Found, biased, count, forward_of, policies_of, reduces, treatments, warning

WITH_REPLACEMENT = ("crs", "wta")


@warning("reused-draw")
def reused_draw(context: Context) -> Iterator[Found]:
    """[A] eq. 11: with the pairs of the forward reused backward, the weight gradient holds products z_i z_j
    of two scales. Independent draws leave E[z_i z_j] = 1 (eq. 17: bernoulli adds an L2-like term only);
    k draws with replacement make it 1 − 1/k."""
    hit = [d for d in context.forward if _reuses(d)]
    if hit:
        k = min(_k(d) for d in hit)
        names = sorted({d.choice.forward.policy.name for d in hit})  # type: ignore[union-attr]
        yield Found(
            hit,
            f"{', '.join(names)} reused backward at {count(hit)}: the weight gradient is biased, its cross "
            f"terms by up to 1/k = {1 / k:.2g} (Adelman et al. 2021, eq. 11)",
            'use bernoulli with scope "forward" (its gradient is unbiased but for an L2-like term), or the '
            'same policy with scope "backward"',
        )


def _reuses(decision: Decision) -> bool:
    sampled = forward_of(decision)
    reused = decision.choice is not None and decision.choice.grad_weight == "reuse"
    return sampled is not None and reused and sampled.policy.name in WITH_REPLACEMENT


def _k(decision: Decision) -> int:
    sampled = forward_of(decision)
    assert sampled is not None
    return max(sampled.range(decision.site.channels)[0], 1)


@warning("biased-backward")
def biased_backward(context: Context) -> Iterator[Found]:
    """[A] Theorem 1 asks for unbiased gradients. A memory is another remedy: what is left out comes later."""
    hit = [
        d
        for d in context.chosen
        if d.choice is not None
        and any(biased(t) and not t.memory for t in treatments(d) if t is not d.choice.forward)
    ]
    if hit:
        yield Found(
            hit,
            f"a biased policy draws gradients at {count(hit)} ({policies_of(hit)}): SGD's convergence rate "
            "(Adelman et al. 2021, Theorem 1) is proved for unbiased ones",
            "use an unbiased policy backward: pps, bernoulli, wta, crs or uniform; or memory for grad_weight",
        )


@warning("keeps-all")
def keeps_all(context: Context) -> Iterator[Found]:
    """keep = 1 is obeyed, since it is asked for by name, and saves nothing."""
    hit = [d for d in context.chosen if not any(map(reduces, treatments(d)))]
    if hit:
        yield Found(
            hit, f"keep = 1 at {count(hit)}: every pair is kept, nothing is saved", "set keep below 1"
        )
