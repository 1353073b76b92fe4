"""Plans carried out on a hand-made capture: what changes, what does not, and what is refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxapprox.api import planned, rewritten
from fxapprox.capture._types import Capture, Edge, Forward, FunctionCall, Inputs, Operator, SiteCall, Traced
from fxapprox.capture.analyse import sites_of
from fxapprox.errors import FxApproxError, NothingRewritten, PlanMismatch
from fxapprox.passes.layers import FunctionSite, Sampled
from fxapprox.record import record_of
from fxapprox.rules import Rule, rules_from


class Net(nn.Module):
    """A layer, a call of F.linear in the root's forward, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unused = nn.Linear(8, 8), nn.Linear(2, 2)
        self.weight = nn.Parameter(torch.randn(4, 8))
        self.tied = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.relu(self.fc(x)), self.weight)


SOURCE = """
def forward(self, x):
    fc = self.fc(x)
    relu = F.relu(fc)
    return _call_1_linear(relu, self.weight)
"""
IMPORTS = {"F": ("torch.nn.functional", ""), "_call_1_linear": ("torch.nn.functional", "linear")}
CALL = FunctionCall(("linear_1",), "torch.nn.functional.linear", "_call_1_linear", "linear_1")


def site_call(
    name: str, owner: str, op: str, call: int | None, shape: tuple[int, int], weight: str
) -> SiteCall:
    out, inner = shape
    sizes = {
        "forward": (1, inner, "in features"),
        "grad_input": (1, out, "out features"),
        "grad_weight": (1, 3, "batch"),
    }
    return SiteCall(
        id=name, kind="linear", owner=owner, op=op, call=call, part="", operator=name, sizes=sizes,
        flops=2 * 3 * inner * out, input_shape=(3, inner), weight_shape=shape, output_shape=(3, out),
        dtype="float32", needs_grad=(True, True), weight=weight, calls=1, source="net.py:3", refusal=None,
        opt_in=False,
    )  # fmt: skip


def captured(model: nn.Module | None = None, source: str = SOURCE) -> Capture:
    calls = (
        site_call("fc", "fc", "Linear", None, (8, 8), "fc.weight"),
        site_call("linear_1", "", "linear", 1, (4, 8), "weight"),
    )
    operators = tuple(Operator(call.id, call.op, call.owner, call.id, call.output_shape) for call in calls)
    traced = Traced(
        "trace", calls, {"": Forward("", source, IMPORTS, (CALL,), {})}, (), operators,
        (Edge("fc", "linear_1"),),
    )  # fmt: skip
    model = model or Net()
    sites = sites_of(traced, model)
    return Capture(
        model, Inputs((torch.randn(3, 8),)), "Net", "trace", sites, traced.forwards, (), operators,
        traced.edges, sum(site.flops for site in sites), {},
    )  # fmt: skip


def fast(capture: Capture, **keys: object) -> nn.Module:
    return rewritten(capture, planned(capture, rules_from(**({"policy": "topk", "keep": 0.5} | keys))))


def test_layers_change_class_and_calls_become_children():
    capture = captured()
    model = fast(capture)
    assert isinstance(model, Net)
    assert isinstance(model.fc, Sampled)
    assert isinstance(model.fc, nn.Linear)
    assert isinstance(model.linear_1, FunctionSite)
    assert type(model.unused) is nn.Linear
    assert type(capture.model) is Net
    assert type(capture.model.fc) is nn.Linear
    record = record_of(model)
    assert record.installed == ("",)
    assert record.plan.by_id["linear_1"].choice is not None


def test_the_state_dict_and_ties_are_the_models():
    capture = captured()
    model = fast(capture)
    assert model.state_dict().keys() == capture.model.state_dict().keys()
    assert model.tied is model.fc.weight
    assert model.fc.weight is not capture.model.fc.weight
    capture.model.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(capture.model.state_dict(), strict=True)


def test_only_owners_of_chosen_calls_run_their_captured_forward():
    capture = captured()
    plan = planned(capture, [Rule(path="fc", policy="topk", keep=0.5)])
    model = rewritten(capture, plan)
    assert type(model) is Net
    assert isinstance(model.fc, Sampled)
    assert record_of(model).installed == ()


def test_training_samples_and_evaluation_is_exact():
    capture = captured()
    model, x = fast(capture), torch.randn(5, 8)
    assert torch.equal(model.eval()(x), capture.model.eval()(x))
    assert not torch.allclose(model.train()(x), capture.model(x))


def test_keep_one_is_exact_with_gradients():
    capture = captured()
    model, x = fast(capture, keep=1.0), torch.randn(5, 8)
    for one in (model, capture.model):
        one(x).square().sum().backward()
    assert torch.equal(model(x), capture.model(x))
    for mine, theirs in zip(model.parameters(), capture.model.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            assert torch.equal(mine.grad, theirs.grad)


def test_copies_and_pickles_sample_alike():
    model, x = fast(captured()), torch.randn(5, 8)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), model(x))
        assert again.linear_1 is not model.linear_1
        assert record_of(again).plan == record_of(model).plan


