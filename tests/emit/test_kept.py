"""Parts that could not be captured keep the user's own class, by name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox import api
from fxapprox.capture import capture
from fxapprox.capture._types import Inputs
from fxapprox.capture.load import load
from fxapprox.emit import reader
from fxapprox.errors import EmitError

from . import zoo
from .fresh import losses

MINE = """
import torch
from torch import nn

class Counted(nn.Module):
    def __init__(self, width, steps=3, rate=0.5):
        super().__init__()
        self.width, self.steps, self.rate = width, steps, rate
        self.names = {"a": [1, 2.5, None], "b": (torch.float32, nn.functional.relu)}
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        for _ in range(self.steps):
            if self.fc(x).mean() > self.rate * 100:
                break
            x = self.fc(x) + x
        return x

class Inspector:
    def __reduce__(self):
        return (Inspector, ())

class Introspective(Counted):
    def __init__(self, width, steps=3, rate=0.5):
        super().__init__(width, steps, rate)
        self.inspector = Inspector()

class Handy(Counted):
    def __init__(self, width=8):
        super().__init__(width)
        self.act = lambda x: x

made = Handy()

class Remembering(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc, self.seen = nn.Linear(width, width), 7

    def get_extra_state(self):
        return torch.tensor(self.seen)

    def set_extra_state(self, state):
        self.seen = int(state)

    def forward(self, x):
        return self.fc(x)

class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.cache = {"grid": None}

    def forward(self, x):
        if self.cache["grid"] is None or self.cache["grid"]["first"].shape != x.shape:
            self.cache["grid"] = {"first": torch.rand(x.shape), "second": torch.rand(x.shape)}
        return x * self.cache["grid"]["first"] + self.cache["grid"]["second"]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "mine_models.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("mine_models")
    sys.modules.pop("mine_models", None)


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def round_trip(model: nn.Module, x: Tensor, folder: Path) -> tuple[str, nn.Module]:
    """The emitted text and the model built from it, which trains as the one in memory does."""
    fast = fxapprox.rewrite(model, (x,), policy="crs", keep=0.5)
    path, _ = fxapprox.emit(fast, folder / "net_fast.py")
    built = imported(path).build_model()
    assert losses(built, (x,), {}, 3) == pytest.approx(losses(fast, (x,), {}, 3), rel=1e-6)
    return path.read_text(), built


def test_the_instance_is_rebuilt_from_its_attributes(mine: ModuleType, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), mine.Counted(8, steps=2))
    text, built = round_trip(model, torch.randn(4, 8), tmp_path)
    assert isinstance(built[1], mine.Counted)
    assert built[1].names == model[1].names
    assert "class Counted(mine_models.Counted):" in text
    assert "self.steps = 2" in text
    header = text.split('"""')[1]
    assert "Keeps the user's own forward, which is imported, of 1 (" in " ".join(header.split())
    assert "Needs on the path: mine_models (the user's own)." in header


def test_what_stands_in_such_a_module_keeps_its_class(tmp_path: Path) -> None:
    model, x = zoo.EarlyExit(), torch.randn(6, 20)
    text, built = round_trip(model, x, tmp_path)
    assert isinstance(built, zoo.EarlyExit)
    assert all(isinstance(block, zoo.Gate) for block in built.blocks)
    assert "self.blocks = nn.ModuleList([Gate() for _ in range(3)])" in text
    assert built.sizes == (12, 4)


def test_a_constructor_is_called_where_an_attribute_has_no_text(mine: ModuleType, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), mine.Introspective(8, rate=0.25))
    text, built = round_trip(model, torch.randn(4, 8), tmp_path)
    assert "nn.Sequential(nn.Linear(8, 8), Introspective(8, rate=0.25))" in text.replace("mine_models.", "")
    assert isinstance(built[1].inspector, mine.Inspector)


def test_a_part_without_text_is_named(mine: ModuleType, tmp_path: Path) -> None:
    fast = fxapprox.rewrite(nn.Sequential(mine.Handy(8)), (torch.randn(4, 8),), policy="topk")
    with pytest.raises(EmitError, match='attribute "act" of 0') as caught:
        fxapprox.emit(fast, tmp_path / "net_fast.py")
    assert "plain values" in str(caught.value.remedy)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != "") == ["mine_models.py"]


