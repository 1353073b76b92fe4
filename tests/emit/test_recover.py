"""Constructor calls of torch's layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxapprox.emit.expressions import holes, printed
from fxapprox.emit.imports import Imports
from fxapprox.emit.recover import constructor, like

LAYERS = [
    "nn.Linear(3, 4)",
    "nn.Linear(3, 4, bias=False)",
    "nn.Linear(3, 4, dtype=torch.float64)",
    'nn.Conv2d(4, 4, 3, padding="same", groups=2)',
    'nn.Conv2d(3, 4, (3, 5), stride=2, padding=(1, 2), padding_mode="reflect")',
    "nn.ConvTranspose2d(3, 4, 2, stride=2)",
    "nn.BatchNorm1d(4, momentum=None, affine=False)",
    "nn.BatchNorm2d(4)",
    "nn.LayerNorm(4)",
    "nn.LayerNorm((4, 5), elementwise_affine=False)",
    "nn.GroupNorm(2, 4)",
    "nn.Embedding(3, 4, padding_idx=0)",
    "nn.Dropout(p=0.2)",
    "nn.ReLU(inplace=True)",
    'nn.GELU(approximate="tanh")',
    "nn.MaxPool2d(3, stride=2, padding=1)",
    "nn.AvgPool2d(2)",
    "nn.AdaptiveAvgPool2d((1, None))",
    "nn.Identity()",
    "nn.PReLU(num_parameters=4)",
    "nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True)",
    "nn.GRU(3, 4)",
    "nn.MultiheadAttention(8, 2, batch_first=True)",
    "nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, kdim=4)",
    "nn.Softmax(dim=-1)",
    "nn.Flatten()",
    "nn.Hardtanh(min_val=0, max_val=6)",
    'nn.Upsample(scale_factor=2.0, mode="bilinear")',
    "nn.PixelShuffle(2)",
    "nn.Bilinear(2, 3, 4)",
    "nn.ZeroPad2d(1)",
    "nn.CosineSimilarity()",
]


@pytest.mark.parametrize("text", LAYERS)
def test_the_call_is_found_again(text: str) -> None:
    layer = eval(text, {"nn": nn, "torch": torch})
    found = constructor(layer, type(layer), Imports())
    assert found is not None
    assert printed(found.build, iter([hole.text for hole in holes(found.build, "")])) == text


def test_a_layer_that_was_tampered_with_is_not_recovered() -> None:
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 2))
    assert constructor(layer, nn.Linear, Imports()) is None
    attention = nn.MultiheadAttention(8, 2)
    attention.out_proj.weight = nn.Parameter(torch.zeros(8, 4))
    assert constructor(attention, nn.MultiheadAttention, Imports()) is None
    attention.out_proj = nn.Sequential(nn.Linear(8, 8))  # type: ignore[assignment]
    assert constructor(attention, nn.MultiheadAttention, Imports()) is None


def test_likeness_looks_at_persistence_and_dtype() -> None:
    one, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    assert like(one, other)
    one.register_buffer("running_mean", torch.zeros(3), persistent=False)
    assert not like(one, other)
    assert not like(nn.Linear(2, 2).half(), nn.Linear(2, 2))
