"""A model that is itself a layer: its one site has an id that a person can write."""

from __future__ import annotations

import runpy

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox.rules import explain

X = torch.randn(6, 8)


@pytest.mark.parametrize("front_end", ["trace", "modules"])
def test_the_id_serves_rules_plans_and_messages(front_end, tmp_path):
    model = nn.Linear(8, 4)
    rules = [fxapprox.Rule(path="model", policy="topk", keep=0.5)]
    plan = fxapprox.plan(model, (X,), rules=rules, front_end=front_end)
    assert [site.id for site in plan.sites] == ["model"]
    assert plan.sites[0].owner == ""
    assert explain(plan.sites, rules, "model").decision.rule == rules[0].label
    plan.save(tmp_path / "plan.toml")
    assert '[site."model"]' in (tmp_path / "plan.toml").read_text()
    fast = fxapprox.rewrite(model, (X,), rules=fxapprox.Plan.load(tmp_path / "plan.toml"))
    assert not torch.equal(fast(X), model(X))
    assert "model" in str(fxapprox.summary(fast))


def test_it_is_drawn_and_emitted(tmp_path):
    model = nn.Linear(8, 4)
    fast = fxapprox.rewrite(model, (X,), policy="topk", keep=0.5)
    record = fast.__dict__["_fxapprox_record"]
    assert [(one.id, one.site) for one in record.operators] == [("model", "model")]
    fxapprox.emit(fast, tmp_path / "emitted.py")
    assert '"model": TOPK_50' in (tmp_path / "emitted.py").read_text()
    again = runpy.run_path(str(tmp_path / "emitted.py"))["build_model"]()
    assert torch.equal(again(X), fast(X))
    torch.testing.assert_close(again.eval()(X), model(X))


def test_a_child_of_that_name_is_another_site(tmp_path):
    owner = nn.Sequential(nn.ReLU())
    owner.add_module("model", nn.Linear(8, 8))
    fast = fxapprox.rewrite(owner, (X,), policy="topk", keep=0.5)
    fxapprox.emit(fast, tmp_path / "child.py")
    again = runpy.run_path(str(tmp_path / "child.py"))["build_model"]()
    assert torch.equal(again(X), fast(X))
