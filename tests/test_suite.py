"""The benchmarks of speed: what the rounds say, what is kept, and the pages' tables."""

from __future__ import annotations

import fnmatch
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import gate as gate_benchmark
from benchmarks import kernels, nets, pages, rivals, scale, suite, turns
from benchmarks.naive import BackwardLinear, published
from benchmarks.reproduce._pages import placed
from benchmarks.store import chosen, put, rows_of
from benchmarks.turns import Claim, Rival, told
from fxapprox.measure import gate
from fxapprox.measure.sites import CallTimes, Side
from fxapprox.measure.timing import Timing

ROOT = Path(__file__).parents[1]
ABOUT = {"cpu": "a processor", "threads": 2, "torch": "2.13", "date": "2026-01-01", "command": "python"}


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LEAST", 2)
    monkeypatch.setattr(turns, "WARM_UP", 1)


def test_a_claim_compares_the_best_forms_within_the_rounds() -> None:
    found = [{"exact nchw": 4.0 * s, "exact nhwc": 2.0 * s, "topk nchw": 1.0 * s, "topk nhwc": 8.0 * s}
             for s in (1.0, 3.0, 2.0)]  # fmt: skip
    row = told(found, [Claim("exact", "topk", 2.0), Claim("exact", "topk", 2.1), Claim("exact", "topk")])
    assert row["milliseconds"]["exact nhwc"] == [3000, 4000, 5000]
    assert [claim["value"] for claim in row["claims"]] == [[2.0, 2.0, 2.0]] * 3
    assert [claim["reached"] for claim in row["claims"]] == [True, False, None]
    assert row["claims"][0]["forms"] == ["exact nhwc", "topk nchw"]
    assert "target 2.1: NOT reached" in turns.line({"name": "a", **row})
    with pytest.raises(KeyError):
        told(found, [Claim("exact", "top")])


def test_every_contender_runs_once_a_round_by_turns() -> None:
    order: list[str] = []
    rivals = {name: Rival(lambda name=name: order.append(name)) for name in "abc"}
    assert len(turns.rounds(rivals, 1e-9)) == 2
    assert "".join(order) == "abc" + "abc" + "cba"


def test_gradients_are_dropped_before_a_step() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    found = []
    rival = kernels.layer_step(layer, x, torch.ones(4, 2))
    turns.rounds({"a": rival, "b": Rival(lambda: found.append(layer.weight.grad.clone()))}, 1e-9)
    assert torch.equal(found[0], found[-1])


def test_rows_are_replaced_and_kept_in_order(tmp_path: Path) -> None:
    path = tmp_path / "results" / "a.json"
    for name, value in (("b", 1), ("a", 2), ("old", 3), ("b", 4)):
        put(path, {"name": name, "value": value}, ["a", "b", "old"])
    put(path, {"name": "a", "value": 5}, ["a", "b"], totals=9)
    assert list(rows_of(path)) == ["a", "b"]
    assert [row["value"] for row in rows_of(path).values()] == [5, 4]
    assert json.loads(path.read_text())["totals"] == 9
    assert chosen(["a", "b", "c/d"], [], path, missing=True) == ["c/d"]
    assert chosen(["a", "b", "c/d"], ["c/*", "a"], path, missing=False) == ["a", "c/d"]


def test_the_suite_holds_every_promise() -> None:
    rows = suite.suite()
    for glob, count in (("layers/*", 35), ("layers/* backward *", 11), ("layers/* 0.1", 2), ("steps/*", 4)):
        assert len(fnmatch.filter(rows, glob)) == count, glob
    promised = {claim.above + "/" + claim.below: claim.target
                for claim in suite.layer_claims("conv-128-16-nhwc", 0.5, "forward")}  # fmt: skip
    assert promised["limit/topk"] == 0.92
    assert {claim.below: claim.target for claim in suite.POLICY_CLAIMS} == {"pps": 0.95, "bernoulli": 0.95}
    assert suite.layer_claims("linear-1000-1000-64", 0.1, "forward")[0].target == 4.5
    assert suite.layer_claims("linear-1000-1000-64", 0.5, "backward")[0].target is None
    assert set(suite.STEPS) == {net.name for net in nets.NETS}
    assert all(set(suite.STEPS[net.name]) == set(net.sampled) for net in nets.NETS)


