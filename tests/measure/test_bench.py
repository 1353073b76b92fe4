"""The whole measurement: what it says, and that it changes nothing."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CASES, built
from torch import Tensor, nn

import fxapprox
from fxapprox.capture._types import Inputs
from fxapprox.errors import CaptureError, RequestError
from fxapprox.measure import Bench, bench
from fxapprox.measure.peak import peak_memory
from fxapprox.measure.step import OPTIMIZERS, forms_of, loss_of, optimizer_of, sides, training_step
from fxapprox.passes.layers import Sampled, sampling_modules, unsample
from fxapprox.report.bench import bench_table
from fxapprox.report.console import text_of

LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)))
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.stem(x))).relu()
        return self.head(nn.functional.dropout(x.mean((2, 3)), 0.5, self.training))


def pair(**keys: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 3, 8, 8)
    return model, fxapprox.rewrite(model, (x,), **{"policy": "pps", **keys}), x


@pytest.fixture(scope="module")
def measured() -> Bench:
    model, fast, x = pair()
    return bench(model, fast, (x,), repeat=3, memory=False)


def test_nothing_changes() -> None:
    model, fast, x = pair()
    held = (*model.state_dict().values(), *fast.state_dict().values(), x)
    before, state, threads = copy.deepcopy(held), torch.get_rng_state(), torch.get_num_threads()
    bench(model, fast, (x,), repeat=1, memory=False, threads=threads)
    assert all(torch.equal(one, other) for one, other in zip(before, held, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert all(parameter.grad is None for one in (model, fast) for parameter in one.parameters())
    untouched = pair()[1]
    torch.manual_seed(3)
    expected = untouched(x)
    torch.manual_seed(3)
    assert torch.equal(fast(x), expected)  # its streams have drawn nothing


def test_each_shape_is_measured_once_for_all_of_its_sites(measured: Bench) -> None:
    rows = {row["sites"][0]: row for row in measured.facts["sites"]}
    assert rows.keys() == {"stem", "blocks.0", "head"}
    assert rows["blocks.0"]["sites"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert rows["blocks.0"]["calls"] == 3
    assert rows["blocks.0"]["input_shape"] == [4, 8, 8, 8]
    assert rows["blocks.0"]["treatment"][""]["policy"] == "pps"


def test_the_facts_are_whole_and_consistent(measured: Bench) -> None:
    told = json.loads(json.dumps(measured.facts))
    assert told.keys() == {"format", "model", "about", "settings", "step", "sites", "totals", "notes"}
    assert told["about"]["threads"] == torch.get_num_threads()
    assert told["settings"] == {"optimizer": "sgd", "repeat": 3, "seconds": None}
    assert told["step"]["memory"] == {"reason": "not asked for"}
    assert list(told["step"]["exact"]["forms"]) == ["contiguous", "channels_last"]
    plan = fxapprox.summary(pair()[1]).facts["totals"]
    assert (told["step"]["flops"], told["step"]["flops_after"]) == (
        plan["model_flops"],
        plan["model_flops_after"],
    )
    ratios = [site["ratio"]["median"] for site in told["sites"]]
    assert ratios == sorted(ratios)
    for row in (told["step"], *told["sites"]):
        for side in ("exact", "ours"):
            one = row[side]
            assert one["seconds"] == min(form["seconds"] for form in one["forms"].values())
            assert one["quartiles"][0] <= one["seconds"] <= one["quartiles"][1]
            assert one["repeats"] == 3
        assert row["measured_saving"] == pytest.approx(1 - row["ours"]["seconds"] / row["exact"]["seconds"])
        assert row["predicted_saving"] == 1 - row["flops_after"] / row["flops"]
    for site in told["sites"]:
        assert site["reached"] == pytest.approx(site["ratio"]["median"] / site["limit_ratio"]["median"])
    total = told["totals"]
    assert total["calls"] == 5
    assert total["ours"] == pytest.approx(sum(s["calls"] * s["ours"]["seconds"] for s in told["sites"]))


@pytest.mark.parametrize("width", [80, 120, 160])
def test_the_table_fits(measured: Bench, width: int) -> None:
    text = text_of(bench_table(measured.facts, width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "blocks.{0-2}" in text
    assert "4×8×8×8 · 8×8×3×3" in text


def made_up(*ratios: float, step: float = 1.0, spread: float = 0.01) -> dict[str, Any]:
    """Facts with these ratios, the quartiles of each at ± `spread`."""
    facts = bench_of_one()
    row = facts["sites"][0]

    def ratio(value: float) -> dict[str, Any]:
        return {"median": value, "quartiles": [value - spread, value + spread]}

    facts["sites"] = [row | {"sites": [f"fc{n}"], "ratio": ratio(value)} for n, value in enumerate(ratios)]
    facts["step"] |= {"ratio": ratio(step), "measured_saving": 1 - 1 / step}
    return facts


def bench_of_one(threads: int | None = None) -> dict[str, Any]:
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8)
    fast = fxapprox.rewrite(model, (x,), policy="topk")
    return bench(model, fast, (x,), repeat=1, memory=False, threads=threads).facts


def test_threads_are_set_told_and_put_back() -> None:
    before = torch.get_num_threads()
    assert bench_of_one(before + 1)["about"]["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_the_verdict_is_honest() -> None:
    def said(facts: dict[str, Any]) -> str:
        return " ".join(text_of(bench_table(facts, 160), 160).split())

    losing = said(made_up(0.4, 0.8, 1.5, step=0.9))
    assert "ours is 0.40× to 0.80× here: sampling does not pay at these sites: fc0, fc1" in losing
    assert "the whole training step is 0.90×: the rewritten model is slower here" in losing
    winning = said(made_up(1.2, 1.5, step=1.25))
    assert "sampling pays at every site here" in winning
    assert "does not pay" not in winning
    assert "40% of the FLOPs saved arrive as time" in winning
    unsure = said(made_up(1.1, spread=0.2))
    assert "too close to call" in unsure
    assert "pays" not in unsure


def test_a_model_without_the_original_is_compared_with_its_sites_exact() -> None:
    _, fast, x = pair()
    found = bench(None, fast, (x,), repeat=1, sites=False, memory=False)
    assert found.rows == ()
    assert found.facts["totals"] is None
    assert "training step" in str(found)


@pytest.mark.parametrize("name", CASES)
def test_unsampled_models_are_the_users_again(name: str) -> None:
    model, args, kwargs = built(name)
    fast = fxapprox.rewrite(model, args, kwargs, policy="topk", keep=0.5)
    again = unsample(copy.deepcopy(fast))
    assert not any(isinstance(module, Sampled) for module in again.modules())
    torch.manual_seed(1)
    theirs = model(*args, **kwargs)
    torch.manual_seed(1)
    ours = again(*args, **kwargs)
    torch.testing.assert_close(ours, theirs)
    assert list(sampling_modules(fast))


# the step


def test_the_loss_is_the_outputs_own_or_its_squares() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    own = x.sum()
    assert loss_of({"loss": own, "logits": x}) is not x
    assert loss_of({"loss": own, "logits": x}) == own
    assert loss_of({"loss": x, "logits": x}) == 2 * x.square().mean()
    assert loss_of((x, [x * 2, torch.ones(2), torch.ones(3, dtype=torch.int64)])) == 5 * x.square().mean()
    with pytest.raises(RequestError, match="needs a gradient"):
        loss_of(x.detach())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_trains_and_hardly_moves(optimizer: str) -> None:
    model, _, x = pair()
    before = copy.deepcopy(list(model.parameters()))
    step = training_step(model, Inputs((x,)), optimizer_of(optimizer, model))
    step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for _ in range(3):
        step()
    for parameter, was in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, was, atol=1e-6, rtol=1e-6)


def test_inputs_that_need_a_gradient_may_be_written_into() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mul_(2))

    x = torch.ones(2, 4, requires_grad=True)
    step = training_step(Writes(), Inputs((x,)), None)
    step()
    first = x.grad
    step()
    assert torch.equal(x, torch.ones(2, 4))
    assert first is not None
    assert x.grad is not None
    assert torch.equal(x.grad, first)


def test_convolution_nets_are_tried_in_both_formats() -> None:
    model, fast, x = pair()
    assert forms_of(nn.Linear(2, 2)) == ["contiguous"]
    found = sides(model, fast, Inputs((x,)))
    assert list(found) == [
        (side, form) for form in ("contiguous", "channels_last") for side in ("exact", "ours")
    ]
    last, given = found["ours", "channels_last"]
    assert given.args[0].is_contiguous(memory_format=torch.channels_last)
    assert last.get_parameter("stem.weight").is_contiguous(memory_format=torch.channels_last)
    assert forms_of(last) == ["channels_last", "contiguous"]


class Views(nn.Module):
    """Runs on contiguous images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(x.shape[0], -1))


