"""Copies, files, dtypes, and what torch offers around a step."""

from __future__ import annotations

import copy
import io
import os
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from promises import assert_same, fresh, step, tensors
from small_models import CASES
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fxapprox.capture.trials import projection
from fxapprox.record import record_of

# ---- 7: copies, files, dtypes, and what torch offers around a step


def _saved(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": _saved,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", COPIES)
def test_copies_train_alike(name, how):
    model, fast, args, kwargs = fresh(name, policy="uniform")
    if name == "tcn" and how != "deepcopy":  # torch refuses the user's own model, and ours alike
        for one in (model, fast):
            with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
                COPIES[how](one)
        return
    again = COPIES[how](fast)
    one, other = step(fast, args, kwargs), step(again, args, kwargs)
    assert_same(one[0], other[0])
    assert_same(one[1], other[1])
    assert record_of(again).plan == record_of(fast).plan


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_to_a_dtype(name, dtype):
    model, fast, args, kwargs = fresh(name, keep=1.0)
    model.to(dtype), fast.to(dtype)
    args = tuple(arg.to(dtype) if arg.is_floating_point() else arg for arg in args)
    theirs, ours = step(model, args, kwargs), step(fast, args, kwargs)
    assert_same(theirs[0], ours[0])
    assert_same(theirs[1], ours[1])


@pytest.mark.parametrize("name", CASES)
def test_autocast(name):
    model, fast, args, kwargs = fresh(name)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = step(model, args, kwargs), step(fast, args, kwargs)
    assert [t.dtype for t in theirs[0]] == [t.dtype for t in ours[0]]
    assert {n: g.dtype for n, g in theirs[1].items()} == {n: g.dtype for n, g in ours[1].items()}
    assert all(bool(t.isfinite().all()) for t in ours[0])


@pytest.mark.parametrize("name", ["mlp", "linear", "stdconv", "gpt2", "encoder"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("policy", ["topk", "uniform"])
def test_checkpointing_draws_nothing_twice(name, reentrant, policy):
    _, fast, args, kwargs = fresh(name, policy=policy)
    plain = step(copy.deepcopy(fast), args, kwargs)
    again = copy.deepcopy(fast)
    given = tuple(arg.clone().requires_grad_() if arg.is_floating_point() else arg for arg in args)
    if reentrant and not any(arg.requires_grad for arg in given):
        given = (*given, torch.zeros((), requires_grad=True))  # reentrant needs an input with a gradient

    def run(*inputs: Tensor) -> Any:
        return tuple(tensors(again(*inputs[: len(args)], **kwargs)))

    torch.manual_seed(0)
    outputs = checkpoint(run, *given, use_reentrant=reentrant)
    projection(outputs).backward()
    assert_same(plain[0], list(outputs))
    assert_same(plain[1], {n: p.grad for n, p in again.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("name", ["mlp", "stdconv", "resnet"])
def test_compile_takes_deterministic_policies_whole(name):
    _, fast, args, kwargs = fresh(name)
    plain = step(copy.deepcopy(fast), args, kwargs)
    torch._dynamo.reset()
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    ours = step(compiled, args, kwargs)
    for left, right in zip(plain[0], ours[0], strict=True):
        torch.testing.assert_close(left, right)
    for left, right in zip(plain[1].values(), ours[1].values(), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("name", ["mlp", "stdconv"])
def test_compile_goes_around_random_policies(name):
    _, fast, args, kwargs = fresh(name, policy="uniform")
    plain = step(copy.deepcopy(fast), args, kwargs)
    torch._dynamo.reset()
    ours = step(torch.compile(fast, backend="aot_eager"), args, kwargs)
    for left, right in zip(plain[0], ours[0], strict=True):
        torch.testing.assert_close(left, right)


@pytest.fixture
def one_process():
    if not dist.is_available():
        pytest.skip("torch was built without distributed")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["mlp", "gpt2", "resnet"])
def test_data_parallel_training(name, one_process):
    _, fast, args, kwargs = fresh(name, policy="uniform")
    plain = step(copy.deepcopy(fast), args, kwargs)
    wrapped = nn.parallel.DistributedDataParallel(fast)
    ours = step(wrapped, args, kwargs)
    assert_same(plain[0], ours[0])
    assert_same(list(plain[1].values()), list(ours[1].values()))
