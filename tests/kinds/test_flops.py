"""FLOPs against torch's counter where it is right, and by hand where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from .normal_form import flops_of, parts_of, refusal_of


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "linear": (nn.Linear(6, 4), (leaf(5, 6),)),
    "linear 3-D": (nn.Linear(6, 4, bias=False), (leaf(2, 5, 6),)),
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2), (leaf(2, 6, 9),)),
    "conv2d": (nn.Conv2d(6, 4, (3, 2), padding=1, dilation=2), (leaf(2, 6, 9, 7),)),
    "conv3d": (nn.Conv3d(3, 4, 2, padding="same"), (leaf(2, 3, 4, 5, 6),)),
    "conv_transpose2d": (nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1), (leaf(2, 6, 5, 7),)),
    "matmul": (torch.matmul, (leaf(5, 6), leaf(6, 4))),
    "matmul batched": (torch.matmul, (leaf(2, 3, 5, 6), leaf(3, 6, 4))),
    "bmm": (torch.bmm, (leaf(3, 5, 6), leaf(3, 6, 4))),
    "addmm": (torch.addmm, (leaf(4), leaf(5, 6), leaf(6, 4))),
    "baddbmm": (torch.baddbmm, (leaf(3, 5, 4), leaf(3, 5, 6), leaf(3, 6, 4))),
    "einsum": (torch.einsum, ("bhqd,bkhd->bhqk", leaf(2, 3, 5, 4), leaf(2, 6, 3, 4))),
    "tensordot": (torch.tensordot, (leaf(3, 5, 6), leaf(5, 6, 4))),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", list(CALLS))
def test_three_products_are_what_the_counter_counts(name: str) -> None:
    call, args = CALLS[name]
    counter = FlopCounterMode(display=False)
    with counter:
        call(*args).sum().backward()
    _, parts = parts_of(call, *args)
    assert 3 * flops_of(parts[""]) == counter.get_total_flops()


def test_recurrent_layers_by_hand() -> None:
    x = torch.randn(5, 3, 6)  # 15 steps
    assert refusal_of(nn.LSTM(6, 4), x).flops == 2 * 15 * 4 * 4 * (6 + 4)
    two = 2 * 15 * (3 * 4 * (6 + 4) + 3 * 4 * (4 + 4))
    assert refusal_of(nn.GRU(6, 4, num_layers=2), x).flops == two
    assert refusal_of(nn.RNN(6, 4, bidirectional=True), x).flops == 2 * 15 * 2 * 4 * (6 + 4)
    assert refusal_of(nn.LSTM(6, 4, proj_size=2), x).flops == 2 * 15 * (4 * 4 * (6 + 2) + 2 * 4)
    assert refusal_of(nn.LSTM(6, 4, batch_first=True), x).flops == 2 * 15 * 4 * 4 * (6 + 4)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 1]))
    assert refusal_of(nn.RNN(6, 4), packed).flops == 2 * 10 * 4 * (6 + 4)
    assert refusal_of(nn.GRUCell(6, 4), x[0]).flops == 2 * 3 * 12 * (6 + 4)
    assert "5" in refusal_of(nn.LSTM(6, 4), x[:, 0]).reason


def test_recurrent_functions_by_hand() -> None:
    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.lstm, torch.gru, torch.rnn_tanh, torch.lstm_cell):
                seen.append(refusal_of(func, *args, **(kwargs or {})).flops)
            return func(*args, **(kwargs or {}))

    x, layers = torch.randn(5, 3, 6), (nn.LSTM(6, 4), nn.GRU(6, 4), nn.RNN(6, 4))
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 1]))
    for given in (x, packed):
        for layer in layers:
            seen: list[int] = []
            with Spy():
                layer(given)
            assert seen == [refusal_of(layer, given).flops]
    seen = []
    with Spy():
        nn.LSTMCell(6, 4)(x[0])
    assert seen == [2 * 3 * 16 * (6 + 4)]


def test_bilinear_and_grouped_products_by_hand() -> None:
    x, y = torch.randn(5, 3), torch.randn(5, 4)
    refusal = refusal_of(nn.Bilinear(3, 4, 2), x, y)
    assert refusal.flops == 2 * 5 * 3 * 4 * 2
    assert refusal.reason == "it multiplies three operands, x₁ [3], weight [2, 3, 4] and x₂ [4]"
    if hasattr(F, "grouped_mm"):
        ends = torch.tensor([3, 8], dtype=torch.int32)
        refusal = refusal_of(torch._grouped_mm, torch.randn(8, 16), torch.randn(2, 16, 24), offs=ends)
        assert refusal.flops == 2 * 8 * 16 * 24
        assert refusal.reason == "2 matrices share 8 rows by offsets that are known only while the step runs"
