"""The worked examples of CONTRIBUTING.md run, and what they add works like what is built in."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox.kinds import kinds
from fxapprox.policies import policies

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Iterator[types.ModuleType]:
    """All blocks of one example, run as one module; what it registers is taken out again."""
    module = types.ModuleType(f"contributing_{request.param}")
    sys.modules[module.__name__] = module
    before = {id(registry): dict(registry.all()) for registry in (kinds, policies)}
    try:
        for block in re.findall(rf"```python {request.param}\n(.*?)```", TEXT, re.S):
            exec(compile(block, "CONTRIBUTING.md", "exec"), module.__dict__)
        yield module
    finally:
        for registry in (kinds, policies):
            registry._entries.clear()
            registry._entries.update(before[id(registry)])  # type: ignore[arg-type]
        del sys.modules[module.__name__]


@pytest.mark.parametrize("example", ["policy"], indirect=True)
def test_the_policy_serves_a_model(example: types.ModuleType) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(8, 16)
    fast = fxapprox.rewrite(model, (x,), policy="stratified", keep=0.5)
    fast(x).sum().backward()
    assert fast[0].weight.grad.ne(0).any(0).sum() <= 8  # half of the columns were drawn


@pytest.mark.parametrize("example", ["kind"], indirect=True)
def test_the_kind_is_found_in_a_model(example: types.ModuleType) -> None:
    model = nn.Sequential(example.Dense(16, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(8, 16)
    plan = fxapprox.plan(model, (x,), policy="topk", keep=0.5)
    assert [d.site.kind for d in plan.rewritten] == ["dense", "linear"]
    fast = fxapprox.rewrite(model, (x,), policy="topk", keep=0.5)
    fast(x).sum().backward()
    torch.testing.assert_close(fast.eval()(x), model.eval()(x))
