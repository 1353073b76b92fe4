"""Emitted, moved to another folder, imported by a fresh process that has nothing of the user's."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fxapprox

from . import zoo
from .fresh import flat, losses

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*:FutureWarning"
)  # the older hook is served, too
HERE = Path(__file__).parent
STEPS = 20


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the fresh process saw of every model, with what was expected of it."""
    folder = tmp_path_factory.mktemp("emitted")
    bags: dict[str, Any] = {}
    problems: dict[str, Any] = {}
    for make in zoo.ALL:
        torch.manual_seed(1)
        model, args, kwargs = make()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            fast = fxapprox.rewrite(model, args, kwargs, policy="crs", keep=0.5)
            written = fxapprox.emit(fast, folder / f"{make.__name__}_fast.py")
        except Exception as failure:
            problems[make.__name__] = {"error": f"{type(failure).__name__}: {failure}"}
            continue
        assert [path.name for path in written] == [
            f"{make.__name__}_fast.py",
            f"{make.__name__}_fast.safetensors",
        ]
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = flat(fast.eval()(*args, **kwargs))
        bags[make.__name__] = {
            "args": args, "kwargs": kwargs, "state": state, "eval": outputs,
            "losses": losses(fast, args, kwargs, STEPS),
        }  # fmt: skip
    moved = folder.parent / "moved"
    shutil.move(folder, moved)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    torch.save(bags, elsewhere / "bags.pt")
    shutil.copy(HERE / "fresh.py", elsewhere)
    command = [sys.executable, "fresh.py", str(moved), "bags.pt", "answers.json"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((elsewhere / "answers.json").read_text())
    for name, bag in bags.items():
        found[name] |= {"expected": bag, "text": (moved / f"{name}_fast.py").read_text()}
    return found | problems


@pytest.mark.parametrize("name", [make.__name__ for make in zoo.ALL])
def test_a_fresh_process_trains_the_emitted_model_like_the_one_in_memory(
    answers: dict[str, Any], name: str
) -> None:
    answer = answers[name]
    assert "error" not in answer, answer["error"]
    expected = answer["expected"]
    assert sorted(answer["keys"]) == sorted(expected["state"])
    assert sorted(answer["no weights"]) == sorted(expected["state"])
    assert answer["training"]
    assert answer["eval"] <= 1e-5
    assert answer["losses"] == expected["losses"]


@pytest.mark.parametrize("name", [make.__name__ for make in zoo.ALL])
def test_emitted_text_is_clean(answers: dict[str, Any], name: str) -> None:
    text = answers[name]["text"]
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    assert not any(line != line.rstrip() for line in lines)
    assert text.endswith("\n")
    assert "import zoo" not in text


def test_calls_unlike_the_examples_are_refused_and_not_served_wrongly(tmp_path: Path) -> None:
    model, args, kwargs = zoo.language()
    fast = fxapprox.rewrite(model, args, kwargs, policy="topk")
    path, _ = fxapprox.emit(fast, tmp_path / "language_fast.py")
    built = runpy.run_path(str(path))["build_model"]()
    built(*args, **kwargs)
    for missing in kwargs:
        with pytest.raises(ValueError, match="unlike the example inputs"):
            built(*args, **{name: value for name, value in kwargs.items() if name != missing})
