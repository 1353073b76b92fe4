"""What is measured is what the model does: calls, their FLOPs, their limits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import CASES, built
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import fxapprox
from fxapprox.capture._types import Inputs
from fxapprox.choices import Choice, Sampled
from fxapprox.kinds import Operation
from fxapprox.kinds._convolution import Convolution
from fxapprox.kinds.linear import Rows
from fxapprox.measure import Budget, sampled_calls, time_call
from fxapprox.measure.calls import real
from fxapprox.measure.limit import limit
from fxapprox.policies import policies
from fxapprox.sites import PRODUCTS

ONCE = Budget(repeat=1)
TOPK = policies.get("topk")()
SCOPES = ("forward", "backward", "grad-weight", "straight-through")


class Twice(nn.Module):
    """A layer that runs twice, a pair of equal layers, a function call, a layer that stays exact."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.again = nn.Linear(8, 8)
        self.head = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x)).mean((2, 3))
        return F.linear(self.again(self.again(x)), self.head)


def twice(**keys: Any) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6)
    return fxapprox.rewrite(Twice(), (x,), **{"policy": "topk", **keys}), Inputs((x,))


def test_each_call_is_met_once_with_its_site_and_shapes() -> None:
    fast, inputs = twice()
    calls = sampled_calls(fast, inputs)
    assert [call.sites for call in calls] == [
        ("conv1",), ("conv2",), ("again",), ("again",), ("linear_1",)
    ]  # fmt: skip
    assert calls[0].contracted[0].left == (4, 8, 6, 6)
    assert calls[-1].output == (4, 4)


def test_equal_calls_have_one_key_and_unequal_ones_their_own() -> None:
    fast, inputs = twice()
    first, second, again, same, last = (call.key for call in sampled_calls(fast, inputs))
    assert first != second  # the images need no gradient, so the first product is never computed
    assert again == same
    assert len({first, second, again, last}) == 4
    other = [call.key for call in sampled_calls(twice(keep=0.25)[0], inputs)]
    assert not {first, second, again, last} & set(other)
    half = Inputs((inputs.args[0][:2],))
    assert again not in [call.key for call in sampled_calls(fast, half)]
    fast.to(memory_format=torch.channels_last)
    assert second not in [call.key for call in sampled_calls(fast, inputs)]


@pytest.mark.parametrize("scope", SCOPES)
def test_flops_are_those_of_the_plan(scope: str) -> None:
    fast, inputs = twice(scope=scope)
    sites = {site["id"]: site for site in fxapprox.summary(fast).facts["sites"]}
    for call in sampled_calls(fast, inputs):
        site = sites[call.sites[0]]
        times = site["calls"]
        assert (call.flops * times, call.flops_after * times) == (site["flops"], site["flops_after"])


@pytest.mark.parametrize("name", CASES)
def test_every_call_of_real_models_can_be_made_again(name: str) -> None:
    model, args, kwargs = built(name)
    fast = fxapprox.rewrite(model, args, kwargs, policy="pps", keep=0.5)
    calls = sampled_calls(fast, Inputs(args, kwargs))
    assert {site for call in calls for site in call.sites} <= {
        decision.site.id for decision in fast._fxapprox_record.plan.rewritten
    }
    for call in {call.key: call for call in calls}.values():
        times = time_call(call, ONCE)
        assert times.limit is not None
        assert times.exact.best.median > 0
        assert times.ours.timings.keys() == times.exact.timings.keys() == times.limit.timings.keys()


@pytest.mark.parametrize("norm", ["weight", "spectral", "old"])
def test_layers_with_computed_weights(norm: str) -> None:
    layer: Any = nn.Conv2d(8, 8, 3)
    layer = {
        "weight": parametrizations.weight_norm,
        "spectral": parametrizations.spectral_norm,
        "old": nn.utils.weight_norm,
    }[norm](layer)
    model, x = nn.Sequential(layer), torch.randn(2, 8, 5, 5)
    fast = fxapprox.rewrite(model, (x,), policy="topk")
    (call,) = sampled_calls(fast, Inputs((x,)))
    assert time_call(call, ONCE).limit is not None


