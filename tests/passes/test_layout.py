"""Weights whose pairs lie together: strides change and nothing else does."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxapprox
from fxapprox.passes.layout import lay_out, with_outermost

X = torch.randn(5, 8)


def rewritten(model: nn.Module, *inputs: Tensor, **keys: Any) -> nn.Module:
    return fxapprox.rewrite(model, inputs or (X,), **{"policy": "topk", "keep": 0.5, **keys})


def laid_out(weight: Tensor) -> bool:
    return weight.stride(1) == max(weight.stride()) and weight.stride(1) != weight.stride(0)


@pytest.mark.parametrize(
    ("scope", "moved"),
    [("forward", True), ("straight-through", True), ("backward", False), ("grad-weight", False)],
)
def test_weights_that_are_cut_forward_have_their_pairs_outermost(scope: str, moved: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    fast = rewritten(model, scope=scope)
    assert [laid_out(layer.weight) for layer in (fast[0], fast[2])] == [moved] * 2
    assert model[0].weight.is_contiguous(), "the user's own is untouched"
    torch.testing.assert_close(dict(fast.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_a_convolution_keeps_what_its_weight_has_innermost() -> None:
    plain = with_outermost(torch.randn(6, 4, 3, 3), 1)
    last = with_outermost(torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last), 1)
    assert plain.stride() == (9, 54, 3, 1)
    assert last.stride() == (1, 54, 18, 6)
    assert with_outermost(plain, 1) is plain


def test_gradients_and_optimizer_state_take_the_strides_over() -> None:
    fast = rewritten(nn.Sequential(nn.Linear(8, 6), nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 4, 1)))
    optimizer = torch.optim.Adam(fast.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        fast(X).sum().backward()
        for layer in (fast[0], fast[2]):
            weight = layer.weight
            assert weight.grad is not None
            assert weight.grad.stride() == weight.stride()
        optimizer.step()
        assert optimizer.state[fast[0].weight]["exp_avg"].stride() == fast[0].weight.stride()


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), nn.Module.double]
)
def test_copies_and_casts_keep_the_strides(way: Any) -> None:
    fast = rewritten(nn.Sequential(nn.Linear(8, 6)))
    other = way(fast)
    assert laid_out(other[0].weight)
    torch.testing.assert_close(other[0].weight.double(), fast[0].weight.double())


def test_checkpoints_load_both_ways_into_the_strides_that_stand() -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    fast = rewritten(nn.Sequential(nn.Linear(8, 6)))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fast.load_state_dict(torch.load(file, weights_only=True))
    assert laid_out(fast[0].weight)
    assert torch.equal(fast[0].weight, model[0].weight)
    model.load_state_dict(fast.state_dict())
    assert model[0].weight.is_contiguous()


class Tied(nn.Module):
    """Two layers with one weight, and an embedding with that of a third."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.words, self.head = (
            nn.Linear(8, 8), nn.Linear(8, 8), nn.Embedding(12, 8), nn.Linear(8, 12),
        )  # fmt: skip
        self.second.weight = self.first.weight
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)) + self.words(torch.zeros(1, dtype=torch.long)))


def test_tied_layers_move_once_and_what_an_embedding_reads_does_not() -> None:
    fast = rewritten(Tied())
    assert fast.first.weight is fast.second.weight
    assert laid_out(fast.first.weight)
    assert fast.head.weight is fast.words.weight
    assert fast.head.weight.is_contiguous()


def test_weights_that_share_memory_or_are_computed_stay() -> None:
    fast = rewritten(
        nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)), parametrizations.weight_norm(nn.Linear(8, 8)))
    )
    flat = torch.randn(128)
    for layer, values in zip(fast, flat.split(64), strict=False):
        layer.weight = nn.Parameter(values.view(8, 8))
    lay_out(fast)
    assert [laid_out(layer.weight) for layer in fast[:3]] == [False, False, True]
    assert not laid_out(fast[3].parametrizations.weight.original1)
    assert fast[0].weight.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
