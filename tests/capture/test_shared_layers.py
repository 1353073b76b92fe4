"""A layer without a weight that serves several places does not tie them together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxapprox


class Shared(nn.Module):
    """One activation and one normalisation for three layers, as torchvision's residual blocks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.act, self.norm = nn.ReLU(), nn.BatchNorm1d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(self.norm(layer(x)))
        return x


def test_depth_counts_through_a_shared_activation() -> None:
    plan = fxapprox.plan(Shared(), (torch.randn(4, 6),), policy="topk")
    assert [(site.depth, site.height) for site in plan.sites] == [(0, 2), (1, 1), (2, 0)]
    assert [site.after for site in plan.sites] == [(), ("layers.0",), ("layers.1",)]
    assert all(site.norm_after for site in plan.sites)
