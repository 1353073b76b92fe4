"""Every registered kind fulfils the contract, and the contract notices kinds that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fxapprox.kinds import Call, Kind, Operation, Refusal, kinds
from fxapprox.kinds._bilinear import AxisBilinear
from fxapprox.kinds._contract import MatrixProduct
from fxapprox.kinds.matmul import Matmul
from fxapprox.testing import check_kind
from fxapprox.testing.kinds import exact_product

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:LSTM with projections")


@pytest.mark.parametrize("name", list(kinds.all()))
def test_contract(name: str) -> None:
    check_kind(kinds.get(name))


@pytest.mark.parametrize("name", list(kinds.all()))
def test_every_module_and_function_stands_in_an_example(name: str) -> None:
    cls = kinds.get(name)
    calls = list(cls.examples(torch.float32))
    for base in cls.modules:
        assert any(isinstance(call.module, base) for call in calls), f"no example calls {base.__name__}"
    used = {id(call.function) for call in calls}
    missing = [f for f in cls.functions if id(f) not in used]
    if name not in ("recurrent", "grouped_mm"):  # their functions are what the modules and wrappers call
        assert not missing, f"no example calls {missing}"


@pytest.mark.parametrize(
    "name", ["linear", "conv2d", "conv_transpose2d", "matmul", "addmm", "einsum", "attention"]
)
def test_normal_forms_survive_compilation(name: str) -> None:
    """Dynamo can follow a kind from the call to its products, without a break in the graph."""
    cls = kinds.get(name)
    for call in list(cls.examples(torch.float32))[:3]:
        torch._dynamo.reset()

        def run(args: Any, kwargs: Any, call: Call = call) -> Any:
            return cls().run(Call(args, kwargs, call.module, call.function), _exact)

        compiled = torch.compile(run, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(call.args, dict(call.kwargs)), cls().exact(call))


def _exact(part: str, operation: Operation | Refusal) -> Any:
    return None if isinstance(operation, Refusal) else exact_product(operation)


class OneExample(Matmul):
    name = "broken"

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        operands = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((3, 5, 6), (3, 6, 4)))
        yield Call(tuple(operands), function=torch.matmul)


def _scaled(
    method: str, cls: type = MatrixProduct, factor: float = 1.01
) -> tuple[type, str, Callable[..., Any]]:
    original = getattr(cls, method)

    def broken(self: Any, *args: Any) -> Any:
        return original(self, *args) * factor

    return cls, method, broken


def _forgets_the_index(self: Any, product: Any, operand: Any, tensor: Any, index: Any) -> Any:
    return original_take(self, product, operand, tensor, index.flip(1) if operand else index)


def _counts_once(self: Any, product: Any, operand: Any, kept: Any, selected: Any, *place: Any) -> Any:
    full = original_spread(self, product, operand, kept, selected, *place)
    return full if selected[1] else full / 2


original_take, original_spread = AxisBilinear.take, AxisBilinear.spread


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_scaled("forward"), "result of the call"),
        (_scaled("grad_left"), "grad_left"),
        (_scaled("grad_right"), "grad_right"),
        ((MatrixProduct, "flops", lambda *_: 12), "FLOPs"),
        ((MatrixProduct, "center_dims", lambda *_: (0,)), "centre"),
        ((AxisBilinear, "take", _forgets_the_index), "taken"),
        ((AxisBilinear, "spread", _counts_once), "occur twice"),
        (_scaled("energy", AxisBilinear), "sum of the energies"),
        (_scaled("scale", AxisBilinear), "put back"),
        (_scaled("center_grad", AxisBilinear), "center_grad"),
        ((MatrixProduct, "sizes", lambda *_: (1, 6, "inner")), "energy of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_contract_notices(
    broken: tuple[type, str, Callable[..., Any]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kind(OneExample)
    monkeypatch.setattr(*broken)
    with pytest.raises(AssertionError, match=f"broken, example 0 .*{message}"):
        check_kind(OneExample)


def test_the_contract_notices_what_a_kind_says() -> None:
    class Silent(OneExample):
        @classmethod
        def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
            return iter(())

    class Curt(OneExample):
        def operation(self, call: Call) -> Refusal:
            return Refusal("no", 0)

    class Detached(OneExample):
        def run(self, call: Call, product: Any) -> Any:
            return super().run(call, product).detach() + 0 * call.args[0].sum()

    for kind, message in ((Silent, "has no examples"), (Curt, "not a sentence"), (Detached, "gradient")):
        with pytest.raises(AssertionError, match=message):
            check_kind(kind)


def test_a_kind_registers_once() -> None:
    assert all(issubclass(cls, Kind) and cls.name == name for name, cls in kinds.all().items())
    claimed = [id(f) for cls in kinds.all().values() for f in cls.functions]
    assert len(set(claimed)) == len(claimed), "two kinds claim one function"
