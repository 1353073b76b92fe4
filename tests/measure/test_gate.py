"""The gate with a clock that says what the test wants: who is left exact, what is kept, what is told."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox import system
from fxapprox.errors import NothingRewritten
from fxapprox.measure import cache, gate
from fxapprox.measure.calls import SampledCall
from fxapprox.measure.sites import CallTimes, Side
from fxapprox.measure.timing import Timing
from fxapprox.passes.layers import Sampled
from fxapprox.plan import Plan

X = torch.randn(6, 16)


class Net(nn.Module):
    """Linear layers of 16 → width → 16 → 4; the middle one runs twice."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.wide = nn.Linear(16, width)
        self.twice = nn.Linear(width, width)
        self.back = nn.Linear(width, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.wide(x)))
        return self.head(self.back(x))


def times(exact: float, *quotients: float) -> CallTimes:
    """Rounds in which the exact call takes `exact` seconds and the sampled one that over each quotient."""
    rounds = Timing(tuple(exact for _ in quotients))
    ours = Timing(tuple(exact / one for one in quotients))
    return CallTimes(Side({"contiguous": rounds}), Side({"contiguous": ours}), None)


class Clock:
    """Stands in for `time_call`: quotients by site id; what was asked for is in `asked`."""

    def __init__(self) -> None:
        self.quotients: dict[str, tuple[float, ...]] = {}
        self.usual: tuple[float, ...] = (2.0, 2.0, 2.0)
        self.asked: list[str] = []
        self.seconds = 1e-3
        self.now = 0.0

    def __call__(self, call: SampledCall, budget: Any, **options: Any) -> CallTimes:
        assert 0 < budget.seconds <= gate.EACH.seconds
        site = call.sites[0]
        self.asked.append(site)
        self.now += self.seconds
        options["tick"](1.0)
        return times(self.seconds / 10, *self.quotients.get(site, self.usual))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(gate, "time_call", made)
    monkeypatch.setattr(gate.time, "perf_counter", lambda: made.now)
    monkeypatch.setenv(system.CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("FXAPPROX_GATE", "1")
    return made


def plan(model: nn.Module | None = None, **keys: Any) -> Plan:
    return fxapprox.plan(model or Net(), (X,), **({"policy": "topk"} | keys))


def left(decided: Plan) -> list[str]:
    return [d.site.id for d in decided.decisions if d.choice is None]


# the decision


def test_faster_sites_are_sampled_and_slower_ones_left_exact(clock: Clock) -> None:
    clock.quotients = {"wide": (0.7, 0.8, 0.9), "head": (0.5, 0.6, 0.6)}
    model = Net()
    fast = fxapprox.rewrite(model, (X,), policy="topk")
    assert type(fast.wide) is nn.Linear
    assert isinstance(fast.twice, Sampled)
    decided = plan(model)
    assert left(decided) == ["wide", "head"]
    threads = torch.get_num_threads()
    told = f"would be 0.80×, left exact (gate: measured at {threads} thread{'s' * (threads > 1)})"
    assert decided.by_id["wide"].reason == told
    assert decided.by_id["wide"].rule == "every site"
    assert decided.by_id["back"].reason == 'every site (rule "every site")'
    verdict = decided.by_id["back"].gate
    assert verdict is not None
    assert (verdict.how, verdict.ratio, verdict.passes) == ("measured", 2.0, True)


def test_a_site_is_sampled_where_the_median_gains(clock: Clock) -> None:
    clock.quotients = {
        "wide": (0.6, 0.7, 1.1, 1.2, 1.3),
        "back": (0.8, 0.9, 1.02, 1.5, 1.6),  # a gain that a layer among others does not have
        "head": (1.0, 1.0, 1.0),  # as fast is not faster
    }
    assert left(plan()) == ["back", "head"]


def test_calls_that_are_alike_are_measured_once(clock: Clock) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 16))
    plan(model)
    assert clock.asked == ["2", "0"]  # the first needs no gradient of its input; 3 is like 2


def test_largest_first(clock: Clock) -> None:
    plan()
    assert clock.asked == ["twice", "back", "wide", "head"]


