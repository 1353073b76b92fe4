"""Make the pictures in README and docs from what the command line really prints.

python -m benchmarks.pictures
"""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
COLUMNS = 112


def terminal(command: list[str], name: str, folder: Path) -> None:
    """An SVG of the terminal after `command`, run in `folder`."""
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("$ " + " ".join(command) + "\n\n" + done.stdout))
    console.save_svg(str(IMAGES / f"{name}.svg"), title="fxapprox", unique_id=name)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for example in (ROOT / "examples").glob("*.py"):
            (folder / example.name).write_text(example.read_text())
        terminal(["fxapprox", "rewrite", "resnet.py", "--policy", "topk"], "rewrite", folder)
        terminal(
            ["fxapprox", "explain", "resnet.py", "layer1.0.conv1", "--policy", "topk"], "explain", folder
        )
        graph = [
            "fxapprox",
            "inspect",
            "transformer.py",
            "--policy",
            "topk",
            "--graph",
            str(IMAGES / "transformer.svg"),
        ]
        subprocess.run([*graph, "--force"], cwd=folder, check=True, capture_output=True)


if __name__ == "__main__":
    main()
