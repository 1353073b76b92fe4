"""Every way to write an operation reaches the kind that knows it, as a TorchFunctionMode sees it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode

from fxapprox.kinds import recognise


class Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Callable[..., Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


A, B = torch.randn(5, 6), torch.randn(6, 4)
X, Y = torch.randn(3, 5, 6), torch.randn(3, 6, 4)
V, W = torch.randn(6), torch.randn(4, 6)
IMAGE, FILTER = torch.randn(2, 6, 7, 7), torch.randn(6, 6, 3, 3)
LINE = IMAGE[:, :, 0]
OPERATORS = {
    "x @ y": (lambda: A @ B, "matmul"),
    "operator.matmul": (lambda: operator.matmul(A, B), "matmul"),
    "operator.imatmul": (lambda: operator.imatmul(A.clone(), torch.eye(6)), "matmul"),
    "torch.matmul": (lambda: torch.matmul(A, B), "matmul"),
    "Tensor.matmul": (lambda: X.matmul(Y), "matmul"),
    "Tensor.__matmul__": (lambda: Tensor.__matmul__(A, B), "matmul"),
    "Tensor.__rmatmul__": (lambda: B.__rmatmul__(A), "matmul"),
    "torch.linalg.matmul": (lambda: torch.linalg.matmul(A, B), "matmul"),
    "torch.mm": (lambda: torch.mm(A, B), "matmul"),
    "Tensor.mm": (lambda: A.mm(B), "matmul"),
    "torch.bmm": (lambda: torch.bmm(X, Y), "matmul"),
    "Tensor.bmm": (lambda: X.bmm(Y), "matmul"),
    "torch.mv": (lambda: torch.mv(A, V), "matmul"),
    "Tensor.mv": (lambda: A.mv(V), "matmul"),
    "torch.dot": (lambda: torch.dot(V, V), "matmul"),
    "Tensor.dot": (lambda: V.dot(V), "matmul"),
    "torch.addmm": (lambda: torch.addmm(torch.zeros(4), A, B), "addmm"),
    "Tensor.addmm": (lambda: torch.zeros(4).addmm(A, B), "addmm"),
    "torch.baddbmm": (lambda: torch.baddbmm(torch.zeros(3, 5, 4), X, Y), "addmm"),
    "Tensor.baddbmm": (lambda: torch.zeros(3, 5, 4).baddbmm(X, Y), "addmm"),
    "torch.addbmm": (lambda: torch.addbmm(torch.zeros(5, 4), X, Y), "addmm"),
    "Tensor.addbmm": (lambda: torch.zeros(5, 4).addbmm(X, Y), "addmm"),
    "torch.addmv": (lambda: torch.addmv(torch.zeros(5), A, V), "addmm"),
    "Tensor.addmv": (lambda: torch.zeros(5).addmv(A, V), "addmm"),
    "torch.einsum": (lambda: torch.einsum("ij,jk->ik", A, B), "einsum"),
    "torch.functional.einsum": (lambda: torch.functional.einsum("ij,jk->ik", [A, B]), "einsum"),
    "torch.tensordot": (lambda: torch.tensordot(A, B, 1), "tensordot"),
    "torch.inner": (lambda: torch.inner(A, W), "tensordot"),
    "Tensor.inner": (lambda: A.inner(W), "tensordot"),
    "F.linear": (lambda: F.linear(A, W), "linear"),
    "torch._C._nn.linear": (lambda: torch._C._nn.linear(A, weight=W), "linear"),
    "F.conv2d": (lambda: F.conv2d(IMAGE, FILTER), "conv2d"),
    "torch.conv2d": (lambda: torch.conv2d(IMAGE, weight=FILTER), "conv2d"),
    "torch.conv1d": (lambda: torch.conv1d(LINE, FILTER[:, :, 0]), "conv1d"),
    "F.conv3d": (lambda: F.conv3d(IMAGE[None], torch.randn(4, 2, 3, 3, 3)), "conv3d"),
    "F.conv_transpose2d": (lambda: F.conv_transpose2d(IMAGE, FILTER), "conv_transpose2d"),
    "torch.conv_transpose1d": (lambda: torch.conv_transpose1d(LINE, FILTER[:, :, 0]), "conv_transpose1d"),
    "F.sdpa": (lambda: F.scaled_dot_product_attention(X, X, X), "attention"),
    "F.bilinear": (lambda: F.bilinear(A, A, torch.randn(2, 6, 6)), "bilinear"),
}  # fmt: skip


@pytest.mark.parametrize("spelling", list(OPERATORS))
def test_spelling(spelling: str) -> None:
    write, wanted = OPERATORS[spelling]
    with Seen() as seen:
        write()
    found = [kind.name for f in seen.functions if (kind := recognise(function=f)) is not None]
    assert found == [wanted]


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_layers_call_functions_that_are_known(layer: Any) -> None:
    built, x = layer(6, 5), A
    with Seen() as seen:
        built(x)
    assert [kind.name for f in seen.functions if (kind := recognise(function=f))] == ["recurrent"]
    kind = recognise(module=built)
    assert kind is not None
    assert kind.name == "recurrent"


def test_grouped_mm() -> None:
    if not hasattr(F, "grouped_mm"):
        pytest.skip("this torch has no grouped_mm")
    with Seen() as seen:
        F.grouped_mm(torch.randn(8, 16), torch.randn(2, 16, 8), offs=torch.tensor([3, 8], dtype=torch.int32))
    assert [kind.name for f in seen.functions if (kind := recognise(function=f))] == ["grouped_mm"]


def test_layers_are_claimed_by_their_own_forward() -> None:
    class Renamed(nn.Linear):
        pass

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    class OwnConvolution(nn.Conv2d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(input, weight * 2, bias)

    class OwnPadding(nn.ConvTranspose2d):
        def _output_padding(self, *args: Any, **kwargs: Any) -> Any:
            return [1, 1]

    def claimed(layer: nn.Module) -> str | None:
        kind = recognise(module=layer)
        return kind.name if kind else None

    assert claimed(Renamed(3, 4)) == claimed(NonDynamicallyQuantizableLinear(3, 4)) == "linear"
    assert claimed(parametrizations.weight_norm(nn.Linear(3, 4))) == "linear"
    assert claimed(parametrizations.weight_norm(nn.Conv1d(3, 4, 1))) == "conv1d"
    assert claimed(nn.LazyConv2d(3, 1)) == "conv2d"
    for layer in (Own(3, 4), OwnConvolution(3, 4, 1), OwnPadding(3, 4, 1), nn.ReLU(), nn.Identity()):
        assert claimed(layer) is None
