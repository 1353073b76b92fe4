"""The promises together, over random models."""

from __future__ import annotations

import copy
import math
import pickle

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promises import SCOPES, assert_same, step
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox

# ---- and the promises together, over random models


class Step(nn.Module):
    """One random operation on [batch, width] or [batch, width, 4]."""

    def __init__(self, what: str, width: int, out: int) -> None:
        super().__init__()
        self.what = what
        match what:
            case "linear":
                self.fc = nn.Linear(width, out)
            case "function" | "matmul" | "addmm":
                self.weight = nn.Parameter(torch.randn(out, width) / math.sqrt(width))
                self.bias = nn.Parameter(torch.randn(out))
            case "conv":
                self.conv = nn.Conv1d(width, out, 3, padding=1, groups=math.gcd(width, out))
            case "norm":
                self.norm = nn.BatchNorm1d(width)
            case "residual":
                self.fc, self.unused = nn.Linear(width, width), nn.Linear(1, 1)
            case "attention":
                self.attention = nn.MultiheadAttention(width, 1, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        match self.what:
            case "linear":
                return self.fc(x)
            case "function":
                return F.linear(x, self.weight, self.bias)
            case "matmul":
                return x @ self.weight.t() + self.bias
            case "addmm":
                return torch.addmm(self.bias, x, self.weight.t())
            case "conv":
                return self.conv(x.unsqueeze(-1).expand(-1, -1, 4)).mean(-1)
            case "norm":
                return self.norm(x)
            case "residual":
                return x + torch.tanh(self.fc(x)) * (0.5 if self.training else 1.0)
            case "attention":
                y = x.unsqueeze(1).expand(-1, 3, -1)
                return self.attention(y, y, y, need_weights=False)[0][:, 0]
            case "dropout":
                return F.dropout(F.relu(x), 0.3, self.training)
            case _:
                batch, width = x.shape
                return x.view(batch, 1, width).flip(-1).reshape(batch, width)


KEEP_WIDTH = ("norm", "residual", "attention", "dropout", "shape")
WHATS = ("linear", "function", "matmul", "addmm", "conv", *KEEP_WIDTH)


@st.composite
def random_models(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(draw(st.integers(0, 100)))
    width = first = draw(st.integers(2, 9))
    steps: list[nn.Module] = []
    for what in draw(st.lists(st.sampled_from(WHATS), min_size=1, max_size=5)):
        out = width if what in KEEP_WIDTH else draw(st.integers(2, 9))
        steps.append(Step(what, width, out))
        width = out
    if draw(st.booleans()):  # one more layer, and a layer that shares its weight
        steps += [nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)]
        steps[-1].weight = steps[-3].weight
    return nn.Sequential(*steps), torch.randn(draw(st.integers(2, 5)), first)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_models(), st.sampled_from(["topk", "uniform", "pps"]), st.sampled_from(SCOPES))
def test_random_models_keep_the_promises(pair, policy, scope):
    model, x = pair
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    try:
        exact = fxapprox.rewrite(model, (x,), policy=policy, keep=1.0, scope=scope)
        fast = fxapprox.rewrite(model, (x,), policy=policy, keep=0.5, scope=scope)
    except fxapprox.NothingRewritten:
        return
    finally:
        assert torch.equal(torch.get_rng_state(), state)
        assert_same(dict(before.state_dict()), dict(model.state_dict()))
        assert model.training
    assert list(fast.state_dict()) == list(model.state_dict())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(fast.eval()(x), before.eval()(x))
    theirs, ours = step(model.train(), (x,), {}), step(exact.train(), (x,), {})
    assert_same(theirs[0], ours[0])
    assert_same(theirs[1], ours[1])
    clone = pickle.loads(pickle.dumps(fast.train()))
    one, other = step(fast, (x,), {}, 3), step(clone, (x,), {}, 3)
    assert_same(one[0], other[0])
    assert_same(one[1], other[1])
