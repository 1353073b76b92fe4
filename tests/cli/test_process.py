"""The command line as a process of its own: start-up, streams, signals, exits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .test_commands import NET

COMMAND = [sys.executable, "-m", "fxapprox_cli"]
NOISE = """
import os, subprocess, sys, threading, time
print("printed")
os.write(1, b"written to descriptor 1\\n")
subprocess.run([sys.executable, "-c", "print('a child prints')"])
def ticking():
    while True:
        print("tick")
        time.sleep(0.01)
threading.Thread(target=ticking).start()  # not a daemon: it alone would keep the process alive
"""


@pytest.mark.parametrize("words", [["--help"], ["rewrite", "--help"], ["policies", "--help"], ["--version"]])
def test_help_does_not_import_torch(words: list[str]) -> None:
    program = (
        "import sys\nfrom fxapprox_cli.main import app\n"
        f"try:\n    app({words!r})\nexcept SystemExit as ending:\n    assert not ending.code\n"
        "heavy = {'torch', 'numpy', 'networkx', 'fxapprox'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout


def test_json_is_clean_whatever_the_users_file_does(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NOISE + NET)
    done = subprocess.run(
        [*COMMAND, "rewrite", "net.py", "--policy", "topk", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["totals"]["rewritten"] == 3
    for noise in ("printed", "written to descriptor 1", "a child prints", "tick"):
        assert noise in done.stderr
        assert noise not in done.stdout


def test_an_error_exits_though_a_thread_goes_on(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NOISE)
    done = subprocess.run(
        [*COMMAND, "inspect", "net.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "holds no model" in done.stderr


def started(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """The command line at work in a folder, with Ctrl-C as at a terminal: a shell that runs these tests in
    the background has it ignored, which children inherit."""
    return subprocess.Popen(
        [*COMMAND, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """What a process returns and says on Ctrl-C."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_control_c_ends_with_130_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import sys, time\nprint('loading', flush=True)\ntime.sleep(600)\n")
    process = started(["rewrite", "net.py", "--policy", "topk"], tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline() == "loading\n"
    assert interrupted(process) == (130, "", "interrupted: nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


def test_a_reader_that_stops_reading_is_no_fault(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "policies", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait(timeout=60)
