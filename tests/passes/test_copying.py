"""Copies of models: by value, ties kept, and an error that names what cannot be copied."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn

from fxapprox.errors import CaptureError
from fxapprox.passes.copying import deep_copy


def test_ties_and_marks_of_parameters_are_kept():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].weight.no_weight_decay = True
    replica = deep_copy(model)
    assert replica[0].weight is replica[1].weight
    assert replica[0].weight is not model[0].weight
    assert replica[0].weight.no_weight_decay


def test_hooks_on_the_gradients_of_parameters_are_kept():
    model = nn.Linear(3, 3)
    model.weight.register_hook(lambda grad: 0 * grad)
    replica = deep_copy(model)
    replica(torch.randn(2, 3)).sum().backward()
    assert not replica.weight.grad.any()
    assert replica.bias.grad.any()


def test_a_weight_in_the_middle_of_a_graph_is_copied():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 4)))
    model(torch.randn(2, 3)).sum()  # leaves a tensor with a history in model[0].__dict__
    replica, x = deep_copy(model), torch.randn(2, 3)
    torch.testing.assert_close(replica(x), model(x))
    replica(x).sum().backward()
    assert replica[0].weight_g.grad is not None
    assert model[0].weight_g.grad is None


def test_a_cached_activation_is_copied():
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.seen: list[dict[str, torch.Tensor]] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append({"y": self.fc(x)})
            return self.seen[-1]["y"]

    model = Caching()
    model(torch.randn(2, 3))
    replica = deep_copy(model)
    assert replica.seen[0]["y"] is not model.seen[0]["y"]
    assert torch.equal(replica.seen[0]["y"], model.seen[0]["y"])


def test_parametrized_modules_are_copied():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    x = torch.randn(2, 3)
    assert torch.equal(deep_copy(model)(x), model(x))


def test_the_attribute_that_cannot_be_copied_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    model[1][0].guard = threading.Lock()
    with pytest.raises(CaptureError, match=r"attribute 'guard' of 1\.0 \(Linear\)"):
        deep_copy(model)
