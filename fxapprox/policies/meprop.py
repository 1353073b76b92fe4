"""`meprop`: the output nodes with the largest gradients."""

from __future__ import annotations

from dataclasses import dataclass

from ..sampling.draws import largest
from ._base import Stream
from ._nodes import Active, Layer, NodePolicy, node_policy


@node_policy(
    "meprop",
    source="Sun et al. 2017 (unified top-k)",
    unbiased=False,
    random=False,
    scores="grad",
    scopes=("backward",),
)
@dataclass(frozen=True)
class MeProp(NodePolicy):
    """Propagate the k columns of the output's gradient with the largest Σ|g| over the batch, unscaled.

    Both gradients go through the same columns; forward and bias gradient are exact. Biased."""

    def choose(self, layer: Layer, k: int, stream: Stream) -> Active:
        return Active(largest(layer.magnitudes, k))