def test_attention_is_one_call_with_two_products() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    x = torch.randn(2, 2, 8, 8, requires_grad=True)
    rule = fxapprox.Rule(kind="attention", policy="topk")
    fast = fxapprox.rewrite(Attention(), (x,), rules=[rule])
    (call,) = sampled_calls(fast, Inputs((x,)))
    assert call.sites == (
        "scaled_dot_product_attention_1.scores",
        "scaled_dot_product_attention_1.values",
    )
    assert time_call(call, ONCE).limit is not None


def test_the_modes_of_the_call_are_kept() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.still = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                x = self.low(x)
            with torch.no_grad():
                y = self.still(x.float())
            return x + y

    x = torch.randn(4, 8)
    fast = fxapprox.rewrite(Mixed(), (x,), policy="topk")
    half, still = sampled_calls(fast, Inputs((x,)))
    assert half.modes.autocast["cpu"] == torch.bfloat16
    assert not still.modes.grad
    assert still.flops == 2 * 4 * 8 * 8
    for call in (half, still):
        time_call(call, ONCE)


def test_convolutions_are_tried_in_both_formats_the_given_first() -> None:
    fast, inputs = twice()
    calls = sampled_calls(fast, inputs)
    assert list(time_call(calls[0], ONCE).exact.timings) == ["contiguous", "channels_last"]
    assert list(time_call(calls[0], ONCE, forms=False).exact.timings) == ["contiguous"]
    assert list(time_call(calls[2], ONCE).exact.timings) == ["contiguous"]
    last = Inputs((inputs.args[0].to(memory_format=torch.channels_last),))
    calls = sampled_calls(fast, last)
    assert list(time_call(calls[0], ONCE).exact.timings) == ["channels_last", "contiguous"]
    assert time_call(calls[0], ONCE, limit=False).reached is None


def test_nothing_of_the_model_changes() -> None:
    fast, inputs = twice(policy="pps")
    before, state = copy.deepcopy(fast.state_dict()), torch.get_rng_state()
    sites = {id(module): vars(module).get("_fxapprox") for module in fast.modules()}
    for call in sampled_calls(fast, inputs):
        time_call(call, ONCE)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
    assert all(parameter.grad is None for parameter in fast.parameters())
    assert {id(module): vars(module).get("_fxapprox") for module in fast.modules()} == sites
    torch.manual_seed(5)
    expected = copy.deepcopy(fast)(*inputs.args)
    torch.manual_seed(5)
    assert torch.equal(fast(*inputs.args), expected)


# the limit


def operation(kind: str) -> Operation:
    torch.manual_seed(0)
    if kind == "linear":
        left, right = torch.randn(16, 32, requires_grad=True), torch.randn(24, 32, requires_grad=True)
        return Operation(Rows(), left, right, torch.randn(24, requires_grad=True))
    left, right = torch.randn(8, 16, 6, 6, requires_grad=True), torch.randn(12, 16, 3, 3, requires_grad=True)
    return Operation(Convolution((1, 1), (1, 1), (1, 1)), left, right)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_limit_does_the_kept_flops_and_no_more(kind: str, scope: Any) -> None:
    """Counted by torch itself, while the limit runs."""
    given = operation(kind)
    choice = Choice.of_scope(scope, Sampled(TOPK, 0.25))
    arm = limit(given, choice)
    with FlopCounterMode(display=False) as counter:
        arm()
    one = given.bilinear.flops(tuple(given.left.shape), tuple(given.right.shape))
    parts = [0.25 if choice.sampled(product) else 1.0 for product in PRODUCTS]
    assert counter.get_total_flops() == sum(parts) * one


