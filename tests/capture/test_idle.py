"""Layers that the example inputs never run are told, and are counted nowhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.record import record_of


class Headed(nn.Module):
    """A head, another for a flag that the examples leave alone; attention, whose out_proj is no call."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head, self.spare = nn.Linear(8, 4), nn.Conv1d(8, 8, 1)
        self.aux_head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        self.tied, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor, aux: bool = False) -> Tensor:
        x = self.attention(x, x, x)[0]
        y = self.head(x) @ self.tied.weight.t()
        return y + self.aux_head(x) if aux else y


@pytest.mark.parametrize("front_end", ["trace", "modules"])
def test_layers_that_never_run_are_told(front_end):
    x = torch.randn(2, 5, 8)
    plan = fxapprox.plan(Headed(), (x,), policy="topk", front_end=front_end)
    assert not [site.id for site in plan.sites if "aux" in site.id or "spare" in site.id]
    fast = fxapprox.rewrite(Headed(), (x,), policy="topk", front_end=front_end)
    (note,) = (note for note in record_of(fast).notes if note.topic == "never run")
    assert note.message == (
        "spare (1 conv1d layer), aux_head (2 linear layers): the example inputs do not reach them in training"
    )
    told = fxapprox.summary(fast)
    assert "never run: spare (1 conv1d layer), aux_head (2 linear layers)" in " ".join(str(told).split())
    assert ("never run", note.message) in [(one["topic"], one["message"]) for one in told.facts["notes"]]


def test_many_are_counted():
    class First(nn.ModuleList):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    fast = fxapprox.rewrite(First(nn.Linear(4, 4) for _ in range(12)), (torch.randn(2, 4),), policy="topk")
    (note,) = (note for note in record_of(fast).notes if note.topic == "never run")
    assert note.message.startswith("1 (1 linear layer), 2 (1 linear layer), ")
    assert ", 8 (1 linear layer), and 3 more: " in note.message


def test_a_model_that_runs_all_of_its_layers_says_nothing():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    fast = fxapprox.rewrite(model, (torch.randn(2, 5, 8),), policy="topk")
    assert not [note for note in record_of(fast).notes if note.topic == "never run"]
