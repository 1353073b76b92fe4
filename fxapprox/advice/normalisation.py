"""Batch normalisation between what training samples and evaluation computes exactly."""

from __future__ import annotations

from collections.abc import Iterator

from ._base import Context, Found, biased, count, forward_of, policies_of, warning


@warning("batch-norm")
def batch_norm(context: Context) -> Iterator[Found]:
    """Running statistics describe the sampled network, evaluation runs the exact one: 13.6 points of
    test accuracy lost in a 5-epoch CIFAR-10 run with topk at keep 0.5."""
    hit = [d for d in context.chosen if d.site.norm_after is not None and biased(forward_of(d))]
    if hit:
        yield Found(
            hit,
            f"{count(hit)} before batch norm under an unscaled forward policy ({policies_of(hit)}): the "
            "running statistics will describe the sampled network, while evaluation runs the exact one",
            "re-estimate the statistics by exact passes before evaluating (fxapprox.reestimate_batchnorm); "
            "center = true, or an unbiased policy such as pps, makes the shift smaller",
        )
