"""Warnings that a plan earns: choices that theory or measurement says will hurt, and what to do instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .choices import Sampled
from .plan import Decision, PlanWarning

# the theorem speaks of an active sum c times the inactive one; 5 is the paper's example, not a measurement
ACTIVE_TO_INACTIVE = 5.0


def advise(decisions: Sequence[Decision]) -> tuple[PlanWarning, ...]:
    """Every warning that the decisions earn.

    [A]: Adelman et al. 2021. [E]: Ebrahimi, Advani, Asudeh, "Sampling-Based Techniques …", 2023."""
    chosen = [decision for decision in decisions if decision.choice is not None]
    found = (check(chosen) for check in _CHECKS)
    return tuple(warning for warning in found if warning is not None)


def _batch_norm(chosen: Sequence[Decision]) -> PlanWarning | None:
    """Running statistics describe the sampled network, evaluation runs the exact one: 13.6 points of
    test accuracy lost in a 5-epoch CIFAR-10 run with topk at keep 0.5."""
    hit = [d for d in chosen if d.site.norm_after is not None and _biased(_forward(d))]
    return _warning(
        "batch-norm",
        hit,
        "{count} before batch norm under an unscaled forward policy ({policies}): the running statistics "
        "will describe the sampled network, while evaluation runs the exact one",
        "re-estimate the statistics with exact forward passes before evaluating; center = true, or an "
        "unbiased policy such as pps, makes the shift smaller",
    )


def _crs_reused(chosen: Sequence[Decision]) -> PlanWarning | None:
    """[A] eq. 11: pairs drawn with replacement occur squared in the weight gradient."""
    hit = []
    for decision in chosen:
        sampled = _forward(decision)
        reused = decision.choice is not None and decision.choice.grad_weight == "reuse"
        if sampled is not None and sampled.policy.name == "crs" and reused:
            hit.append(decision)
    return _warning(
        "crs-reused",
        hit,
        "crs reused backward at {count}: the weight gradient is biased (Adelman et al. 2021, eq. 11)",
        'use bernoulli or pps with scope "forward", or crs with scope "backward"',
    )


def growth(layers: int, ratio: float = ACTIVE_TO_INACTIVE) -> float:
    """Relative error after `layers` sampled layers by [E] Theorem 2, ((c + 1)/c)^j − 1: linear
    activations, the active sum `ratio` = c times the inactive one. Infinite where floats end."""
    try:
        return float(((ratio + 1) / ratio) ** layers - 1)
    except OverflowError:
        return math.inf


def _deep_forward(chosen: Sequence[Decision]) -> PlanWarning | None:
    """Errors of consecutive forward-sampled layers multiply; past a relative error of 1 the
    approximation is larger than what it approximates (c = 5: from the fourth layer on)."""
    chain = longest_chain([d for d in chosen if _forward(d) is not None])
    error = growth(len(chain))
    if error <= 1:
        return None
    return _warning(
        "deep-forward",
        chain,
        f"forward sampling through {len(chain)} consecutive sites: predicted relative error "
        f"(6/5)^{len(chain)} − 1 = {error:.3g} (Ebrahimi et al. 2023, Theorem 2; assumes linear "
        "activations and an active sum 5 times the inactive one)",
        'sample fewer consecutive layers (a rule on depth), or backward only: scope = "backward"',
    )


def longest_chain(decisions: Sequence[Decision]) -> list[Decision]:
    """The longest run of these sites in which each reads the result of the one before directly."""
    by_id = {decision.site.id: decision for decision in decisions}
    length: dict[str, int] = {}
    before: dict[str, str | None] = {}
    # depth grows along every edge, except where a module is called again: those edges close no chain
    for site in sorted((decision.site for decision in decisions), key=lambda site: site.depth):
        previous = max(
            (other for other in site.after if other in length), key=length.__getitem__, default=None
        )
        before[site.id] = previous
        length[site.id] = 1 + (length[previous] if previous is not None else 0)
    chain: list[Decision] = []
    last = max(length, key=length.__getitem__, default=None)
    while last is not None:
        chain.append(by_id[last])
        last = before[last]
    return chain[::-1]


def _biased_backward(chosen: Sequence[Decision]) -> PlanWarning | None:
    """[A] Theorem 1 asks for unbiased gradients."""
    hit = [
        d
        for d in chosen
        if d.choice is not None
        and any(_biased(t) for t in (d.choice.grad_input, d.choice.grad_weight) if isinstance(t, Sampled))
    ]
    return _warning(
        "biased-backward",
        hit,
        "a biased policy draws gradients at {count} ({policies}): SGD's convergence rate "
        "(Adelman et al. 2021, Theorem 1) is proved for unbiased ones",
        "use an unbiased policy backward: pps, bernoulli, wta, crs or uniform",
    )


def _keeps_all(chosen: Sequence[Decision]) -> PlanWarning | None:
    """keep = 1 is obeyed, since it is asked for by name, and saves nothing."""
    hit = []
    for decision in chosen:
        sampled = _sampled(decision)
        if sampled and all(treatment.keep == 1 for treatment in sampled):
            hit.append(decision)
    return _warning(
        "keeps-all", hit, "keep = 1 at {count}: every pair is kept, nothing is saved", "set keep below 1"
    )


_CHECKS: tuple[Callable[[Sequence[Decision]], PlanWarning | None], ...] = (
    _batch_norm, _crs_reused, _deep_forward, _biased_backward, _keeps_all,
)  # fmt: skip


def _sampled(decision: Decision) -> list[Sampled]:
    choice = decision.choice
    treatments = (choice.forward, choice.grad_input, choice.grad_weight) if choice else ()
    return [treatment for treatment in treatments if isinstance(treatment, Sampled)]


def _forward(decision: Decision) -> Sampled | None:
    choice = decision.choice
    return choice.forward if choice is not None and isinstance(choice.forward, Sampled) else None


def _biased(sampled: Sampled | None) -> bool:
    return sampled is not None and sampled.keep < 1 and not sampled.policy.unbiased


def _warning(name: str, hit: Sequence[Decision], message: str, remedy: str) -> PlanWarning | None:
    """The warning for the sites hit, None where there are none. Braces in the message are filled in."""
    if not hit:
        return None
    names = sorted({sampled.policy.name for decision in hit for sampled in _sampled(decision)})
    count = f"{len(hit)} site{'s' * (len(hit) != 1)}"
    filled = message.format(count=count, policies=", ".join(names))
    return PlanWarning(name, filled, tuple(decision.site.id for decision in hit), remedy)
