"""The experiment on CIFAR-10, made tiny: rates are searched and used, phases are timed and added up."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.reproduce import _cifar_shown, cifar
from benchmarks.reproduce._experiment import Given, Row, Run
from benchmarks.reproduce._frame import Places

SMALL = {
    "images": 16, "test": 16, "curve": 8, "width": 4, "epochs": 6, "batch": 4, "statistics": 8,
    "rates": [0.01, 0.1], "search_images": 12, "search_epochs": 1, "validation": 4, "rounds": 2,
}  # fmt: skip


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    for key, value in SMALL.items():
        monkeypatch.setitem(cifar.SETTINGS, key, value)
    monkeypatch.setattr(cifar, "Places", lambda: Places(results=tmp_path))
    label = np.arange(20) % 10
    for name in ("cifar10_train", "cifar10_test"):
        files = []
        for i in range(20):
            file = io.BytesIO()
            noise = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(file, "jpeg")
            files.append(np.frombuffer(file.getvalue(), np.uint8))
        offset = np.cumsum([0, *(len(each) for each in files)])
        np.savez(tmp_path / f"{name}.npz", jpeg=np.concatenate(files), offset=offset, label=label)
    return Given(tmp_path, lambda done, total: None, tmp_path / "run.pt")


def test_a_run_reports_every_epoch_and_the_end(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [{"rate": 0.01, "reestimated": 0.1}, {"rate": 0.1, "reestimated": 0.2}]
    monkeypatch.setattr(cifar, "search", lambda arm, given: found)
    name = "centred topk 0.25, exact last third"
    rows = cifar.perform(Run(name, 1, {}), given)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6, 6]
    assert rows[-1]["phase"] == "final"
    assert {row["rate"] for row in rows} == {0.1}
    shown: list[Row] = [{"arm": name, "seed": 1, **row} for row in rows]
    assert name in _cifar_shown.tables(shown, cifar.ARMS, [0.1], 4)["arms"]
    assert _cifar_shown.figures(shown, cifar.ARMS, 4)


def test_a_rate_is_searched_on_images_that_are_held_out(given: Given) -> None:
    rows = cifar.perform(Run(cifar.SEARCH + "topk 0.5", 0, {}), given)
    assert [row["rate"] for row in rows] == [0.01, 0.1]
    assert cifar.best(rows) in (0.01, 0.1)


def test_a_schedule_changes_at_its_share_of_the_steps() -> None:
    arm = cifar.Arm(cifar.CENTRED, ((0.0, 0.25), (0.5, 0.5), (0.75, 1.0)))
    assert arm.keep(100) == {"schedule": "step", "from": 0.25, "at": {50: 0.5, 75: 1.0}}
    assert arm.phases == [(0.5, 0.25), (0.25, 0.5), (0.25, 1.0)]


def test_seconds_are_those_of_the_phases(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = cifar.ARMS["centred topk 0.5, exact last third"]
    monkeypatch.setattr(cifar, "ARMS", {"exact": cifar.Arm(width=4), "ours": arm})
    rows = cifar.perform(Run("seconds", 0, {"alone": True}), given)
    assert len(rows) == 6  # exact, keep 0.5, and keep 1 of the sampled model; in two formats
    for row, seconds in zip(rows, (3.0, 2.0, 1.0, 5.0, 2.0, 2.0), strict=True):
        row["seconds"] = seconds
    steps = arm.epochs * 4
    assert _cifar_shown.duration(arm, rows, 4) == pytest.approx(steps * (2 / 3 * 1.0 + 1 / 3 * 2.0))
    assert _cifar_shown.duration(arm, rows, 4, 0.5) == pytest.approx(steps * 0.5)


@pytest.mark.parametrize(
    "arm",
    [
        cifar.ARMS["pps 0.5"],
        cifar.ARMS["pps grad-weight 0.25"],
        cifar.sampled(cifar.CENTRED, 0.25, cifar.THIRD, bfloat16=True),
    ],
)
def test_arms_train(arm: cifar.Arm, given: Given) -> None:
    data = cifar.cifar10(str(given.data), 16, test_count=8)
    rows: list[Row] = []
    arm = replace(arm, width=4)
    cifar.trained(arm, 0, data, 0.01, given, rows, epochs=2)
    assert len(rows) == 2
