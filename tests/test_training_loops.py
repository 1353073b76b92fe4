"""What training loops do around a step, each over real training steps of a rewritten model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import fxapprox

POLICIES = ("topk", "pps")


class Net(nn.Module):
    """A convolution, a linear layer on tokens and one on features: every kind of rows."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mix = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        if self.recompute:
            tokens = tokens + checkpoint(self.mix, tokens, use_reentrant=False)
        else:
            tokens = tokens + self.mix(tokens)
        return self.head(tokens.mean(1))


def made(policy: str = "pps", scope: str = "forward", recompute: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = Net(recompute)
    return fxapprox.rewrite(model, (torch.randn(4, 3, 6, 6),), policy=policy, keep=0.5, scope=scope)


def batches(steps: int, size: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(size, 3, 6, 6, generator=generator)
        yield x, (x.mean((1, 2, 3)) > 0).long()


def train(fast: nn.Module, steps: int = 6, call: Any = None) -> list[float]:
    """Losses of `steps` plain training steps, the same batches and draws at every call."""
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(7)
    losses = []
    for x, y in batches(steps):
        loss = F.cross_entropy((fast if call is None else call)(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("policy", POLICIES)
def test_gradient_accumulation_adds_up_the_micro_batches(policy: str) -> None:
    fast = made(policy)
    apart = []
    torch.manual_seed(3)
    for x, y in batches(3):
        fast.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        apart.append([parameter.grad.clone() for parameter in fast.parameters()])
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
    fast.zero_grad()
    torch.manual_seed(3)
    for x, y in batches(3):
        F.cross_entropy(fast(x), y).backward()
    for parameter, *parts in zip(fast.parameters(), *apart, strict=True):
        torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-4, atol=1e-6)
    optimizer.step()


@pytest.mark.parametrize("policy", POLICIES)
def test_clipping_bounds_the_norm_of_every_step(policy: str) -> None:
    fast = made(policy)
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
    clipped = 0
    for x, y in batches(5):
        optimizer.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        total = clip_grad_norm_(fast.parameters(), 0.05)
        clipped += bool(total > 0.05)
        after = torch.linalg.vector_norm(
            torch.stack([parameter.grad.norm() for parameter in fast.parameters()])
        )
        assert after <= 0.05 * (1 + 1e-4)
        optimizer.step()
    assert clipped


def test_an_average_of_weights_is_that_of_the_trained_weights() -> None:
    fast = made()
    average = AveragedModel(fast, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
    by_hand = None
    for x, y in batches(5):
        optimizer.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        optimizer.step()
        average.update_parameters(fast)
        now = {name: value.detach().clone() for name, value in fast.named_parameters()}
        by_hand = now if by_hand is None else {n: 0.5 * by_hand[n] + 0.5 * now[n] for n in now}
    exact = Net()
    exact.load_state_dict(average.module.state_dict(), strict=True)
    assert by_hand is not None
    for name, value in exact.named_parameters():
        torch.testing.assert_close(value.detach(), by_hand[name])
    ((x, _),) = batches(1)
    torch.testing.assert_close(average.eval()(x), exact.eval()(x))


def test_schedulers_of_the_rate_are_followed_through_attach() -> None:
    fast = made()
    optimizer = torch.optim.AdamW(
        [
            {"params": fast.conv.parameters(), "lr": 0.01},
            {"params": [*fast.mix.parameters(), *fast.head.parameters()]},
        ],
        lr=0.02,
    )
    attachment = fxapprox.attach(fast, optimizer)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.01, 0.02], total_steps=6)
    rates = []
    for x, y in batches(6):
        optimizer.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        paces = (attachment.pace(one.weight) for one in (fast.conv, fast.head))
        rates.append(tuple(pace.rate for pace in paces))
        optimizer.step()
        scheduler.step()
    assert len({rate for rate, _ in rates}) == 6
    assert all(second == pytest.approx(2 * first) for first, second in rates)
    attachment.remove()


@pytest.mark.parametrize("policy", POLICIES)
def test_compiled_steps_are_the_eager_ones(policy: str) -> None:
    fast = made(policy)
    again = copy.deepcopy(fast)
    compiled = torch.compile(again, backend="aot_eager")
    eager, ours = train(fast), train(again, call=compiled)
    assert ours == pytest.approx(eager, rel=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scope", ["forward", "backward"])
def test_checkpointed_steps_are_the_plain_ones(policy: str, scope: str) -> None:
    plain, recomputed = made(policy, scope), made(policy, scope, recompute=True)
    assert train(recomputed) == pytest.approx(train(plain), rel=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_autocast_steps_learn_in_bfloat16(policy: str) -> None:
    fast = made(policy)
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.2, momentum=0.9)
    ((x, y),) = batches(1, size=16)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            logits = fast(x)
            loss = F.cross_entropy(logits, y)
        assert logits.dtype == torch.bfloat16
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in fast.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scope", ["forward", "backward", "grad-weight"])
def test_steps_learn(policy: str, scope: str) -> None:
    fast = made(policy, scope)
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.2, momentum=0.9)
    ((x, y),) = batches(1, size=16)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(fast(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
