"""Recipes: rules with a name, their evidence, and their way onto the command line."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from fxapprox_cli.main import app
from typer.testing import CliRunner

import fxapprox
from examples.mlp import MLP
from examples.resnet import ResNet
from fxapprox.errors import RequestError
from fxapprox.recipes import find, recipes
from fxapprox.rules import load_rules

ROOT = Path(__file__).parents[1]
STEPS = 300
NAMES = sorted(recipes())
runner = CliRunner()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_rules_file_with_a_title_and_evidence(name: str, tmp_path: Path) -> None:
    found = find(name)
    assert found.title
    assert found.evidence
    pages = re.findall(r'\((docs/\w+\.md)(?:, "([^"]+)")?\)', found.evidence)
    assert pages, "evidence names a page"
    for page, section in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert not section or f"## {section}" in text
    (tmp_path / "rules.toml").write_text(found.rules_file(STEPS), encoding="utf-8")
    assert tuple(load_rules(tmp_path / "rules.toml")) == tuple(fxapprox.recipe(name, steps=STEPS))
    assert "@" not in found.rules_file(STEPS)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_samples_a_model(name: str) -> None:
    model, x = (ResNet(), torch.randn(4, 3, 32, 32)) if name == "cnn" else (MLP(), torch.randn(4, 784))
    plan = fxapprox.plan(model, (x,), rules=fxapprox.recipe(name, steps=STEPS), gate=False)
    assert 0 < len(plan.rewritten) < len(plan.decisions)


@pytest.mark.parametrize("name", [name for name in NAMES if find(name).scheduled])
def test_one_that_follows_the_steps_asks_for_them(name: str) -> None:
    with pytest.raises(RequestError, match="--train-steps"):
        fxapprox.recipe(name)
    with pytest.raises(RequestError, match="0 steps"):
        fxapprox.recipe(name, steps=0)
    result = runner.invoke(app, ["recipes", name])
    assert result.exit_code == 2


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'mlp'"):
        fxapprox.recipe("mpl")


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = runner.invoke(app, ["recipes", "--json"])
    assert [one["name"] for one in json.loads(listed.stdout)] == NAMES
    assert all(name in runner.invoke(app, ["recipes"]).stdout for name in NAMES)
    printed = runner.invoke(app, ["recipes", "mlp"])
    assert printed.stdout == find("mlp").text
    mlp = str(ROOT / "examples" / "mlp.py")
    told = runner.invoke(app, ["rewrite", mlp, "--recipe", "mlp", "--dry-run", "--no-gate", "--json"])
    assert told.exit_code == 0, told.output
    assert sum(site["rewritten"] for site in json.loads(told.stdout)["sites"]) == 3
    both = runner.invoke(app, ["rewrite", mlp, "--recipe", "mlp", "--policy", "topk"])
    assert both.exit_code == 2
    assert "cannot be given together" in both.output
    alone = runner.invoke(app, ["rewrite", mlp, "--policy", "topk", "--train-steps", "300"])
    assert alone.exit_code == 2
    assert "give --recipe NAME" in alone.output


def test_the_pages_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "rules.md").read_text(encoding="utf-8"), re.S)
    for line in block.splitlines():
        result = runner.invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)
    assert (tmp_path / "mlp_topk.py").is_file()
