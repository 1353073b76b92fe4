"""The ladder: a trace that passed the check, less what was wrong in it, or the layers alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxapprox.capture.check as checks
import fxapprox.capture.trace as tracing
from fxapprox.capture import capture
from fxapprox.capture._types import Inputs
from fxapprox.capture.check import Verdict
from fxapprox.errors import CaptureError, RequestError


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.weight = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) @ self.weight


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = Inner(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(x)))


INPUTS = Inputs((torch.randn(3, 4),))


def test_a_trace_that_passes():
    found = capture(Net(), INPUTS, origin="net.py:Net")
    assert (found.rung, found.origin) == ("trace", "net.py:Net")
    assert [site.id for site in found.sites] == ["inner.fc", "inner.matmul_1", "head"]
    assert [site.depth for site in found.sites] == [0, 1, 2]
    assert set(found.forwards) == {"", "inner"}
    assert found.notes == ()
    # 3 products each, less the gradient of the input
    assert found.total_flops == 2 * 3 * (4 * 4 * 2 + 4 * 4 * 3 + 4 * 2 * 3)
    assert set(found.seconds) >= {"trace", "check", "analyse"}


def test_what_the_check_finds_wrong_becomes_opaque(monkeypatch):
    right, seen = checks.check, []

    def suspicious(model: nn.Module, traced: Any, inputs: Inputs) -> Verdict:
        seen.append(set(traced.forwards))
        return (
            Verdict({"inner": "off by one"}) if "inner" in traced.forwards else right(model, traced, inputs)
        )

    monkeypatch.setattr(checks, "check", suspicious)
    found = capture(Net(), INPUTS, origin="Net")
    assert seen == [{"", "inner"}, {""}]
    assert found.rung == "partial"
    assert [(note.topic, note.module, note.message) for note in found.notes] == [
        ("opaque", "inner", "off by one")
    ]
    matmul = next(site for site in found.sites if site.id == "inner.matmul_1")
    assert matmul.refusal is not None
    assert next(site for site in found.sites if site.id == "inner.fc").refusal is None


def test_a_check_that_never_passes_leaves_the_layers(monkeypatch):
    monkeypatch.setattr(checks, "check", lambda *_: Verdict({"": "wrong"}))
    found = capture(Net(), INPUTS, origin="Net")
    assert found.rung == "modules"
    assert [site.id for site in found.sites] == ["inner.fc", "head"]
    assert "still differ" in found.notes[0].message
    # the matmul is in no site, and still counted
    assert found.total_flops == sum(site.flops for site in found.sites) + 3 * 2 * 3 * 4 * 4
    with pytest.raises(CaptureError, match="still differ"):
        capture(Net(), INPUTS, origin="Net", front_end="trace")


def test_a_tracer_that_fails_leaves_the_layers_and_the_reason(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ValueError("tracer at a loss")

    monkeypatch.setattr(tracing, "trace", fail)
    found = capture(Net(), INPUTS, origin="Net")
    assert found.rung == "modules"
    assert [(note.topic, "tracer at a loss" in note.message) for note in found.notes] == [("refused", True)]


def test_the_model_comes_first_when_it_fails_itself(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ValueError("tracer at a loss")

    monkeypatch.setattr(tracing, "trace", fail)
    with pytest.raises(CaptureError, match=r"does not run on the example inputs: RuntimeError: mat1"):
        capture(Net(), Inputs((torch.randn(3, 5),)), origin="Net")


def test_leaves_by_path_class_and_pattern():
    for leaf in ("inner", "Inner", "inn*"):
        found = capture(Net(), INPUTS, origin="Net", leaf=(leaf,))
        assert set(found.forwards) == {""}
        assert found.rung == "partial"
    with pytest.raises(RequestError, match="leaf 'inert'") as caught:
        capture(Net(), INPUTS, origin="Net", leaf=("inert",))
    assert "did you mean 'inner'" in str(caught.value)


def test_the_modules_front_end_can_be_forced():
    found = capture(Net(), INPUTS, origin="Net", front_end="modules")
    assert found.rung == "modules"
    assert found.forwards == {}


def test_the_shapes_of_a_refused_site_are_those_its_kind_names():
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 3, 4), torch.tensor([5, 3, 2]))
    (site,) = capture(nn.LSTM(4, 6), Inputs((packed,)), origin="LSTM").sites
    assert site.refusal is not None
    assert (site.input_shape, site.weight_shape) == ((10, 4), (24, 4))
