"""`dropout`: output nodes at random, the dropped ones not computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..sampling.draws import ascending, permutations
from ._base import Stream
from ._nodes import Active, Layer, NodePolicy, node_policy


@node_policy(
    "dropout",
    source="Ebrahimi et al. 2023, section 4.1 (p = 0.05)",
    unbiased=True,
    random=True,
    scores="none",
)
@dataclass(frozen=True)
class Dropout(NodePolicy):
    """Compute k output nodes, all equally likely, scaled by n/k.

    `keep` is the paper's p. One draw serves the whole batch, so that the chosen rows of the weight can be
    gathered and the dropped nodes cost nothing; and k is fixed, for a size that changes with every step
    makes kernels be planned anew. Each node is kept with probability k/n, as with independent draws."""

    def choose(self, layer: Layer, k: int, stream: Stream) -> Active:
        groups, nodes = layer.sizes
        index = ascending(permutations(groups, nodes, stream.generator(), layer.device)[:, :k])
        return Active(index, torch.full(index.shape, nodes / k, device=layer.device))
