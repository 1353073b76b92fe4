"""The examples, emitted: a fresh process gets the losses of the model in memory, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from fxapprox import Rule, api, emit
from fxapprox.capture import capture
from fxapprox.capture._types import Inputs
from fxapprox.capture.load import load

from .fresh import flat, losses

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
STEPS = 20


def bag(example: Path, written: Path) -> dict[str, Any]:
    """Emit the example to `written`; what its model in memory does, on four of the example inputs."""
    torch.manual_seed(1)
    loaded = load(str(example))
    assert loaded.inputs is not None
    args = tuple(value[:4] for value in loaded.inputs.args)
    state = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    captured = capture(loaded.model, Inputs(args), origin=loaded.origin)
    fast = api.rewritten(captured, api.planned(captured, [Rule(policy="crs", keep=0.5)]))
    emit(fast, written)
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = flat(fast.eval()(*args))
    found = losses(fast, args, {}, STEPS)
    return {"args": args, "kwargs": {}, "state": state, "eval": outputs, "losses": found}


def test_an_emitted_example_trains_as_the_one_in_memory(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    bags = {
        f"{path.stem}_example": bag(path, tmp_path / "files" / f"{path.stem}_example_fast.py")
        for path in EXAMPLES
    }
    torch.save(bags, tmp_path / "bags.pt")
    shutil.copy(Path(__file__).with_name("fresh.py"), tmp_path)
    path = os.pathsep.join([*sys.path, str(EXAMPLES[0].parent)])  # one keeps its own class
    command = [sys.executable, "fresh.py", "files", "bags.pt", "answers.json"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120, env={**os.environ, "PYTHONPATH": path})
    answers = json.loads((tmp_path / "answers.json").read_text())
    for name, expected in bags.items():
        assert "error" not in answers[name], answers[name]["error"]
        assert answers[name]["keys"] == list(expected["state"])
        assert answers[name]["eval"] == 0
        assert answers[name]["losses"] == expected["losses"]
