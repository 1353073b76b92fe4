"""Batch normalisation between what training samples and evaluation computes exactly."""

from __future__ import annotations

from collections.abc import Iterator

from ..plan import Decision
from ._base import Context, Found, biased, count, forward_of, policies_of, warning

_SHOWN = 4  # norms that the warning names; the summary's facts name all


@warning("batch-norm")
def batch_norm(context: Context) -> Iterator[Found]:
    """Running statistics describe the sampled network, evaluation runs the exact one: 14 points of test
    accuracy that re-estimation gave back to a wide residual network on CIFAR-10, topk at keep 0.5
    (docs/evidence.md). A schedule that ends exact ends with statistics of the exact network."""
    hit = [d for d in context.chosen if d.site.norm_after is not None and _lasting(d)]
    norms = list(dict.fromkeys(d.site.norm_after for d in hit if d.site.norm_after is not None))
    if hit:
        more = f" and {len(norms) - _SHOWN} more" if len(norms) > _SHOWN else ""
        yield Found(
            hit,
            f"{count(hit)} before batch norm ({', '.join(norms[:_SHOWN])}{more}) under an unscaled forward "
            f"policy ({policies_of(hit)}): the running statistics will describe the sampled network, while "
            "evaluation runs the exact one",
            "end exact, with the last fifth of the steps, say: keep = { from = 0.5, exact_after = … }; or "
            "re-estimate the statistics by exact passes before evaluating (fxapprox.reestimate_batchnorm); "
            "center = true, or an unbiased policy such as pps, makes the shift smaller",
        )


def _lasting(decision: Decision) -> bool:
    """Whether the forward product is biased, and is so to the end."""
    forward = forward_of(decision)
    return forward is not None and biased(forward) and not forward.ends_exact
