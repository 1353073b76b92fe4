"""Mem-AOP-GD: what a sampled weight gradient leaves out waits, and nothing is lost."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fxapprox
from fxapprox.kinds.linear import Rows
from fxapprox.passes.layers import sampled
from fxapprox.sampling.memory import Pace, RowMemory


def layer(module: nn.Module | None = None, **keys: Any) -> nn.Module:
    """A layer in float64 whose weight gradient is sampled with a memory."""
    torch.manual_seed(1)
    asked = {"policy": "topk", "keep": 0.5, "scope": "grad-weight", "memory": True} | keys
    return sampled(nn.Linear(5, 3) if module is None else module, site="layer", **asked).double()


def memory_of(module: nn.Module) -> RowMemory:
    memory = module._fxapprox.parts[""].memory  # type: ignore[union-attr]
    assert isinstance(memory, RowMemory)
    return memory


def batches(*sizes: int, shape: Sequence[int] = (5,)) -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(size, *shape, generator=source, dtype=torch.float64) for size in sizes]


def gradient(module: nn.Module, x: Tensor) -> Tensor:
    """The weight gradient of one step of a loss that is not linear."""
    module.zero_grad()
    module(x).pow(3).sum().backward()
    return module.weight.grad.clone()  # type: ignore[union-attr, operator]


class Listing:
    """[H]'s algorithm for one layer, as the paper lists it: rows times √η, the step with η in it."""

    def __init__(self, rows: int, inputs: int, outputs: int, keep: int, decay: float = 1.0) -> None:
        self.x, self.g = (torch.zeros(rows, n, dtype=torch.float64) for n in (inputs, outputs))
        self.keep, self.decay = keep, decay

    def step(self, x: Tensor, g: Tensor, rate: float) -> Tensor:
        """Ŵ, to be subtracted from the weight: `[inputs, outputs]`."""
        x, g = self.x + rate**0.5 * x, self.g + rate**0.5 * g
        norms = [float(x[m].norm() * g[m].norm()) for m in range(len(x))]
        chosen = sorted(range(len(x)), key=norms.__getitem__, reverse=True)[: self.keep]
        update = torch.zeros(x.shape[1], g.shape[1], dtype=torch.float64)
        for m in chosen:
            update += torch.outer(x[m], g[m])
        for m in range(len(x)):
            self.x[m] = 0 if m in chosen else x[m] * self.decay**0.5
            self.g[m] = 0 if m in chosen else g[m] * self.decay**0.5
        return update


def test_one_layer_takes_the_papers_steps() -> None:
    """Energy efficiency in [H]: 16 inputs, 1 output, batch 144, K = 18, SGD at 0.01, squared error."""
    net = layer(nn.Linear(16, 1), keep=18 / 144)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    listing = Listing(144, 16, 1, 18)
    weight, bias = (p.detach().clone() for p in (net.weight, net.bias))
    for x in batches(*[144] * 6, shape=(16,)):
        target = x.sum(1, keepdim=True).sin()
        optimizer.zero_grad()
        F.mse_loss(net(x), target).backward()
        optimizer.step()
        grad = 2 * (x @ weight.T + bias - target) / target.numel()
        weight = weight - listing.step(x, grad, 0.01).T
        bias = bias - 0.01 * grad.sum(0)
        torch.testing.assert_close(net.weight.detach(), weight)
        torch.testing.assert_close(net.bias.detach(), bias)


class TwoLayers:
    """A net of two layers trained by two listings, all derivatives by hand: the independent computation."""

    def __init__(self, net: nn.Sequential, rows: int, keep: int, decay: float) -> None:
        self.w = [net[i].weight.detach().T.clone() for i in (0, 2)]  # type: ignore[union-attr, operator]
        self.b = [net[i].bias.detach().clone() for i in (0, 2)]  # type: ignore[union-attr, operator]
        self.listings = [Listing(rows, *w.shape, keep=keep, decay=decay) for w in self.w]

    def step(self, x: Tensor, target: Tensor, rates: Sequence[float]) -> None:
        hidden = torch.tanh(x @ self.w[0] + self.b[0])
        out = hidden @ self.w[1] + self.b[1]
        g_out = 2 * (out - target) / target.numel()
        g_hidden = g_out @ self.w[1].T * (1 - hidden**2)  # exact: through all rows
        for i, (rows, g) in enumerate([(x, g_hidden), (hidden, g_out)]):
            self.w[i] = self.w[i] - self.listings[i].step(rows, g, rates[i])
            self.b[i] = self.b[i] - rates[i] * g.sum(0)


