"""Models from files and modules: what is found, and what each bad input says."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fxapprox.capture.load import load
from fxapprox.errors import CaptureError, FxApproxError, RequestError

HEADER = "import torch\nfrom torch import nn\n"
NET = """class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(3, width)
"""
Write = Callable[..., str]


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    modules, path, argv = set(sys.modules), list(sys.path), list(sys.argv)
    yield
    assert sys.path == path, "loading leaves sys.path as it was"
    assert sys.argv == argv
    for name in set(sys.modules) - modules:
        if not name.startswith(("torch", "numpy")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "mynet.py", header: str = HEADER) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(header + text)
        return str(path)

    return write


def refusal(spec: str, kind: type[FxApproxError] = RequestError) -> str:
    with pytest.raises(kind) as caught:
        load(spec)
    return str(caught.value)


def test_an_instance_a_class_and_a_factory(write: Write) -> None:
    file = write(
        NET + "net = Net(5)\ndef make():\n    return Net(6)\nclass Holder:\n    small = staticmethod(make)\n"
    )
    assert load(f"{file}:net").model.fc.out_features == 5
    assert load(f"{file}:Net").model.fc.out_features == 4
    assert load(f"{file}:make").model.fc.out_features == 6
    assert load(f"{file}:Holder.small").model.fc.out_features == 6


def test_a_module_by_its_dotted_name(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("", "nets/__init__.py", "")
    write(NET, "nets/small.py")
    monkeypatch.chdir(tmp_path)
    assert load("nets.small:Net").origin == "nets.small:Net"
    assert load("nets.small").origin == "nets.small:Net"
    assert isinstance(load("torch.nn:Identity").model, nn.Identity)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (NET, "Net"),
        ("class Block(nn.Module):\n    def __init__(self, n):\n        super().__init__()\n" + NET, "Net"),
        (NET + "net = Net()\n", "net"),
        (NET + "net = Net()\nsame = net\n", "net"),
        (NET + "net = Net()\nwhole = nn.Sequential(net)\n", "whole"),
        (NET + "class Other(Net): pass\ndef build_model():\n    return Net()\n", "build_model"),
        (NET + "class Other(Net): pass\ndef tiny() -> nn.Module:\n    return Net()\n", "tiny"),
        (NET + "class _Hidden(Net): pass\n", "Net"),
        ("from torch.nn import Linear, Identity\n" + NET, "Net"),
    ],
)
def test_the_only_candidate_is_found(write: Write, text: str, chosen: str) -> None:
    assert load(write(text)).origin.endswith(f"mynet.py:{chosen}")


def test_several_candidates_are_listed(write: Write) -> None:
    file = write(NET + "class Other(Net): pass\n")
    message = refusal(file)
    assert "several models" in message
    assert f"{file}:Net" in message
    assert f"{file}:Other" in message


def test_no_candidate_says_what_is_there(write: Write) -> None:
    text = (
        "class Block(nn.Module):\n    def __init__(self, n, m):\n        pass\ndef train():\n    return 1\n"
    )
    message = refusal(write(text))
    assert "Block(n, m)" in message
    assert "train" in message
    assert "def build_model" in message


def test_example_inputs_in_every_form(write: Write) -> None:
    cases = {
        "torch.ones(2)": (1, {}),
        "(torch.ones(2), torch.ones(3))": (2, {}),
        "[torch.ones(2)]": (1, {}),
        "{'x': torch.ones(2)}": (0, {"x"}),
        "((torch.ones(2),), {'mask': None})": (1, {"mask"}),
        "({'x': torch.ones(2)},)": (1, {}),
    }
    for text, (args, names) in cases.items():
        inputs = load(write(NET + f"def example_inputs():\n    return {text}\n")).inputs
        assert inputs is not None
        assert (len(inputs.args), set(inputs.kwargs or {})) == (args, set(names)), text
    assert load(write(NET)).inputs is None
    file = write(NET + "def example_inputs():\n    raise OSError('no data')\n")
    assert "mynet.py:8: raise OSError" in refusal(file, CaptureError)
    assert load(file, example_inputs=False).inputs is None


def test_siblings_and_relative_imports_work(write: Write) -> None:
    write("WIDTH = 7\n", "sizes_of_it.py")
    file = write("from sizes_of_it import WIDTH\nclass A(nn.Module):\n    width = WIDTH\n")
    assert load(file).model.width == 7
    write("", "packaged/__init__.py", "")
    write("WIDTH = 8\n", "packaged/parts/sizes.py")
    write("", "packaged/parts/__init__.py", "")
    write("WIDTH = 9\n", "packaged/parts/absolute_sibling.py")
    text = "from .sizes import WIDTH\nfrom absolute_sibling import WIDTH as other\n"
    text += "class A(nn.Module):\n    width = WIDTH + other\n"
    loaded = load(write(text, "packaged/parts/net.py"))
    assert loaded.model.width == 17
    assert type(loaded.model).__module__ == "packaged.parts.net"


def test_the_module_keeps_an_importable_name(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    model = load(write(NET)).model
    assert type(model).__module__ == "mynet"
    assert sys.modules["mynet"].Net is type(model)
    assert torch.equal(pickle.loads(pickle.dumps(model)).fc.weight, model.fc.weight)
    copy.deepcopy(model)
    assert not list(tmp_path.rglob("__pycache__")), "nothing is written beside the user's file"


def test_a_name_that_is_taken_does_not_displace_a_module(write: Write) -> None:
    assert type(load(write(NET, "random.py")).model).__module__ == "_fxapprox_user_random"
    import random

    assert hasattr(random, "shuffle")


def test_a_second_file_of_the_same_name_and_a_changed_file_are_run_anew(write: Write) -> None:
    assert load(write(NET, "a/net.py")).model.fc.out_features == 4
    assert load(write(NET.replace("=4", "=6"), "b/net.py")).model.fc.out_features == 6
    assert load(write(NET.replace("=4", "=7"), "b/net.py")).model.fc.out_features == 7


def test_the_file_does_not_see_our_arguments(write: Write) -> None:
    text = "import argparse\nargparse.ArgumentParser().parse_args()\n" + NET
    load(write(text))


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("def f(:\n    pass\n", CaptureError, ["syntax error", "mynet.py:3: def f(:"]),
        ("import no_such\n", CaptureError, ["mynet.py:3: import no_such", "install no_such"]),
        ("1 / 0\n", CaptureError, ["ZeroDivisionError", "mynet.py:3: 1 / 0"]),
        ("raise SystemExit(3)\n", CaptureError, ["SystemExit", "mynet.py:3", "__main__"]),
        ("x = 1\n", RequestError, ["holds no model", "build_model"]),
        ("def build_model():\n    return make()\ndef make():\n    return [][1]\n", CaptureError,
         ["mynet.py:build_model() raised IndexError", "mynet.py:6: return [][1]"]),
        ("def build_model():\n    return nn.Linear(2, -5)\n", CaptureError, ["return nn.Linear(2, -5)"]),
        ("def build_model():\n    return 5\n", RequestError, ["returned an int, not a torch.nn.Module"]),
    ],
)  # fmt: skip
def test_a_bad_file_gets_one_clear_message(
    write: Write, text: str, kind: type[FxApproxError], parts: list[str]
) -> None:
    message = refusal(write(text), kind)
    for part in parts:
        assert part in message


def test_an_error_in_a_sibling_shows_the_siblings_line(write: Write) -> None:
    write("def broken(:\n", "its_sibling.py")
    message = refusal(write("import its_sibling\n" + NET), CaptureError)
    assert "its_sibling.py:3: def broken(:" in message


def test_a_name_that_is_wrong(write: Write, tmp_path: Path) -> None:
    file = write(NET + "WIDTH = 3\ndef sized(n):\n    return Net(n)\n")
    assert "did you mean 'Net'?" in refusal(f"{file}:Nett")
    assert "is an int, not a model" in refusal(f"{file}:WIDTH")
    assert "needs arguments: n" in refusal(f"{file}:sized")
    assert "did you mean 'mynet.py'?" in refusal(str(tmp_path / "mynett.py"))
    assert "no folder" in refusal(str(tmp_path / "nowhere" / "net.py"))
    assert "is not a file" in refusal(str(tmp_path) + "/")
    assert "there is no module 'no.such'" in refusal("no.such:Net")
    assert "has no 'Linearr'" in refusal("torch.nn:Linearr")
    assert "does not name a model" in refusal(":Net")
    assert "does not name a model" in refusal(f"{file}:")
    assert "does not name a model" in refusal("")
