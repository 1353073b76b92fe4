"""What users of a rewritten model can rely on, over small models and random ones."""

from __future__ import annotations

import copy
import functools
import io
import math
import os
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import CASES, built
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fxapprox
from fxapprox.capture.compare import leaves
from fxapprox.capture.trials import projection
from fxapprox.passes.copying import deep_copy
from fxapprox.record import record_of

SCOPES = ("forward", "backward", "grad-weight", "straight-through")
Built = tuple[nn.Module, nn.Module, tuple[Any, ...], dict[str, Any]]


@functools.cache
def _rewritten(name: str, **keys: Any) -> tuple[nn.Module, nn.Module, tuple[Any, ...], dict[str, Any]]:
    model, args, kwargs = built(name)
    return model, fxapprox.rewrite(model, args, kwargs, **keys), args, kwargs


def fresh(name: str, **keys: Any) -> Built:
    """The user's model and its rewritten form, both in train mode and nobody else's."""
    model, fast, args, kwargs = _rewritten(name, **({"policy": "topk", "keep": 0.5} | keys))
    return deep_copy(model).train(), deep_copy(fast).train(), args, kwargs


def tensors(output: Any) -> list[Tensor]:
    return [leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor)]


def step(model: nn.Module, args: Any, kwargs: Any, seed: int = 0) -> tuple[list[Tensor], dict[str, Tensor]]:
    """One training step under a seed: outputs, and gradients by name."""
    torch.manual_seed(seed)
    model.zero_grad()
    outputs = tensors(model(*args, **kwargs))
    loss = projection(outputs)
    assert loss is not None
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return outputs, grads


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, equal_nan=True, rtol=0.0, atol=0.0)