@pytest.mark.parametrize("name", ["Handy", "made"])
def test_the_whole_is_made_by_the_name_that_was_given(mine: ModuleType, tmp_path: Path, name: str) -> None:
    loaded = load(f"{tmp_path / 'mine_models.py'}:{name}")
    x = torch.randn(4, 8)
    captured = capture(loaded.model, Inputs((x,)), origin=loaded.origin)
    fast = api.rewritten(captured, api.planned(captured, [fxapprox.Rule(policy="topk")]))
    path, _ = fxapprox.emit(fast, tmp_path / "net_fast.py")
    text, built = path.read_text(), imported(path).build_model()
    assert f"mine_models import {name}" in text
    assert 'attribute "act"' in " ".join(text.split('"""')[1].split())
    torch.testing.assert_close(built(x), fast(x), rtol=0, atol=0)
    assert imported(path).build_model() is not built


def test_extra_state_is_kept_by_its_own_class(mine: ModuleType, tmp_path: Path) -> None:
    model = nn.Sequential(mine.Remembering(8))
    fast = fxapprox.rewrite(model, (torch.randn(4, 8),), policy="topk")
    path, _ = fxapprox.emit(fast, tmp_path / "net_fast.py")
    built = imported(path).build_model()
    assert built.state_dict().keys() == model.state_dict().keys()
    assert built[0].seen == 7


def test_a_class_that_nobody_can_import_is_refused(tmp_path: Path) -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > -1e9 else x

    fast = fxapprox.rewrite(Local(), (torch.randn(4, 4),), policy="topk")
    with pytest.raises(EmitError, match="cannot be imported by another program") as caught:
        fxapprox.emit(fast, tmp_path / "net.py")
    assert "top level of a file" in str(caught.value.remedy)


def test_hooks_are_not_dropped_silently(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    fast = fxapprox.rewrite(model, (torch.randn(4, 4),), policy="topk")
    handle = fast[0].register_forward_hook(lambda module, args, output: output)  # type: ignore[index]
    with pytest.raises(EmitError, match="0 has a hook"):
        fxapprox.emit(fast, tmp_path / "net.py")
    handle.remove()
    fxapprox.emit(fast, tmp_path / "net.py")


class Recorded(nn.Module):
    """Puts hooks on its layers when it first runs, and reads what they recorded, as transformers'
    models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not getattr(self, "hooked", False):
            for layer in self.layers:
                layer.register_forward_hook(recorded)
            self.hooked = True
        token = COLLECTOR.set([])
        for layer in self.layers:
            x = layer(x)
        found = COLLECTOR.get() or []
        COLLECTOR.reset(token)
        return (x, *found)


COLLECTOR: ContextVar[list[Tensor] | None] = ContextVar("collector", default=None)


def recorded(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    found = COLLECTOR.get()
    if found is not None:
        found.append(output)


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("a_librarys", [False, True])
def test_hooks_that_a_librarys_forward_brings_with_it_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_run: bool, a_librarys: bool
) -> None:
    model, x = nn.Sequential(Recorded()), torch.randn(4, 8)
    if has_run:
        model(x)
    fast = fxapprox.rewrite(model, (x,), policy="crs", keep=0.5)
    expected = losses(fast, (x,), {}, 3)  # puts the hooks there, if they are not
    assert fast[0].layers[0]._forward_hooks  # type: ignore[index]
    if not a_librarys:
        with pytest.raises(EmitError, match=r"0\.layers\.0 has a hook, recorded"):
            fxapprox.emit(fast, tmp_path / "net_fast.py")
        return
    monkeypatch.setattr(reader, "installed", lambda module: True)
    trained = {name: value.clone() for name, value in fast.state_dict().items()}
    fast.load_state_dict(model.state_dict())
    path, _ = fxapprox.emit(fast, tmp_path / "net_fast.py")
    header = " ".join(path.read_text().split('"""')[1].split())
    assert f"Left out: the hooks of {recorded.__module__} on 0.layers.0, 0.layers.1" in header
    built = imported(path).build_model()
    assert losses(built, (x,), {}, 3) == expected
    assert all(torch.equal(built.state_dict()[name], value) for name, value in trained.items())


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.fc.register_forward_hook(doubling)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + 1


def doubling(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return 2 * output


def test_a_hook_that_changes_a_result_is_never_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "installed", lambda module: True)
    fast = fxapprox.rewrite(Doubled(), (torch.randn(4, 8),), policy="topk")
    with pytest.raises(EmitError, match="fc has a hook, doubling"):
        fxapprox.emit(fast, tmp_path / "net_fast.py")


def test_tensors_in_a_nest_of_attributes_are_kept(mine: ModuleType, tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    model = nn.Sequential(nn.Linear(8, 8), mine.Caching())
    model(x)
    _, built = round_trip(model, x, tmp_path)
    for name in ("first", "second"):
        assert torch.equal(built[1].cache["grid"][name], model[1].cache["grid"][name])
    assert built.state_dict().keys() == model.state_dict().keys()
