"""The check finds every kind of wrong forward, names the module, and leaves everything as it was."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxapprox.capture import check as checks
from fxapprox.capture._types import Forward, Inputs, Traced
from fxapprox.capture.check import check
from fxapprox.capture.compare import difference
from fxapprox.capture.trials import other_batch_size, other_values, with_batch

F: dict[str, tuple[str, str]] = {"torch": ("torch", ""), "F": ("torch.nn.functional", "")}


class Block(nn.Module):
    """A block whose behaviour the tests choose."""

    def __init__(self, behaviour: str) -> None:
        super().__init__()
        self.fc, self.behaviour, self.calls = nn.Linear(4, 4), behaviour, 0
        self.register_buffer("mean", torch.zeros(4))
        self.aux: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        match self.behaviour:
            case "python random":
                y = y * (2.0 if random.random() < 0.5 else 1.0)
            case "torch random":
                y = y + torch.rand(4)
            case "counter":
                self.calls += 1
                y = y * self.calls
            case "buffer":
                self.mean = self.mean + y.detach().mean(0)
            case "attribute":
                self.aux = y.square().mean()
            case "branch on data":
                y = y if x[0, 0] > x[1, 0] else -y
            case "no_grad":
                with torch.no_grad():
                    z = self.fc(x)
                y = y + z
            case "dropout":
                y = nn.functional.dropout(y, 0.5, self.training)
            case "batch size":
                y = y / x.shape[0]
            case "unsteady":
                y = y + torch.rand(4, generator=torch.Generator().manual_seed(_next()))
        return y


_count = iter(range(1000, 10**9))


def _next() -> int:
    return next(_count)


class Net(nn.Module):
    def __init__(self, behaviour: str = "plain") -> None:
        super().__init__()
        self.one, self.two, self.head = Block("plain"), Block(behaviour), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.two(self.one(x))
        return {"y": (self.head(y), None)}


ROOT = """
def forward(self, x):
    one = self.one(x)
    two = self.two(one)
    head = self.head(two)
    return {"y": (head, None)}
