"""What users of a rewritten model can rely on, over small models that do what real ones do."""

from __future__ import annotations

import copy

import pytest
import torch
from promises import SCOPES, _rewritten, assert_same, differ, fresh, step, tensors
from small_models import CASES
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox.capture.compare import leaves
from fxapprox.record import record_of

# ---- the capture of these models is what we think it is


@pytest.mark.parametrize("name", CASES)
def test_the_rung_that_serves(name):
    assert record_of(_rewritten(name, policy="topk", keep=0.5)[1]).rung == CASES[name].rung


# ---- 1: the state_dict


@pytest.mark.parametrize("name", CASES)
def test_checkpoints_load_strictly_both_ways_and_ties_stay(name):
    model, fast, _, _ = fresh(name)
    theirs, ours = model.state_dict(), fast.state_dict()
    assert list(ours) == list(theirs)
    assert [(v.shape, v.dtype) for v in ours.values()] == [(v.shape, v.dtype) for v in theirs.values()]
    fast.load_state_dict(theirs, strict=True)
    model.load_state_dict(ours, strict=True)
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [p.requires_grad for p in fast.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not {p.data_ptr() for p in fast.parameters()} & {p.data_ptr() for p in model.parameters()}


# ---- 2: evaluation


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("grad", [True, False])
def test_evaluation_is_the_models(name, grad):
    model, fast, args, kwargs = fresh(name)
    with torch.set_grad_enabled(grad):
        theirs, ours = (list(leaves(one.eval()(*args, **kwargs))) for one in (model, fast))
    assert [place for place, _ in theirs] == [place for place, _ in ours]
    for (_, left), (_, right) in zip(theirs, ours, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


# ---- 3: keep = 1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scope", SCOPES)
def test_keep_one_is_the_exact_step(name, scope):
    model, fast, args, kwargs = fresh(name, keep=1.0, scope=scope)
    for seed in range(2):  # buffers and counters move on between steps
        theirs, ours = step(model, args, kwargs, seed), step(fast, args, kwargs, seed)
        assert_same(theirs[0], ours[0])
        assert_same(theirs[1], ours[1])
    assert_same(dict(model.named_buffers()), {n: b for n, b in fast.named_buffers() if "_constant" not in n})


def test_keep_one_is_the_call_as_it_was_written():
    class LeftWeight(nn.Module):  # its normal form transposes both operands
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 200))

        def forward(self, x: Tensor) -> Tensor:
            y = self.weight @ x
            return F.scaled_dot_product_attention(y, torch.einsum("nac,nbc->nab", y, y).tanh(), y)

    torch.manual_seed(0)
    model, x = LeftWeight(), torch.randn(3, 200, 64)
    rules = [fxapprox.Rule(kind=["matmul", "einsum", "attention"], policy="pps", keep=1.0)]
    fast = fxapprox.rewrite(model, (x,), rules=rules)
    assert len(record_of(fast).plan.rewritten) == 4
    theirs, ours = step(model, (x,), {}), step(fast, (x,), {})
    assert_same(theirs[0], ours[0])
    assert_same(theirs[1], ours[1])


# ---- 5: the same seed draws the same, from streams of the sites' own


@pytest.mark.parametrize("name", CASES)
def test_a_seed_governs_the_draws(name):
    _, fast, args, kwargs = fresh(name, policy="uniform")
    state = copy.deepcopy(fast.state_dict())
    one = step(fast, args, kwargs, 7)
    fast.load_state_dict(state)
    again = step(fast, args, kwargs, 7)
    fast.load_state_dict(state)
    other = step(fast, args, kwargs, 8)
    assert_same(one[0], again[0])
    assert_same(one[1], again[1])
    assert differ(one[0], other[0])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scope", ["forward", "backward"])
def test_the_global_generator_is_left_alone(name, scope):
    model, fast, args, kwargs = fresh(name, policy="uniform", scope=scope)
    step(model, args, kwargs, 5)
    theirs = torch.get_rng_state()
    step(fast, args, kwargs, 5)
    assert torch.equal(torch.get_rng_state(), theirs)  # dropout drew what it draws in the exact model
    if not CASES[name].random:
        torch.manual_seed(5)
        assert torch.equal(torch.get_rng_state(), theirs)


# ---- 6: modes are followed at run time


@pytest.mark.parametrize("name", CASES)
def test_train_and_eval_are_followed(name):
    _, fast, args, kwargs = fresh(name)
    fast.eval()
    quiet = [tensors(fast(*args, **kwargs)) for _ in range(2)]
    assert_same(*quiet)
    fast.train()
    trained = tensors(fast(*args, **kwargs))
    assert len(trained) != len(quiet[0]) or differ(trained, quiet[0])
    fast.eval()
    if not any("running" in buffer for buffer, _ in fast.named_buffers()):
        assert_same(tensors(fast(*args, **kwargs)), quiet[0])


# ---- 8: classes


@pytest.mark.parametrize("name", CASES)
def test_every_module_is_still_an_instance_of_its_class(name):
    model, fast, _, _ = fresh(name)
    ours = dict(fast.named_modules())
    for path, module in model.named_modules():
        assert isinstance(
            ours[path], type(module).__mro__[0 if "Parametrized" not in type(module).__name__ else 1]
        )
