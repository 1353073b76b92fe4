"""Output nodes sampled: over every kind, in models, in files, under autocast, checkpointing and compile."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from by_hand import site
from node_work import work_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fxapprox
from fxapprox.choices import Choice, Sampled
from fxapprox.errors import RequestError
from fxapprox.kinds import Call, Kind, Operation, Refusal, kinds
from fxapprox.policies import NodePolicy, policies
from fxapprox.sampling.nodes import node_product
from fxapprox.sampling.streams import Draw

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:LSTM with projections")
NODES = {name: cls for name, cls in policies.all().items() if issubclass(cls, NodePolicy)}
SIZED = {name: {} if cls.sized_by else {"keep": 0.5} for name, cls in NODES.items()}


def mlp() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 5)
    ), torch.randn(6, 12)


def rewritten(policy: str, **keys: Any) -> tuple[nn.Module, Tensor]:
    model, x = mlp()
    return fxapprox.rewrite(model, (x,), policy=policy, **{**SIZED[policy], **keys}), x


# ---- every kind, every node policy


def site_of(kind: type[Kind], operation: Operation) -> Any:
    """A site with what node policies ask of one."""
    shapes = {"input_shape": tuple(operation.left.shape), "weight_shape": tuple(operation.right.shape)}
    return site("site", kind=kind.name, weight=operation.weight, **shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", NODES)
@pytest.mark.parametrize("name", list(kinds.all()))
def test_examples_can_be_sampled_or_are_refused(name: str, policy: str, dtype: torch.dtype) -> None:
    kind, node_policy = kinds.get(name)(), NODES[policy]()
    choice = Choice.of_scope(node_policy.scopes[0], Sampled(node_policy, 0.5))
    torch.manual_seed(0)
    for call in kind.examples(dtype):
        wanted = kind.exact(call)
        found = _run(kind, call, choice)
        if found is None:
            continue
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        found.sum().backward()
        operands = [t for t in (*call.args, *call.kwargs.values()) if isinstance(t, Tensor) and t.is_leaf]
        operands += list(call.module.parameters()) if call.module is not None else []
        for operand in operands:
            if operand.requires_grad and operand.numel():
                assert operand.grad is not None
                assert operand.grad.shape == operand.shape
                assert operand.grad.isfinite().all()


def _run(kind: Kind, call: Call, choice: Choice) -> Any:
    """The call with its nodes sampled, None where kind or policy refuse it."""
    how = choice.forward if isinstance(choice.forward, Sampled) else choice.grad_input
    assert isinstance(how, Sampled)
    assert isinstance(how.policy, NodePolicy)
    policy, refused = how.policy, []

    def product(part: str, operation: Operation | Refusal) -> Any:
        if isinstance(operation, Refusal) or policy.refuses(site_of(type(kind), operation)):
            return refused.append(operation) or torch.empty(0)
        return node_product(operation, choice, Draw(part, seed=0, number=0), policy.keeps())

    try:
        result = kind.run(call, product)
    except (RuntimeError, IndexError, TypeError):
        if refused:  # a call of two products cannot go on with what stands for a refused one
            return None
        raise
    return None if refused else result


def test_groups_of_a_convolution_choose_their_own_channels() -> None:
    torch.manual_seed(0)
    conv = fxapprox.passes.layers.sampled(nn.Conv2d(8, 12, 3, groups=2), site="c", policy="dropout", keep=0.5)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    exact = F.conv2d(x, conv.weight, conv.bias, groups=2)
    y = conv(x)
    live = y.detach().abs().sum((0, 2, 3)).ne(0)
    assert live.view(2, 6).sum(1).tolist() == [3, 3]
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, exact * live.view(1, -1, 1, 1) * 2)
    grads = torch.autograd.grad((y * y).sum(), (x, conv.weight, conv.bias))
    again = exact * live.view(1, -1, 1, 1) * 2
    wanted = torch.autograd.grad((again * again).sum(), (x, conv.weight, conv.bias))
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# ---- work


def test_only_chosen_nodes_are_multiplied() -> None:
    x, exact = torch.randn(16, 64), 16 * 64 * 100
    layer = fxapprox.passes.layers.sampled(nn.Linear(64, 100), site="l", policy="dropout", keep=0.05)
    assert work_of(layer, x) == [exact * 5 // 100, 2 * exact * 5 // 100]
    layer = fxapprox.passes.layers.sampled(nn.Linear(64, 100), site="l", policy="meprop", keep=0.05)
    assert work_of(layer, x) == [exact, 2 * exact * 5 // 100]


# ---- in models


@pytest.mark.parametrize("policy", NODES)
def test_a_choice_travels_through_rules_plans_and_files(policy: str, tmp_path: Any) -> None:
    model, x = mlp()
    rules = tmp_path / "rules.toml"
    rules.write_text(f'version = 1\n[[rule]]\nkind = "linear"\ndepth = ":-1"\npolicy = "{policy}"\n')
    plan = fxapprox.plan(model, (x,), rules=rules)
    assert [d.site.id for d in plan.rewritten] == ["0", "2"]
    by_rule = fxapprox.plan(model, (x,), rules=[fxapprox.Rule(kind="linear", depth=":-1", policy=policy)])
    assert plan.diff(by_rule) == ()
    plan.save(tmp_path / "plan.toml")
    loaded = fxapprox.Plan.load(tmp_path / "plan.toml")
    assert [d.choice for d in loaded.decisions] == [d.choice for d in plan.decisions]
    assert ("\nkeep = " in (tmp_path / "plan.toml").read_text()) != bool(NODES[policy].sized_by)
    fast = fxapprox.rewrite(model, (x,), rules=loaded)
    told = fxapprox.summary(fast).facts
    first = told["sites"][0]["products"]
    assert (
        first["forward"]["flops_after"] + first["grad_weight"]["flops_after"] < 2 * first["forward"]["flops"]
    )
    assert policy in str(fxapprox.summary(fast))
    file = tmp_path / f"{policy.replace('-', '_')}_emitted.py"
    fxapprox.emit(fast, file)
    space: dict[str, Any] = {"__name__": "emitted", "__file__": str(file)}
    exec(compile(file.read_text(), "emitted", "exec"), space)
    built = space["build_model"]()
    torch.manual_seed(3)
    ours = fast.train()(x)
    torch.manual_seed(3)
    torch.testing.assert_close(built.train()(x), ours)
    torch.testing.assert_close(built.eval()(x), fast.eval()(x))


@pytest.mark.parametrize("policy", NODES)
def test_promises(policy: str) -> None:
    """state_dict, evaluation, seeds, the global generator, N-D inputs, batches of 0 and 1."""
    model, x = mlp()
    fast, _ = rewritten(policy)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert isinstance(fast[0], nn.Linear)
    if NODES[policy].evaluation == "exact":
        assert torch.equal(fast.eval()(x), model.eval()(x))
    state = torch.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        fast.train().zero_grad()
        y = fast(x)
        y.square().sum().backward()
        assert torch.equal(torch.get_rng_state(), state)
        found.append([y, *(p.grad.clone() for p in fast.parameters())])
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0], found[2])) != NODES[policy].random
    assert fast(x.view(2, 3, 12)).shape == (2, 3, 5)
    for batch in (0, 1):
        fast(x[:batch]).sum().backward()


@pytest.mark.parametrize("policy", NODES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_repeats_the_choice(policy: str, reentrant: bool) -> None:
    fast, x = rewritten(policy)
    twin = copy.deepcopy(fast)
    x = x.requires_grad_()
    for _ in range(3):
        torch.manual_seed(5)
        plain = torch.autograd.grad(twin(x).square().sum(), [x, *twin.parameters()])
        torch.manual_seed(5)
        fast.zero_grad()
        x.grad = None
        checkpoint(fast, x, use_reentrant=reentrant).square().sum().backward()
        for one, other in zip(plain, [x.grad, *(p.grad for p in fast.parameters())], strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("policy", NODES)
def test_copies_autocast_and_dtypes(policy: str) -> None:
    fast, x = rewritten(policy)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        torch.manual_seed(0)
        one = fast(x)
        torch.manual_seed(0)
        torch.testing.assert_close(twin(x), one)
    with torch.autocast("cpu", torch.bfloat16):
        y = fast(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in fast.parameters())
    assert fast.double()(x.double()).dtype == torch.float64


def test_meprop_compiles_whole() -> None:
    fast, x = rewritten("meprop")
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    grads = [torch.autograd.grad(one(x).square().sum(), list(fast.parameters())) for one in (fast, compiled)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_the_bias_gradient_of_meprop_is_exact() -> None:
    model, x = mlp()
    fast, _ = rewritten("meprop", keep=0.1)
    fast.double(), model.double()
    grads = [torch.autograd.grad(one(x.double()).square().sum(), one[4].bias)[0] for one in (model, fast)]
    torch.testing.assert_close(*grads)


# ---- what is refused


@pytest.mark.parametrize("policy", NODES)
def test_what_cannot_be_served_is_one_error(policy: str) -> None:
    model, x = mlp()
    served = NODES[policy].scopes
    scope = next(s for s in ("backward", "forward") if s not in served)
    says = f"policy '{policy}' samples output nodes"
    with pytest.raises(RequestError, match=f'{says}: it serves scope "{served[0]}", not "{scope}"'):
        fxapprox.plan(model, (x,), policy=policy, scope=scope)
    with pytest.raises(RequestError, match=f"{says}: all products of a site go through the same ones"):
        fxapprox.Rule(grad_weight={"policy": policy})
    with pytest.raises(RequestError, match=f"{says}: center"):
        fxapprox.Rule(policy=policy, center=True)
    for key, value in (("keep", 0.5), ("min_k", 3)) if NODES[policy].sized_by else ():
        with pytest.raises(RequestError) as caught:
            fxapprox.Rule(policy=policy, **{key: value})
        assert f"{key} beside policy '{policy}', which has a size of its own" in str(caught.value)
        assert NODES[policy].sized_by[0] in str(caught.value)


@pytest.mark.parametrize("policy", NODES)
def test_activations_have_no_rows_to_choose(policy: str) -> None:
    refused = NODES[policy]().refuses(site(kind="matmul", weight=False))
    assert refused is not None
    assert "no parameter among its operands" in refused
