"""Repeated blocks are one class; what varies is its constructor's business."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fxapprox

from . import zoo


def emitted(model: nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path, **options: object) -> str:
    fast = fxapprox.rewrite(model, inputs, **({"policy": "topk", "keep": 0.5} | options))
    return fxapprox.emit(fast, folder / "net.py")[0].read_text()


def defined(text: str) -> list[str]:
    return re.findall(r"^class (\w+)", text, re.M)


def test_a_residual_network_has_one_class_for_each_form_of_its_block(tmp_path: Path) -> None:
    text = emitted(zoo.ResNet(8, 3), (torch.randn(2, 3, 8, 8),), tmp_path)
    assert defined(text) == ["Block", "BlockDownsample", "ResNet"]
    assert "def __init__(self, channels: int) -> None:" in text
    assert "nn.Sequential(*[Block(8) for _ in range(3)])" in text
    assert "nn.Sequential(BlockDownsample(8), Block(16), Block(16))" in text
    assert len(text.splitlines()) < 130


def test_a_deeper_network_is_no_longer_file(tmp_path: Path) -> None:
    few, many = (
        emitted(zoo.ResNet(8, depth), (torch.randn(2, 3, 8, 8),), tmp_path).count("\n") for depth in (3, 12)
    )
    assert many == few


def test_numbers_in_a_forward_are_named_by_the_users_attributes(tmp_path: Path) -> None:
    model, args, kwargs = zoo.language()
    fast = fxapprox.rewrite(model, args, kwargs, policy="topk")
    text = fxapprox.emit(fast, tmp_path / "net.py")[0].read_text()
    assert defined(text) == ["Attention", "Layer", "Language"]
    assert "self.heads = heads" in text
    assert "Layer(2, 8), Layer(2, 8), Layer(4, 4)" in text
    assert "for layer in self.layers:" in text


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Product(4), Product(4), Product(6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Product(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(8, width))
        self.outer = nn.Parameter(torch.randn(width, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(torch.matmul(x, self.inner), self.outer)


def test_a_call_that_samples_in_one_block_is_exact_in_the_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Two(), torch.randn(5, 8)
    rules = [fxapprox.Rule(path="blocks.1.matmul_1", policy="topk", keep=0.5), fxapprox.Rule(policy="exact")]
    fast = fxapprox.rewrite(model, (x,), rules=rules)
    text = fxapprox.emit(fast, tmp_path / "net.py")[0].read_text()
    assert defined(text) == ["Product", "Two"]
    assert '"blocks.1.matmul_1": TOPK_50' in text
    assert text.count("FunctionCall(torch.matmul)") == 1
    space: dict[str, object] = {"__file__": str(tmp_path / "net.py"), "__name__": "net"}
    exec(text, space)
    built = space["build_model"]()  # type: ignore[operator]
    torch.testing.assert_close(built(x), fast(x), rtol=0, atol=0)
    assert not torch.equal(built(x), model(x))


def test_sites_of_equal_blocks_share_a_line_of_the_plan(tmp_path: Path) -> None:
    text = emitted(Two(), (torch.randn(5, 8),), tmp_path)
    assert '"blocks.*.matmul_1": TOPK_50,  # keeps 4 of 8 in features, 3 times' in text
    assert '"blocks.*.matmul_2": TOPK_50,  # keeps 50% of in features, 3 times' in text


def test_a_line_of_the_plan_stands_for_no_other_site(tmp_path: Path) -> None:
    rules = [fxapprox.Rule(path="blocks.0.*", policy="exact"), fxapprox.Rule(policy="topk", keep=0.5)]
    fast = fxapprox.rewrite(Two(), (torch.randn(5, 8),), rules=rules)
    text = fxapprox.emit(fast, tmp_path / "net.py")[0].read_text()
    assert re.findall(r'^    "(blocks.*?)":', text, re.M) == [
        f"blocks.{block}.matmul_{call}" for block in (1, 2) for call in (1, 2)
    ]


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    model, args, kwargs = zoo.language()
    fast = fxapprox.rewrite(model, args, kwargs, policy="topk")
    _, weights = fxapprox.emit(fast, tmp_path / "net.py")
    saved = load_file(weights)
    assert "embed.weight" in saved
    assert "head.weight" not in saved
    assert sum(name.startswith("constant:") for name in saved) == 3  # a scale in every attention


@pytest.mark.parametrize("scope", ["backward", "straight-through"])
def test_the_header_tells_the_plan(tmp_path: Path, scope: str) -> None:
    text = emitted(zoo.ResNet(8, 2), (torch.randn(2, 3, 8, 8),), tmp_path, policy="pps", scope=scope, min_k=2)
    assert text.startswith("# Written by fxapprox ")
    assert f"Plan: pps · {scope} · keep 0.5 at" in text
    assert f'PPS_50 = {{"policy": "pps", "keep": 0.5, "min_k": 2, "scope": "{scope}"}}' in text
    assert "from net import build_model" in text


class Operators(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        scores = torch.matmul(y, y.T)
        return (scores.mm(x) + torch.bmm(x[None], self.fc.weight[None])[0]) * 2


def test_calls_that_stay_exact_are_written_as_they_were(tmp_path: Path) -> None:
    x, model = torch.randn(5, 8), Operators()
    fast = fxapprox.rewrite(model, (x,), rules=[fxapprox.Rule(kind="linear", policy="topk")])
    text = fxapprox.emit(fast, tmp_path / "net.py")[0].read_text()
    assert "FunctionCall(" not in text
    assert ".mm(x)" in text
    assert "torch.bmm(" in text


def test_another_forward_of_equal_parts_is_a_subclass(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.fc, self.last = nn.Linear(8, 8), last

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) if self.last else torch.relu(self.fc(x)) + x

    text = emitted(nn.Sequential(Branch(False), Branch(True)), (torch.randn(5, 8),), tmp_path)
    assert defined(text) == ["Branch", "Branch2"]
    assert "class Branch2(Branch):" in text
    assert text.count("nn.Linear(8, 8)") == 1
