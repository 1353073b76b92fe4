"""docs/schedules.md and docs/batchnorm.md: rules load, Python and commands run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from fxapprox_cli.main import app
from typer.testing import CliRunner

from fxapprox.rules import load_rules

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("schedules", "batchnorm")}


def blocks(language: str) -> list[str]:
    text = "\n".join(PAGES.values())
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_rules_load(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    for text in blocks("toml"):
        path.write_text(text)
        assert len(load_rules(path)) == text.count("[[rule]]")


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(code: str) -> None:
    exec(compile(code, "docs", "exec"), {})


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_a_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