def test_a_format_that_does_not_run_is_a_note() -> None:
    model, x = Views(), torch.randn(2, 4, 4, 4)
    fast = fxapprox.rewrite(model, (x,), policy="topk")
    found = bench(model, fast, (x,), repeat=1, sites=False, memory=False)
    assert list(found.facts["step"]["exact"]["forms"]) == ["contiguous"]
    assert "does not train in channels_last" in found.notes[0]


def test_what_cannot_be_measured_says_why() -> None:
    model, fast, x = pair()
    with pytest.raises(RequestError, match="samples nowhere"):
        bench(model, model, (x,))
    with pytest.raises(RequestError, match="did you mean 'adam'"):
        bench(model, fast, (x,), optimizer="adm")
    with pytest.raises(RequestError, match="threads 0"):
        bench(model, fast, (x,), threads=0)
    with pytest.raises(RequestError, match="repeat 0"):
        bench(model, fast, (x,), repeat=0)
    with pytest.raises(CaptureError, match="does not run on the inputs"):
        bench(model, fast, (torch.randn(4, 5, 8, 8),), repeat=1)
    for parameter in fast.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(RequestError, match="needs a gradient"):
        bench(None, fast, (x,), repeat=1)


# memory


class Wide(nn.Module):
    """Keeps `layers` activations of 4 MB for the backward pass."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@LINUX
def test_peak_memory_is_what_training_needs() -> None:
    """14 activations of 4 MB more cost 56 MB; the process itself varies by less than a few."""
    x = torch.randn(2**17, 8)
    few, many = (peak_memory(Wide(layers), Inputs((x,)), "sgd") for layers in (2, 16))
    assert not isinstance(few, str), few
    assert not isinstance(many, str), many
    assert many.step - few.step == pytest.approx(14 * x.nbytes, rel=0.1)
    assert many.resident - few.resident == pytest.approx(14 * x.nbytes, rel=0.2)
    assert few.resident > few.step


@LINUX
def test_memory_that_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(nn.Linear):
        pass

    assert "cannot be pickled" in str(peak_memory(Local(2, 2), Inputs((torch.ones(2, 2),)), "sgd"))
    assert "failed" in str(peak_memory(nn.Linear(2, 2), Inputs((torch.ones(2, 3),)), "sgd"))
    monkeypatch.setattr(sys, "executable", os.devnull + "/none")
    assert "can be started" in str(peak_memory(nn.Linear(2, 2), Inputs((torch.ones(2, 2),)), "sgd"))
