"""Errors that grow with the number of sampled layers on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..plan import Decision
from ._base import Context, Found, Ratios, forward_of, warning
from ._paths import ASSUMED, growth, heaviest_path, weight

ALSH_LAYERS = 3


@warning("deep-forward")
def deep_forward(context: Context) -> Iterator[Found]:
    """[E] Theorem 2 along the path of forward-sampled layers that grows most. Past a relative error of 1
    the approximation is off by more than its own size (c = 5: from the fourth layer on)."""
    if not context.forward:
        return
    ratios = context.measure(context.forward)
    path, error = worst_path(context, ratios)
    if error > 1:
        through = f"{len(path)} sites one after the other" if len(path) > 1 else "1 site"
        yield Found(
            path,
            f"forward sampling through {through}: predicted relative error "
            f"{predicted(path, ratios, error)} (Ebrahimi et al. 2023, Theorem 2: linear layers whose terms "
            "have one sign; with both signs, or ReLUs, 2 to 13 times less was measured)",
            'sample fewer of them (a rule on depth), a larger keep, or backward only: scope = "backward"',
        )


def worst_path(context: Context, ratios: Ratios) -> tuple[list[Decision], float]:
    """The forward-sampled sites along which the error grows most, and the relative error at their end."""
    sampled = {decision.site.id for decision in context.forward}
    path = heaviest_path(
        context.decisions,
        lambda d: weight(ratios.by_site.get(d.site.id, ASSUMED)) if d.site.id in sampled else None,
    )
    return path, growth(ratios.by_site.get(d.site.id, ASSUMED) for d in path)


def predicted(path: Sequence[Decision], ratios: Ratios, error: float) -> str:
    """The prediction with the c that it was made from."""
    measured = [ratios.by_site[d.site.id] for d in path if d.site.id in ratios.by_site]
    if not measured:
        why = f", not measured: {ratios.why_not}" if ratios.why_not else ""
        return f"(6/5)^{len(path)} − 1 = {error:.3g}, with an assumed c = {ASSUMED:g}{why}"
    low, high = min(measured), max(measured)
    told = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
    rest = f", {ASSUMED:g} assumed at {len(path) - len(measured)}" if len(measured) < len(path) else ""
    return f"{error:.3g}, with c = {told} measured on the example inputs{rest}"


@warning("alsh-depth")
def alsh_depth(context: Context) -> Iterator[Found]:
    """[E]: 94.15% at 3 hidden layers, 25.14% at 7."""

    def by_alsh(decision: Decision) -> float | None:
        sampled = forward_of(decision)
        return 1.0 if sampled is not None and sampled.policy.name == "alsh" else None

    path = heaviest_path(context.decisions, by_alsh)
    if len(path) > ALSH_LAYERS:
        yield Found(
            path,
            f"alsh through {len(path)} layers one after the other, {ALSH_LAYERS} is what works: 94.15% test "
            "accuracy at 3 hidden layers, 25.14% at 7 (Ebrahimi et al. 2023)",
            f"keep alsh to {ALSH_LAYERS} of them (a rule on depth); with batches of 10 or more bernoulli and "
            'scope = "backward" has no such limit',
        )