@pytest.mark.parametrize("scope", ["forward", "backward", "grad-weight"])
def test_a_layers_row(scope: str) -> None:
    case = kernels.conv(8, 6, 4, last=True)
    row = suite.layer(case, 0.5, scope, 1e-9)
    assert set(row["milliseconds"]) == {"exact nchw", "exact nhwc", "topk", "pps", "bernoulli", "limit"}
    assert row["rounds"] == 2


def small(factor: float) -> nn.Module:
    width = nets.times(8, factor)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(),
                         nn.Linear(16 * width, 10))  # fmt: skip


def slower() -> CallTimes:
    exact, ours = (Side({"contiguous": Timing((seconds,) * 3)}) for seconds in (1.0, 2.0))
    return CallTimes(exact, ours, None)


def tiny(**changed: Any) -> nets.Net:
    settings = {
        "name": "wrn", "title": "tiny", "build": small,
        "inputs": lambda: torch.randn(4, 3, 8, 8), "classes": 10, "targets": (4,),
        "sampled": {"topk-0.5": nets.sampling(0.5), "topk-0.25": nets.sampling(0.25)},
    } | changed  # fmt: skip
    return nets.Net(**settings)


def test_a_nets_row() -> None:
    row = suite.steps(tiny(), 1e-9)
    assert len(row["milliseconds"]) == 6
    assert [claim["target"] for claim in row["claims"]] == [1.85, 3.2]


def test_the_gate_may_leave_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FXAPPROX_CACHE", str(tmp_path))
    monkeypatch.setattr(gate, "time_call", lambda *_, **__: slower())
    model, plan = nets.gated(tiny(), "topk-0.5", "nchw")
    assert len(plan.decisions) == 3
    assert not plan.rewritten
    assert type(model) is nn.Sequential


def test_resnet50_is_resnet50() -> None:
    assert sum(p.numel() for p in nets.resnet50().parameters()) == 25_557_032


@pytest.mark.parametrize("scope", ["forward", "backward"])
def test_the_published_way_is_exact_where_all_is_kept(scope: str) -> None:
    torch.manual_seed(0)
    x, seen = torch.randn(2, 5, 6, dtype=torch.float64), []
    for keep in (None, 1.0):
        torch.manual_seed(1)
        layer = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
        model = layer if keep is None else published(layer, keep, scope, stem=False)
        given = x.clone().requires_grad_()
        model(given).square().sum().backward()
        seen.append([given.grad, *(p.grad for p in model.parameters())])
    for exact, ours in zip(*seen, strict=True):
        torch.testing.assert_close(ours, exact)


def test_the_published_way_keeps_the_largest() -> None:
    conv = published(nn.Conv2d(4, 3, 3, padding=1), 0.5, stem=False)
    x = torch.randn(2, 4, 5, 5) * torch.tensor([1.0, 100.0, 100.0, 1.0])[:, None, None]
    conv(x).sum().backward()
    assert conv.weight.grad.abs().sum((0, 2, 3)).gt(0).tolist() == [False, True, True, False]
    assert type(next(published(nn.Sequential(nn.Linear(2, 2)), 0.5).children())) is nn.Linear
    weight = torch.randn(4, 3, requires_grad=True)
    grad = torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 1]])
    BackwardLinear.apply(torch.randn(2, 3), weight, None, 0.5).backward(grad)
    assert weight.grad.ne(0).any(1).tolist() == [True, False, False, False]


