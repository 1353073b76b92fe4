"""FLOPs outside sites: counted from what runs, whichever kernel runs it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxapprox.capture._types import Inputs
from fxapprox.capture.outside import outside_flops


class Branching(nn.Module):
    """Reads data, so it runs on no fake tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t() if x.sum().item() > -1e9 else x


TOKENS = 2 * 5
CASES = {
    "grouped convolution": (nn.Conv2d(4, 8, 3, groups=2, padding=1), (2, 4, 6, 6), 2 * 2 * 36 * 8 * 2 * 9),
    "attention": (
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        (2, 5, 16),
        2 * TOKENS * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 2 * (2 * 2 * 5 * 5 * (8 + 8)),
    ),
    "data-dependent": (Branching(), (7, 4), 2 * 7 * 3 * 4),
    "recurrent, on neither side": (nn.LSTM(8, 8), (2, 5, 8), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_forward_is_counted_and_taken_three_times(case):
    model, shape, flops = CASES[case]
    state = torch.get_rng_state()
    assert outside_flops(model, Inputs((torch.randn(shape, generator=torch.Generator()),)), ()) == 3 * flops
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
