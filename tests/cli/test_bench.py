"""`fxapprox bench` on the command line: what it takes, prints, draws and refuses. No time is judged."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .test_commands import NET, Run, files, run
from .test_process import COMMAND, interrupted, started

__all__ = ["run"]
QUICK = ("--repeat", "1", "--no-peak-memory")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmarking.md").read_text()


@pytest.mark.parametrize("columns", [80, 160])
def test_a_model_is_rewritten_and_measured(run: Run, columns: int) -> None:
    result = run("bench", "net.py", "--policy", "topk", *QUICK, columns=columns)
    assert result.stdout.startswith("net.py:Net · ")
    assert max(map(len, result.stdout.splitlines())) <= columns
    for part in ("training step, exact", "fc2", "6×16 · 16×16", "limit: the exact operation on the kept"):
        assert part in result.stdout, part
    assert files() == []


def test_json_says_what_was_asked(run: Run) -> None:
    words = ("--rules", "rules.toml", "--optimizer", "adam", "--threads", "1", "--input", "4x8")
    told = json.loads(run("bench", "net.py", *words, *QUICK, "--json").stdout)
    assert told["settings"] == {"optimizer": "adam", "repeat": 1, "seconds": None}
    assert told["about"]["threads"] == 1
    assert [site["sites"] for site in told["sites"]] == [["fc2"]]
    assert told["sites"][0]["treatment"][""] == {
        "policy": "pps",
        "keep": 0.25,
        "min_k": 1,
        "scope": "backward",
    }
    assert told["sites"][0]["input_shape"] == [4, 16]
    assert told["step"]["memory"] == {"reason": "not asked for"}
    assert told["written"] == []


def test_an_emitted_file_is_compared_with_its_sites_exact(run: Run) -> None:
    run("rewrite", "net.py", "--policy", "topk")
    told = json.loads(run("bench", "net_topk.py", "--input", "6x8", *QUICK, "--json").stdout)
    assert told["model"] == "net_topk.py:build_model"
    assert {site for row in told["sites"] for site in row["sites"]} == {"fc1", "fc2", "fc3"}
    whole = json.loads(run("bench", "net.py", "--policy", "topk", "--no-sites", *QUICK, "--json").stdout)
    assert whole["sites"] == []
    assert told["totals"]["flops_after"] == whole["step"]["flops_after"]


def test_a_plot_needs_matplotlib_and_is_drawn_with_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("bench", "net.py", "--policy", "topk", *QUICK, "--plot", "savings.svg")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        assert "pip install 'fxapprox[plots]'" in run(*words, code=2).stderr
    assert files() == []
    pytest.importorskip("matplotlib")
    assert "wrote savings.svg" in run(*words).stdout
    drawn = Path("savings.svg").read_text()
    assert drawn.startswith("<?xml")
    assert "fxapprox bench" in drawn
    run(*words)  # over its own


BAD: list[tuple[tuple[str, ...], str]] = [
    (("net.py",), "samples nowhere, and nothing says what to sample"),
    (("net.py", "--policy", "topk", "--optimizer", "sgb"), "did you mean 'sgd'?"),
    (("net.py", "--policy", "topk", "--repeat", "0"), "repeat 0"),
    (("net.py", "--policy", "topk", "--seconds", "-1"), "seconds -1"),
    (("net.py", "--policy", "topk", "--threads", "0"), "threads 0"),
    (("net.py", "--policy", "topk", "--plot", "a.png"), "a.png is not an .svg file"),
    (("net.py", "--policy", "topk", "--plot", "none/a.svg"), "there is no folder none"),
    (("net.py", "--policy", "topk", "--plot", "mine.svg"), "was not drawn by fxapprox"),
    (("net.py", "--policy", "tpok"), "did you mean 'topk'?"),
    (("net_topk.py",), "there are no example inputs"),
    (("net_topk.py", "--policy", "topk", "--input", "6x8"), "already samples at fc1, fc2, fc3"),
    (("net_topk.py", "--input", "6x9"), "does not run on the inputs"),
]


@pytest.mark.parametrize(("words", "part"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_clear_message(run: Run, words: tuple[str, ...], part: str) -> None:
    Path("mine.svg").write_text("<svg/>")
    if "net_topk.py" in words:
        run("rewrite", "net.py", "--policy", "topk")
    before = files()
    result = run("bench", *words, code=2)
    assert part in " ".join(result.stderr.split()), result.stderr
    assert result.stdout == ""
    assert files() == before


def test_nothing_rewritten_is_a_failure(run: Run) -> None:
    assert "nothing was rewritten" in run("bench", "net.py", "--policy", "exact", code=3).stderr


def test_control_c_while_it_measures(tmp_path: Path) -> None:
    head = "    def forward(self, x):\n"
    slow = head + "        Path('../forwards').open('a').write('x')\n        time.sleep(0.05)\n"
    net = NET.replace(head, slow)
    assert net != NET
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "net.py").write_text("import time\nfrom pathlib import Path\n" + net)
    words = ["bench", "net.py", "--policy", "topk", "--repeat", "1000", "--no-peak-memory"]
    process = started(words, folder)
    forwards = tmp_path / "forwards"
    while process.poll() is None and not (forwards.exists() and len(forwards.read_text()) > 60):
        time.sleep(0.1)
    assert interrupted(process) == (130, "", "interrupted: nothing was written\n")
    assert [path.name for path in folder.iterdir()] == ["net.py"]


def test_a_bar_is_drawn_late_and_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxapprox_cli import _running

    class Terminal:
        told = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            self.told += text
            return len(text)

        def flush(self) -> None: ...

    now = [0.0]
    monkeypatch.setattr(_running.time, "monotonic", lambda: now[0])
    terminal: Any = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with _running.progress() as tick:
        now[0] = 1.0
        tick("measuring", 0.1)
        assert terminal.told == ""
        now[0] = 3.0
        tick("measuring", 0.5)
        assert "measuring" in terminal.told
        assert "50%" in terminal.told
    monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    terminal.told = ""
    with _running.progress() as tick:
        now[0] = 9.0
        tick("measuring", 0.5)
    assert terminal.told == ""


def test_the_page_runs(tmp_path: Path) -> None:
    """Every command and every block of Python in docs/benchmarking.md, with as little time as they allow."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (shell,) = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    (python,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    for line in shell.splitlines():
        words = shlex.split(line.replace("--seconds 5", "--repeat 1 --no-peak-memory"))
        done = subprocess.run([*COMMAND, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "training step, exact" in done.stdout