def test_the_rivals_of_a_net(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "NETS", {"tiny": (tiny(), "topk-0.5", {"keep": 0.5})})
    monkeypatch.setattr(rivals, "compiled", lambda rival, model: (None, "no compiler"))
    row = rivals.net("tiny", 1e-9)
    assert row["contenders"] == ["exact", "ours", "published", "bfloat16", "narrower"]
    assert row["failed"] == {"compiled": "no compiler"}
    assert "no compiler" in pages.rivalry([row])
    assert 0.5 < rivals.kept_flops(tiny(), "topk-0.5") < 1


def test_a_compilation_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "COMPILING", 0.05)

    def forever(_: nn.Module) -> Rival:
        time.sleep(60)
        raise AssertionError("waited for")

    assert rivals.compiled(forever, nn.Linear(2, 2)) == (None, "TooLong: not compiled after 0.05 s")


def test_a_stacks_curve(tmp_path: Path) -> None:
    measured = scale.measure(scale.Point(batch=4, width=8, depth=2, threads=1), 1e-9)
    rows = {f"linear/{axis}/{value}": measured for axis in ("depth", "keep") for value in (1, 2)}
    scale.draw(rows, "linear", tmp_path / "a.svg")
    scale.draw(rows, "linear", tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert all(point.case().shape[0] == point.batch for point in scale.points().values())


def test_tables_of_made_up_results(tmp_path: Path) -> None:
    assert set(pages.tables(tmp_path).values()) == {""}
    found = [dict.fromkeys(("exact", "topk", "pps", "bernoulli", "limit"), 2.0) | {"topk": 1.0}]
    layer = told(found, [*suite.layer_claims("linear-1000-1000-20", 0.1, "forward"), *suite.POLICY_CLAIMS])
    put(
        tmp_path / "suite.json",
        {"name": "layers/a forward 0.1", **layer, "about": ABOUT},
        ["layers/a forward 0.1"],
    )
    table = pages.tables(tmp_path)["layers"]
    assert "| a forward 0.1 | 2000.00 | 1000.00 | 2000.00 | – | **2.00× (≥ 2.5)** | 2.00× |" in table
    assert table.startswith("a processor, threads: 2, torch 2.13, 2026-01-01.")


@pytest.mark.parametrize("name", pages.PAGES)
def test_the_pages_tables_are_what_the_data_give(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    placed_somewhere = 0
    for table, made in pages.tables().items():
        stands = placed(page, f"<!-- suite:{table} -->")
        placed_somewhere += stands is not None
        assert stands in (None, made), f"{table} in {name}: python -m benchmarks.suite --tables"
    assert placed_somewhere


def test_the_gates_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ratios = {"slow": 0.9, "same": 1.0, "fast": 2.0}
    settings = {"batch": 2}
    gated = {"sites": 3, "sampled": 1}
    rows = [{"name": name, "settings": settings, "gated": {**gated, "ratio": ratio}, "about": ABOUT}
            for name, ratio in ratios.items()]  # fmt: skip
    rows.append({"name": "broken", "settings": settings, "error": "no module"})
    told = gate_benchmark.totals(rows)
    assert told == {"gated": {"models": 3, "worst": (0.9, "slow"), "median": 1.0, "best": (2.0, "fast")}}
    for row in rows:
        put(tmp_path / "gate.json", row, [one["name"] for one in rows], totals=told)
    table = "| with the gate | 3 | 0.90× (slow) | 1.00× | 2.00× (fast) |"
    assert table in pages.tables(tmp_path)["gate"]
    monkeypatch.setattr(gate_benchmark, "RESULTS", tmp_path / "gate.json")
    names = ["slow", "fast", "broken", "new"]
    assert gate_benchmark.wanted(names, settings, missing=True) == ["broken", "new"]
    assert gate_benchmark.wanted(names, settings, missing=False) == names
    assert gate_benchmark.wanted(names, {"batch": 4}, missing=True) == names
    assert gate_benchmark.line(rows[0]) == "slow: 0.90× gated, 1 of 3 sites"
    assert gate_benchmark.line(rows[3]) == "broken: no module"
