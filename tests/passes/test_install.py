"""A captured forward on a module: it runs, and the module stays what it was."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import traceback
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from fxapprox.capture._types import Forward, FunctionCall
from fxapprox.errors import FxApproxError
from fxapprox.passes.install import Captured, captured_class, install

IMPORTS = {"torch": ("torch", ""), "_call_1_linear": ("torch.nn.functional", "linear")}
CALL = FunctionCall(("linear_1",), "torch.nn.functional.linear", "_call_1_linear", "linear_1")


class Own(nn.Module):
    """A user's layer."""

    registered: ClassVar[list[str]] = []

    def __init_subclass__(cls) -> None:
        Own.registered.append(cls.__name__)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:
        """Scaled product."""
        return nn.functional.linear(x, self.weight) * scale

    def reset(self) -> None:
        nn.init.zeros_(self.weight)


class Reducing(Own):
    def __reduce__(self) -> Any:
        return (_make, (type(self), 7), self.__dict__)


def _make(cls: type, seven: int) -> Any:
    assert seven == 7
    return cls.__new__(cls)


class Twice(nn.Module):
    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return 2 * nn.functional.linear(x, weight)


SOURCE = """
def forward(self, x, *, scale=2.0):
    linear = _call_1_linear(x, self.weight)
    shifted = linear + self._constant_0
    return shifted * scale
"""
FORWARD = Forward("", SOURCE, IMPORTS, (CALL,), {"_constant_0": torch.zeros(4)})


@pytest.fixture
def pair() -> tuple[Own, Own, Tensor]:
    module = Own()
    replica = copy.deepcopy(module)
    install(replica, FORWARD)
    return module, replica, torch.randn(2, 3)


def test_it_runs_the_text_and_stays_an_instance(pair):
    module, replica, x = pair
    assert torch.equal(replica(x, scale=3.0), module(x, scale=3.0))
    assert isinstance(replica, Own)
    assert isinstance(replica, Captured)
    assert type(replica).__name__ == "SampledOwn"
    replica.reset()
    assert not replica.weight.any()
    assert type(module) is Own


def test_the_users_signature_and_docstring_are_kept(pair):
    module, replica, _ = pair
    assert inspect.signature(replica.forward) == inspect.signature(module.forward)
    assert replica.forward.__doc__ == "Scaled product."


def test_the_state_dict_is_untouched_and_constants_follow(pair):
    module, replica, x = pair
    assert replica.state_dict().keys() == module.state_dict().keys()
    replica.to(torch.float64)
    assert replica._constant_0.dtype == torch.float64
    assert replica(x.double()).dtype == torch.float64


@pytest.mark.parametrize("cls", [Own, Reducing])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_and_deepcopy(cls, protocol):
    module = cls()
    install(module, FORWARD)
    x = torch.randn(2, 3)
    for again in (pickle.loads(pickle.dumps(module, protocol)), copy.deepcopy(module)):
        assert type(again) is type(module)
        assert again.weight is not module.weight
        assert torch.equal(again(x), module(x))


def test_torch_save_and_load(pair):
    _, replica, x = pair
    stream = io.BytesIO()
    torch.save(nn.Sequential(replica), stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x), replica(x))


def test_a_sampled_call_goes_to_the_child():
    module = Own()
    module.linear_1 = Twice()
    install(module, FORWARD, [CALL])
    x = torch.randn(2, 3)
    assert torch.equal(module(x, scale=1.0), 2 * nn.functional.linear(x, module.weight))


def test_classes_are_shared_and_do_not_show_in_the_users_registry():
    one, other = Own(), Own()
    before = list(Own.registered)
    install(one, FORWARD)
    install(other, FORWARD)
    assert type(one) is type(other)
    assert Own.registered == before


def test_a_forward_set_on_the_instance_gives_way():
    module = Own()
    module.forward = lambda x, scale=1.0: x
    install(module, FORWARD)
    assert module(torch.randn(2, 3)).shape == (2, 4)


def test_eval_text_of_its_own():
    source = """
    def forward(self, x, *, scale=2.0):
        if not self.training:
            return self._forward_eval(x, scale=scale)
        return x

    def _forward_eval(self, x, *, scale=2.0):
        return x * scale
    """
    module = Own()
    install(module, Forward("", source, {}, (), {}))
    x = torch.randn(2, 3)
    assert torch.equal(module(x), x)
    assert torch.equal(module.eval()(x), 2 * x)


def test_tracebacks_show_the_generated_line(pair):
    _, replica, _ = pair
    with pytest.raises(RuntimeError) as caught:
        replica(torch.randn(2, 5))
    text = "".join(traceback.format_exception(caught.value))
    assert "linear = _call_1_linear(x, self.weight)" in text
    assert "<fxapprox Own.forward" in text
    assert "shifted" in inspect.getsource(type(replica).forward)


def test_faults_of_the_text_are_named():
    with pytest.raises(FxApproxError, match="never calls _call_1_linear"):
        install(Own(), Forward("", "def forward(self, x):\n    return x", {}, (), {}), [CALL])
    with pytest.raises(FxApproxError, match="does not compile"):
        captured_class(Own, "def forward(self, x):\n    return (", ())
    with pytest.raises(FxApproxError, match="cannot import linnear"):
        captured_class(Own, SOURCE, (("f", ("torch.nn.functional", "linnear")),))


def test_torch_compile_takes_the_generated_class(pair):
    module, replica, x = pair
    compiled = torch.compile(replica, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), module(x))
