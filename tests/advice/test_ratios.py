"""c as it is measured: by hand on small layers, and without a trace on the user's model."""

import copy

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox.advice import growth
from fxapprox.api import planned
from fxapprox.capture import capture
from fxapprox.capture._types import Inputs
from fxapprox.capture.inputs import parse_inputs
from fxapprox.passes import ratios as measuring
from fxapprox.passes.ratios import ratios
from fxapprox.rules import Rule


def measured(model, *inputs, costly=False, **keys):
    found = capture(model, Inputs(inputs), origin="Net")
    decisions = planned(found, [Rule(**keys)]).rewritten
    return ratios(found, decisions, costly=costly)


def ones(layers, width):
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    for layer in model:
        nn.init.ones_(layer.weight)
        nn.init.constant_(layer.bias, 100.0)  # no part of the sums
    return model


def test_where_all_terms_are_equal_c_counts_them():
    found = measured(ones(3, 6), torch.ones(12, 6), policy="topk", keep=5 / 6)
    assert found.by_site == pytest.approx({"0": 5.0, "1": 5.0, "2": 5.0})


def test_the_prediction_is_what_happens_to_a_linear_network():
    # all activations are equal, so that active over inactive sum is 3 everywhere: keep 3 of 4
    model, x = ones(4, 4), torch.ones(16, 4)
    for layer in model:
        nn.init.zeros_(layer.bias)
    fast = fxapprox.rewrite(model, x, policy="topk", keep=0.75)
    exact, sampled = model(x), fast.train()(x)
    happened = ((exact - sampled).norm() / sampled.norm()).item()
    assert happened == pytest.approx(growth([3.0] * 4), rel=1e-5)
    (warning,) = (w for w in fxapprox.plan(model, x, policy="topk", keep=0.75).warnings)
    assert warning.name == "deep-forward"
    assert f"{happened:.3g}, with c = 3 measured on the example inputs" in warning.message


def test_it_is_the_ratio_of_norms():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 5)), torch.randn(20, 8)
    found = measured(model, x, policy="topk", keep=0.5)
    weight = model[0].weight.detach()
    order = (x.norm(dim=0) * weight.norm(dim=0)).argsort(descending=True)
    active, inactive = (x[:, part] @ weight[:, part].T for part in (order[:4], order[4:]))
    assert found.by_site["0"] == pytest.approx((active.norm() / inactive.norm()).item(), rel=1e-4)


class Twice(nn.Module):
    """A layer that runs twice, a function call, a product with dropout before it, a counter."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        x = self.norm(self.fc(self.fc(x)))
        return nn.functional.linear(self.drop(x), self.weight)


def test_every_site_is_measured_and_nothing_of_the_users_changes():
    torch.manual_seed(3)
    model, x = Twice().eval(), torch.randn(12, 8)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = measured(model, x, policy="pps")
    assert set(found.by_site) == {"fc", "linear_1"}
    assert all(0 < ratio < 20 for ratio in found.by_site.values())
    assert found == measured(model, x, policy="pps")  # from a seed of its own
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_keeps_all_it_can_loses_nothing():
    found = measured(nn.Sequential(nn.Linear(8, 4)), torch.randn(12, 8), policy="topk", keep=0.5, min_k=7)
    assert found.by_site["0"] > 1
    zero = measured(nn.Sequential(nn.Linear(8, 4)), torch.zeros(12, 8), policy="topk")
    assert zero.by_site["0"] == float("inf")


def test_a_schedule_is_measured_where_it_keeps_fewest():
    model, x = ones(3, 6), torch.ones(12, 6)
    keep = {"schedule": "linear", "from": 1.0, "to": 0.5, "steps": 100}
    assert measured(model, x, policy="topk", keep=keep).by_site == pytest.approx(dict.fromkeys("012", 1.0))


def test_why_it_is_not_measured(monkeypatch):
    model = nn.Sequential(nn.Linear(8, 4))
    found = capture(model, parse_inputs(["12x8"]), origin="Net")
    assert "random numbers" in ratios(found, planned(found, [Rule(policy="topk")]).rewritten).why_not
    monkeypatch.setattr(measuring, "FLOPS", 100)
    x = torch.ones(12, 8)
    assert "a forward takes 7.7e+02 FLOPs, more than 1e+02" in measured(model, x, policy="topk").why_not
    assert measured(model, x, policy="topk", costly=True).by_site
    monkeypatch.setattr(measuring, "FLOPS", 1e9)
    monkeypatch.setattr(measuring, "BYTES", 100)
    assert "the model holds 1.4e+02 bytes" in measured(model, x, policy="topk").why_not


def test_a_pass_that_fails_is_said_and_fails_nothing(monkeypatch):
    def broken(*_):
        raise ValueError("no copy today")

    monkeypatch.setattr(measuring, "carried_out", broken)
    plan = fxapprox.plan(
        nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), torch.ones(12, 8), policy="topk"
    )
    assert "assumed c = 5, not measured: ValueError: no copy today" in plan.warnings[0].message
