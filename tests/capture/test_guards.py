"""A call that a captured forward does not hold for runs the user's own forward."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import runpy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox.capture.guards import ANY, Guard, common, odd_argument, pattern_of


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(
        self, x: Tensor, flag: bool = False, times: int = 1, *, mask: Tensor | None = None,
        options: dict[str, Any] = {}, scale: float = 1.0,  # noqa: B006
    ) -> Tensor:  # fmt: skip
        y = x @ self.weight
        for _ in range(times):
            y = y.tanh()
        if flag:
            y = y + 1
        if mask is not None:
            y = y.masked_fill(mask, 0) if mask.dtype == torch.bool else y + mask
        return y * scale if options.get("scaled") else y


X = torch.randn(4, 8)
OTHER: dict[str, dict[str, Any]] = {
    "a flag": {"flag": True},
    "a number": {"times": 3},
    "a mask": {"mask": X > 0},
    "another sort of mask": {"mask": X},
    "a nest": {"options": {"scaled": True}, "scale": 2.0},
}


@pytest.mark.parametrize("case", OTHER)
@pytest.mark.parametrize("example", [{}, {"mask": X < 0, "times": 2}])
def test_other_arguments_than_the_examples_run_the_users_forward(case, example):
    model = Branching()
    fast = fxapprox.rewrite(model, (X,), example, policy="topk", keep=0.5)
    for copied in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        with pytest.warns(UserWarning, match="rewritten with other arguments than"):
            assert torch.equal(copied(X, **OTHER[case]), model(X, **OTHER[case]))


def test_the_examples_own_kind_of_call_is_sampled_without_a_word():
    model = Branching()
    fast = fxapprox.rewrite(model, (X,), {"mask": X < 0}, policy="topk", keep=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampled = fast(torch.randn(6, 8), mask=torch.rand(6, 8) > 0.5)
        assert not torch.equal(fast(X, mask=X < 0), model(X, mask=X < 0))
        assert fast.double()(X.double(), mask=X < 0).dtype == torch.float64
    assert sampled.shape == (6, 8)


def test_masks_given_after_the_rewrite_reach_attention():
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    x, mask = torch.randn(2, 5, 16), torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    rules = [fxapprox.Rule(path="self_attn.*", kind="linear", policy="topk", keep=0.5)]
    fast = fxapprox.rewrite(model, (x,), rules=rules)
    with pytest.warns(UserWarning, match="MultiheadAttention was rewritten with other arguments"):
        torch.testing.assert_close(fast(x, src_mask=mask), model(x, src_mask=mask))


def test_patterns():
    patterns = [pattern_of((X, [True, n], {"a": None})) for n in (1, 2)]
    guard = Guard(("nest",), (common(patterns),), "nest")
    assert odd_argument(guard, ((X.double(), [True, 7], {"a": None}),)) is None
    for wrong in (
        (X[0], [True, 1], {"a": None}),
        (X > 0, [True, 1], {"a": None}),
        (X, [1, 1], {"a": None}),
        (X, [True], {"a": None}),
        (X, [True, 1], {"b": None}),
        (X, [True, 1], None),
    ):
        assert odd_argument(guard, (wrong,)) == "nest is " + ("None" if wrong is None else "another tuple")
    assert common([pattern_of(None), pattern_of(X)]) == ANY
    assert pattern_of(float("nan")) == pattern_of(object()) == ANY


def test_an_emitted_file_refuses_arguments_it_does_not_hold_for(tmp_path):
    fast = fxapprox.rewrite(Branching(), (X,), policy="topk", keep=0.5)
    fxapprox.emit(fast, tmp_path / "emitted.py")
    scope = runpy.run_path(str(tmp_path / "emitted.py"))
    model = scope["build_model"]().eval()
    torch.testing.assert_close(model(X), fast.eval()(X))
    for case in ("a flag", "a number", "a mask"):
        with pytest.raises(ValueError, match="unlike the example inputs that this file was made with"):
            model(X, **OTHER[case])


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ self.weight + 3 * y


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(8, 8), Adding()

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        x = self.first(x)
        return self.inner(x, x if memory is None else memory)


def test_one_tensor_given_twice_as_an_example_may_be_two_tensors_later():
    model = Adding()
    fast = fxapprox.rewrite(model, (X, X), policy="topk").eval()
    other = torch.randn(4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(fast(X, other), model(X, other))
        torch.testing.assert_close(fast(X, X), model(X, X))


def test_a_module_that_was_given_one_tensor_twice_is_not_wrong_for_two():
    model = Remembering()
    fast = fxapprox.rewrite(model, (X,), policy="topk").eval()
    torch.testing.assert_close(fast(X), model(X))
    with pytest.warns(UserWarning, match="y is another tensor than x"):
        torch.testing.assert_close(fast(X, X), model(X, X))


@dataclasses.dataclass
class Config:
    double: bool = False
    unread: int = 0


class Settings:
    def __init__(self) -> None:
        self.sign, self.unread = 1, 0


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.squares, self.fc = False, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Configured(nn.Module):
    """Branches on attributes of its own, of its class, of a child, of objects and containers it holds."""

    shift = 0

    def __init__(self) -> None:
        super().__init__()
        self.mode, self.times, self.scale, self.counter = "plain", 1, 0.5, 0
        self.config, self.settings, self.steps = Config(), Settings(), {"extra": [False]}
        self.inner, self.weight = Inner(), nn.Parameter(torch.randn(8, 8))
        self.register_parameter("bias", None)

    @property
    def doubles(self) -> bool:
        return self.config.double

    def forward(self, x: Tensor) -> Tensor:
        y = (self.inner(x) @ self.weight) * (self.settings.sign * (2 if self.doubles else 1))
        if self.mode == "tanh":
            y = y.tanh()
        for _ in range(self.times):
            y = y + self.shift
        if self.inner.squares:
            y = y * y
        if self.bias is not None:
            y = y + self.bias
        if self.scale > 0:
            y = y * self.scale
        return -y if self.steps["extra"][0] else y


CHANGES = {
    "self.mode": lambda m: setattr(m, "mode", "tanh"),
    "self.times": lambda m: setattr(m, "times", 3),
    "self.shift": lambda m: setattr(m, "shift", 2),
    "self.config.double": lambda m: setattr(m.config, "double", True),
    "self.settings.sign": lambda m: setattr(m.settings, "sign", -1),
    "self.inner.squares": lambda m: setattr(m.inner, "squares", True),
    "self.steps": lambda m: m.steps["extra"].__setitem__(0, True),
    "self.bias": lambda m: setattr(m, "bias", nn.Parameter(torch.ones(8))),
    "self.scale": lambda m: setattr(m, "scale", -0.5),
}


@functools.cache
def _rewritten() -> tuple[nn.Module, nn.Module]:
    model = Configured()
    return model, fxapprox.rewrite(model, (X,), rules=[fxapprox.Rule(kind="matmul", policy="topk", keep=0.5)])


def configured() -> tuple[Any, Any]:
    """A model, and the same rewritten, both new."""
    return copy.deepcopy(_rewritten())


@pytest.mark.parametrize("name", CHANGES)
def test_an_attribute_that_changes_after_the_rewrite_is_followed(name):
    model, fast = configured()
    copies = [fast, pickle.loads(pickle.dumps(fast))]
    CHANGES[name](model)
    for copied in copies:
        CHANGES[name](copied)
        for mode in (True, False):
            copied.train(mode)
            with pytest.warns(UserWarning, match=f"rewritten with another {name} than it has now"):
                assert torch.equal(copied(X), model(X))


def test_attributes_that_the_forward_does_not_read_change_nothing():
    model, fast = configured()
    fast.counter, fast.config.unread, fast.settings.unread, fast.training_loss = 3, 1, 1, 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = fast(X)
        assert not torch.equal(before, model(X))
        fast.scale = 1.0  # a number that the text itself reads
        torch.testing.assert_close(fast(X), 2 * before)


def test_the_change_is_said_once_and_taken_back():
    _, fast = configured()
    before = fast(X)
    fast.mode = "tanh"
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        fast(X), fast(X)
        fast.mode = "another"
        fast(X)
    assert len(caught) == 1
    fast.mode = "plain"
    torch.testing.assert_close(fast(X), before)