def differ(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        one, other = list(one.values()), list(other.values())
    return any(not torch.equal(left, right) for left, right in zip(one, other, strict=True))


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


# ---- 4: unbiased policies are unbiased


def _z(samples: Tensor, expected: Tensor) -> Tensor:
    deviation = samples.std(0) / math.sqrt(len(samples))
    return (samples.mean(0) - expected).abs() / deviation.clamp(min=1e-9)


UNBIASED = [name for name, policy in fxapprox.policies.policies.all().items() if policy.unbiased]


@pytest.mark.parametrize("policy", [name for name in UNBIASED if name != "exact"])
@pytest.mark.parametrize(
    ("name", "scope"), [("linear", "forward"), ("mlp", "grad-weight"), ("stdconv", "backward")]
)
def test_unbiased_policies_are_unbiased(policy, name, scope):
    model, fast, args, kwargs = fresh(name, policy=policy, scope=scope, keep=0.5)
    fast.double(), model.double()
    args = tuple(arg.double() for arg in args)
    torch.manual_seed(3)
    draws = 400
    if name == "mlp":
        model[2].p = fast[2].p = 0.0
    outputs, grads = step(model, args, kwargs)
    found: list[tuple[list[Tensor], dict[str, Tensor]]] = []
    torch.manual_seed(4)
    for _ in range(draws):
        fast.zero_grad()
        result = tensors(fast(*args, **kwargs))
        projection(result).backward()
        found.append(([t.detach() for t in result], {n: p.grad.clone() for n, p in fast.named_parameters()}))
    pairs = [(torch.stack([f[0][i] for f in found]), out.detach()) for i, out in enumerate(outputs)]
    if scope != "forward":
        pairs += [(torch.stack([f[1][n] for f in found]), grad) for n, grad in grads.items()]
    scores = torch.cat([_z(samples, expected).flatten() for samples, expected in pairs])
    sampled = torch.cat([(s.std(0) > 1e-9).flatten() for s, _ in pairs])
    # a Gaussian's two-sided tail at this bound, for all entries together, is below 1e-5
    bound = math.sqrt(2 * math.log(len(scores) * 1e5)) + 0.5
    assert scores[sampled].max() < bound


def test_the_z_test_sees_a_bias():
    with pytest.raises(AssertionError):
        test_unbiased_policies_are_unbiased("weighted", "linear", "forward")


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


# ---- 8: classes


@pytest.mark.parametrize("name", CASES)
def test_every_module_is_still_an_instance_of_its_class(name):
    model, fast, _, _ = fresh(name)
    ours = dict(fast.named_modules())
    for path, module in model.named_modules():
        assert isinstance(
            ours[path], type(module).__mro__[0 if "Parametrized" not in type(module).__name__ else 1]
        )


# ---- and the promises together, over random models


class Step(nn.Module):
    """One random operation on [batch, width] or [batch, width, 4]."""

    def __init__(self, what: str, width: int, out: int) -> None:
        super().__init__()
        self.what = what
        match what:
            case "linear":
                self.fc = nn.Linear(width, out)
            case "function" | "matmul" | "addmm":
                self.weight = nn.Parameter(torch.randn(out, width) / math.sqrt(width))
                self.bias = nn.Parameter(torch.randn(out))
            case "conv":
                self.conv = nn.Conv1d(width, out, 3, padding=1, groups=math.gcd(width, out))
            case "norm":
                self.norm = nn.BatchNorm1d(width)
            case "residual":
                self.fc, self.unused = nn.Linear(width, width), nn.Linear(1, 1)
            case "attention":
                self.attention = nn.MultiheadAttention(width, 1, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        match self.what:
            case "linear":
                return self.fc(x)
            case "function":
                return F.linear(x, self.weight, self.bias)
            case "matmul":
                return x @ self.weight.t() + self.bias
            case "addmm":
                return torch.addmm(self.bias, x, self.weight.t())
            case "conv":
                return self.conv(x.unsqueeze(-1).expand(-1, -1, 4)).mean(-1)
            case "norm":
                return self.norm(x)
            case "residual":
                return x + torch.tanh(self.fc(x)) * (0.5 if self.training else 1.0)
            case "attention":
                y = x.unsqueeze(1).expand(-1, 3, -1)
                return self.attention(y, y, y, need_weights=False)[0][:, 0]
            case "dropout":
                return F.dropout(F.relu(x), 0.3, self.training)
            case _:
                batch, width = x.shape
                return x.view(batch, 1, width).flip(-1).reshape(batch, width)


KEEP_WIDTH = ("norm", "residual", "attention", "dropout", "shape")
WHATS = ("linear", "function", "matmul", "addmm", "conv", *KEEP_WIDTH)


@st.composite
def random_models(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(draw(st.integers(0, 100)))
    width = first = draw(st.integers(2, 9))
    steps: list[nn.Module] = []
    for what in draw(st.lists(st.sampled_from(WHATS), min_size=1, max_size=5)):
        out = width if what in KEEP_WIDTH else draw(st.integers(2, 9))
        steps.append(Step(what, width, out))
        width = out
    if draw(st.booleans()):  # one more layer, and a layer that shares its weight
        steps += [nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)]
        steps[-1].weight = steps[-3].weight
    return nn.Sequential(*steps), torch.randn(draw(st.integers(2, 5)), first)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_models(), st.sampled_from(["topk", "uniform", "pps"]), st.sampled_from(SCOPES))
def test_random_models_keep_the_promises(pair, policy, scope):
    model, x = pair
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    try:
        exact = fxapprox.rewrite(model, (x,), policy=policy, keep=1.0, scope=scope)
        fast = fxapprox.rewrite(model, (x,), policy=policy, keep=0.5, scope=scope)
    except fxapprox.NothingRewritten:
        return
    finally:
        assert torch.equal(torch.get_rng_state(), state)
        assert_same(dict(before.state_dict()), dict(model.state_dict()))
        assert model.training
    assert list(fast.state_dict()) == list(model.state_dict())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(fast.eval()(x), before.eval()(x))
    theirs, ours = step(model.train(), (x,), {}), step(exact.train(), (x,), {})
    assert_same(theirs[0], ours[0])
    assert_same(theirs[1], ours[1])
    clone = pickle.loads(pickle.dumps(fast.train()))
    one, other = step(fast, (x,), {}, 3), step(clone, (x,), {}, 3)
    assert_same(one[0], other[0])
    assert_same(one[1], other[1])
