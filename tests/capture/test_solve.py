"""Constants that differ between runs become expressions that say where they come from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from replay import check_replay
from torch import nn

from fxapprox.capture._types import Inputs
from fxapprox.capture.trace import trace


class Forward(nn.Module):
    """A module whose forward is the function `body(self, x)`."""

    def __init__(self, body) -> None:
        super().__init__()
        self.body, self.p, self.layer = body, 0.25, nn.Linear(4, 4)

    def forward(self, x):
        return self.body(self, x)


CASES = {
    "{0}.size(0), 2 * ": lambda self, x: x.reshape(x.shape[0], 2 * x.shape[1], 2),
    "torch.arange(x.size(1))": lambda self, x: x + torch.arange(x.shape[1])[:, None],
    "x.size(1) - 1": lambda self, x: x[:, x.shape[1] - 1 :],
    "x.size(1) // 3": lambda self, x: x[:, x.shape[1] // 3 :],
    "x.size(0) * x.size(1)": lambda self, x: torch.ones(x.shape[0] * x.shape[1]).sum() + x,
    "-x.size(1) % 5": lambda self, x: F.pad(x, (0, 0, 0, -x.shape[1] % 5)),
    "3 * x.size(0) + 2": lambda self, x: x + torch.zeros(3 * x.shape[0] + 2).sum(),
    "1 / x.size(1)": lambda self, x: x * (1 / x.shape[1]),
    "x.size(1) ** -0.5": lambda self, x: x * x.shape[1] ** -0.5,
    "training=self.training": lambda self, x: F.dropout(x, self.p, self.training),
    "p=self.p": lambda self, x: F.dropout(x, p=self.p, training=self.training),
    "2.0 if self.training else 3.0": lambda self, x: x * (2.0 if self.training else 3.0),
    "not self.training": lambda self, x: F.dropout(x, 0.5, not self.training),
    "dtype=x.dtype": lambda self, x: x + torch.ones(4, dtype=x.dtype),
    "torch.finfo(x.dtype).min": lambda self, x: x.masked_fill(x > 1, torch.finfo(x.dtype).min),
    "device=x.device": lambda self, x: x + torch.ones(4, device=x.device),
    "dtype=torch.float32": lambda self, x: x + torch.ones(4, dtype=torch.float32),
    "[0.0, 2.0]": lambda self, x: torch.as_tensor([0.0, 2.0]).sum() + x,
}


@pytest.mark.parametrize("text", CASES)
def test_the_text_says_where_a_constant_comes_from(text):
    model = Forward(CASES[text])
    found = trace(model, Inputs((torch.randn(2, 6, 4),)))
    assert not [note for note in found.notes if note.topic != "never run"]
    source = found.forwards[""].source
    assert text.replace("{0}", "x") in source
    assert "_forward_eval" not in source
    check_replay(model, found, Inputs((torch.randn(3, 9, 4),)), Inputs((torch.randn(5, 12, 4),)))


def test_arguments_explain_the_constants_of_calls_that_differ():
    class Scaled(nn.Module):
        def forward(self, x, scale, shape=(1, 1)):
            return x.view(shape[0], shape[1] + 1, -1) * scale

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Scaled()

        def forward(self, x):
            return self.inner(x, 2.0, (2, 1)).sum(), self.inner(x, 3.0, shape=(4, 2)).sum()

    model, given = Calls(), Inputs((torch.randn(24, 2),))
    found = trace(model, given)
    source = found.forwards["inner"].source
    assert "* scale" in source
    assert "shape[0], shape[1] + 1, -1" in source
    check_replay(model, found, given)


def test_forwards_that_differ_by_mode_become_two():
    def body(self, x):
        y = self.layer(x).view(x.shape[0] * 2, -1)
        return (y.reshape(x.shape) + torch.rand(x.shape[1], 1)) if self.training else y.reshape(len(x), -1)

    model = Forward(body)
    found = trace(model, Inputs((torch.randn(2, 6, 4),)))
    source = found.forwards[""].source
    assert "return self._forward_eval(x)" in source
    assert source.count("def ") == 2
    check_replay(model, found, Inputs((torch.randn(3, 9, 4),)))
