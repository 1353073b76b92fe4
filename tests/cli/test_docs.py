"""docs/cli.md is what the commands' help says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fxapprox_cli.main import app
from typer.testing import CliRunner

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_cli", DOCS / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    written = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert written == generate.page(), "run: python docs/generate_cli.py"


def test_help_teaches() -> None:
    text = " ".join(CliRunner().invoke(app, ["rewrite", "--help"], env={"COLUMNS": "100"}).stdout.split())
    for part in (
        "first that matches a site decides",
        "fxapprox rewrite model.py --policy topk --keep 0.5 --input 32x3x32x32",
        "Exit codes: 0 done, 2 the request or the input is wrong, 3 nothing was rewritten.",
        "Default: 0.5.",
    ):
        assert part in text, part
