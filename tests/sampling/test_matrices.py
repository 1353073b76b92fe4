"""The short way for matrices gives what the general one does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxapprox.choices import Choice, Sampled
from fxapprox.kinds import Operation
from fxapprox.kinds._contract import MatrixProduct
from fxapprox.kinds.linear import Rows
from fxapprox.policies import Policy, policies
from fxapprox.sampling import product
from fxapprox.sampling.matrices import matrix_product
from fxapprox.sampling.product import sampled_product
from fxapprox.sampling.streams import Draw

DRAW = Draw("a", seed=1, number=2)
BY_PAIR = [name for name, cls in policies.all().items() if issubclass(cls, Policy) and cls.scores == "pair"]


def operation(rows: int = 5, inner: bool = True, dtype: torch.dtype = torch.float64) -> Operation:
    torch.manual_seed(0)
    left = torch.randn(rows, 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(12, 7, dtype=dtype)
    right = (weight.t() if inner else weight).detach().requires_grad_()
    bias = torch.randn(7, dtype=dtype, requires_grad=True)
    return Operation(Rows(inner_first=True) if inner else MatrixProduct(), left, right, bias)


def choice(name: str = "topk", **keys: object) -> Choice:
    return Choice.of_scope("forward", Sampled(policies.get(name)(), 0.5, **keys))  # type: ignore[arg-type]


def results(given: Operation, chosen: Choice) -> list[Tensor]:
    leaves = [given.left, given.right, given.bias]
    y = sampled_product(given, chosen, DRAW)
    return [y, *torch.autograd.grad(y.square().sum(), [leaf for leaf in leaves if leaf is not None])]


@pytest.mark.parametrize("rows", [3, 40])  # the scale goes to the smaller operand
@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("name", BY_PAIR)
def test_it_is_the_general_way(name: str, inner: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = operation(rows, inner)
    assert matrix_product(given, choice(name), DRAW) is not None
    short = results(given, choice(name))
    monkeypatch.setattr(product, "matrix_product", lambda *_: None)
    for ours, theirs in zip(short, results(given, choice(name)), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.stride() == theirs.stride()


def test_other_calls_are_left_to_it() -> None:
    given = operation()
    for other in (
        choice(center=True),
        choice("uniform"),
        choice("topk-weights"),
        Choice.of_scope("backward", Sampled(policies.get("topk")())),
        Choice.of_scope("straight-through", Sampled(policies.get("topk")())),
        Choice.of_scope("forward", Sampled(policies.get("topk")(), 1.0)),
    ):
        assert matrix_product(given, other, DRAW) is None
    for odd in (operation(0), operation(dtype=torch.bfloat16)):
        assert matrix_product(odd, choice(), DRAW) is None
    with torch.no_grad():
        given.left[0, 0] = torch.nan
    assert matrix_product(given, choice(), DRAW) is None
    with torch.autocast("cpu"):
        assert matrix_product(operation(), choice(), DRAW) is None


def test_gradients_of_gradients_are_refused() -> None:
    given = operation()
    y = sampled_product(given, choice(), DRAW)
    (grad,) = torch.autograd.grad(y.square().sum(), given.left, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
