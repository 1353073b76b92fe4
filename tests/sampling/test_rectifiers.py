"""A ReLU before sampled products holds bits: less memory than exact training, gradients equal to the bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import fxapprox
from fxapprox.sampling import rectifiers
from fxapprox.sampling.rectifiers import KEY, hold_signs, packed, unpacked

ODD = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45)
RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu_": torch.relu_,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "leaky, negative": lambda x: F.leaky_relu(x, -0.1),
    "leaky_": lambda x: F.leaky_relu(x, 0.1, inplace=True),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rectifiers, "SMALLEST", 1)


def odd_numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Random numbers, a third of them special."""
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(shape, generator=generator).to(dtype)
    special = torch.tensor(ODD).to(dtype)[torch.randint(len(ODD), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.3, special, plain)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
    )


def held(result: Tensor) -> bool:
    assert result.grad_fn is not None
    return KEY in result.grad_fn.metadata


@given(
    relu=st.sampled_from(sorted(RELUS)),
    shape=st.sampled_from([(8,), (3, 5), (2, 8, 3, 3), (2, 3, 5, 7), (4, 4, 4, 4)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_gradients_are_torchs_to_the_bit(
    relu: str, shape: tuple[int, ...], dtype: torch.dtype, last: bool, seed: int
) -> None:
    x, grad = odd_numbers(shape, dtype, seed), odd_numbers(shape, dtype, seed + 1)
    if last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    found = []
    before, rectifiers.SMALLEST = rectifiers.SMALLEST, 1
    try:
        for ours in (False, True):
            leaf = x.clone().requires_grad_()
            y = RELUS[relu](leaf * 1)
            if ours:
                hold_signs(y)
                assert held(y)
            given_ = grad.clone().requires_grad_()
            (first,) = torch.autograd.grad(y, leaf, given_, create_graph=True)
            (again,) = torch.autograd.grad(y, leaf, grad, retain_graph=True)
            (second,) = torch.autograd.grad(first, given_, grad)
            found.append((y.detach(), first.detach(), again, second))
    finally:
        rectifiers.SMALLEST = before
    for theirs, own in zip(*found, strict=True):
        assert same_bits(theirs, own)


@given(st.lists(st.booleans(), min_size=1, max_size=64))
def test_bits_are_what_was_packed(signs: list[bool]) -> None:
    wanted = torch.tensor(signs)
    kept = packed(wanted.clone(), above=False)
    assert torch.equal(unpacked(kept) > 0, wanted)
    assert kept[0].numel() == (len(signs) if len(signs) % 8 else len(signs) // 8)


class Net(nn.Module):
    """A convolution net in the ways people write ReLUs: modules in place and not, functions, one used twice;
    a block with a shortcut, and a linear layer behind a view."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(3))
        self.shortcut = nn.Conv2d(width, width, 1)
        self.relu = nn.ReLU(inplace=True)
        self.wide = nn.Linear(width * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.stem(x)))
        y = F.relu(self.norms[1](self.convs[0](x)))
        y = self.relu(self.norms[2](self.convs[1](y)) + self.shortcut(x))
        y = torch.relu_(self.norms[3](self.convs[2](y)))
        return self.wide(y.flatten(1))


class Census(TorchDispatchMode):
    """The memory that lives on of all that was computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self.seen.append((StorageWeakRef(storage), storage.nbytes()))
        return result

    def living(self, *apart: Tensor) -> int:
        """Bytes, without those of tensors that were there before."""
        known = {tensor.untyped_storage()._cdata for tensor in apart}
        found = {ref.cdata: size for ref, size in self.seen if not ref.expired()}
        return sum(size for storage, size in found.items() if storage not in known)


def bytes_for_backward(model: nn.Module, x: Tensor) -> int:
    with Census() as census:
        loss = model(x).square().mean()
    total = census.living(x, *model.parameters(), *model.buffers())
    loss.backward()
    return total


def rewritten(model: nn.Module, x: Tensor, **keys: Any) -> nn.Module:
    return fxapprox.rewrite(model, (x,), policy="topk", keep=0.5, gate=False, **keys).train()


@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_a_step_keeps_less_than_exact(small: None, format_: torch.memory_format) -> None:
    x = torch.randn(64, 3, 8, 8).to(memory_format=format_)
    model = Net().to(memory_format=format_)
    exact, ours = bytes_for_backward(model, x), bytes_for_backward(rewritten(model, x), x)
    plane = 64 * 16 * 64 * 4
    # batch norms' inputs (4), and what ReLUs and convolutions share (4); channels_last is copied to be flat
    assert exact == pytest.approx((9 if format_ is torch.channels_last else 8) * plane, rel=0.02)
    # of the latter the kept halves (5: both branches of the block keep one) and the bits
    assert ours == pytest.approx((4 + 5 / 2 + 4 / 32) * plane + x.nbytes / 3, rel=0.02)


def test_without_bits_it_would_be_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rectifiers, "SMALLEST", 10**9)
    x, model = torch.randn(64, 3, 8, 8), Net()
    assert bytes_for_backward(rewritten(model, x), x) > bytes_for_backward(model, x)


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(3)
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_training_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(16, 3, 8, 8)
    fast = rewritten(Net(), x)
    copies = [fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
    monkeypatch.setattr(rectifiers, "SMALLEST", 10**9)
    wanted = step(copy.deepcopy(fast), x)
    monkeypatch.setattr(rectifiers, "SMALLEST", 1)
    for one in copies:
        assert all(map(same_bits, step(one, x), wanted))


def test_autocast(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(16, 3, 8, 8)
    fast = rewritten(Net(), x)
    with torch.autocast("cpu", torch.bfloat16):
        ours = step(copy.deepcopy(fast), x)
        monkeypatch.setattr(rectifiers, "SMALLEST", 10**9)
        assert all(map(same_bits, ours, step(fast, x)))


def one_layer(**keys: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A sampled layer, an input that asks for gradients, and its ReLU's result."""
    x = torch.randn(8, 16, requires_grad=True)
    layer = rewritten(nn.Linear(16, 4), x.detach(), **keys)
    return layer, x, torch.relu(x * 1)


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, True),
        ({"center": True}, True),
        ({"scope": "straight-through"}, False),
        ({"scope": "backward"}, False),
        ({"scope": "grad-weight"}, False),
    ],
)
def test_only_where_the_product_does_not_hold_it(small: None, keys: dict[str, Any], wanted: bool) -> None:
    layer, _, y = one_layer(**keys)
    layer(y)
    assert held(y) == wanted


def test_nothing_in_evaluation_and_where_all_is_kept(small: None) -> None:
    layer, _, y = one_layer()
    layer.eval()(y)
    assert not held(y)
    layer, _, y = one_layer(scope="forward")
    with torch.no_grad():
        layer(y.detach())
    assert not held(y)


def test_small_tensors_are_left_alone() -> None:
    layer, _, y = one_layer()
    layer(y)
    assert not held(y)


def test_frozen_weights(small: None) -> None:
    layer, x, y = one_layer()
    layer.requires_grad_(False)
    layer(y).sum().backward()
    assert held(y)
    assert x.grad is not None


def test_results_of_other_operations_are_left_alone(small: None) -> None:
    layer, x, _ = one_layer()
    for y in (torch.tanh(x), torch.relu(x) + 1, x * 2, x):
        layer(y).sum().backward()


def test_a_change_in_place_is_refused_as_ever(small: None) -> None:
    layer, _, y = one_layer()
    with torch.no_grad():
        y.mul_(2)
    result = layer(y)
    assert not held(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_hooks_of_others_have_the_tensors_first(small: None) -> None:
    layer, x, _ = one_layer()
    seen: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = torch.relu(x * 1)
        layer(y)
    assert not held(y)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = torch.relu(x * 1)
    layer(y).sum().backward()  # theirs are on the ReLU's tensor only
    assert not held(y)
    assert any(tensor.shape == y.shape for tensor in seen)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(small: None, reentrant: bool) -> None:
    x = torch.randn(16, 16, requires_grad=True)
    model = rewritten(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), x.detach())
    wanted = torch.autograd.grad(model(x).square().sum(), x)[0]
    y = checkpoint(model, x, use_reentrant=reentrant)
    y.square().sum().backward()
    assert x.grad is not None
    assert same_bits(x.grad, wanted)


def test_a_weight_is_gathered_again_where_that_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxapprox.sampling import product

    x = torch.randn(4, 32, 8, 8, requires_grad=True)
    fast = rewritten(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)), x.detach())
    scaled = fxapprox.rewrite(
        nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)), (x.detach(),), policy="pps", keep=0.5, gate=False
    ).train()
    for model in (fast, scaled):
        found, sizes = [], []
        for rows in (1, 10**9):
            monkeypatch.setattr(product, "ROWS", rows)
            sizes.append(bytes_for_backward(copy.deepcopy(model), x))
            torch.manual_seed(0)
            found.append(torch.autograd.grad(model(x).square().sum(), x)[0])
        assert same_bits(*found)
        assert sizes[1] - sizes[0] >= 16 * 32 * 9 * 4 * 0.9
