"""Layers and function calls that sample: still the layers they were, to users, pickle and torch."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from fxapprox.choices import Choice
from fxapprox.choices import Sampled as SampledProduct
from fxapprox.errors import RequestError
from fxapprox.kinds import Call, Operation, Refusal, recognise
from fxapprox.passes.layers import FunctionSite, Sampled, sample_module, sampled, sampled_function
from fxapprox.policies.topk import TopK

X = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))


def linear(**keys: Any) -> nn.Linear:
    torch.manual_seed(0)
    return sampled(nn.Linear(20, 10), site="layer", **{"policy": "pps", "keep": 0.5, **keys})


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved_and_loaded,
}


def test_a_sampled_layer_is_the_layer_it_was() -> None:
    plain = nn.Linear(20, 10)
    parameters = list(plain.parameters())
    layer = sampled(plain, site="layer", policy="topk")
    assert layer is plain
    assert isinstance(layer, nn.Linear)
    assert isinstance(layer, Sampled)
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert type(sampled(nn.Linear(3, 4), site="other", policy="crs")) is type(layer)
    assert not isinstance(nn.Linear(3, 4), Sampled)


def test_evaluation_is_exact_and_training_is_not() -> None:
    layer = linear()
    exact = F.linear(X, layer.weight, layer.bias)
    assert not torch.allclose(layer(X), exact)
    with torch.no_grad():
        assert not torch.allclose(layer(X), exact)
    assert torch.equal(layer.eval()(X), exact)


def test_seeds_and_draws() -> None:
    layer = linear()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = layer(X), layer(X)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    assert torch.equal(layer(X), first)
    assert torch.equal(layer(X), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("copied", COPIES)
def test_copies_go_on_where_the_layer_stands(copied: str) -> None:
    model = nn.Sequential(linear(), nn.ReLU(), sampled(nn.Linear(10, 4), site="2", policy="crs"))
    torch.manual_seed(0)
    model(X)
    twin = COPIES[copied](model)
    assert type(twin[0]) is type(model[0])
    assert torch.equal(twin(X), model(X))
    torch.manual_seed(0)
    seeded = twin(X)
    torch.manual_seed(0)
    assert torch.equal(seeded, model(X))
    assert torch.equal(twin.eval()(X), model.eval()(X))


def test_a_pickle_opens_in_another_process(tmp_path: Path) -> None:
    layer = linear()
    torch.manual_seed(0)
    torch.save((layer, X, layer(X)), tmp_path / "layer.pt")
    program = (
        "import sys, torch\n"
        "layer, x, wanted = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.manual_seed(0)\n"
        "assert torch.equal(layer(x), wanted) and isinstance(layer, torch.nn.Linear), layer\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "layer.pt")], check=True)


class Counting(nn.Linear):
    """A user's subclass with ways of its own: a required class keyword, state outside parameters."""

    def __init_subclass__(cls, *, mark: str) -> None:
        raise AssertionError("generated classes must not register")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "note": "packed"}


def test_subclasses_keep_their_ways() -> None:
    layer = sampled(Counting(20, 10), site="layer", policy="topk")
    assert isinstance(layer, Counting)
    twin = copy.deepcopy(layer)
    assert twin.note == "packed"
    assert torch.equal(twin(X), layer(X))


def test_hooks_forward_pre_hooks_and_dtypes_still_work() -> None:
    layer, seen = linear(policy="topk"), []
    layer.register_forward_hook(lambda *_: seen.append("after"))
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))  # type: ignore[func-returns-value]
    layer(X)
    assert seen == ["before", "after"]
    assert layer.double()(X.double()).dtype == torch.float64
    assert layer.bfloat16()(X.bfloat16()).dtype == torch.bfloat16


def power_steps(layer: nn.Module) -> Tensor:
    return layer.parametrizations.weight[0]._u.clone()  # type: ignore[union-attr,index]


def test_a_parametrized_weight_is_computed_once_a_forward() -> None:
    torch.manual_seed(0)
    plain = parametrizations.spectral_norm(nn.Linear(20, 10))
    layer = copy.deepcopy(plain)
    sampled(layer, site="layer", policy="topk", keep=1.0)
    for _ in range(3):
        assert torch.equal(layer(X), plain(X))
        assert torch.equal(power_steps(layer), power_steps(plain))
    assert torch.equal(copy.deepcopy(layer)(X), layer(X))


class Curious(type(recognise(module=nn.Linear(1, 1)))):  # type: ignore[misc]
    """A kind that looks at the weight more than once."""

    def operation(self, call: Call) -> Operation | Refusal:
        super().operation(call)
        return super().operation(call)


def test_a_kind_may_look_at_a_parametrized_weight_as_often_as_it_likes() -> None:
    torch.manual_seed(0)
    plain = parametrizations.spectral_norm(nn.Linear(20, 10))
    layer = copy.deepcopy(plain)
    sample_module(
        layer, site="l", kind=Curious(), choice=Choice.of_scope("forward", SampledProduct(TopK(), 1.0))
    )
    assert torch.equal(layer(X), plain(X))
    assert torch.equal(power_steps(layer), power_steps(plain))


