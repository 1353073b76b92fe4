"""The experiment on depth, made tiny."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.datasets import Images
from benchmarks.reproduce import _growth, depth
from benchmarks.reproduce._depth_shown import figures, tables
from benchmarks.reproduce._experiment import Given, Row, Run
from benchmarks.reproduce._frame import Places

SMALL = {
    "width": 20, "layers": [1, 3], "confusion": [3], "rounds": 2, "validation": 10, "search_steps": 3,
    "M": {"batch": 5, "images": 40, "epochs": 2}, "S": {"batch": 1, "images": 6, "epochs": 1},
    "rates": [0.01, 0.1], "batches": [4],
}  # fmt: skip


def images(count: int = 50) -> Images:
    numbers = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 1, 28, 28, generator=numbers), torch.arange(count) % 10
    return Images(x, y, x[:20], y[:20])


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    for key, value in SMALL.items():
        monkeypatch.setitem(depth.SETTINGS, key, value)
    monkeypatch.setattr(depth, "Places", lambda: Places(results=tmp_path))
    monkeypatch.setattr(depth, "mnist", lambda data: images())
    monkeypatch.setattr(depth, "accuracy", lambda *given: 0.5)
    monkeypatch.setattr(depth, "search", lambda one, given: [{"rate": 0.01, "accuracy": 0.5}])
    return Given(tmp_path, lambda done, total: None, tmp_path / "run.pt")


@pytest.mark.parametrize("method", depth.METHODS)
def test_methods_train_with_single_examples(method: str, given: Given) -> None:
    arm = f"{method} S, 3 layers"
    rows: list[Row] = [{"arm": arm, "seed": 0, **row} for row in depth.perform(Run(arm, 0), given)]
    assert [row["phase"] for row in rows] == ["training", "final", *["confusion"] * 10]
    assert sum(row[f"as {j}"] for row in rows[2:] for j in range(10)) == 20
    assert {"accuracy", "answers"} <= tables(rows).keys()
    assert {"layers", "confusion"} <= figures(rows).keys()


def test_seconds_are_split(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"a": depth.case("standard", "M"), "b": depth.case("MC-approx", "M")}
    monkeypatch.setattr(depth, "cases", lambda: chosen)
    rows = depth.perform(Run("seconds", 0, {"alone": True}), given)
    assert [row["case"] for row in rows] == ["a", "b"]
    assert all(row[part] > 0 for row in rows for part in ("forward", "backward", "update"))
    assert "seconds" in tables([{"arm": "seconds", "seed": 0, **row} for row in rows])


def test_theorem_2_holds_where_its_premise_does() -> None:
    """With weights and inputs of one sign, and c measured, the prediction is near the error: each net's
    pairs are chosen by its own activations."""
    torch.manual_seed(0)
    net = depth.hidden_layers(100, 3, 100, relu=False)
    _growth.same_sign(net)
    rows = _growth.by_layer(net, torch.rand(8, 100), 0.5)
    assert [row["layer"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert math.isclose(row["error"], row["predicted"], rel_tol=0.2)
    assert rows[2]["error"] > 2 * rows[0]["error"]
