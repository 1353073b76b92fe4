"""Every example of docs/rules.md is what it says."""

import re
from pathlib import Path

import pytest

from fxapprox.plan import Plan
from fxapprox.rules import load_rules
from fxapprox.rules._rule import CONDITION_KEYS
from fxapprox.syntax import CHOICE_KEYS

PAGE = (Path(__file__).parents[1] / "docs" / "rules.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_rules_files_load(text, tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(text)
    assert len(load_rules(path)) == text.count("[[rule]]")


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(code):
    exec(compile(code, "docs/rules.md", "exec"), {})


def test_python_and_toml_say_the_same(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(blocks("toml")[0])
    names = {}
    exec(blocks("python")[0], names)
    assert tuple(names["rules"]) == load_rules(path)


@pytest.mark.parametrize("text", blocks("plan"))
def test_the_plan_loads(text, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    (decision,) = Plan.load(path).decisions
    assert decision.choice.forward.policy.name == "topk"


@pytest.mark.parametrize("key", [*CONDITION_KEYS, *CHOICE_KEYS])
def test_every_key_is_explained(key):
    assert f"`{key}`" in PAGE