"""


def forwards(two: str, root: str = ROOT) -> Mapping[str, Forward]:
    plain = "def forward(self, x):\n    return self.fc(x)\n"
    body = f"def forward(self, x):\n    y = self.fc(x)\n    {two}\n    return y\n"
    return {
        "": Forward("", root, F, (), {}),
        "one": Forward("one", plain, F, (), {}),
        "two": Forward("two", body, F, (), {"_constant_0": torch.full((4,), 0.5)}),
    }


def verdict(behaviour: str, two: str, root: str = ROOT, inputs: Inputs | None = None) -> checks.Verdict:
    torch.manual_seed(3)
    model = Net(behaviour)
    given = inputs or Inputs((torch.full((4, 4), 2.0) + torch.rand(4, 4),))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), torch.initial_seed()
    found = check(model, Traced("trace", (), forwards(two, root), (), (), ()), given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert type(model.two) is Block
    assert model.two.calls == 0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch.initial_seed() == states[2]
    return found


FAITHFUL = {
    "plain": "pass",
    "torch random": "y = y + torch.rand(4)",
    "counter": "self.calls = self.calls + 1; y = y * self.calls",
    "buffer": "self.mean = self.mean + y.detach().mean(0)",
    "attribute": "self.aux = y.square().mean()",
    "dropout": "y = F.dropout(y, 0.5, self.training)",
    "batch size": "y = y / x.shape[0]",
}


@pytest.mark.parametrize("behaviour", FAITHFUL)
def test_faithful_forwards_are_accepted(behaviour):
    assert verdict(behaviour, FAITHFUL[behaviour]) == checks.Verdict()


SILENT_FAULTS = {
    "python random": "y = y * 2.0",
    "torch random": "y = y + self._constant_0",
    "counter": "self.calls = 1",
    "buffer": "pass",
    "attribute": "pass",
    "branch on data": "pass",
    "no_grad": "y = y + self.fc(x)",
    "dropout": "y = F.dropout(y, 0.5, True)",
    "batch size": "y = y / 4",
}


@pytest.mark.parametrize("behaviour", SILENT_FAULTS)
def test_the_wrong_module_and_no_other_is_named(behaviour):
    found = verdict(behaviour, SILENT_FAULTS[behaviour])
    assert list(found.guilty) == ["two"], found


def test_what_differs_is_said():
    assert verdict("attribute", "pass").guilty["two"].startswith("attribute aux is None, expected float32 []")
    assert "gradient of" in verdict("no_grad", "y = y + self.fc(x)").guilty["two"]
    assert "eval mode" in verdict("dropout", "y = F.dropout(y, 0.5, True)").guilty["two"]
    assert "raises ValueError: no" in verdict("plain", "raise ValueError('no')").guilty["two"]


def test_a_mark_that_the_first_forward_leaves_is_no_fault():
    class Preparing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self._prepared = True
            return self.fc(x)

    text = "def forward(self, x):\n    return self.fc(x)\n"
    traced = Traced("trace", (), {"": Forward("", text, F, (), {})}, (), (), ())
    assert not check(Preparing(), traced, Inputs((torch.randn(4, 4),))).guilty


def test_a_wrong_root_is_named_alone():
    found = verdict("plain", "pass", ROOT.replace("(head, None)", "(head * 1.001, None)"))
    assert list(found.guilty) == [""]


def test_a_changed_structure_of_the_output_is_found():
    found = verdict("plain", "pass", ROOT.replace("(head, None)", "(head,)"))
    assert "missing" in found.guilty[""]


def test_a_fault_that_no_module_shows_by_itself_is_searched_for(monkeypatch):
    monkeypatch.setattr(checks, "_replayed", lambda *_: None)
    assert list(verdict("batch size", "y = y / 4").guilty) == ["two"]


def test_a_model_that_is_not_repeatable_is_noted_and_the_rest_compared():
    found = verdict("unsteady", "y = y + torch.rand(4)")
    assert not found.guilty
    assert any("changes from run to run" in note.message for note in found.notes)


def test_batch_sizes_the_model_refuses_are_noted():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.view(4, 4))

    text = "def forward(self, x):\n    return self.fc(x.view(4, 4))\n"
    traced = Traced("trace", (), {"": Forward("", text, F, (), {})}, (), (), ())
    found = check(Fixed(), traced, Inputs((torch.randn(4, 4),)))
    assert not found.guilty
    assert any("batch size 2 instead of 4" in note.message for note in found.notes)


def test_a_costly_model_is_compared_once(monkeypatch):
    monkeypatch.setattr(checks, "COSTLY_FLOPS", -1)
    found = verdict("batch size", "y = y / 4")
    assert not found.guilty  # only the batch size of the example was tried
    assert "compared once" in found.notes[0].message


def test_a_model_that_takes_long_is_compared_once(monkeypatch):
    monkeypatch.setattr(checks, "COSTLY_SECONDS", 0.0)
    found = verdict("batch size", "y = y / 4")
    assert not found.guilty
    assert "takes long" in found.notes[0].message


def test_a_large_model_is_compared_on_two_examples(monkeypatch):
    monkeypatch.setattr(checks, "LARGE_FLOPS", -1)
    found = verdict("batch size", "y = y / 4")
    assert "2 of the 4 examples" in found.guilty["two"]
    assert verdict("batch size", "y = y / x.shape[0]") == checks.Verdict()


def test_nan_equals_nan():
    inputs = Inputs((torch.full((4, 4), float("nan")),))
    assert verdict("plain", "pass", inputs=inputs) == checks.Verdict()


def test_other_inputs_keep_shapes_ranges_and_identity():
    shared, ids = torch.rand(4, 3), torch.arange(4)
    inputs = Inputs((shared, [shared, {"ids": ids}], 4), {"mask": torch.tensor([0.0, float("-inf")])})
    other = other_values(inputs)
    assert other.args[0] is other.args[1][0]
    assert other.args[0].shape == (4, 3)
    assert not torch.equal(other.args[0], shared)
    assert other.args[0].min() >= shared.min()
    assert sorted(other.args[1][1]["ids"].tolist()) == [0, 1, 2, 3]
    assert other.args[2] == 4
    assert sorted(other.kwargs["mask"].tolist()) == [float("-inf"), 0.0]
    resized = with_batch(inputs, 2)
    assert resized.args[0].shape == (2, 3)
    assert resized.args[1][1]["ids"].shape == (2,)
    assert resized.kwargs["mask"].shape == (2,)


@pytest.mark.parametrize(("batch", "size"), [(1, 3), (2, 4), (3, 6), (4, 2), (5, 10), (8, 4)])
def test_the_other_batch_size(batch, size):
    assert other_batch_size(batch) == size


def test_nested_tensors_are_compared_piece_by_piece():
    def ragged(last: float) -> Tensor:
        return torch.nested.nested_tensor([torch.ones(2, 3), torch.full((4, 3), last)])

    assert difference(ragged(1.0), ragged(1.0)) is None
    assert "differs by 1" in str(difference(ragged(1.0), ragged(2.0)))
    assert "nested 2" in str(difference(ragged(1.0), torch.ones(2, 4, 3)))
