"""The walk: each branch of Figure 16, which layers, and that its command runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from fxapprox_cli.main import app
from torch import nn
from typer.testing import CliRunner

from fxapprox.capture import capture
from fxapprox.capture._types import Inputs
from fxapprox.errors import NothingRewritten
from fxapprox.guide import Guide, guide
from fxapprox.policies import policies
from fxapprox.rules import load_rules

HAS_ALSH = pytest.mark.skipif("alsh" not in policies.all(), reason="needs the policy alsh")


def mlp(hidden: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(hidden):
        layers += [nn.Linear(16, 16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 4))


def cnn(width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, width, 3), nn.BatchNorm2d(width),
        nn.Conv2d(width, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


def walked(model: nn.Module, *shape: int, batch_size: int = 32, cores: int = 4) -> Guide:
    torch.manual_seed(0)
    found = capture(model, Inputs((torch.randn(*shape),)), origin="Net")
    return guide(found, batch_size=batch_size, cores=cores)


def answers(made: Guide) -> dict[str, str]:
    return {one.topic: one.answer for one in made.questions}


def sampled(made: Guide) -> list[str]:
    return [decision.site.id for decision in made.plan.rewritten]


def test_mini_batches_are_for_mc_approx() -> None:
    made = walked(mlp(3), 12, 16)
    assert made.method == "MC-approx"
    assert sampled(made) == ["2", "4", "6"]
    (choice,) = {decision.choice for decision in made.plan.rewritten}
    assert choice is not None
    assert choice.scope == "backward"
    assert choice.grad_weight.policy.name == "bernoulli"  # type: ignore[union-attr]
    assert answers(made)["scores"] == "yes"
    assert answers(walked(mlp(3), 12, 16, batch_size=9))["scores"].startswith("no: ")


@HAS_ALSH
@pytest.mark.parametrize("hidden", [1, 4])
def test_one_example_few_layers_several_cores_are_for_alsh(hidden: int) -> None:
    made = walked(mlp(hidden), 12, 16, batch_size=1)
    assert made.method == "ALSH-approx"
    assert len(sampled(made)) == hidden  # the last layer stays exact
    assert ("alsh-depth" in [warning.name for warning in made.plan.warnings]) == (hidden > 3)


@pytest.mark.parametrize(
    ("model", "shape", "cores"),
    [
        (mlp(5), (12, 16), 8),
        (mlp(3), (12, 16), 1),
        (cnn(), (4, 3, 12, 12), 8),
        (nn.Linear(16, 4), (12, 16), 8),
    ],
)
def test_otherwise_the_question_is_open(model: nn.Module, shape: tuple[int, ...], cores: int) -> None:
    made = walked(model, *shape, batch_size=1, cores=cores)
    assert made.method == "open"
    assert "no method is known to gain here" in answers(made)["method"]
    assert sampled(made)


def test_small_images_all_but_the_first_convolution() -> None:
    made = walked(cnn(), 4, 3, 32, 32)
    assert sampled(made) == ["2", "4", "7"]
    assert "small images" in answers(made)["convolutions"]
    assert "statistics fit evaluation" in answers(made)["batch norm"]


def test_large_images_only_wide_convolutions() -> None:
    made = walked(cnn(), 2, 3, 128, 128)
    assert "there are none: the widest (8)" in answers(made)["convolutions"]
    assert sampled(made) == ["2", "4", "7"]
    wide = nn.Sequential(
        nn.Conv2d(3, 4, 3, 16),
        nn.Conv2d(4, 1024, 1, 2),
        nn.Conv2d(1024, 4, 1),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    made = walked(wide, 2, 3, 128, 128)
    assert "1024 channels or more" in answers(made)["convolutions"]
    assert sampled(made) == ["2", "4"]  # not the one with 4


def test_the_forward_is_judged_by_the_measured_error() -> None:
    model = mlp(5)
    (question,) = (one for one in walked(model, 12, 16).questions if one.topic == "forward")
    assert "measured on the example inputs" in question.found
    assert question.answer.startswith("no: ")
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight[:, 1:])  # one feature carries all
    assert answers(walked(model, 12, 16))["forward"].startswith("it may: ")


def test_nothing_to_advise_on() -> None:
    with pytest.raises(NothingRewritten, match="nothing to advise on"):
        walked(nn.ReLU(), 12, 16)


def test_the_rules_are_a_rules_file(tmp_path: Path) -> None:
    found = capture(mlp(3), Inputs((torch.randn(4, 16),)), origin="Net")
    made = guide(found, batch_size=4, cores=1, silence=("small-batch",))
    (tmp_path / "rules.toml").write_text(made.rules_text)
    rules = load_rules(tmp_path / "rules.toml")
    assert [rule.name for rule in rules] == ["first layer", "all others"]
    assert rules.silence == ("small-batch",)
    assert [warning.name for warning in made.plan.silenced] == ["small-batch"]


NET = """
import torch
Net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
def example_inputs():
    return torch.randn(12, 8)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def run(*words: str, code: int = 0, columns: int = 80) -> Any:
    result = CliRunner().invoke(app, words, env={"COLUMNS": str(columns)})
    assert result.exit_code == code, (result.stderr, result.exception)
    return result


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--batch-size", "1", "--cores", "1"),
        pytest.param(("--batch-size", "1", "--cores", "4"), marks=HAS_ALSH),
    ],
)
@pytest.mark.usefixtures("folder")
def test_the_command_at_the_end_runs(words: tuple[str, ...]) -> None:
    told = json.loads(run("advise", "net.py", *words, "--json").stdout)
    for command in told["command"].split(" && "):
        assert shlex.split(command)[0] == "fxapprox"
        run(*shlex.split(command)[1:])
    assert Path("advised.toml").read_text() == told["rules_text"]
    assert [path.name for path in Path().glob("net_*.py")]


@pytest.mark.parametrize("columns", [80, 160])
def test_it_is_printed(folder: Path, columns: int) -> None:
    shown = run("advise", "net.py", "--save-rules", "mine.toml", columns=columns).stdout
    assert "net.py:Net · MC-approx · batch 12" in shown
    assert "[E] Figure 16" in shown
    assert "next: fxapprox rewrite net.py --rules mine.toml" in shown
    assert max(map(len, shown.splitlines())) <= columns
    before = (folder / "mine.toml").read_text()
    assert "exists" in run("advise", "net.py", "--save-rules", "mine.toml", code=2).stderr
    assert (folder / "mine.toml").read_text() == before
    run("advise", "net.py", "--save-rules", "mine.toml", "--force")


@pytest.mark.usefixtures("folder")
def test_exit_codes() -> None:
    Path("none.py").write_text("import torch\nNet = torch.nn.ReLU()\n")
    assert "nothing to advise on" in run("advise", "none.py", "--input", "12x8", code=3).stderr
    assert "No such option" in run("advise", "net.py", "--policy", "topk", code=2).stderr
    run("advise", "net.py", "--batch-size", "0", code=2)
    assert "cannot be written" in run("advise", "net.py", "--save-rules", "no/where.toml", code=2).stderr
