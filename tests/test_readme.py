"""Every command and every block of Python in the README runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
SHELL = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.strip()
]
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples in it, where commands may write."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("fxapprox")])
def test_a_command(line: str, folder: Path) -> None:
    assert run([sys.executable, "-m", "fxapprox_cli", *shlex.split(line)[1:]], folder)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [shlex.split(line)[1] for line in SHELL if line.startswith("make")]
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    demo = re.search(r"^demo:.*\n(?:\t.*\n)*\t\$\(BIN\)/(fxapprox rewrite examples/\S+)", makefile, re.M)
    assert demo is not None


@pytest.mark.parametrize("block", range(len(PYTHON)))
def test_a_block_of_python(block: int, folder: Path) -> None:
    if not (folder / "resnet_topk.py").exists():
        command = [sys.executable, "-m", "fxapprox_cli", "rewrite", "examples/resnet.py", "--policy", "topk"]
        run(command, folder)
    run([sys.executable, "-c", PYTHON[block]], folder)
