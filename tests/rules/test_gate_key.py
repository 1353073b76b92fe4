"""`gate`: who says it, in a call, a rule, a file and the environment; what each of them overrules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fxapprox_cli.main import app
from torch import nn
from typer.testing import CliRunner

import fxapprox
from fxapprox.errors import RequestError
from fxapprox.measure import gate as measuring
from fxapprox.plan import Decision, Plan
from fxapprox.rules import Rule, load_rules, silenced
from fxapprox.verdict import Verdict

X = torch.randn(6, 8)
SLOW = Verdict("measured", 2, 0.8)
NET = """
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

def example_inputs():
    return torch.randn(6, 8)
"""


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every site that the gate looks at is slower sampled, but the last; the list says which it looked at."""
    looked_at: list[str] = []

    def verdicts(captured: object, decisions: Sequence[Decision], **_: Any) -> Mapping[str, Verdict]:
        looked_at.extend(decision.site.id for decision in decisions)
        return {d.site.id: SLOW if d.site.height else Verdict("measured", 2, 2.0) for d in decisions}

    monkeypatch.setattr(measuring, "verdicts", verdicts)
    return looked_at


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def left(plan: Plan) -> list[str]:
    return [decision.site.id for decision in plan.decisions if decision.choice is None]


@pytest.mark.parametrize(
    ("call", "rule", "head", "variable", "looks"),
    [
        (None, None, None, None, True),
        (None, None, None, "0", False),
        (None, None, None, "off", False),
        (None, None, None, "1", True),
        (None, None, True, "0", True),
        (None, None, False, "1", False),
        (None, True, False, "0", True),
        (None, False, True, "1", False),
        (True, False, False, "0", True),
        (False, True, True, "1", False),
    ],
)
def test_the_nearest_says(
    call: bool | None,
    rule: bool | None,
    head: bool | None,
    variable: str | None,
    looks: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is None:
        monkeypatch.delenv("FXAPPROX_GATE")
    else:
        monkeypatch.setenv("FXAPPROX_GATE", variable)
    text = "version = 1\n" + (f"gate = {json.dumps(head)}\n" if head is not None else "")
    text += '[[rule]]\npolicy = "topk"\n' + (f"gate = {json.dumps(rule)}\n" if rule is not None else "")
    (tmp_path / "rules.toml").write_text(text)
    plan = fxapprox.plan(model(), (X,), rules=tmp_path / "rules.toml", gate=call)
    assert left(plan) == (["0", "2"] if looks else [])


def test_each_rule_for_its_own_sites(slow: list[str]) -> None:
    rules = [Rule(path="0", policy="topk", gate=False), Rule(policy="topk", gate=True)]
    assert left(fxapprox.plan(model(), (X,), rules=rules)) == ["2"]
    assert slow == ["2", "4"]


def test_warnings_are_about_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    told = fxapprox.plan(model(), (X,), policy="topk", keep=0.5, gate=True).findings
    assert {site for warning in told for site in warning.sites} == {"4"}


def test_the_head_survives_silence(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('version = 1\ngate = false\n[[rule]]\npolicy = "topk"\n')
    rules = silenced(load_rules(tmp_path / "rules.toml"), ["batch-norm"])
    assert not isinstance(rules, Plan)
    assert (rules.gate, rules.silence) == (False, ("batch-norm",))


@pytest.mark.parametrize("where", ["head", "rule", "call", "Rule"])
def test_it_is_true_or_false(where: str, tmp_path: Path) -> None:
    head, rule = ('gate = "no"\n' if where == one else "" for one in ("head", "rule"))
    (tmp_path / "rules.toml").write_text(f'version = 1\n{head}[[rule]]\npolicy = "topk"\n{rule}')
    asks: dict[str, Callable[[], object]] = {
        "call": lambda: fxapprox.plan(model(), (X,), policy="topk", gate="no"),  # type: ignore[arg-type]
        "Rule": lambda: Rule(policy="topk", gate="no"),  # type: ignore[arg-type]
    }
    ask = asks.get(where, lambda: load_rules(tmp_path / "rules.toml"))
    with pytest.raises(RequestError, match="gate must be true or false, not 'no'"):
        ask()


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str, code: int = 0) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    result = CliRunner().invoke(app, words, env={"COLUMNS": "100", "FXAPPROX_GATE": ""})
    assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
    return " ".join((result.stdout if code == 0 else result.stderr).split())


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("net.py", "--policy", "topk")
    told = run(tmp_path, monkeypatch, "rewrite", *words, "--dry-run")
    assert "1 rewritten, 2 left exact" in told
    assert "would be 0.80×, left exact" in told
    assert "--no-gate" not in told.partition("next: ")[2]
    told = run(tmp_path, monkeypatch, "rewrite", *words, "--dry-run", "--no-gate")
    assert "3 rewritten, 0 left exact" in told
    assert "next: fxapprox rewrite net.py --policy topk --no-gate" in told
    assert "1 rewritten, 2 left exact" in run(tmp_path, monkeypatch, "inspect", *words)
    told = run(tmp_path, monkeypatch, "explain", "net.py", "2", "--policy", "topk")
    assert "2: stays exact would be 0.80×, left exact (gate: measured at 2 threads)" in told
    assert "✓ every site" in told
    told = run(tmp_path, monkeypatch, "explain", "net.py", "4", "--policy", "topk")
    assert "2.00× (gate: measured at 2 threads)" in told
    run(tmp_path, monkeypatch, "rewrite", *words, "--dry-run", "--save-plan", "plan.toml")
    assert "1 rewritten" in run(
        tmp_path, monkeypatch, "rewrite", "net.py", "--plan", "plan.toml", "--dry-run"
    )


def test_nothing_faster_is_exit_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        measuring, "verdicts", lambda _, decisions, **__: {d.site.id: SLOW for d in decisions}
    )
    told = run(tmp_path, monkeypatch, "rewrite", "net.py", "--policy", "topk", code=3)
    assert "nothing was rewritten: all 3 sites stay exact" in told
    assert "0 and 2 more: would be 0.80×, left exact (gate: measured at 2 threads)" in told
    assert "--no-gate" in told


def test_bench_shows_what_is_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("bench", "net.py", "--policy", "topk", "--repeat", "1", "--no-peak-memory", "--json")
    for more, rows in (((), 3), (("--gate",), 1)):
        told = json.loads(run(tmp_path, monkeypatch, *words, *more))
        assert sum(len(row["sites"]) for row in told["sites"]) == rows