@pytest.mark.parametrize(("name", "scope"), [("dropout", "forward"), ("meprop", "backward")])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_limit_of_output_nodes(kind: str, name: str, scope: Any) -> None:
    given = operation(kind)
    choice = Choice.of_scope(scope, Sampled(policies.get(name)(), 0.5))
    arm = limit(given, choice)
    with FlopCounterMode(display=False) as counter:
        arm()
    one = given.bilinear.flops(tuple(given.left.shape), tuple(given.right.shape))
    assert counter.get_total_flops() == (1.5 if scope == "forward" else 2) * one


@pytest.mark.parametrize(("name", "scope"), [("dropout", "forward"), ("meprop", "backward")])
def test_node_policies_are_measured_like_others(name: str, scope: str) -> None:
    fast, inputs = twice(policy=name, scope=scope)
    sites = {site["id"]: site for site in fxapprox.summary(fast).facts["sites"]}
    for call in sampled_calls(fast, inputs):
        assert call.flops_after * sites[call.sites[0]]["calls"] == sites[call.sites[0]]["flops_after"]
        assert time_call(call, ONCE).limit is not None


def test_the_limit_computes_the_gradients_that_are_wanted() -> None:
    given = operation("linear")
    given.left.requires_grad_(False)
    arm = limit(given, Choice.of_scope("forward", Sampled(TOPK, 0.5)))
    with FlopCounterMode(display=False) as counter:
        arm()
    one = given.bilinear.flops((16, 32), (24, 32))
    assert counter.get_total_flops() == one  # half of two products
    arm = limit(given, Choice.of_scope("forward", Sampled(TOPK, 0.5)), grad=False)
    with FlopCounterMode(display=False) as counter:
        arm()
    assert counter.get_total_flops() == one / 2


def test_the_limit_keeps_the_memory_format() -> None:
    given = operation("conv")
    seen: list[Tensor] = []

    class Watched(Convolution):
        def forward(self, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
            seen.extend((left, right))
            return super().forward(left, right, bias)

    watched = Watched((1, 1), (1, 1), (1, 1))
    left = given.left.detach().to(memory_format=torch.channels_last)
    right = given.right.detach().to(memory_format=torch.channels_last)
    limit(Operation(watched, left, right), Choice.of_scope("forward", Sampled(TOPK, 0.5)))()
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in seen)
    assert {t.shape[1] for t in seen} == {8}


def test_the_exact_side_has_the_weights_of_an_exact_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that was laid out for gathering is slower to multiply by whole."""
    model = nn.Sequential(nn.Linear(8, 6))
    inputs = Inputs((torch.randn(4, 8),))
    fast = fxapprox.rewrite(model, inputs.args, policy="topk", keep=0.5, gate=False)
    call = sampled_calls(fast, inputs)[0]
    seen: dict[str, tuple[int, ...]] = {}
    exact, sampling = type(call.module._fxapprox.kind).exact, type(call.module).forward  # type: ignore[union-attr, arg-type]

    def noted(self: Any, one: Any) -> Any:
        seen.setdefault("exact", one.module.weight.stride())
        return exact(self, one)

    def ours(self: Any, x: Tensor) -> Any:
        seen.setdefault("ours", self.weight.stride())
        return sampling(self, x)

    monkeypatch.setattr(type(call.module._fxapprox.kind), "exact", noted)  # type: ignore[union-attr, arg-type]
    monkeypatch.setattr(type(call.module), "forward", ours)
    time_call(call, ONCE, forms=False, limit=False)
    usual = nn.Linear(8, 6).weight.stride()
    assert seen["exact"] == usual
    assert seen["ours"] == call.module.weight.stride() != usual  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (70, 1000)])
def test_operands_have_the_layout_of_those_that_were_met(shape: tuple[int, int]) -> None:
    shell = torch.empty(shape, device="meta").t().requires_grad_()
    made = real(shell, torch.device("cpu"))
    assert (made.shape, made.stride(), made.requires_grad) == (shell.shape, shell.stride(), True)
    assert made.is_leaf
    assert len(made.detach().t().unique(dim=0)) == shape[0]
