"""Warnings that are silenced by name are not said, and not forgotten."""

import pytest
import torch
from by_hand import chain
from torch import nn

import fxapprox
from fxapprox.errors import RequestError
from fxapprox.plan import Plan, bind
from fxapprox.rules import Rule, decide, load_rules, silenced

RULES = 'version = 1\nsilence = ["small-batch", "deep-forward"]\n\n[[rule]]\npolicy = "topk"\n'


def plan(rules, length=4):
    return decide(chain(length), rules, model="Net", fingerprint="")


def names(warnings):
    return [warning.name for warning in warnings]


def test_in_a_rules_file(tmp_path):
    (tmp_path / "rules.toml").write_text(RULES)
    rules = load_rules(tmp_path / "rules.toml")
    assert rules.silence == ("small-batch", "deep-forward")
    decided = plan(rules)
    assert "deep-forward" not in names(decided.warnings)
    assert names(decided.silenced) == ["deep-forward"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"deep-foward"', "unknown warning 'deep-foward'"),
        ('["batch-norm", 3]', "silence must be a list of names"),
    ],
)
def test_what_is_wrong_in_a_rules_file(tmp_path, text, message):
    (tmp_path / "rules.toml").write_text(RULES.replace('["small-batch", "deep-forward"]', text))
    with pytest.raises(RequestError, match=r"rules.toml:2") as error:
        load_rules(tmp_path / "rules.toml")
    assert message in str(error.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(RequestError, match="unknown warning 'batchnorm'") as error:
        silenced([Rule(policy="topk")], "batchnorm")
    assert "did you mean 'batch-norm'? known: alsh-depth, batch-norm, " in str(error.value)


def test_the_plan_remembers(tmp_path):
    decided = plan(silenced([Rule(policy="topk")], "deep-forward"))
    decided.save(tmp_path / "plan.toml")
    loaded = Plan.load(tmp_path / "plan.toml")
    assert loaded.silence == ("deep-forward",)
    assert loaded.findings == decided.findings
    bound = bind(loaded, chain(4))
    assert names(bound.silenced) == ["deep-forward"]
    more = silenced(loaded, ["batch-norm", "deep-forward"])
    assert more.silence == ("deep-forward", "batch-norm")
    (tmp_path / "plan.toml").write_text(
        (tmp_path / "plan.toml").read_text().replace('"deep-forward"]', '"deep"]', 1)
    )
    with pytest.raises(RequestError, match="unknown warning 'deep'"):
        Plan.load(tmp_path / "plan.toml")


def test_in_python_and_in_the_summary(tmp_path):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 3))
    x = torch.randn(16, 8, 6, 6)
    loud = fxapprox.summary(fxapprox.rewrite(model, x, policy="topk"))
    assert "batch-norm" in names_of(loud.facts["warnings"])
    assert "silenced" not in str(loud)
    fast = fxapprox.rewrite(model, x, policy="topk", silence="batch-norm")
    quiet = fxapprox.summary(fast)
    assert "batch-norm" not in names_of(quiet.facts["warnings"])
    assert names_of(quiet.facts["silenced"]) == ["batch-norm"]
    assert "1 warning silenced: batch-norm" in str(quiet)
    (tmp_path / "rules.toml").write_text(RULES)
    both = fxapprox.plan(model, x, rules=tmp_path / "rules.toml", silence=["batch-norm"])
    assert both.silence == ("small-batch", "deep-forward", "batch-norm")


def names_of(told):
    return [one["name"] for one in told]