@pytest.mark.parametrize("decay", [1.0, 0.8])
@pytest.mark.parametrize("changing", [False, True])
def test_two_layers_over_five_steps(decay: float, changing: bool) -> None:
    """With two groups of parameters and a schedule of rates, where these change."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    memory: Any = True if decay == 1 else {"decay": decay}
    asked = {"policy": "topk", "keep": 0.25, "scope": "grad-weight", "memory": memory}
    fast = fxapprox.rewrite(net, (batches(8)[0],), **asked)
    by_hand = TwoLayers(net, 8, 2, decay)
    groups = [{"params": fast[0].parameters()}, {"params": fast[2].parameters(), "lr": 0.3}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    rates = [[0.1, 0.3]] * 5
    if changing:
        rates = [[0.1 * 0.5**step, 0.3 * (step + 1)] for step in range(5)]
        factors = [lambda step: 0.5**step, lambda step: step + 1.0]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        fxapprox.attach(fast, optimizer)
    for x, now in zip(batches(*[8] * 5), rates, strict=True):
        target = x[:, :2].sin()
        optimizer.zero_grad()
        F.mse_loss(fast(x), target).backward()
        optimizer.step()
        if changing:
            schedule.step()
        by_hand.step(x, target, now)
        for i, at in enumerate((0, 2)):
            torch.testing.assert_close(fast[at].weight.detach().T, by_hand.w[i])
            torch.testing.assert_close(fast[at].bias.detach(), by_hand.b[i])


@contextlib.contextmanager
def watched(used: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Note the rows of gradient and input that weight gradients of linear layers are made of."""
    original = Rows.grad_right

    def grad_right(self: Rows, grad: Tensor, left: Tensor, shape: tuple[int, ...]) -> Tensor:
        used.append((grad.clone(), left.clone()))
        return original(self, grad, left, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "grad_right", grad_right)
        yield


