"""adaptive-dropout: its probabilities, its own evaluation, what is left out backward."""

from __future__ import annotations

import copy

import pytest
import torch
from node_work import work_of
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.errors import RequestError
from fxapprox.passes.layers import sampled
from fxapprox.policies.adaptive_dropout import AdaptiveDropout


def layer(**options: float) -> nn.Linear:
    torch.manual_seed(0)
    return sampled(nn.Linear(8, 12), site="layer", policy="adaptive-dropout", **options)


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def test_nodes_are_kept_as_often_as_their_probability_says() -> None:
    module, draws = layer(alpha=2.0, beta=-0.5), 4000
    y = F.linear(X, module.weight, module.bias).detach()
    with torch.no_grad():
        results = torch.stack([module(X) for _ in range(draws)])
    kept = results.ne(0)
    assert torch.equal(results, torch.where(kept, y, torch.zeros(())))  # unscaled
    p = torch.sigmoid(2 * y - 0.5)
    z = (kept.double().mean(0) - p) / (p * (1 - p) / draws).sqrt()
    assert z.abs().max() < 5.5  # of 36 binomials: a false alarm has probability 36 · 4e-8


def test_evaluation_is_the_expectation_and_can_be_differentiated() -> None:
    module = layer(alpha=2.0, beta=-0.5).eval()
    x = X.clone().requires_grad_()
    y = F.linear(x, module.weight, module.bias)
    wanted = torch.sigmoid(2 * y - 0.5) * y
    found = module(x)
    torch.testing.assert_close(found, wanted)
    gradients = [
        torch.autograd.grad(one.square().sum(), (x, module.weight), retain_graph=True)
        for one in (found, wanted)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert module(X.view(1, 3, 8)).shape == (1, 3, 12)


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(12, 8)), nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(x, self.weight, self.bias))


def test_a_rewrite_says_that_evaluation_is_not_the_models() -> None:
    model = Calls()
    fast = fxapprox.rewrite(model, (X,), policy="adaptive-dropout", beta=1.0)
    assert not torch.allclose(fast.eval()(X), model.eval()(X))
    y = F.linear(X, model.weight, model.bias)
    torch.testing.assert_close(fast(X), F.relu(torch.sigmoid(y + 1) * y))
    told = fxapprox.summary(fast)
    assert "own-evaluation" in [warning["name"] for warning in told.facts["warnings"]]
    assert "evaluates in a way of its own" in " ".join(str(told).split())
    assert "own-evaluation" not in [w.name for w in fxapprox.plan(model, (X,), policy="dropout").warnings]


def test_nodes_that_no_example_keeps_are_left_out_backward() -> None:
    module = layer(beta=-1.0)
    torch.manual_seed(3)
    twin = copy.deepcopy(module)
    live = int(twin(X).ne(0).any(0).sum())
    assert 0 < live < 12
    torch.manual_seed(3)
    assert work_of(module, X) == [3 * 8 * 12, 2 * 3 * 8 * live]


def test_the_summary_counts_what_is_saved_and_what_is_not() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
    for rows, share in ((1, 0.5), (2, 0.75)):
        told = fxapprox.summary(
            fxapprox.plan(model, (torch.randn(rows, 8),), policy="adaptive-dropout")
        ).facts
        products = told["sites"][1]["products"]
        assert products["forward"]["flops_after"] == products["forward"]["flops"]
        for name in ("grad_input", "grad_weight"):
            assert products[name]["flops_after"] == round(products[name]["flops"] * share)


def test_nan_shows() -> None:
    module = layer(beta=-20.0)
    assert module(torch.full((2, 8), torch.nan)).isnan().all()


def test_options_must_be_finite() -> None:
    with pytest.raises(RequestError, match="alpha = inf is not finite"):
        AdaptiveDropout(alpha=float("inf"))
    for beta in (-800.0, 800.0):
        assert 0 < AdaptiveDropout(beta=beta).own_keep < 1
