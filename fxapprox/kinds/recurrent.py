"""Recurrent layers and cells: listed with their FLOPs, never sampled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ._base import Call, OneProduct, Refusal, kind

CELLS = (torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)
LAYERS = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


@kind("recurrent", summary="nn.LSTM, nn.GRU, nn.RNN and their cells; never sampled")
class Recurrent(OneProduct):
    """Every step multiplies the state with the same matrices, inside one fused kernel: an error made in
    one step is fed back into all later ones, and the kernel offers no place to shorten a product."""

    modules = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    functions = (*LAYERS, *CELLS)

    def operation(self, call: Call) -> Refusal:
        given = call.args[0] if call.args else call.kwargs["input"]
        rows = given.data if isinstance(given, PackedSequence) else given
        matrices = [weight for weight in _weights(call) if weight.dim() == 2]
        steps = rows.numel() // max(rows.shape[-1], 1)
        # each matrix, of whichever layer and direction, meets each step of each sequence once
        flops = 2 * steps * sum(weight.numel() for weight in matrices)
        name = type(call.module).__name__ if call.module is not None else str(call.function.__name__)  # type: ignore[union-attr]
        reason = f"{name} feeds its result back: {len(matrices)} matrices, {steps} steps, one fused kernel"
        return Refusal(reason, flops, tuple(rows.shape), tuple(matrices[0].shape))

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        sequence = torch.randn(5, 3, 4, dtype=dtype, requires_grad=True)
        layers = nn.LSTM(4, 6, proj_size=2), nn.GRU(4, 6, num_layers=2), nn.RNN(4, 6, bidirectional=True)
        for layer in layers:
            yield Call((sequence,), module=layer.to(dtype))
        packed = nn.utils.rnn.pack_padded_sequence(sequence, torch.tensor([5, 3, 2]))
        yield Call((packed,), module=nn.LSTM(4, 6).to(dtype))
        for cell in (nn.LSTMCell(4, 6), nn.GRUCell(4, 6), nn.RNNCell(4, 6)):
            yield Call((sequence[0],), module=cell.to(dtype))


def _weights(call: Call) -> Iterable[Tensor]:
    if call.module is not None:
        return list(call.module.parameters())
    if any(call.function is cell for cell in CELLS):
        return list(call.args[2:4])
    # (input, hx, params, …) or, packed, (data, batch_sizes, hx, params, …); hx of a GRU is a tensor
    lists: list[Any] = [item for item in call.args if isinstance(item, (list, tuple))]
    return list(lists[-1])
