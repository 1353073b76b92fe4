"""Forwards that tracers freeze, drop or misread: captured exactly, or opaque with the reason and the line."""

from __future__ import annotations

import random
from pathlib import Path

import hard_models
import numpy as np
import pytest
import torch
from replay import check_replay
from torch import nn

from fxapprox.capture._types import Inputs
from fxapprox.capture.trace import trace


def inputs(batch: int = 4) -> Inputs:
    torch.manual_seed(batch)
    return Inputs((torch.randn(batch, 8),))


@pytest.mark.parametrize("cls", hard_models.CAPTURED, ids=lambda cls: cls.__name__)
def test_is_captured_and_replays(cls: type[nn.Module]) -> None:
    model = cls()
    traced = trace(model, inputs())
    assert not [note for note in traced.notes if note.topic == "opaque"]
    assert traced.rung == "trace"
    assert "" in traced.forwards
    check_replay(model, traced, inputs(), inputs(3))


@pytest.mark.parametrize("cls", hard_models.OPAQUE, ids=lambda cls: cls.__name__)
def test_is_opaque_with_the_reason_and_the_line(cls: type[nn.Module]) -> None:
    model = cls()
    traced = trace(model, inputs())
    (note,) = [note for note in traced.notes if note.topic == "opaque"]
    assert hard_models.OPAQUE[cls] in note.message
    assert note.module == ""
    assert "" not in traced.forwards
    assert traced.rung == "partial"
    assert note.source is not None
    file, line = note.source.rsplit(":", 1)
    assert file.endswith("hard_models.py")
    text = Path(hard_models.__file__).read_text().splitlines()
    start = next(number for number, one in enumerate(text, 1) if one.startswith(f"class {cls.__name__}("))
    assert start < int(line) < start + 15
    assert {"a", "b"} & {call.id for call in traced.calls}, "its layers are sites all the same"
    if cls not in hard_models.UNREPEATABLE:
        check_replay(model, traced, inputs())


@pytest.mark.parametrize("cls", [*hard_models.CAPTURED, *hard_models.OPAQUE], ids=lambda cls: cls.__name__)
def test_leaves_the_model_and_the_generators_alone(cls: type[nn.Module]) -> None:
    model, given = cls(), inputs()
    model.a.eval()  # a part that the user froze
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: module.training for name, module in model.named_modules()}
    plain = {name: value for name, value in model.__dict__.items() if not name.startswith("_")}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    before = given.args[0].clone()
    trace(model, given)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert flags == {name: module.training for name, module in model.named_modules()}
    assert plain == {name: value for name, value in model.__dict__.items() if not name.startswith("_")}
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1] == random.getstate()
    assert generators[2] == np.random.get_state()[1].tolist()
    assert torch.equal(given.args[0], before)
    assert given.args[0].grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hard_models.COUNT == hard_models.ClassCounter.total == 0
