"""The key `memory`: where it may stand, and that it gets everywhere a choice is told."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import fxapprox
from fxapprox.choices import Memory, Sampled
from fxapprox.errors import RequestError
from fxapprox.passes.layers import sites_of
from fxapprox.passes.parts import Part
from fxapprox.policies import policies
from fxapprox.report.facts import explanation_facts
from fxapprox.report.listings import explanation_text
from fxapprox.rules import Rule, explain, load_rules
from fxapprox.syntax import read_choice, spell_choice

X = torch.randn(8, 6)
ON_PRODUCT = {"grad_weight": {"policy": "uniform", "keep": 0.25, "memory": True}}
SHORT = {"policy": "topk", "keep": 0.25, "scope": "backward", "memory": {"decay": 0.9}}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))


def parts(module: nn.Module) -> list[Part]:
    return [part for sites in sites_of(module) for part in sites.parts.values()]


def of_grad_weight(keys: dict[str, Any]) -> Sampled:
    choice, problems = read_choice(keys)
    assert not problems
    assert choice is not None
    assert isinstance(choice.grad_weight, Sampled)
    return choice.grad_weight


@pytest.mark.parametrize("name", ["topk", "uniform", "weighted"])
def test_rows_are_left_as_they_are(name: str) -> None:
    """What waits is applied later: a scale that makes up for it would count it twice."""
    sampled = of_grad_weight({"grad_weight": {"policy": name, "keep": 0.25, "memory": True}})
    assert sampled.memory == Memory()
    assert not sampled.policy.unbiased
    assert getattr(sampled.policy, "scale", "none") == "none"


def test_only_the_weight_gradient_has_the_memory_of_a_scope() -> None:
    choice, _ = read_choice(SHORT)
    assert choice is not None
    assert isinstance(choice.grad_input, Sampled)
    assert choice.grad_input.memory is None
    assert of_grad_weight(SHORT).memory == Memory(0.9)
    assert of_grad_weight({**SHORT, "memory": False}).memory is None


@pytest.mark.parametrize("keys", [ON_PRODUCT, SHORT, {**SHORT, "scope": "grad-weight", "memory": True}])
def test_what_is_spelled_is_read_again(keys: dict[str, Any]) -> None:
    choice, _ = read_choice(keys)
    assert read_choice(spell_choice(choice)) == (choice, [])


WRONG = [
    ({"policy": "topk", "memory": True}, 'scope "forward", the default,'),
    ({"policy": "topk", "memory": True, "scope": "forward"}, "grad_weight = { policy"),
    (
        {"policy": "topk", "memory": True, "scope": "straight-through"},
        "weight gradient that is sampled by it",
    ),
    ({"forward": {"policy": "topk", "memory": True}}, "forward: memory applies to grad_weight only"),
    ({"grad_input": {"policy": "topk", "memory": True}}, "move it into the table of grad_weight"),
    ({**SHORT, "policy": "pps"}, "use one of topk, uniform, weighted"),
    ({**SHORT, "policy": "crs"}, "which scales what it keeps"),
    ({**SHORT, "policy": "uniform", "scale": "inverse"}, "apply a second time"),
    ({**SHORT, "memory": 0.9}, "a table such as { decay = 0.9 }"),
    ({**SHORT, "memory": {"decay": 0.0}}, "outside 0 < decay <= 1"),
    ({**SHORT, "memory": {"decay": "half"}}, "decay must be a number"),
    ({**SHORT, "memory": {"dekay": 0.5}}, "did you mean 'decay'?"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG)
def test_a_wrong_memory(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Rule(**keys)
    assert message in str(caught.value)


def test_the_remedy_lists_the_policies_that_go() -> None:
    for name, cls in policies.all().items():
        _, problems = read_choice({"grad_weight": {"policy": name, "memory": True}})
        listed = name in ("topk", "uniform", "weighted", "exact")
        assert bool(problems) != listed, (name, cls)


def test_a_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('version = 1\n[[rule]]\ngrad_weight = { policy = "topk", memory = true }\n')
    assert load_rules(path) == (Rule(grad_weight={"policy": "topk", "memory": True}),)
    path.write_text('version = 1\n[[rule]]\npolicy = "topk"\n\nmemory = true\n')
    with pytest.raises(RequestError, match=r"rules\.toml:5"):
        load_rules(path)


def test_products_of_activations_have_no_memory() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.matmul(self.fc(x), x.T)

    plan = fxapprox.plan(Net(), (X,), **SHORT)
    assert plan.by_id["fc"].choice is not None
    assert plan.by_id["matmul_1"].choice is None
    assert "memory is for the gradient of a weight" in plan.by_id["matmul_1"].reason


@pytest.mark.parametrize("keys", [ON_PRODUCT, SHORT])
def test_a_memory_travels(keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the plan's file, the summary, explain, and the emitted file."""
    rule = Rule(**keys)
    plan = fxapprox.plan(model(), (X,), rules=rule)
    plan.save(tmp_path / "plan.toml")
    assert fxapprox.Plan.load(tmp_path / "plan.toml").diff(plan) == ()
    assert any("memory" in line for line in plan.diff(fxapprox.plan(model(), (X,), policy="topk")))

    fast = fxapprox.rewrite(model(), (X,), rules=plan)
    decay = rule.choice.grad_weight.memory.decay  # type: ignore[union-attr]
    facts = fxapprox.summary(fast).facts
    assert {site["products"]["grad_weight"]["memory"] for site in facts["sites"]} == {decay}
    assert "memory" in str(fxapprox.summary(fast))
    assert "memory" in repr(fast[0])
    console = Console(record=True, file=StringIO())
    console.print(explanation_text(explanation_facts(explain(plan.sites, [rule], "0"))))
    assert "memory" in console.export_text()

    fxapprox.emit(fast, tmp_path / f"net_{id(keys)}.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    emitted = __import__(f"net_{id(keys)}").build_model()
    assert [part.choice.grad_weight for part in parts(emitted)] == [rule.choice.grad_weight] * 2  # type: ignore
    assert "memory" in (tmp_path / f"net_{id(keys)}.py").read_text().split('"""')[1]
    for one in (fast, emitted):
        one(X).square().sum().backward()
        assert all(part.memory is not None and len(part.memory.slots) == 1 for part in parts(one))


def test_a_memory_silences_the_warning_of_biased_gradients() -> None:
    names = {w.name for w in fxapprox.plan(model(), (X,), policy="topk", scope="grad-weight").warnings}
    assert "biased-backward" in names
    plan = fxapprox.plan(model(), (X,), policy="topk", scope="grad-weight", memory=True)
    assert "biased-backward" not in {w.name for w in plan.warnings}
