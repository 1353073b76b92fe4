"""The Python interface: requests, refusals, and a user's model that nothing touches."""

from __future__ import annotations

import copy
import functools
import random
import subprocess
import sys

import numpy
import pytest
import torch
from counting import function_calls
from small_models import CASES, built
from torch import Tensor, nn

import fxapprox
from fxapprox.errors import CaptureError, FxApproxError, NothingRewritten, PlanMismatch, RequestError
from fxapprox.record import record_of


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


X = torch.randn(4, 8)


def test_the_public_names():
    assert set(fxapprox.__all__) >= {
        "rewrite",
        "plan",
        "summary",
        "emit",
        "Rule",
        "Plan",
        "policies",
        "kinds",
    }
    assert callable(fxapprox.plan)
    assert callable(fxapprox.emit)
    from fxapprox.plan import Plan

    assert Plan is fxapprox.Plan


def test_import_is_light():
    code = (
        "import sys, torch; before = set(sys.modules); import fxapprox\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"networkx", "rich", "typer", "matplotlib", "safetensors", "lightning", "transformers"}
    assert not heavy & set(run.stdout.split())


def test_plan_decides_and_does_nothing(tmp_path):
    model = net()
    plan = fxapprox.plan(model, (X,), policy="bernoulli", keep=0.3, scope="backward")
    assert [d.site.id for d in plan.rewritten] == ["0", "2"]
    assert type(model[0]) is nn.Linear
    plan.save(tmp_path / "plan.toml")
    loaded = fxapprox.Plan.load(tmp_path / "plan.toml")
    one = fxapprox.rewrite(model, (X,), rules=loaded)
    other = fxapprox.rewrite(model, (X,), policy="bernoulli", keep=0.3, scope="backward")
    torch.manual_seed(0)
    first = torch.autograd.grad(one(X).sum(), list(one.parameters()))
    torch.manual_seed(0)
    second = torch.autograd.grad(other(X).sum(), list(other.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_rules_from_a_file_a_list_and_one_rule(tmp_path):
    (tmp_path / "rules.toml").write_text('version = 1\n[[rule]]\npath = "2"\npolicy = "topk"\nkeep = 0.5\n')
    rule = fxapprox.Rule(path="2", policy="topk", keep=0.5)
    for rules in (tmp_path / "rules.toml", str(tmp_path / "rules.toml"), [rule], rule):
        fast = fxapprox.rewrite(net(), (X,), rules=rules)
        assert type(fast[0]) is nn.Linear
        assert type(fast[2]) is not nn.Linear


def test_a_summary_prints():
    fast = fxapprox.rewrite(net(), (X,), policy="topk")
    assert "topk" in str(fxapprox.summary(fast))
    assert fxapprox.summary(fast).facts["sites"]


def test_inputs_by_name_nested_and_a_lone_tensor():
    model, args, kwargs = built("gpt2")
    fast = fxapprox.rewrite(model, (), {"ids": args[0], **kwargs}, policy="topk")
    assert fast(ids=args[0], **kwargs)["loss"].requires_grad
    assert fxapprox.rewrite(net(), X, policy="topk")(X).shape == (4, 4)


REQUESTS = {
    "nothing asked": ({}, "nothing says what to sample"),
    "unknown policy": ({"policy": "topp"}, "did you mean 'topk'"),
    "keep out of range": ({"policy": "topk", "keep": 1.5}, "1.5"),
    "keep of nothing": ({"policy": "topk", "keep": 0.0}, "keep"),
    "unknown option": ({"policy": "topk", "kept": 0.5}, "kept"),
    "unknown scope": ({"policy": "topk", "scope": "forwards"}, "forward"),
    "rules and shorthand": ({"rules": [fxapprox.Rule(policy="topk")], "keep": 0.5}, "beside rules="),
    "empty rules": ({"rules": []}, "is empty"),
    "rules of a wrong type": ({"rules": 5}, "is a int"),
    "no rules": ({"rules": ["topk"]}, "holds a str"),
    "a rule that matches nothing": (
        {"rules": [fxapprox.Rule(path="nope", policy="topk")]},
        "matches no site",
    ),
    "unknown front-end": ({"policy": "topk", "front_end": "dynamo"}, "unknown front-end 'dynamo'"),
    "unknown leaf": ({"policy": "topk", "leaf": ["nope"]}, "leaf 'nope'"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_wrong_requests_are_refused_in_a_sentence(case):
    keys, text = REQUESTS[case]
    with pytest.raises(RequestError) as caught:
        fxapprox.rewrite(net(), (X,), **keys)
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_models_that_cannot_be_rewritten_are_refused():
    with pytest.raises(RequestError, match=r"must be a torch\.nn\.Module, not the class Linear"):
        fxapprox.rewrite(nn.Linear, (X,), policy="topk")
    with pytest.raises(RequestError, match="not a function"):
        fxapprox.rewrite(lambda x: x, (X,), policy="topk")
    with pytest.raises(RequestError, match="wrapped in OptimizedModule"):
        fxapprox.rewrite(torch.compile(net()), (X,), policy="topk")
    with pytest.raises(RequestError, match="wrapped in DataParallel"):
        fxapprox.rewrite(nn.DataParallel(net()), (X,), policy="topk")
    with pytest.raises(RequestError, match="ScriptModule"):
        fxapprox.rewrite(torch.jit.script(net()), (X,), policy="topk")
    with pytest.raises(RequestError, match="no shape yet"):
        fxapprox.rewrite(nn.Sequential(nn.LazyLinear(4)), (X,), policy="topk")


def test_a_rewritten_model_is_not_rewritten_again():
    fast = fxapprox.rewrite(net(), (X,), policy="topk")
    with pytest.raises(RequestError, match="already rewritten"):
        fxapprox.rewrite(fast, (X,), policy="topk")
    with pytest.raises(RequestError, match=r"already samples at 0\.0, 0\.2"):
        fxapprox.rewrite(nn.Sequential(fast), (X,), policy="topk")


def test_nothing_to_rewrite_is_a_failure_with_reasons():
    with pytest.raises(NothingRewritten, match="no product that fxapprox knows"):
        fxapprox.rewrite(nn.ReLU(), (X,), policy="topk")
    with pytest.raises(NothingRewritten) as caught:
        fxapprox.rewrite(
            nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), (torch.randn(2, 4, 6, 6),), policy="topk"
        )
    assert caught.value.exit_code == 3
    assert "0: " in str(caught.value)


def test_a_plan_of_another_model_is_refused():
    plan = fxapprox.plan(net(), (X,), policy="topk")
    with pytest.raises(PlanMismatch, match="another model"):
        fxapprox.rewrite(nn.Sequential(nn.Linear(8, 8)), (X,), rules=plan)


def test_a_plan_serves_another_batch_size():
    plan = fxapprox.plan(net(), (X,), policy="topk")
    assert fxapprox.rewrite(net(), (torch.randn(9, 8),), rules=plan)(X).shape == (4, 4)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.ones(5)


@pytest.mark.parametrize("front_end", [None, "trace", "modules"])
def test_a_model_that_does_not_run_is_shown_at_the_users_line(front_end):
    with pytest.raises(CaptureError) as caught:
        fxapprox.rewrite(Failing(), (X,), policy="topk", front_end=front_end)
    assert "test_api.py" in str(caught.value)
    assert "size of tensor" in str(caught.value)


@pytest.mark.parametrize("name", ["mlp", "resnet", "encoder", "early exit"])
def test_the_modules_front_end_serves_layers(name):
    model, args, kwargs = built(name)
    fast = fxapprox.rewrite(model, args, kwargs, policy="topk", front_end="modules")
    record = fast._fxapprox_record
    assert record.rung == "modules"
    assert record.installed == ()
    assert any(decision.choice for decision in record.plan.decisions)
    out = fast.train()(*args, **kwargs)
    out.sum().backward()


def test_the_trace_can_be_forced(monkeypatch):
    import fxapprox.capture.trace as module

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(module, "trace", refuse)
    with pytest.raises(CaptureError, match="no such luck"):
        fxapprox.rewrite(net(), (X,), policy="topk", front_end="trace")
    fast = fxapprox.rewrite(net(), (X,), policy="topk")
    assert fast._fxapprox_record.rung == "modules"
    assert any("no such luck" in note.message for note in fast._fxapprox_record.notes)


# ---- whatever happens, the user's model and the process are as they were


def _everything(model: nn.Module) -> dict[str, object]:
    seen: dict[str, object] = {"rng": torch.get_rng_state(), "python": random.getstate()}
    seen["numpy"] = str(numpy.random.get_state())
    seen["grad"] = torch.is_grad_enabled()
    for path, module in model.named_modules():
        seen[f"class {path}"] = type(module)
        for name, value in module.__dict__.items():
            if name not in ("_parameters", "_buffers", "_modules"):
                seen[f"{path}.{name}"] = copy.copy(value) if isinstance(value, dict | list) else value
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        seen[f"tensor {name}"] = (id(value), value._version, value.detach().clone(), value.grad)
    return seen


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and (one is other or torch.equal(one, other))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("keys", [{"policy": "uniform"}, {"policy": "topk", "min_k": 10**6}])
def test_the_users_model_is_untouched(name, keys):
    model, args, kwargs = built(name)
    model.eval() if name == "resnet" else model.train()
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("hook"))
    model.marker = ["mine"]
    before, given = _everything(model), [arg.clone() for arg in args]
    try:
        fxapprox.rewrite(model, args, kwargs, **keys)
    except NothingRewritten:
        assert "min_k" in keys
    after = _everything(model)
    assert before.keys() == after.keys()
    different = [key for key in before if not _same(before[key], after[key])]
    assert different == []
    assert all(torch.equal(a, b) for a, b in zip(args, given, strict=True))


def test_a_failing_rewrite_leaves_the_model(monkeypatch):
    import fxapprox.passes.substitute as module

    model, args, kwargs = built("gpt2")
    before = _everything(model)

    def fail(*_: object) -> None:
        raise FxApproxError("broken")

    monkeypatch.setattr(module, "verify", fail)
    with pytest.raises(FxApproxError, match="broken"):
        fxapprox.rewrite(model, args, kwargs, policy="topk")
    after = _everything(model)
    assert [key for key in before if not _same(before[key], after[key])] == []


def test_rewriting_inside_no_grad_and_inference_mode():
    expected = [(s.id, s.flops) for s in fxapprox.plan(net(), (X,), policy="topk").sites]
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            fast = fxapprox.rewrite(net(), (X,), policy="topk")
            assert [(s.id, s.flops) for s in fast._fxapprox_record.plan.sites] == expected
        fast(X).sum().backward()


def test_work_of_a_rewrite_is_linear_in_layers():
    def calls(layers: int) -> int:
        model = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(4, 4), nn.ReLU())))
        x = torch.randn(2, 4)
        return function_calls(lambda: fxapprox.rewrite(model, (x,), policy="topk"))

    calls(5)
    assert calls(160) < 1.3 * 4 * calls(40)


def test_a_forward_set_on_the_instance_is_the_layers_forward():
    def doubled(layer, *args):
        return 2 * nn.Linear.forward(layer, *args)

    model = net()
    model[0].forward = functools.partial(doubled, model[0])
    exact = fxapprox.rewrite(model, (X,), policy="topk", keep=1.0)
    assert [d.site.id for d in record_of(exact).plan.rewritten] == ["0.linear_1", "2"]
    assert torch.equal(exact(X), model(X))
    assert not torch.equal(fxapprox.rewrite(model, (X,), policy="topk", keep=0.5)[0](X), model[0](X))

    layer = model[0]
    layer.forward = lambda x: nn.functional.linear(x, layer.weight)  # the copy's would train this layer
    assert [d.site.id for d in fxapprox.plan(model, (X,), policy="topk").rewritten] == ["2"]
