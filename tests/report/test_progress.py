"""A bar appears where work takes long, and only there."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fxapprox.report import progress as module


@pytest.mark.parametrize(("patience", "shown"), [(0.0, True), (60.0, False)])
def test_the_bar_waits(patience: float, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", patience)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    with module.progress("working", 3, console) as advance:
        for _ in range(3):
            advance()
    assert ("working" in stream.getvalue() and "3/3" in stream.getvalue()) == shown
    assert (stream.getvalue() == "") != shown
