"""Random programs of all that forwards are made of: the capture runs like the model, at other sizes too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replay import check_replay
from torch import Tensor, nn

from fxapprox.capture._types import Inputs
from fxapprox.capture.trace import trace

D = 6

# Each step takes the module, the stream of values so far and returns a new [batch, length, D].
Step = Callable[["Program", list[Tensor]], Tensor]


def heads(self: Program, xs: list[Tensor]) -> Tensor:
    b, n, d = xs[-1].shape
    q = xs[-1].view(b, n, 2, d // 2).transpose(1, 2)
    k = xs[0].view(b, n, 2, d // 2).transpose(1, 2)
    a = (q @ k.transpose(-2, -1) / (d // 2) ** 0.5).softmax(-1)
    return (F.dropout(a, self.p, self.training) @ k).transpose(1, 2).reshape(b, n, d)


def positions(self: Program, xs: list[Tensor]) -> Tensor:
    n = xs[-1].shape[1]
    ramp = torch.arange(n, device=xs[-1].device, dtype=xs[-1].dtype)
    return xs[-1] + ramp[None, :, None] / n + torch.full((xs[-1].size(0), 1, 1), 0.5)


def causal(self: Program, xs: list[Tensor]) -> Tensor:
    n = xs[-1].size(1)
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    scores = torch.einsum("bnd,bmd->bnm", xs[-1], xs[-1]).masked_fill(~mask, float("-inf"))
    return torch.bmm(scores.softmax(dim=-1), xs[0])


def in_place(self: Program, xs: list[Tensor]) -> Tensor:
    y = xs[-1] * 1.5
    y[:, 0] = 0
    y[..., :2].add_(xs[0][..., :2])
    y += 1
    return y


def gated(self: Program, xs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(xs[-1]) > 0.5
    a, b = self.wide(xs[-1]).chunk(2, dim=-1)
    return torch.where(gate, a, b * torch.tanh(a))


def noisy(self: Program, xs: list[Tensor]) -> Tensor:
    return xs[-1] + torch.randn_like(xs[-1]) * 0.1 + torch.rand(D) if self.training else xs[-1]


def statistics(self: Program, xs: list[Tensor]) -> Tensor:
    if self.training:
        self.average.mul_(0.9).add_(xs[-1].detach().mean((0, 1)), alpha=0.1)
    return F.layer_norm(xs[-1], (D,), self.gain) + self.average


def weights(self: Program, xs: list[Tensor]) -> Tensor:
    w = self.weight - self.weight.mean(1, keepdim=True)
    return F.linear(xs[-1], w, self.gain) + torch.addmm(self.gain, xs[0].reshape(-1, D), self.weight).view_as(
        xs[0]
    )


def convolved(self: Program, xs: list[Tensor]) -> Tensor:
    return F.pad(self.conv(xs[-1].transpose(1, 2)), (1, 1)).transpose(1, 2)


def rolled(self: Program, xs: list[Tensor]) -> Tensor:
    first, rest = xs[-1][:, :1], xs[-1][:, 1:]
    return torch.cat([rest, first], dim=1).flip(1)


def summed(self: Program, xs: list[Tensor]) -> Tensor:
    return sum(xs, torch.zeros_like(xs[-1])) / len(xs)


STEPS: list[Step] = [
    heads, positions, causal, in_place, gated, noisy, statistics, weights, convolved, rolled, summed,
    lambda self, xs: self.narrow(xs[-1]).relu_(),
    lambda self, xs: 1 - (2 * xs[-1] ** 2).sqrt() / 3,
    lambda self, xs: self.drop(xs[-1]) - xs[0],
]  # fmt: skip


class Program(nn.Module):
    """Runs its steps; children are programs that get the state in one of several nests."""

    def __init__(self, steps: list[int], children: list[Program], shape: int) -> None:
        super().__init__()
        self.steps, self.shape, self.p = steps, shape, 0.25
        self.narrow, self.wide, self.conv = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.Conv1d(D, D, 3)
        self.drop, self.inner = nn.Dropout(0.2), nn.ModuleList(children)
        self.weight, self.gain = nn.Parameter(torch.randn(D, D) / 3), nn.Parameter(torch.ones(D))
        self.register_buffer("average", torch.zeros(D))

    def forward(self, given: Any, *more: Tensor, scale: float = 1.0, **named: Any) -> Any:
        x = given["x"] if isinstance(given, dict) else given[0] if isinstance(given, tuple) else given
        xs = [x * scale, *more, *named.values()]
        for step in self.steps:
            xs.append(STEPS[step](self, xs))
        for number, child in enumerate(self.inner):
            nest = [xs[-1], (xs[-1], number), {"x": xs[-1], "n": None}][child.shape % 3]
            out = child(nest, xs[0], scale=1.0 + number, extra=xs[-1])
            xs.append(out["y"] if isinstance(out, dict) else out[1])
        return {"y": xs[-1], "all": xs[:2]} if self.shape % 2 else (None, xs[-1], 3)


def programs(depth: int) -> st.SearchStrategy[Program]:
    inner = st.lists(programs(depth - 1), max_size=2) if depth else st.just([])
    steps = st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=4)
    return st.builds(Program, steps, inner, st.integers(0, 5))


def inputs(batch: int, length: int) -> Inputs:
    torch.manual_seed(batch)
    return Inputs((torch.randn(batch, length, D),), {"other": torch.randn(batch, length, D)})


@given(programs(2), st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_programs_are_captured_and_replay(program: Program, shared: bool) -> None:
    if shared and len(program.inner) == 2:
        program.inner[1] = program.inner[0]  # one module, two calls
    traced = trace(program, inputs(2, 5))
    assert not [note for note in traced.notes if note.topic == "opaque"]
    assert set(traced.forwards) >= {""}
    check_replay(program, traced, inputs(2, 5), inputs(3, 7), inputs(4, 9), tolerance=1e-4)