def sums(rows: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Over all rows: of gradients, of inputs."""
    return [torch.cat([grad for grad, _ in rows]).sum(0), torch.cat([left for _, left in rows]).sum(0)]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    policy=st.sampled_from(["topk", "uniform", "weighted"]),
    keep=st.sampled_from([0.2, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
def test_every_row_is_used_or_waits(sizes: list[int], policy: str, keep: float, seed: int) -> None:
    """What was used and what waits add up to what came in, whatever the sizes of the batches."""
    net = layer(policy=policy, keep=keep)
    torch.manual_seed(seed)
    came: list[tuple[Tensor, Tensor]] = []
    used: list[tuple[Tensor, Tensor]] = []
    for x in batches(*sizes):
        before = len(used)
        y = net(x)
        y.register_hook(lambda grad, x=x: came.append((grad, x)))  # type: ignore[misc]
        with watched(used):
            y.pow(3).sum().backward()
        if len(used) == before:  # all rows of a batch, and nothing that waited: the exact layer itself
            used.append(came[-1])
    for total, wanted in zip(sums([*used, *memory_of(net).slots]), sums(came), strict=True):
        torch.testing.assert_close(total, wanted)


def test_all_rows_are_the_exact_gradient() -> None:
    for keep in (1.0, 0.9):
        (x,) = batches(1)
        assert torch.equal(gradient(layer(keep=keep), x), gradient(layer(keep=keep).eval(), x))
    (x,) = batches(8)
    whole = layer(keep=1.0)
    assert torch.equal(gradient(whole, x), gradient(copy.deepcopy(whole).eval(), x))
    assert fxapprox.run_state(whole) == {"layer": {}}


def test_a_batch_that_keeps_all_rows_uses_what_waits() -> None:
    net = layer(keep=0.5)
    first, last = batches(4, 1)
    gradient(net, first)
    grad, left = (rows.clone() for rows in memory_of(net).slots[0])
    upstream = 3 * net(last).detach() ** 2
    wanted = (grad[:1] + upstream).T @ (left[:1] + last)
    torch.testing.assert_close(gradient(net, last), wanted)
    now = memory_of(net).slots[0]
    assert not now[0][:1].any()
    assert torch.equal(now[0][1:], grad[1:])


def test_a_keep_that_ends_exact_uses_up_what_waits() -> None:
    """Two steps at 0.25, then exact: the third uses all that waits, from the fourth on there is no memory."""
    net = layer(keep={"from": 0.25, "exact_after": 2})
    came: list[tuple[Tensor, Tensor]] = []
    used: list[tuple[Tensor, Tensor]] = []
    for step, x in enumerate(batches(8, 8, 8)):
        assert len(memory_of(net).slots) == (step > 0)
        y = net(x)
        y.register_hook(lambda grad, x=x: came.append((grad, x)))  # type: ignore[misc]
        with watched(used):
            y.pow(3).sum().backward()
    for total, wanted in zip(sums(used), sums(came), strict=True):
        torch.testing.assert_close(total, wanted)
    assert not memory_of(net).slots
    (x,) = batches(8)
    assert torch.equal(gradient(net, x), gradient(copy.deepcopy(net).eval(), x))


def test_the_first_slots_take_part_in_a_smaller_batch() -> None:
    net = layer(memory={"decay": 0.5})
    large, small = batches(8, 3)
    gradient(net, large)
    before = [rows.clone() for rows in memory_of(net).slots[0]]
    gradient(net, small)
    after = memory_of(net).slots[0]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[3:], old[3:])
        assert not torch.equal(new[:3], old[:3])
    assert len(memory_of(net).slots) == 1


def test_a_larger_batch_adds_slots() -> None:
    net, twin = layer(policy="uniform"), layer(policy="uniform")
    small, large = batches(3, 8)
    gradient(net, small)
    gradient(twin, torch.cat([small, small.new_zeros(5, 5)]))
    assert memory_of(net).slots[0][1].shape == (3, 5)
    gradient(net, large)
    assert memory_of(net).slots[0][1].shape == (8, 5)


def test_epochs_with_a_partial_batch_lose_nothing() -> None:
    """Three epochs of 4 batches of 16 and one of 6, on one layer: the mean gradient over the run is close to
    that of all rows, far closer than without a memory."""
    data = batches(*[16, 16, 16, 16, 6] * 6)

    def run(**keys: Any) -> Tensor:
        net = layer(**keys)
        total = torch.zeros(3, 5, dtype=torch.float64)
        for x in data:
            net.zero_grad()
            (net(x) * x[:, :3]).sum().backward()  # the gradient does not depend on the weights
            total += net.weight.grad  # type: ignore[operator]
        return total

    exact = run(keep=1.0)
    with_memory, without = (run(keep=0.25, memory=memory) for memory in (True, False))
    assert (with_memory - exact).norm() < 0.7 * (without - exact).norm()


@pytest.mark.parametrize("policy", ["topk", "uniform", "weighted"])
def test_a_convolution_of_single_points_is_a_linear_layer(policy: str) -> None:
    linear = layer(policy=policy)
    conv = layer(nn.Conv2d(5, 3, 1), policy=policy)
    with torch.no_grad():
        conv.weight.copy_(linear.weight[:, :, None, None])
        conv.bias.copy_(linear.bias)
    torch.manual_seed(0)
    for x in batches(6, 6, 4, 9):
        seed = torch.get_rng_state()
        wanted = gradient(linear, x)
        torch.set_rng_state(seed)
        torch.testing.assert_close(gradient(conv, x[:, :, None, None])[:, :, 0, 0], wanted)


def test_images_of_other_sizes_have_slots_of_their_own() -> None:
    net = layer(nn.Conv2d(4, 6, 3, groups=2))
    large, small = batches(6, shape=(4, 8, 8))[0], batches(4, shape=(4, 6, 8))[0]
    gradient(net, large)
    before = [rows.clone() for rows in memory_of(net).slots[0]]
    gradient(net, small)
    assert len(memory_of(net).slots) == 2
    assert all(torch.equal(old, new) for old, new in zip(before, memory_of(net).slots[0], strict=True))
    gradient(net, large[:5])
    assert len(memory_of(net).slots) == 2


def test_memory_formats_stay() -> None:
    net = layer(nn.Conv2d(4, 6, 3)).to(memory_format=torch.channels_last)
    for x in batches(6, 6, 4, shape=(4, 8, 8)):
        gradient(net, x.to(memory_format=torch.channels_last))
    assert all(rows.is_contiguous(memory_format=torch.channels_last) for rows in memory_of(net).slots[0])


def test_all_leading_dimensions_are_rows() -> None:
    net, flat = layer(), layer()
    for x in batches(6, 6, 3, shape=(4, 5)):
        torch.testing.assert_close(gradient(net, x), gradient(flat, x.reshape(-1, 5)))


def test_grad_input_and_bias_are_exact() -> None:
    net, exact = layer(keep=0.25), layer(keep=1.0)
    for x in batches(8, 8, 8):
        found = []
        for one in (net, exact):
            one.zero_grad()
            inputs = x.clone().requires_grad_()
            one(inputs).pow(3).sum().backward()
            found.append((inputs.grad, one.bias.grad))  # type: ignore[union-attr]
        for ours, wanted in zip(*found, strict=True):
            torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("policy", ["topk", "uniform", "weighted"])
@pytest.mark.parametrize("rows", [8, 5, 11])
def test_rows_that_are_not_finite_never_wait(bad: float, policy: str, rows: int) -> None:
    """A skipped step leaves the memory as it was, and is seen to be one to skip."""
    net = layer(policy=policy, keep=0.25)
    for x in batches(8, 8):
        gradient(net, x)
    before = [grad_or_left.clone() for grad_or_left in memory_of(net).slots[0]]
    (x,) = batches(rows)
    y = net(x)
    upstream = torch.ones_like(y)
    upstream[1, 0] = bad
    net.zero_grad()
    y.backward(upstream)
    assert not net.weight.grad.isfinite().any()  # type: ignore[union-attr, operator]
    assert all(torch.equal(old, new) for old, new in zip(before, memory_of(net).slots[0], strict=True))
    assert gradient(net, x).isfinite().all()


def test_a_gradient_scaler_skips_the_step_and_its_rows() -> None:
    net = layer(keep=0.25).float()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    fxapprox.attach(net, optimizer, scaler=scaler)
    skipped = 0
    for x in batches(*[8] * 30):
        optimizer.zero_grad()
        before = net.weight.detach().clone()
        scaler.scale(1e4 * net(x.float()).pow(2).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        skipped += int(torch.equal(net.weight.detach(), before))
        assert all(bool(rows.isfinite().all()) for slots in memory_of(net).slots for rows in slots)
    assert 2 < skipped < 30


def test_the_loss_scale_is_no_part_of_the_rows() -> None:
    """What waited while losses were scaled by 8 counts the same when they are scaled by 2."""
    plain, scaled = layer(keep=0.25), layer(keep=0.25)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    fxapprox.attach(scaled, optimizer, scaler=scaler)
    for x, scale in zip(batches(8, 8, 8, 8), (8.0, 2.0, 2.0, 16.0), strict=True):
        scaler.scale(torch.zeros(()))  # a scaler has no scale before it scaled something
        scaler.update(scale)
        scaled.zero_grad()
        scaler.scale(scaled(x).pow(3).sum()).backward()
        torch.testing.assert_close(scaled.weight.grad / scale, gradient(plain, x))  # type: ignore[operator]


def test_a_rate_of_zero_lets_the_rows_wait() -> None:
    net = layer(keep=0.25)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    fxapprox.attach(net, optimizer)
    for x in batches(8, 8):
        gradient(net, x)
    before = [rows.clone() for rows in memory_of(net).slots[0]]
    optimizer.param_groups[0]["lr"] = 0.0
    assert gradient(net, batches(8)[0]).isfinite().all()
    assert all(torch.equal(old, new) for old, new in zip(before, memory_of(net).slots[0], strict=True))


def test_a_parametrized_weight_goes_by_the_rate_of_its_parameters() -> None:
    net = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    net = sampled(net, site="layer", policy="topk", keep=0.25, scope="grad-weight", memory=True).double()
    optimizer = torch.optim.SGD(
        [
            {"params": net.parametrizations.weight.original0, "lr": 0.5},  # the norms
            {"params": [net.bias, net.parametrizations.weight.original1]},
        ],
        lr=0.25,
    )
    fxapprox.attach(net, optimizer)
    net(batches(8)[0]).pow(2).sum().backward()
    assert memory_of(net).pace == Pace(0.25)


def test_half_precision_rows_wait_in_single_precision() -> None:
    net = layer(keep=0.25).bfloat16()
    for x in batches(8, 8):
        assert gradient(net, x.bfloat16()).dtype == torch.bfloat16
    assert {rows.dtype for rows in memory_of(net).slots[0]} == {torch.float32}
    net.double()
    gradient(net, batches(8)[0])
    assert {rows.dtype for rows in memory_of(net).slots[0]} == {torch.float64}
    with torch.autocast("cpu", torch.bfloat16):
        assert gradient(net.float(), batches(8)[0].float()).dtype == torch.float32


def test_a_layer_called_twice_in_a_step_uses_one_memory_call_after_call() -> None:
    twice, apart = layer(), layer()
    for x, z in zip(batches(8, 8, 8), batches(6, 8, 8), strict=True):
        twice.zero_grad()
        (twice(x).pow(3).sum() + twice(z).pow(3).sum()).backward()
        wanted = gradient(apart, z) + gradient(apart, x)  # backward runs from the last call to the first
        torch.testing.assert_close(twice.weight.grad, wanted)


@pytest.mark.parametrize("policy", ["topk", "uniform"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_uses_the_memory_once(policy: str, reentrant: bool) -> None:
    plain, checkpointed = layer(policy=policy), layer(policy=policy)
    found = []
    for net, wrap in ((plain, False), (checkpointed, True)):
        torch.manual_seed(0)
        for x in batches(8, 8, 5):
            net.zero_grad()
            x.requires_grad_()
            y = checkpoint(net, x, use_reentrant=reentrant) if wrap else net(x)
            y.pow(3).sum().backward()
            found.append(net.weight.grad)
    for ours, wanted in zip(found[3:], found[:3], strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_take_the_rows_with_them(copied: Any) -> None:
    net = layer()
    first, second = batches(8, 8)
    gradient(net, first)
    twin = copied(net)
    wanted = gradient(net, second)
    assert torch.equal(gradient(twin, second), wanted)
    assert list(net.state_dict()) == ["weight", "bias"]


def test_gradients_that_are_expanded_and_measured_without_gradients() -> None:
    net = layer()
    (x,) = batches(8)
    net(x).sum().backward()  # the gradient is one number, seen 24 times
    before = fxapprox.run_state(net)
    with torch.no_grad():
        net(x)
    net.eval()(x)
    net.train().weight.requires_grad_(False)
    net(x.requires_grad_()).sum().backward()
    now = fxapprox.run_state(net)
    for old, new in zip(before["layer"]["memory"]["slots"], now["layer"]["memory"]["slots"], strict=True):
        assert torch.equal(old["left"], new["left"])


def test_compiling_goes_around_a_memory() -> None:
    net, plain = layer(), layer()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager")
    for x in batches(8, 8):
        compiled(x).pow(3).sum().backward()
        torch.testing.assert_close(net.weight.grad, gradient(plain, x))
        net.zero_grad()
    torch._dynamo.reset()
    with pytest.raises(Exception, match="a memory of rows"):
        torch.compile(net, backend="aot_eager", fullgraph=True)(x)
