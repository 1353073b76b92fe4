"""Keep schedules: what they come to, how they are written, and that training follows them."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import site
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxapprox
from fxapprox.choices import Sampled, flops_after, idle
from fxapprox.errors import RequestError
from fxapprox.passes.layers import sites_of
from fxapprox.plan import Plan, in_words
from fxapprox.policies import policies
from fxapprox.problems import Problem
from fxapprox.report.memory import kept_bytes
from fxapprox.schedules import Schedule, read_keep
from fxapprox.syntax import read_choice, spell_choice

LINEAR = {"schedule": "linear", "from": 0.25, "to": 1.0, "steps": 4}
COSINE = {"schedule": "cosine", "from": 0.25, "to": 0.75, "steps": 100}
STEPS = {"schedule": "step", "from": 0.25, "at": {"2": 0.5, "4": 1.0}}
LATE = {"from": 0.25, "exact_after": 3}
SPELLINGS = [LINEAR, COSINE, STEPS, LATE, {**LINEAR, "exact_after": 2}, {**STEPS, "exact_after": 3}]


def schedule(table: dict[str, Any]) -> Schedule:
    problems: list[Problem] = []
    found = read_keep(table, problems)
    assert not problems, problems
    assert isinstance(found, Schedule)
    return found


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (LINEAR, [0.25, 0.4375, 0.625, 0.8125, 1.0, 1.0]),
        (COSINE, [0.25]),
        (STEPS, [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]),
        (LATE, [0.25, 0.25, 0.25, 1.0]),
        ({**LINEAR, "exact_after": 2}, [0.25, 0.4375, 1.0, 1.0, 1.0]),
        ({"from": 0.5}, [0.5, 0.5]),
    ],
)
def test_the_values(table: dict[str, Any], values: list[float]) -> None:
    made = schedule(table)
    assert [made.keep_at(step) for step in range(len(values))] == pytest.approx(values)


def test_a_cosine_is_half_way_in_the_middle_and_flat_at_both_ends() -> None:
    made = schedule(COSINE)
    assert made.keep_at(50) == pytest.approx(0.5)
    assert made.keep_at(1) - 0.25 < 0.5 / 100 / 10
    assert made.keep_at(100) == made.keep_at(10**9) == 0.75


shares = st.sampled_from([0.125, 0.3, 0.5, 0.75, 1.0])
counts = st.integers(1, 40)
tables = st.one_of(
    st.fixed_dictionaries({"from": shares}),
    st.fixed_dictionaries(
        {"schedule": st.sampled_from(["linear", "cosine"]), "from": shares, "to": shares, "steps": counts}
    ),
    st.fixed_dictionaries(
        {
            "schedule": st.just("step"),
            "from": shares,
            "at": st.dictionaries(counts.map(str), shares, min_size=1, max_size=3),
        }
    ),
)


@given(table=tables, exact_after=st.none() | counts)
def test_everything_follows_from_the_values(table: dict[str, Any], exact_after: int | None) -> None:
    made = schedule({**table, "exact_after": exact_after})
    values = [made.keep_at(step) for step in range(100)]
    length = made.length
    assert len(set(values[length:])) == 1
    assert made.final == values[-1]
    assert made.span == (min(values), max(values))
    mean = sum(values[: length or 1]) / (length or 1)
    assert sum(value * share for value, share in made.parts) == pytest.approx(mean)
    for step in range(100):
        since = made.since(step)
        assert set(values[since : step + 1]) == {values[step]}
    if not made.slopes:  # a compiled forward sees few numbers
        assert len({made.since(step) for step in range(100)}) <= 6
    assert schedule(made.spelled()) == made


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"schedule": "lin", "from": 0.5}, "unknown schedule 'lin'"),
        ({"schedule": 3, "from": 0.5}, "schedule must be a string, not 3"),
        ({}, "a constant schedule needs from"),
        ({"form": 0.5, "from": 0.5}, "unknown key 'form'"),
        ({"from": 0.5, "to": 1.0}, "to belongs to a linear or cosine schedule, not to a constant one"),
        ({"schedule": "step", "from": 0.5}, "a step schedule needs at"),
        ({**LINEAR, "from": 0}, "from = 0 is outside 0 < from <= 1"),
        ({**LINEAR, "to": 1.5}, "to = 1.5 is outside 0 < to <= 1"),
        ({**LINEAR, "to": "all"}, "to must be a number, not 'all'"),
        ({**LINEAR, "steps": 0}, "steps = 0 is less than 1"),
        ({**LINEAR, "steps": 1.5}, "steps must be a whole number, not 1.5"),
        ({**LATE, "exact_after": 0}, "exact_after = 0 is less than 1"),
        ({**LATE, "exact_after": True}, "exact_after must be a whole number, not True"),
        ({**STEPS, "at": [1, 2]}, "at must be a table from steps to values, not [1, 2]"),
        ({**STEPS, "at": {"soon": 0.5}}, "at: 'soon' is no step"),
        ({**STEPS, "at": {"-3": 0.5}}, "at: '-3' is no step"),
        ({**STEPS, "at": {"2": 0.5, 2: 0.6}}, "at: step 2 occurs twice"),
        ({**STEPS, "at": {"2": 2.0}}, "at.2 = 2.0 is outside 0 < at.2 <= 1"),
    ],
)
def test_what_is_wrong_is_said(table: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as error:
        fxapprox.Rule(policy="topk", keep=table)
    assert said in str(error.value)
    assert "problems with" not in str(error.value)


# what a plan makes of it


def test_what_a_choice_is_asked() -> None:
    late = Sampled(policies.get("topk")(), schedule(LATE))
    assert [late.k(16, step) for step in (0, 2, 3)] == [4, 4, 16]
    assert (late.range(16), late.ks(16)) == ((4, 16), ((4, 1.0),))
    assert (late.keeps_all, late.ends_exact) == (False, True)
    every = Sampled(policies.get("topk")(), schedule({"schedule": "linear", "from": 1, "to": 1, "steps": 9}))
    assert every.keeps_all


@pytest.mark.parametrize(("table", "pairs", "kept"), [(LATE, 64, True), (LATE, 1, False), (LINEAR, 4, True)])
def test_idle_where_no_step_leaves_anything_out(table: dict[str, Any], pairs: int, kept: bool) -> None:
    choice, _ = read_choice({"policy": "topk", "keep": table, "scope": "straight-through"})
    reason = idle(site(pairs=(pairs, 8, 8)), choice)
    assert (reason is None) == kept
    assert kept or "keep 0.25, exact from step 3, min_k 1" in reason


def test_flops_are_the_average_and_memory_the_most() -> None:
    one = site(pairs=(64, 64, 64), flops=(1000, 1000, 1000))
    choice, _ = read_choice({"policy": "topk", "keep": {**LINEAR, "steps": 100}})
    kept = [int(64 * (0.25 + 0.75 * step / 100) + 1e-9) for step in range(100)]
    assert flops_after(one.products, choice, "forward") == round(1000 * sum(kept) / 100 / 64)
    before, after = kept_bytes(one, choice)
    assert before == after
    late, _ = read_choice({"policy": "topk", "keep": LATE})
    assert flops_after(one.products, late, "grad_weight") == 250


@pytest.mark.parametrize("table", SPELLINGS)
def test_plan_files_diffs_and_words(table: dict[str, Any], tmp_path: Path) -> None:
    model, x = net()
    plan = fxapprox.plan(model, (x,), policy="topk", keep=table)
    plan.save(tmp_path / "plan.toml")
    assert Plan.load(tmp_path / "plan.toml").diff(plan) == ()
    other = fxapprox.plan(model, (x,), policy="topk", keep=0.5)
    assert f"keep (schedule {table.get('schedule', 'constant')} from 0.25 " in plan.diff(other)[0]
    choice = plan.decisions[0].choice
    assert read_choice(spell_choice(choice)) == (choice, [])
    assert "min_k" not in in_words(choice)


def test_the_summary_says_that_it_averages() -> None:
    model, x = net()
    told = fxapprox.summary(fxapprox.plan(model, (x,), policy="topk", keep=LATE))
    assert told.facts["averaged_over"] == 3
    assert told.facts["sites"][0]["products"]["forward"]["keep"] == {"schedule": "constant", **LATE}
    assert "its average (3 steps)" in told.text(120)
    assert "0.25, exact from step 3" in " ".join(told.text(200).split())
    assert "average" not in fxapprox.summary(fxapprox.plan(model, (x,), policy="topk")).text(120)


def test_a_net_that_ends_exact_has_statistics_that_fit() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    plans = [
        fxapprox.plan(model, torch.randn(4, 8, 8, 8), policy="topk", keep=k) for k in (0.5, LATE, COSINE)
    ]
    said = [[warning.message for warning in plan.warnings if warning.name == "batch-norm"] for plan in plans]
    assert list(map(len, said)) == [1, 0, 1]
    assert said[0][0].startswith("1 site before batch norm (1) under")


# training


def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8)), torch.randn(12, 16)


def keeps(model: nn.Module) -> list[int]:
    """Of each site, the step that it is at."""
    return [part.clock.steps for sites in sites_of(model) for part in sites.parts.values()]


def by_number(model: nn.Module, x: Tensor, keep: float, **keys: Any) -> Tensor:
    """What a model with a constant keep computes, from the same seed."""
    fast = fxapprox.rewrite(model, (x,), keep=keep, **keys) if keep < 1 else model
    torch.manual_seed(5)
    return fast(x)


@pytest.mark.parametrize("policy", ["topk", "pps"])
def test_each_step_is_what_a_number_gives(policy: str) -> None:
    model, x = net()
    fast = fxapprox.rewrite(model, (x,), policy=policy, keep=LINEAR)
    for step in range(6):
        keep = min(0.25 + 0.1875 * step, 1.0)
        expected = by_number(model, x, keep, policy=policy)
        torch.manual_seed(5)
        torch.testing.assert_close(fast(x), expected, msg=f"step {step}")
    assert keeps(fast) == [6, 6]


def test_what_counts() -> None:
    model, x = net()
    fast = fxapprox.rewrite(model, (x,), policy="topk", keep=LATE)
    fast(x)
    with torch.no_grad():
        fast(x)
    fast.eval()(x)
    assert keeps(fast) == [1, 1]
    assert fxapprox.run_state(fast)["0"]["step"] == 1
    other = fxapprox.rewrite(model, (x,), policy="topk", keep=LATE)
    fxapprox.load_run_state(other, fxapprox.run_state(fast))
    assert keeps(other) == keeps(copy.deepcopy(fast)) == keeps(pickle.loads(pickle.dumps(fast))) == [1, 1]
    stream = io.BytesIO()
    torch.save(fxapprox.run_state(fast), stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=True)["2"] == {"step": 1}


def test_an_optimizer_counts_its_steps() -> None:
    """Gradient accumulation, and a layer that runs twice in a forward."""
    model, x = net()
    shared = nn.Sequential(model[0], nn.Linear(24, 16), model[0], nn.Tanh(), model[2])
    fast = fxapprox.rewrite(shared, (x,), policy="topk", keep=LATE)
    optimizer = torch.optim.SGD(fast.parameters(), 0.1)
    handle = fxapprox.attach(fast, optimizer)
    for _ in range(3):
        for _ in range(2):
            fast(x).sum().backward()
        optimizer.step()
    assert keeps(fast) == [3, 3, 3]
    assert torch.equal(fast(x), fast.eval()(x))
    again = copy.deepcopy(fast.train())
    optimizer.step()
    assert (keeps(fast), keeps(again)) == ([4, 4, 4], [3, 3, 3])
    handle.remove()
    optimizer.step()
    fast(x)
    assert keeps(fast) == [6, 5, 5]


def test_the_first_of_two_optimizers_counts() -> None:
    model, x = net()
    fast = fxapprox.rewrite(model, (x,), policy="topk", keep=LATE)
    first, second = (torch.optim.SGD(fast[place].parameters(), 0.1) for place in (0, 2))
    handle, _ = fxapprox.attach(fast, first), fxapprox.attach(fast, second)
    first.step(), second.step()
    assert keeps(fast) == [1, 1]
    handle.remove()
    first.step(), second.step()
    assert keeps(fast) == [2, 2]


@pytest.mark.parametrize("policy", ["topk", "pps"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputation_is_at_the_step_of_its_original(policy: str, reentrant: bool) -> None:
    """Two forwards before the backward: the first one's recomputation comes after the second one's step."""
    model, x = net()
    x.requires_grad_()
    fast = fxapprox.rewrite(model, (x,), policy=policy, keep={"from": 0.25, "exact_after": 1})

    def gradients(run: Any) -> list[Tensor]:
        one = copy.deepcopy(fast)
        torch.manual_seed(5)
        (run(one, x).sum() + run(one, 2 * x).square().sum()).backward()
        assert keeps(one) == [2, 2]
        return [parameter.grad for parameter in one.parameters()]

    plain = gradients(lambda one, x: one(x))
    again = gradients(lambda one, x: checkpoint(one, x, use_reentrant=reentrant))
    for expected, found in zip(plain, again, strict=True):
        torch.testing.assert_close(found, expected)


def test_function_calls_and_emitted_files(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x) @ x.transpose(0, 1)

    torch.manual_seed(0)
    model, x = Net(), torch.randn(16, 16)
    fast = fxapprox.rewrite(model, (x,), policy="pps", keep=STEPS)
    fxapprox.emit(fast, tmp_path / "emitted_schedule.py")
    text = (tmp_path / "emitted_schedule.py").read_text()
    assert '"keep": {"schedule": "step", "from": 0.25, "at": {"2": 0.5, "4": 1.0}}' in text
    assert "PPS_25_STEP = {" in text
    assert "keeps 4 to 16 of 16 in features" in text
    sys.path.insert(0, str(tmp_path))
    try:
        import emitted_schedule
    finally:
        sys.path.remove(str(tmp_path))
    built = emitted_schedule.build_model()
    for _ in range(6):
        outputs = []
        for one in (fast, built):
            torch.manual_seed(3)
            outputs.append(one(x))
        assert torch.equal(*outputs)
    assert torch.equal(outputs[0], model(x))
    assert keeps(fast) == keeps(built) == [6, 6]


def test_a_compiled_step_starts_over_only_when_keep_changes() -> None:
    model, x = net()
    fast = fxapprox.rewrite(model, (x,), policy="topk", keep=STEPS)
    optimizer = torch.optim.SGD(fast.parameters(), 0.0)
    fxapprox.attach(fast, optimizer)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(fast, backend=backend, fullgraph=True)
    other = fxapprox.rewrite(model, (x,), policy="topk", keep=STEPS)
    for _ in range(7):
        torch.testing.assert_close(compiled(x), other(x))
        optimizer.step()
    assert len(graphs) == 3


def test_a_slope_is_left_out_of_the_compiled_graph() -> None:
    model, x = net()
    fast = fxapprox.rewrite(model, (x,), policy="topk", keep=LINEAR)
    other = copy.deepcopy(fast)
    torch._dynamo.reset()
    compiled = torch.compile(fast, backend="eager")
    for _ in range(5):
        torch.testing.assert_close(compiled(x), other(x))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="changes from step to step"):
        torch.compile(other, backend="eager", fullgraph=True)(x)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from fxapprox_cli.main import app
    from typer.testing import CliRunner

    (tmp_path / "net.py").write_text("from torch import nn\nmodel = nn.Sequential(nn.Linear(64, 32))\n")
    command = ["inspect", str(tmp_path / "net.py"), "--input", "4x64", "--policy", "topk", "--json", "--keep"]
    for text, keep in (
        ("{ from = 0.25, exact_after = 800 }", {"schedule": "constant", "from": 0.25, "exact_after": 800}),
        ("{ schedule = 'linear', from = 0.25, to = 1, steps = 9 }", {**LINEAR, "steps": 9}),
        (".5", 0.5),
    ):
        done = CliRunner().invoke(app, [*command, text])
        told = json.loads(done.stdout)
        assert told["sites"][0]["products"]["forward"]["keep"] == keep
    assert CliRunner().invoke(app, [*command, "half"]).exit_code == 2
