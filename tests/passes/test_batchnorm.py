"""Re-estimated statistics are those of exact forward passes, and nothing else changes."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_models
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.errors import RequestError

Pair = namedtuple("Pair", "image label")


def batches(number: int = 3, size: int = 6) -> list[Tensor]:
    torch.manual_seed(7)
    return [torch.randn(size, 3, 8, 8) for _ in range(number)]


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return small_models.ResNet()


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return {path: m for path, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def by_hand(model: nn.Module, data: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over the batches of each batch's mean and unbiased variance, of the inputs that exact passes
    with batch statistics give the layers."""
    exact = copy.deepcopy(model).eval()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in norms(exact)}

    def note(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].transpose(0, 1).flatten(1).double()
            seen[path].append((x.mean(1), x.var(1, correction=1)))

        return hook

    for path, layer in norms(exact).items():
        layer.train()
        layer.register_forward_pre_hook(note(path))
    with torch.no_grad():
        for x in data:
            exact(x)
    return {
        path: (torch.stack([m for m, _ in found]).mean(0), torch.stack([v for _, v in found]).mean(0))
        for path, found in seen.items()
    }


@pytest.mark.parametrize("policy", ["topk", "pps"])
def test_the_statistics_are_those_of_exact_passes(policy: str) -> None:
    data = batches()
    fast = fxapprox.rewrite(resnet(), (data[0],), policy=policy, keep=0.5)
    expected = by_hand(resnet(), data)  # the exact model's: same weights
    before = {name: value for name, value in state(fast).items() if "running" not in name}
    assert fxapprox.reestimate_batchnorm(fast, data) == tuple(expected)
    for path, (mean, variance) in expected.items():
        layer = fast.get_submodule(path)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-5, atol=1e-6)
        assert layer.momentum == 0.1
    after = state(fast)
    assert all(torch.equal(after[n], v) for n, v in before.items() if "num_batches" not in n)


def test_an_emitted_model_too(tmp_path: Path) -> None:
    data = batches()
    fast = fxapprox.rewrite(resnet(), (data[0],), policy="topk", keep=0.5)
    fxapprox.emit(fast, tmp_path / "emitted_for_batchnorm.py")
    sys.path.insert(0, str(tmp_path))
    try:
        import emitted_for_batchnorm
    finally:
        sys.path.remove(str(tmp_path))
    built = emitted_for_batchnorm.build_model()
    assert fxapprox.reestimate_batchnorm(built, data)
    fxapprox.reestimate_batchnorm(fast, data)
    assert same(state(built), state(fast))