def test_children_follow_the_mode_of_their_owner():
    capture = captured(Net().eval())
    assert not fast(capture).linear_1.training


def test_a_clash_of_names_is_refused_before_anything_is_made():
    model = Net()
    model.linear_1 = nn.Linear(1, 1)
    with pytest.raises(FxApproxError, match=r"linear_1: the model has an attribute 'linear_1' already"):
        fast(captured(model))


def test_every_problem_is_listed():
    capture = captured()
    plan = planned(capture, rules_from(policy="topk"))
    broken = replace(capture, forwards={}, model=nn.Sequential(nn.Linear(8, 8)))
    with pytest.raises(FxApproxError) as caught:
        rewritten(broken, plan)
    assert "fc: the model has no module 'fc'" in str(caught.value)
    assert "linear_1: its call is in no captured forward" in str(caught.value)


def test_a_forward_that_evaluates_to_something_else_is_refused():
    capture = captured(source=SOURCE.replace("F.relu(fc)", "fc"))
    with pytest.raises(FxApproxError, match="is not the user's model: output"):
        fast(capture)


def test_a_product_that_is_not_the_calls_is_refused(monkeypatch):
    from fxapprox.kinds._base import Operation
    from fxapprox.kinds.linear import Linear

    right = Linear.operation

    def wrong(self: Linear, call: object) -> Operation:
        operation = right(self, call)
        return replace(operation, left=operation.left + 1)

    monkeypatch.setattr(Linear, "operation", wrong)
    with pytest.raises(FxApproxError, match="train mode, every product exact"):
        fast(captured())


def test_a_state_dict_that_changed_is_refused(monkeypatch):
    import fxapprox.passes.substitute as module

    monkeypatch.setattr(module, "_install", lambda owner, _: owner.register_buffer("extra", torch.zeros(1)))
    with pytest.raises(FxApproxError, match="keys differ: extra"):
        fast(captured())


def test_a_broken_tie_is_refused(monkeypatch):
    import fxapprox.passes.substitute as module

    def untie(owner: nn.Module, _: object) -> None:
        owner.tied = nn.Parameter(owner.tied.detach().clone())

    monkeypatch.setattr(module, "_install", untie)
    with pytest.raises(FxApproxError, match=r"tied tensors differ: fc\.weight=tied"):
        fast(captured())


def test_nothing_rewritten_says_why():
    with pytest.raises(NothingRewritten, match="all 2 sites stay exact") as caught:
        fast(captured(), min_k=100)
    assert caught.value.exit_code == 3
    assert "keeps all 8 pairs" in str(caught.value)


def test_a_plan_of_another_model_is_refused():
    plan = planned(captured(), rules_from(policy="topk"))
    other = replace(captured(), sites=captured().sites[:1])
    with pytest.raises(PlanMismatch, match="linear_1"):
        planned(other, plan)


class Container(nn.Sequential):
    """A container with a product of its own: one more child would be one more item."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x @ self.weight / len(self)


def test_a_container_keeps_its_length_and_its_sites_follow_its_mode():
    import fxapprox

    x = torch.randn(4, 8)
    model = nn.Sequential(Container(), nn.Linear(4, 4))
    fast = fxapprox.rewrite(model, (x,), policy="topk")
    for again in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert len(again[0]) == len(list(again[0])) == 2
        torch.testing.assert_close(again.eval()(x), model.eval()(x))
        assert isinstance(again[0].matmul_1, FunctionSite)
        assert not again[0].matmul_1.training
        assert again.train()[0].matmul_1.training


def test_an_emitted_container_runs_no_site_as_a_member(tmp_path):
    import runpy

    import fxapprox

    x = torch.randn(4, 8)
    fast = fxapprox.rewrite(nn.Sequential(Container(), nn.Linear(4, 4)), (x,), policy="topk")
    fxapprox.emit(fast, tmp_path / "emitted.py")
    again = runpy.run_path(str(tmp_path / "emitted.py"))["build_model"]()
    assert torch.equal(again(x), fast(x))
    assert torch.equal(again.eval()(x), fast.eval()(x))


class Stack(nn.ModuleList):
    """A list of layers that multiplies between them."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x) @ torch.eye(8)
        return x


def test_a_list_of_layers_keeps_its_members():
    import fxapprox

    x, model = torch.randn(4, 8), Stack([nn.Linear(8, 8), nn.Linear(8, 8)])
    fast = fxapprox.rewrite(model, (x,), policy="topk")
    for again in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert len(again) == len(list(again)) == len(list(again.children())) == 2
        assert isinstance(again.matmul_2, FunctionSite)
        assert not torch.equal(again(x), model(x))
        torch.testing.assert_close(again.eval()(x), model.eval()(x))
        assert again.state_dict().keys() == model.state_dict().keys()
        again.append(nn.Linear(8, 8))
        assert len(again) == 3
