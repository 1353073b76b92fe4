"""The experiment on fine-tuning, made tiny."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.datasets import Images
from benchmarks.reproduce import _ways, finetune
from benchmarks.reproduce._adapters import adapted
from benchmarks.reproduce._arms import CENTRED, sampled
from benchmarks.reproduce._experiment import Given, Row, Run
from benchmarks.reproduce._frame import Places
from benchmarks.reproduce._models import ResidualNet, RowTransformer

SCHEDULED = "centred topk 0.25, exact last third"
SMALL = {"count": 16, "epochs": 2, "batch": 4, "search_count": 8, "validation": 8, "test": 8, "rounds": 2}


def images(shape: tuple[int, ...], count: int = 40) -> Images:
    numbers = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, *shape, generator=numbers), torch.arange(count) % 10
    return Images(x, y, x[:20], y[:20])


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    short = {"pretraining": 8, "pretraining_epochs": 1, "pretraining_rate": 0.01, "rates": [0.01, 0.1, 1.0]}
    for key, value in {**SMALL, "images": short, "rows": short}.items():
        monkeypatch.setitem(finetune.SETTINGS, key, value)
    monkeypatch.setattr(finetune, "Places", lambda: Places(results=tmp_path))
    monkeypatch.setattr(finetune, "cifar10", lambda data, count, test: images((3, 32, 32)))
    monkeypatch.setattr(finetune, "mnist", lambda data: images((1, 28, 28)))
    monkeypatch.setitem(finetune.WAYS, SCHEDULED, _ways.Way(sampled(CENTRED, 0.25, 2 / 3)))
    monkeypatch.setattr(_ways, "RowTransformer", lambda: RowTransformer(16))
    monkeypatch.setattr(_ways, "ResidualNet", lambda: ResidualNet(4))
    return Given(tmp_path, lambda done, total: None, tmp_path / "run.pt")


@pytest.mark.parametrize("task", finetune.TASKS)
@pytest.mark.parametrize(
    "name",
    [
        "exact",
        SCHEDULED,
        "pps backward 0.25",
        "bfloat16, pps grad-weight 0.25",
        "last layers",
        "low-rank adapters",
    ],
)
def test_ways_go_on_from_the_same_network(task: str, name: str, given: Given) -> None:
    rows: list[Row] = []
    for arm in (f"{task}: {finetune.BEFORE}", f"{task}: {name}"):
        rows += ({"arm": arm, "seed": 0, **row} for row in finetune.perform(Run(arm, 0), given))
    assert [row["phase"] for row in rows] == ["own task", "final", "training", "training", "final"]
    assert len(list(given.data.glob("*.weights"))) == 1
    assert name in finetune.EXPERIMENT.tables(rows)[task]
    assert finetune.EXPERIMENT.figures(rows)


def test_a_search_goes_on_from_the_end_that_is_best() -> None:
    rates = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    for of, asked in (
        ({3: 0.1, 4: 0.3, 5: 0.2}, [3, 4, 5]),
        ({3: 0.1, 4: 0.2, 5: 0.3, 6: 0.2}, [3, 4, 5, 6]),
        ({3: 0.1, 4: 0.2, 5: 0.3, 6: 0.4, 7: 0.5}, [3, 4, 5, 6, 7]),
        ({3: 0.3, 4: 0.2, 5: 0.1, 2: 0.4, 1: 0.3}, [3, 4, 5, 2, 1]),
    ):
        tried: list[Row] = []
        while (rate := finetune.next_rate(rates, tried)) is not None:
            tried.append({"rate": rate, "accuracy": of[int(rate)]})
        assert [row["rate"] for row in tried] == asked


def test_seconds_and_memory_are_those_of_the_phases(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    name = SCHEDULED
    chosen = {"exact": finetune.WAYS["exact"], name: finetune.WAYS[name]}
    monkeypatch.setattr(finetune, "WAYS", chosen)
    monkeypatch.setattr(finetune, "TASKS", ("rows",))
    monkeypatch.setattr(finetune, "peak_memory", lambda *given: finetune.Peak(10, 5))
    for arm, keys in (("seconds", {"alone": True}), ("memory", {})):
        rows = finetune.perform(Run(arm, 0, keys), given)
        assert [(row["way"], row["keep"]) for row in rows] == [("exact", 1.0), (name, 0.25)]


def test_adapters_begin_as_nothing_and_are_what_trains() -> None:
    torch.manual_seed(0)
    net, x = ResidualNet(4).eval(), torch.randn(2, 3, 32, 32)
    wanted = net(x)
    ours = adapted(net, 2)
    assert torch.equal(ours(x), wanted)
    trains = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert all(".down." in name or ".up." in name or name.startswith("fc.") for name in trains)
    assert not any(
        isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad for module in ours.modules()
    )