def test_parametrizations_come_and_go_on_a_sampled_layer() -> None:
    layer = parametrizations.weight_norm(nn.Linear(20, 10))
    sampled(layer, site="layer", policy="topk", keep=0.5)
    layer(X).sum().backward()
    assert layer.parametrizations.weight.original1.grad is not None
    parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(layer, Sampled)
    assert list(layer.state_dict()) == ["bias", "weight"]
    parametrizations.weight_norm(layer)
    assert isinstance(layer, Sampled)
    assert not torch.allclose(layer(X), F.linear(X, layer.weight, layer.bias))
    parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(layer, Sampled)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weight_norm_by_hooks_works() -> None:
    layer = sampled(nn.utils.weight_norm(nn.Linear(20, 10)), site="layer", policy="topk")
    layer(X).sum().backward()
    assert layer.weight_g.grad is not None


def test_a_second_choice_replaces_the_first() -> None:
    layer = linear()
    kind = recognise(module=nn.Linear(1, 1))
    assert kind is not None
    sample_module(
        layer, site="layer", kind=kind, choice=Choice.of_scope("forward", SampledProduct(TopK(), 1.0))
    )
    assert torch.equal(layer(X), F.linear(X, layer.weight, layer.bias))


def test_gradients_of_a_layer_of_several_dimensions() -> None:
    layer = linear(policy="topk")
    x = torch.randn(2, 3, 20, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert int((layer.weight.grad.abs().sum(0) > 0).sum()) == 10  # type: ignore[union-attr]


def test_what_a_layer_does_is_printed() -> None:
    text = repr(linear(policy="topk", keep=0.25, center=True))
    assert text.startswith("SampledLinear(in_features=20, out_features=10, bias=True, policy=topk, keep=0.25")
    per_product = sampled(nn.Linear(3, 4), site="l", grad_weight={"policy": "topk", "keep": 0.5})
    assert "grad_weight=(policy=topk, keep=0.5" in repr(per_product)


def test_exact_leaves_the_layer_as_it_is() -> None:
    assert type(sampled(nn.Linear(3, 4), site="l", policy="exact")) is nn.Linear


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(RequestError, match="ReLU is not a layer"):
        sampled(nn.ReLU(), site="act", policy="topk")
    with pytest.raises(RequestError, match="unknown policy 'topkk'"):
        sampled(nn.Linear(3, 4), site="l", policy="topkk")
    with pytest.raises(RequestError, match="relu is not a function"):
        sampled_function(F.relu, site="act", policy="topk")


class Attending(nn.Module):
    """A forward with a call that holds two products, as a rewrite leaves it."""

    def __init__(self, parts: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.attend = sampled_function(F.scaled_dot_product_attention, site="attend", parts=parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, is_causal=True)


def test_parts_of_a_call_have_choices_of_their_own() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    exact = F.scaled_dot_product_attention(x, x, x, is_causal=True)
    nothing = Attending({"scores": {"policy": "topk", "keep": 1.0}})
    torch.testing.assert_close(nothing(x), exact)
    scores = Attending({"scores": {"policy": "pps", "keep": 0.5}})
    assert not torch.allclose(scores(x), exact)
    both = Attending({part: {"policy": "pps", "keep": 0.5} for part in ("scores", "values")})
    assert [part.stream.site for part in both.attend._fxapprox.parts.values()] == [
        "attend.scores",
        "attend.values",
    ]
    torch.testing.assert_close(both.eval()(x), exact)


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("function", [torch.matmul, F.linear, torch.addmm, F.conv2d, Tensor.__matmul__])
def test_function_sites_are_copied(copied: str, function: Callable[..., Tensor]) -> None:
    site = sampled_function(function, site="call", policy="topk")
    twin = COPIES[copied](site)
    assert isinstance(twin, FunctionSite)
    assert twin.function is function
    assert not twin.state_dict()


def test_a_function_site_follows_its_owner() -> None:
    owner = Attending({"values": {"policy": "topk", "keep": 0.5}})
    x = torch.randn(2, 5, 8)
    exact = F.scaled_dot_product_attention(x, x, x, is_causal=True)
    assert not torch.allclose(owner(x), exact)
    assert torch.equal(owner.eval()(x), exact)
    assert not torch.allclose(owner.train()(x), exact)


class Net(nn.Module):
    def __init__(self, **keys: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = sampled(nn.Conv2d(4, 6, 3), site="conv", **keys)
        self.fc = sampled(nn.Linear(6, 5), site="fc", **keys)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def losses(model: Callable[[Tensor], Tensor], net: nn.Module) -> list[Tensor]:
    """Outputs and gradients of two steps under one seed."""
    torch.manual_seed(3)
    x, seen = torch.randn(3, 4, 6, 6), []
    for _ in range(2):
        net.zero_grad()
        result = model(x)
        result.sin().sum().backward()
        seen += [result.detach(), *(p.grad.clone() for p in net.parameters())]  # type: ignore[union-attr]
    return seen


@pytest.mark.parametrize("keys", [{}, {"center": True}, {"scope": "backward"}], ids=str)
def test_deterministic_policies_compile_whole(keys: dict[str, Any]) -> None:
    net = Net(policy="topk", keep=0.5, **keys)
    wanted = losses(net, net)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for a, b in zip(losses(compiled, net), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_random_policies_break_the_graph_and_draw_the_same() -> None:
    net = Net(policy="pps", keep=0.5)
    wanted = losses(net, net)
    torch._dynamo.reset()
    for a, b in zip(losses(torch.compile(net, backend="aot_eager"), net), wanted, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="a random stream"):
        torch.compile(net, backend="aot_eager", fullgraph=True)(torch.randn(3, 4, 6, 6))


@pytest.mark.parametrize("policy", ["topk", "pps"])
def test_autocast(policy: str) -> None:
    layer = linear(policy=policy)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(X)
    assert result.dtype == torch.bfloat16
    result.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
