"""docs/advice.md: every warning has its row, every example runs."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from fxapprox_cli.main import app
from typer.testing import CliRunner

from fxapprox.advice import warnings
from fxapprox.rules import load_rules

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "advice.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", PAGE, re.MULTILINE))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("fxapprox")]


def test_every_warning_has_a_row_and_nothing_else_has() -> None:
    assert list(ROWS) == list(warnings.all())
    assert all(row.count(" | ") >= 3 for row in ROWS.values())


@pytest.mark.parametrize("text", blocks("toml"))
def test_a_rules_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(text)
    assert load_rules(tmp_path / "rules.toml").silence


@pytest.mark.parametrize("code", blocks("python"))
def test_a_block_of_python(code: str) -> None:
    exec(compile(code, "docs/advice.md", "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    for command in line.split(" && "):
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, (result.stderr, result.exception)