class Mixed(nn.Module):
    """Dropout, a frozen norm, one without statistics, one that is never reached; keyword inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(6)
        self.frozen = nn.BatchNorm1d(6)
        self.batchwise = nn.BatchNorm1d(6, track_running_stats=False)
        self.unused = nn.BatchNorm1d(6)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y = self.norm(self.drop(self.inner(x)))
        return self.batchwise(self.frozen(y if shift is None else y + shift))


def mixed() -> tuple[Mixed, list[Tensor]]:
    torch.manual_seed(0)
    model = Mixed()
    for layer in (model.frozen, model.unused):
        layer.running_mean.fill_(0.25)
    return model, [torch.randn(5, 6) for _ in range(4)]


@pytest.mark.parametrize("training", [True, False])
def test_what_is_left_alone(training: bool) -> None:
    model, data = mixed()
    model.frozen.requires_grad_(False).eval()
    if not training:
        model.eval()
    flags = [module.training for module in model.modules()]
    assert fxapprox.reestimate_batchnorm(model, data) == ("norm",)
    assert [module.training for module in model.modules()] == flags
    assert all((layer.running_mean == 0.25).all() for layer in (model.frozen, model.unused))
    # without dropout the statistics are those of the linear layer's outputs
    mean = torch.stack([model.inner(x).mean(0) for x in data]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, mean.detach())


def test_an_average_of_weights_has_no_trainable_parameters() -> None:
    model, data = mixed()
    model.requires_grad_(False).eval()
    assert fxapprox.reestimate_batchnorm(model, data) == ("norm", "frozen")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda x: x,
        lambda x: (x, torch.zeros(1)),
        lambda x: [x, torch.zeros(1)],
        lambda x: {"x": x},
        lambda x: ({"x": x, "shift": torch.zeros(6)}, "a target"),
        lambda x: Pair(x, 3),
    ],
)
def test_what_loaders_yield(wrapped: Callable[[Tensor], object]) -> None:
    model, data = mixed()
    other = copy.deepcopy(model)
    fxapprox.reestimate_batchnorm(model, data, batches=2)
    fxapprox.reestimate_batchnorm(other, (wrapped(x) for x in data), batches=2)
    assert same(state(model), state(other))
    assert model.norm.num_batches_tracked == 2


def test_anything_else_has_its_own_forward() -> None:
    model, data = mixed()
    other = copy.deepcopy(model)
    fxapprox.reestimate_batchnorm(model, data)
    fxapprox.reestimate_batchnorm(other, [{1: x} for x in data], forward=lambda model, batch: model(batch[1]))
    assert same(state(model), state(other))
    with pytest.raises(RequestError, match="a batch of the loader is a str") as error:
        fxapprox.reestimate_batchnorm(model, ["text"])
    assert "forward=lambda model, batch" in str(error.value)


def broken(data: list[Tensor], error: BaseException) -> Iterator[Tensor]:
    yield from data[:2]
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no disk")])
def test_nothing_is_half_done(error: BaseException) -> None:
    model, data = mixed()
    model.drop.eval()
    before, flags = state(model), [module.training for module in model.modules()]
    with pytest.raises(type(error)):
        fxapprox.reestimate_batchnorm(model, broken(data, error))
    assert same(state(model), before)
    assert [module.training for module in model.modules()] == flags
    assert model.norm.momentum == 0.1


def test_too_small_a_batch_says_so() -> None:
    model, data = mixed()
    before = state(model)
    with pytest.raises(RequestError, match="too small") as error:
        fxapprox.reestimate_batchnorm(model, [*data, torch.randn(1, 6)])
    assert "drop_last" in str(error.value)
    assert same(state(model), before)


@pytest.mark.parametrize(("loader", "number"), [([], None), (iter(()), 3), ([torch.ones(2, 6)], 0)])
def test_nothing_to_estimate_from(loader: object, number: int | None) -> None:
    model, _ = mixed()
    before = state(model)
    with pytest.raises(RequestError):
        fxapprox.reestimate_batchnorm(model, loader, batches=number)
    assert same(state(model), before)


def test_a_model_without_batch_norm() -> None:
    with pytest.warns(UserWarning, match="no batch norm to re-estimate"):
        assert fxapprox.reestimate_batchnorm(nn.Linear(2, 2), []) == ()


def test_evaluating_inside_the_with_changes_nothing_in_the_run() -> None:
    data = batches()
    fast = fxapprox.rewrite(resnet(), (data[0],), policy="topk", keep=0.5)
    other = copy.deepcopy(fast)
    before = state(fast)
    with fxapprox.batchnorm_reestimated(fast, data):
        inside = state(fast)
    assert same(state(fast), before)
    fxapprox.reestimate_batchnorm(other, data)
    assert same(state(other), inside)
    with pytest.raises(KeyError), fxapprox.batchnorm_reestimated(fast, data):
        raise KeyError
    assert same(state(fast), before)


def test_sites_in_containers_are_exact_meanwhile() -> None:
    """Their calls are no children of the container, whose flags are set one by one."""

    class Head(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x @ x.transpose(0, 1) @ x)

    torch.manual_seed(0)
    x = torch.randn(6, 12)
    model = nn.Sequential(Head(nn.Linear(12, 8)), nn.BatchNorm1d(8))
    fast = fxapprox.rewrite(model, (x,), rules=[fxapprox.Rule(kind="matmul", policy="topk", keep=0.5)])
    fxapprox.reestimate_batchnorm(fast, [x])
    expected = model[0](x).mean(0).detach()
    torch.testing.assert_close(fast[1].running_mean, expected)
    assert not torch.allclose(fast.train()[0](x).mean(0), expected, atol=1e-3)


def test_rich_is_not_needed() -> None:
    code = (
        "import sys, torch, fxapprox; from torch import nn;"
        "fxapprox.reestimate_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), [torch.randn(4, 3)]);"
        "assert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.PIPE)
