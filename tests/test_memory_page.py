"""docs/memory.md: its rules load, its Python runs, its commands succeed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from fxapprox_cli.main import app
from typer.testing import CliRunner

from fxapprox.rules import load_rules

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "memory.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_rules_load(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    for text in blocks("toml"):
        path.write_text(text)
        assert len(load_rules(path)) == text.count("[[rule]]")


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(code: str) -> None:
    exec(compile(code, "docs/memory.md", "exec"), {})


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_a_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    assert "memory" in done.output
