"""Every block of Python in docs/training.md runs, in order and in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.mark.parametrize("blocks", [(0, 1), (2,), (3,)], ids=["plain loop", "lightning", "huggingface"])
def test_the_blocks_run(blocks: tuple[int, ...], folder: Path) -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", BLOCKS[block]],
            cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_all_blocks_are_run() -> None:
    assert len(BLOCKS) == 4
