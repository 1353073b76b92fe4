"""Gradient checkpointing: a recomputed forward repeats its draw, so gradients are those without it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fxapprox.passes.layers import sampled

# inner segments of a segment run without gradients at first, of which torch warns
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

SCHEMES = {
    "forward": {"policy": "pps", "keep": 0.4, "scope": "forward"},
    "with replacement": {"policy": "crs", "keep": 0.4, "scope": "forward"},
    "random size": {"policy": "bernoulli", "keep": 0.4, "scope": "forward"},
    "backward": {"policy": "uniform", "keep": 0.4, "scope": "backward"},
}
Loss = Callable[["Net", Tensor], None]


class Net(nn.Module):
    """Two sampled layers, the second used twice, with dropout between them."""

    def __init__(self, scheme: str, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = sampled(nn.Linear(6, 10), site="first", **SCHEMES[scheme])
        self.second = sampled(nn.Linear(10, 10), site="second", **SCHEMES[scheme])
        self.drop = nn.Dropout(0.3)
        self.reentrant = reentrant

    def block(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.second(torch.tanh(self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.block(x)
        return checkpoint(self.block, x, use_reentrant=self.reentrant)


def gradients(net: Net, loss: Loss) -> list[Tensor]:
    """In float64: use_reentrant=True adds gradients up in another order, other draws differ by far more."""
    torch.manual_seed(2)
    x = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    loss(net.double(), x)
    return [x.grad, *(p.grad for p in net.parameters())]  # type: ignore[list-item]


def one_pass(net: Net, x: Tensor) -> None:
    net(x).square().sum().backward()


def accumulation(net: Net, x: Tensor) -> None:
    for part in x.chunk(4):
        net(part).square().sum().backward()


def same_input_twice_in_one_loss(net: Net, x: Tensor) -> None:
    """Two views that differ in their draws only, as in contrastive training."""
    (net(x) * net(x).detach() + net(x)).sum().backward()


def same_input_first_in_first_out(net: Net, x: Tensor) -> None:
    first, second = net(x), net(x)
    first.square().sum().backward()
    second.square().sum().backward()


def full_batches(net: Net, x: Tensor) -> None:
    """The same input at every step, each step's graph freed before the next."""
    for _ in range(3):
        net(x).square().sum().backward()
        gc.collect()


def backward_twice(net: Net, x: Tensor) -> None:
    loss = net(x).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()


def seeded_in_between(net: Net, x: Tensor) -> None:
    result = net(x)
    torch.manual_seed(9)
    result.square().sum().backward()


def measured_in_between(net: Net, x: Tensor) -> None:
    """A forward without gradients, in training mode, on the same input."""
    result = net(x)
    with torch.no_grad():
        net(x)
    result.square().sum().backward()


LOSSES: list[Loss] = [
    one_pass, accumulation, same_input_twice_in_one_loss, same_input_first_in_first_out, full_batches,
    seeded_in_between, measured_in_between,
]  # fmt: skip


def name(loss: Loss) -> str:
    return loss.__name__


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_gradients_are_those_without_checkpointing(loss: Loss, scheme: str, reentrant: bool) -> None:
    plain, checkpointed = (gradients(Net(scheme, how), loss) for how in (None, reentrant))
    for a, b in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_graph_can_be_walked_twice(scheme: str) -> None:
    plain, checkpointed = (gradients(Net(scheme, how), backward_twice) for how in (None, False))
    for a, b in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(a, b)


class Twice(Net):
    """A segment that puts the same tensor through the same layer twice."""

    def block(self, x: Tensor) -> Tensor:
        return self.first(x) * self.first(x).sin()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_inputs_inside_one_segment(scheme: str, reentrant: bool) -> None:
    plain, checkpointed = (gradients(Twice(scheme, how), one_pass)[0] for how in (None, reentrant))
    torch.testing.assert_close(plain, checkpointed)


class Nested(Net):
    """Segments inside a segment."""

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.second(torch.tanh(self.second(torch.tanh(self.first(x)))))
        inner = partial(checkpoint, use_reentrant=self.reentrant)

        def outer(x: Tensor) -> Tensor:
            return inner(self.second, torch.tanh(inner(self.second, torch.tanh(self.first(x)))))

        return checkpoint(outer, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("loss", [one_pass, accumulation, same_input_twice_in_one_loss], ids=name)
def test_nested_checkpoints(loss: Loss, scheme: str, reentrant: bool) -> None:
    plain, checkpointed = (gradients(Nested(scheme, how), loss) for how in (None, reentrant))
    for a, b in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_saved_tensors_moved_elsewhere_are_no_checkpoint() -> None:
    def offloaded(net: Net, x: Tensor) -> None:
        with torch.autograd.graph.save_on_cpu():
            result = net(x)
        result.square().sum().backward()

    for a, b in zip(gradients(Net("forward"), offloaded), gradients(Net("forward"), one_pass), strict=True):
        torch.testing.assert_close(a, b)


def test_without_a_checkpoint_nothing_is_remembered() -> None:
    net = Net("forward")
    gradients(net, accumulation)
    assert not net.first._fxapprox.parts[""].stream._tickets  # type: ignore[union-attr]


@pytest.mark.parametrize("reentrant", [True, False])
def test_nothing_is_remembered_longer_than_its_graph(reentrant: bool) -> None:
    net = Net("forward", reentrant)
    for _ in range(5):
        gradients(net, one_pass)
        gc.collect()
    assert len(net.first._fxapprox.parts[""].stream._tickets) <= 1  # type: ignore[union-attr]
