"""The commands, in process: results on stdout, messages on stderr, exit codes, files."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from fxapprox_cli.main import app
from typer.testing import CliRunner

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.fc1 = nn.Linear(8, width)
        self.fc2 = nn.Linear(width, width)
        self.fc3 = nn.Linear(width, 4)

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))

def example_inputs():
    return torch.randn(6, 8)
"""
RULES = """version = 1

[[rule]]
name = "ends"
depth = "0, -1"
policy = "exact"

[[rule]]
name = "rest"
policy = "pps"
keep = 0.25
scope = "backward"
"""
Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("inspect", "net.py")` in a folder that holds net.py and rules.toml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "rules.toml").write_text(RULES)

    def run(*words: str, code: int = 0, columns: int = 80) -> Any:
        result = CliRunner().invoke(app, words, env={"COLUMNS": str(columns)})
        assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
        assert "Traceback" not in result.stderr
        return result

    return run


def files() -> list[str]:
    """What stands in the folder beside the two files that were there."""
    return sorted(set(os.listdir()) - {"net.py", "rules.toml"})


def built(path: str) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: torch.nn.Module = module.build_model()
    return model


@pytest.mark.parametrize("columns", [80, 160])
def test_inspect(run: Run, columns: int) -> None:
    result = run("inspect", "net.py", columns=columns)
    assert "net.py:Net · 3 sites" in result.stdout
    assert "rewritten" not in result.stdout
    assert "FLOPs, 2 per multiply-add, forward + backward" in result.stdout
    assert "next: fxapprox rewrite net.py --policy topk --dry-run" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= columns
    assert result.stderr == ""
    assert files() == []


@pytest.mark.parametrize("columns", [80, 160])
def test_rewrite_writes_what_it_says(run: Run, columns: int) -> None:
    result = run("rewrite", "net.py", "--policy", "topk", columns=columns)
    assert files() == ["net_topk.py", "net_topk.safetensors"]
    assert "wrote net_topk.py, net_topk.safetensors" in result.stdout
    assert "next: from net_topk import build_model" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= columns
    model = built("net_topk.py")
    assert "fc2.weight" in model.state_dict()
    run("rewrite", "net.py", "--policy", "topk", "--keep", "0.25")


def test_dry_run_writes_nothing_and_says_what_to_type(run: Run) -> None:
    result = run("rewrite", "net.py", "--rules", "rules.toml", "--input", "6x8", "--dry-run", columns=160)
    assert files() == []
    assert "next: fxapprox rewrite net.py --rules rules.toml --input 6x8" in result.stdout
    assert "pps · backward · 0.25" in result.stdout
    assert "".join(["(rule", '"ends",', "rules.toml:3)"]) in "".join(result.stdout.split())


def test_json_says_the_same(run: Run) -> None:
    told = json.loads(run("rewrite", "net.py", "--rules", "rules.toml", "--json", "-o", "out.py").stdout)
    assert told["written"] == ["out.py", "out.safetensors"]
    assert told["totals"]["rewritten"] == 1
    middle = told["sites"][1]
    assert middle["rule"] == "rest"
    assert middle["products"]["grad_input"] | {"over": ""} == {
        "over": "", "pairs": 16, "groups": 1, "flops": 3072, "flops_after": 768, "treatment": "sampled",
        "policy": "pps", "options": {}, "keep": 0.25, "kept": 4, "min_k": 1, "center": False,
        "memory": None, "keep_words": "0.25", "kept_range": [4, 4],
        "samples": "pairs", "kept_of": 16, "kept_over": "out features",
    }  # fmt: skip
    assert json.loads(run("inspect", "net.py", "--json").stdout)["decided"] is False
    assert {one["name"] for one in json.loads(run("policies", "--json").stdout)} >= {"topk", "exact"}
    assert {one["name"] for one in json.loads(run("kinds", "--json").stdout)} >= {"linear"}
    explained = json.loads(run("explain", "net.py", "fc2", "--rules", "rules.toml", "--json").stdout)
    assert [rule["outcome"] for rule in explained["rules"]] == ["fails", "matches"]


def test_a_plan_is_saved_edited_and_applied(run: Run) -> None:
    run("rewrite", "net.py", "--policy", "topk", "--dry-run", "--save-plan", "plan.toml")
    assert files() == ["plan.toml"]
    plan = Path("plan.toml")
    plan.write_text(plan.read_text().replace("keep = 0.5", "keep = 0.25", 1))
    told = json.loads(run("rewrite", "net.py", "--plan", "plan.toml", "--json").stdout)
    assert [site["products"]["forward"]["kept"] for site in told["sites"]] == [2, 8, 8]
    assert files() == ["net_topk.py", "net_topk.safetensors", "plan.toml"]


def test_explain(run: Run) -> None:
    result = run("explain", "net.py", "fc1", "--rules", "rules.toml")
    assert "✓ ends" in result.stdout
    assert "· rest" in result.stdout
    assert "next" not in result.stdout
    assert "fc2: topk · forward · 0.5" in run("explain", "net.py", "fc2", "--policy", "topk").stdout
    run("rewrite", "net.py", "--policy", "topk", "--dry-run", "--save-plan", "plan.toml")
    assert "fc2: topk" in run("explain", "net.py", "fc2", "--plan", "plan.toml").stdout


def test_the_options_of_the_shorthand(run: Run) -> None:
    words = ["--policy", "uniform", "--option", "scale=none", "--keep", "0.25", "--min-k", "3", "--center"]
    told = json.loads(run("rewrite", "net.py", *words, "--dry-run", "--json").stdout)
    forward = told["sites"][0]["products"]["forward"]
    assert (forward["options"], forward["kept"], forward["center"]) == ({"scale": "none"}, 3, True)


def test_the_seed_decides_the_weights(run: Run) -> None:
    for seed in ("1", "2", "1"):
        run("rewrite", "net.py", "--policy", "topk", "--seed", seed, "-o", "out.py")
        weights = built("out.py").state_dict()["fc1.weight"]
        if seed == "1":
            first = weights
    assert torch.equal(first, weights)


@pytest.mark.parametrize("ending", ["svg", "html", "dot"])
def test_a_drawing(run: Run, ending: str) -> None:
    result = run("inspect", "net.py", "--graph", f"net.{ending}", "--policy", "topk")
    assert f"wrote net.{ending}" in result.stdout
    assert "topk · forward · 0.5" in Path(f"net.{ending}").read_text()


def test_policies_and_kinds(run: Run) -> None:
    assert "Adelman et al. 2021" in run("policies").stdout
    assert "nn.Linear" in run("kinds").stdout


def test_what_the_user_prints_goes_to_stderr(run: Run) -> None:
    Path("net.py").write_text(
        "print('at import')\n" + NET.replace("return self", "print('in forward'); return self")
    )
    result = run("inspect", "net.py", "--json")
    json.loads(result.stdout)
    assert "at import" in result.stderr
    assert "in forward" in result.stderr


# bad input: one clear message, the right code, nothing written

BROKEN = {
    "syntax.py": "def f(:\n",
    "imports.py": "import no_such_thing\n",
    "empty.py": "x = 1\n",
    "several.py": NET + "class Other(Net): pass\n",
    "fails.py": NET + "def build_model():\n    raise OSError('no weights')\n",
    "number.py": NET + "def build_model():\n    return 5\n",
    "bare.py": NET.replace("def example_inputs", "def nothing"),
    "empty.toml": "",
    "typo.toml": RULES.replace("keep", "kepe"),
    "other.py": NET.replace("fc2", "middle"),
    "mine.txt": "precious",
    "mine.py": "# precious\n",
    "mine.svg": "<svg/>",
}
TOPK = ("--policy", "topk")
BAD: list[tuple[tuple[str, ...], str]] = [
    (("rewrite", "nett.py", *TOPK), "did you mean 'net.py'?"),
    (("rewrite", "no.such.module", *TOPK), "there is no module"),
    (("rewrite", "syntax.py", *TOPK), "syntax.py:1: def f(:"),
    (("rewrite", "imports.py", *TOPK), "imports.py:1: import no_such_thing"),
    (("rewrite", "empty.py", *TOPK), "holds no model"),
    (("rewrite", "several.py", *TOPK), "several.py:Other"),
    (("rewrite", "fails.py", *TOPK), "raise OSError('no weights')"),
    (("rewrite", "number.py", *TOPK), "returned an int, not a torch.nn.Module"),
    (("rewrite", "net.py:Nett", *TOPK), "did you mean 'Net'?"),
    (("rewrite", "bare.py", *TOPK), "there are no example inputs"),
    (("rewrite", "net.py", *TOPK, "--input", "6x9"), "does not run on the example inputs"),
    (("rewrite", "net.py", *TOPK, "--input", "6x9y"), "is no shape"),
    (("rewrite", "net.py", *TOPK, "--input", "6x8:float31"), "unknown dtype"),
    (("rewrite", "net.py", *TOPK, "--keep", "1.5"), "1.5"),
    (("rewrite", "net.py", *TOPK, "--keep", "0"), "keep"),
    (("rewrite", "net.py", *TOPK, "--keep", "much"), "keep must be a number or a schedule, not 'much'"),
    (("rewrite", "net.py", "--policy", "tpok"), "did you mean 'topk'?"),
    (("rewrite", "net.py", *TOPK, "--scope", "forwards"), "did you mean 'forward'?"),
    (("rewrite", "net.py", *TOPK, "--option", "scale=none"), "scale"),
    (("rewrite", "net.py", *TOPK, "--option", "scale"), "is not KEY=VALUE"),
    (("rewrite", "net.py", "--keep", "0.5"), "policy"),
    (("rewrite", "net.py"), "nothing says what to sample"),
    (("rewrite", "net.py", *TOPK, "--rules", "rules.toml"), "cannot be given together"),
    (("rewrite", "net.py", "--rules", "none.toml"), "none.toml"),
    (("rewrite", "net.py", "--rules", "empty.toml"), "empty.toml is empty"),
    (("rewrite", "net.py", "--rules", "typo.toml"), "typo.toml:11"),
    (("rewrite", "net.py", "--plan", "rules.toml"), "rules.toml"),
    (("rewrite", "other.py", "--plan", "plan.toml"), "made for another model"),
    (("rewrite", "net.py", *TOPK, "--leaf", "fc9"), "fc9"),
    (("rewrite", "net.py", *TOPK, "--front-end", "magic"), "unknown front-end"),
    (("rewrite", "net.py", *TOPK, "-o", "mine.py"), "mine.py exists and was not written by fxapprox"),
    (("rewrite", "net.py", *TOPK, "-o", "none/out.py"), "no folder none"),
    (("rewrite", "net.py", *TOPK, "-o", "not-a-name.py"), "not_a_name.py"),
    (("rewrite", "net.py", *TOPK, "--save-plan", "mine.txt"), "mine.txt exists and is not a plan"),
    (("rewrite", "net.py", *TOPK, "--save-plan", "none/plan.toml"), "none"),
    (("explain", "net.py", "fc9", *TOPK), "fc9"),
    (("explain", "net.py", "fc2"), "nothing says what to sample"),
    (("inspect", "net.py", "--graph", "net.png"), "net.png"),
    (("inspect", "net.py", "--graph", "mine.svg"), "was not drawn by fxapprox"),
    (("inspect", "net.py", "--grph", "net.svg"), "--graph"),
    (("rewire", "net.py"), "rewire"),
]


@pytest.mark.parametrize(("words", "part"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_clear_message(run: Run, words: tuple[str, ...], part: str) -> None:
    for name, text in BROKEN.items():
        Path(name).write_text(text)
    if "plan.toml" in words:
        run("rewrite", "net.py", *TOPK, "--dry-run", "--save-plan", "plan.toml")
    before = {name: Path(name).read_text() for name in os.listdir()}
    result = run(*words, code=2)
    assert part in " ".join(result.stderr.split()), result.stderr
    assert result.stdout == ""
    assert {name: Path(name).read_text() for name in os.listdir()} == before


def test_nothing_rewritten_is_a_failure_with_the_reasons(run: Run) -> None:
    for words in ([], ["--dry-run"]):
        result = run("rewrite", "net.py", "--policy", "topk", "--min-k", "99", *words, code=3)
        assert "nothing was rewritten" in result.stderr
        assert "keeps all 8 pairs" in result.stderr
        assert result.stdout == ""
    told = json.loads(run("rewrite", "net.py", "--policy", "exact", "--json", code=3).stdout)
    assert told["totals"]["rewritten"] == 0
    assert told["written"] == []
    assert files() == []


def test_debug_shows_the_traceback(run: Run) -> None:
    result = CliRunner().invoke(app, ["inspect", "none.py", "--debug"])
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "RequestError"


def test_a_fault_of_ours_is_told_apart(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise ValueError("surprise")

    monkeypatch.setattr(import_module("fxapprox.report.facts"), "policy_facts", fault)
    result = run("policies", code=1)
    assert "fault in fxapprox: ValueError: surprise" in result.stderr
    assert "--debug" in result.stderr


@pytest.mark.parametrize("step", ["load", "write"])
def test_an_interrupt_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    where = {"load": ("fxapprox.capture.load", "load"), "write": ("fxapprox.emit.write", "write_weights")}
    module, name = where[step]
    monkeypatch.setattr(import_module(module), name, interrupted)
    result = run("rewrite", "net.py", *TOPK, code=130)
    assert "interrupted" in result.stderr
    assert files() == []


def test_a_full_disk_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(import_module("fxapprox.emit.write"), "write_weights", full)
    assert "No space left on device" in run("rewrite", "net.py", *TOPK, code=2).stderr
    assert files() == []


def test_explain_says_the_warnings_of_the_site(run: Run) -> None:
    told = json.loads(run("explain", "net.py", "fc2", "--policy", "topk", "--json").stdout)
    assert [warning["name"] for warning in told["warnings"]] == ["deep-forward", "small-batch"]
    shown = run(
        "explain", "net.py", "fc2", "--policy", "topk", "--silence", "small-batch", columns=160
    ).stdout
    assert "measured on the example inputs" in shown
    assert "6 rows" not in shown
    told = json.loads(run("explain", "net.py", "fc1", "--rules", "rules.toml", "--json").stdout)
    assert told["warnings"] == []


def test_silence_is_checked_and_remembered(run: Run) -> None:
    words = ("rewrite", "net.py", "--policy", "topk", "--dry-run")
    shown = run(*words, "--silence", "small-batch", "--silence", "deep-forward", columns=160).stdout
    assert "2 warnings silenced: deep-forward, small-batch" in shown
    assert "next: fxapprox rewrite net.py --policy topk --silence small-batch --silence deep-forward" in shown
    assert "did you mean 'small-batch'?" in run(*words, "--silence", "smallbatch", code=2).stderr


def test_random_inputs_are_not_measured(run: Run) -> None:
    deep = "import torch\nNet = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))\n"
    Path("deep.py").write_text(deep)
    shown = run("inspect", "deep.py", "--policy", "topk", "--input", "16x8", columns=300).stdout
    assert "assumed c = 5, not measured: the example inputs are random numbers" in shown