def test_calls_of_one_site_count_together(clock: Clock) -> None:
    """Its input needs no gradient in the first call: two distinct calls, one slower, one faster."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    answers = iter([(0.5, 0.5), (4.0, 4.0)])
    clock.quotients = type("Next", (), {"get": lambda self, site, usual: next(answers)})()  # type: ignore[assignment]
    verdict = plan(Twice()).decisions[0].gate
    assert verdict is not None
    assert verdict.ratio == pytest.approx(
        2 / (1 / 0.5 + 1 / 4), abs=1e-4
    )  # the sum of times over that of ours
    assert left(plan(Twice())) == ["layer"]


def test_products_of_one_call_are_decided_together(clock: Clock) -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(q, q, q)

    rules = [fxapprox.Rule(kind="attention", policy="topk")]
    q = torch.randn(2, 2, 16, 8, requires_grad=True)
    clock.usual = (0.5, 0.5)
    decided = fxapprox.plan(Attention(), (q,), rules=rules)
    assert len(clock.asked) == 1
    assert [d.gate.ratio for d in decided.decisions if d.gate] == [0.5, 0.5]
    assert len(left(decided)) == 2


def test_what_is_not_sampled_is_not_measured(clock: Clock) -> None:
    rules = [fxapprox.Rule(path="wide", policy="exact"), fxapprox.Rule(policy="topk", keep=1.0)]
    assert len(plan(policy=None, rules=rules).rewritten) == 3
    assert clock.asked == []


def test_a_schedule_is_measured_at_its_average(clock: Clock) -> None:
    keeps = []
    ask = clock.__call__

    def watched(call: SampledCall, budget: Any, **options: Any) -> CallTimes:
        treatment = call.contracted[0].choice.forward
        keeps.append(treatment.keep)  # type: ignore[union-attr]
        return ask(call, budget, **options)

    gate.time_call = watched  # type: ignore[assignment]  # the fixture puts it back
    schedule = {"schedule": "step", "from": 0.2, "at": {"10": 0.6}, "exact_after": 20}
    decided = plan(keep=schedule)
    assert keeps == [pytest.approx(0.4)] * 4
    assert str(decided.by_id["wide"].choice.forward.keep).startswith("0.2")  # type: ignore[union-attr]


def test_nothing_is_faster(clock: Clock) -> None:
    clock.usual = (0.5, 0.5)
    with pytest.raises(NothingRewritten, match=r"would be 0\.50×, left exact") as caught:
        fxapprox.rewrite(Net(), (X,), policy="topk")
    assert "--no-gate, in Python gate=False" in str(caught.value)
    assert len(plan(gate=False).rewritten) == 4


# what cannot be measured


def test_the_model_and_the_random_state_stay_as_they_were(clock: Clock) -> None:
    model = Net().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    plan(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert clock.asked  # in evaluation mode, too, training is what counts


def test_no_values_no_verdict(clock: Clock) -> None:
    with torch.device("meta"):
        model = Net()
    decided = fxapprox.plan(model, (X.to("meta"),), policy="topk")
    assert clock.asked == []
    assert left(decided) == []
    verdict = decided.decisions[0].gate
    assert verdict is not None
    assert (verdict.how, verdict.by) == ("unmeasured", "the model or its inputs hold no values")
    assert "not measured, and sampled as asked: the model or its inputs" in str(fxapprox.summary(decided))


def test_a_failing_measurement_fails_no_rewrite(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> CallTimes:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(gate, "time_call", failing)
    decided = plan()
    assert left(decided) == []
    assert str(decided.by_id["wide"].gate) == "not measured by the gate: RuntimeError: no kernel"


# time


def test_what_there_is_no_time_for_is_judged_by_the_nearest(clock: Clock) -> None:
    clock.seconds = gate.SECONDS + 0.1
    clock.quotients = {"twice": (0.5, 0.5)}
    decided = plan()
    assert clock.asked == ["twice"]
    verdict = decided.by_id["back"].gate
    assert verdict is not None
    assert (verdict.how, verdict.by, verdict.ratio) == ("judged", "twice", 0.5)
    assert decided.by_id["back"].reason.startswith(
        "would be about 0.50×, left exact (gate: judged by twice, at "
    )
    assert plan().by_id["back"].gate.how == "measured"  # type: ignore[union-attr]  # the next time has time for it


def test_a_call_of_another_kind_or_treatment_is_no_judge(clock: Clock) -> None:
    clock.seconds = gate.SECONDS + 0.1
    rules = [fxapprox.Rule(path="twice", policy="topk"), fxapprox.Rule(policy="pps")]
    decided = plan(policy=None, rules=rules)
    assert str(decided.by_id["back"].gate) == (
        "not measured by the gate: no time was left, and no call like it is known"
    )
    assert left(decided) == []


def test_a_measurement_that_takes_too_long_is_broken_off(clock: Clock) -> None:
    clock.seconds = gate.SECONDS + gate.GRACE + 0.1
    decided = plan()
    assert {str(d.gate) for d in decided.decisions} == {
        "not measured by the gate: no time was left, and no call like it is known"
    }


@pytest.mark.parametrize("forward", [1.5, 100.0])
def test_the_pass_that_meets_the_calls_is_part_of_the_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, forward: float
) -> None:
    met = gate._calls

    def slow(*given: Any) -> Any:
        clock.now += forward
        return met(*given)

    monkeypatch.setattr(gate, "_calls", slow)
    clock.seconds = 0.5  # all four take 2 s, and 1.5 are left, or given at least
    assert [d.gate.how for d in plan().decisions].count("measured") == 3  # type: ignore[union-attr]


def test_a_call_too_large_for_the_time_is_not_begun(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PRIOR", 1e-4)  # 98,304 FLOPs of `twice` would take 49 s
    monkeypatch.setattr(gate, "SECONDS", 4.0)
    decided = plan()
    assert clock.asked == ["head"]
    assert decided.by_id["twice"].gate.by == "head"  # type: ignore[union-attr]


def test_time_is_kept_for_small_calls(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PRIOR", 1e-6)  # `back` would take 0.09 s, `wide` 0.06, `head` 0.01
    monkeypatch.setattr(gate, "RESERVE", 1.25)
    clock.seconds = 1.7
    decided = plan()
    assert clock.asked == ["twice", "head"]
    assert decided.by_id["head"].gate.how == "measured"  # type: ignore[union-attr]
    assert decided.by_id["wide"].gate.by == "twice"  # type: ignore[union-attr]


def test_the_bar_hears_of_it(clock: Clock) -> None:
    from fxapprox.api import planned
    from fxapprox.capture import capture
    from fxapprox.capture._types import Inputs
    from fxapprox.rules import rules_from

    said: list[tuple[str, float]] = []
    planned(
        capture(Net(), Inputs((X,)), origin="Net"),
        rules_from(policy="topk"),
        tick=lambda *told: said.append(told),
    )
    assert len(said) == 4
    assert {doing for doing, _ in said} == {gate.DOING}


# the cache


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "gate").iterdir())


def test_measured_once_for_all_processes(clock: Clock, tmp_path: Path) -> None:
    clock.quotients = {"wide": (0.8, 0.8)}
    first = plan()
    asked = len(clock.asked)
    assert len(entries(tmp_path)) == asked == 4
    assert plan().decisions == first.decisions
    assert len(clock.asked) == asked


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"exact": 1}', '{"exact": 0, "ratio": 1, "lower": 1, "upper": 1}',
               '{"exact": 1, "ratio": NaN, "lower": 1, "upper": 1}', "\x00\x01"],
)  # fmt: skip
def test_a_damaged_entry_is_measured_anew(clock: Clock, tmp_path: Path, damage: str) -> None:
    plan()
    one = entries(tmp_path)[0]
    whole = one.read_text()
    one.write_text(damage)
    clock.asked.clear()
    plan()
    assert len(clock.asked) == 1
    assert entries(tmp_path)[0].read_text() == whole
    assert all(path.suffix == ".json" for path in entries(tmp_path))


def test_a_cache_that_cannot_be_written_is_done_without(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(system.CACHE, str(tmp_path / "file" / "below"))
    clock.quotients = {"wide": (0.8, 0.8)}
    assert left(plan()) == ["wide"]
    assert left(plan()) == ["wide"]
    assert len(clock.asked) == 8


Change = Callable[[pytest.MonkeyPatch], None]
CHANGES: dict[str, Change] = {
    "threads": lambda patch: patch.setattr(torch, "get_num_threads", lambda: 77),
    "torch": lambda patch: patch.setattr(torch, "__version__", "99"),
    "processor": lambda patch: patch.setattr(cache, "cpu", lambda: "another"),
    "code": lambda patch: patch.setattr(cache, "code", lambda: "another"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_on_another_machine_it_is_measured_anew(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    plan()
    clock.asked.clear()
    CHANGES[what](monkeypatch)
    plan()
    assert len(clock.asked) == 4


def test_another_batch_shape_or_treatment_is_another_call(clock: Clock) -> None:
    plan()
    for more in ({"keep": 0.25}, {"policy": "pps"}, {"scope": "backward"}):
        clock.asked.clear()
        plan(**more)
        assert len(clock.asked) == 4, more
    clock.asked.clear()
    fxapprox.plan(Net(), (torch.randn(7, 16),), policy="topk")
    assert len(clock.asked) == 4


def test_noise_is_not_kept(clock: Clock) -> None:
    clock.quotients = {"wide": (0.2, 0.5, 3.0, 9.0)}
    plan()
    clock.asked.clear()
    plan()
    assert clock.asked == ["wide"]


@pytest.mark.parametrize(
    ("platform", "variables", "wanted"),
    [
        ("linux", {system.CACHE: "/own"}, "/own"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/fxapprox"),
        ("linux", {"HOME": "/me"}, "/me/.cache/fxapprox"),
        ("darwin", {"HOME": "/me"}, "/me/Library/Caches/fxapprox"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/fxapprox"),
    ],
)
def test_the_folder(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], wanted: str
) -> None:
    for name in (system.CACHE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(system.sys, "platform", platform)
    assert system.cache_folder().as_posix() == wanted


# what is remembered and told


def test_a_plan_remembers_and_measures_no_more(clock: Clock, tmp_path: Path) -> None:
    clock.quotients = {"wide": (0.8, 0.8)}
    decided = plan()
    decided.save(tmp_path / "plan.toml")
    loaded = Plan.load(tmp_path / "plan.toml")
    assert loaded == decided
    clock.asked.clear()
    clock.usual = (0.1, 0.1)
    fast = fxapprox.rewrite(Net(), (X,), rules=loaded)
    assert clock.asked == []
    assert type(fast.wide) is nn.Linear
    assert isinstance(fast.back, Sampled)


def test_a_plan_of_another_machine_is_measured_where_that_is_asked_for(clock: Clock) -> None:
    decided = plan(gate=False)
    clock.quotients = {"back": (0.5, 0.5)}
    assert clock.asked == []
    assert left(fxapprox.plan(Net(), (X,), rules=decided, gate=True)) == ["back"]


def test_a_verdict_of_a_plan_file_is_checked(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    plan().save(path)
    for wrong in ('gate = { how = "guessed", threads = 1 }', "gate = { fast = true }", "gate = 3"):
        text = [wrong if line.startswith("gate = ") else line for line in path.read_text().splitlines()]
        (tmp_path / "wrong.toml").write_text("\n".join(text))
        with pytest.raises(fxapprox.FxApproxError, match="damaged"):
            Plan.load(tmp_path / "wrong.toml")


def test_the_emitted_file_carries_the_gated_plan(clock: Clock, tmp_path: Path) -> None:
    clock.quotients = {"wide": (0.8, 0.8)}
    fast = fxapprox.rewrite(Net(), (X,), policy="topk")
    fxapprox.emit(fast, tmp_path / "net_topk.py")
    text = (tmp_path / "net_topk.py").read_text()
    assert "would be 0.80×, left exact" in " ".join(text.split())
    spec = importlib.util.spec_from_file_location("net_topk", tmp_path / "net_topk.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built = module.build_model()
    assert [name for name, layer in built.named_modules() if isinstance(layer, Sampled)] == [
        "twice",
        "back",
        "head",
    ]


def test_summary_and_json(clock: Clock) -> None:
    clock.quotients = {"wide": (0.8, 0.8), "head": (0.4, 0.4)}
    summary = fxapprox.summary(plan())
    text = " ".join(summary.text(100).split())
    threads = torch.get_num_threads()
    assert "would be 0.80×, left exact" in text
    assert f"gate: 2 of 4 sites left exact, not faster sampled here (4 measured; {threads} thread" in text
    assert "--no-gate samples all" in text
    told = json.loads(json.dumps(summary.facts))
    assert told["gate"]["left_exact"] == 2
    by_id = {site["id"]: site for site in told["sites"]}
    assert by_id["wide"]["gate"]["ratio"] == 0.8
    assert not by_id["wide"]["gate"]["passes"]
    assert by_id["back"]["gate"]["words"].startswith("2.00× (gate: measured at ")
    assert fxapprox.summary(plan(gate=False)).facts["gate"] is None
    assert "gate" not in str(fxapprox.summary(plan(gate=False)))
