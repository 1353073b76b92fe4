"""The sampled product against autograd of what it stands for, for every bilinear form there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxapprox.choices import SCOPES, Choice, Sampled, Treatment
from fxapprox.errors import RequestError
from fxapprox.kinds import Call, Operation, Refusal, recognise
from fxapprox.policies import Policy, Selection, Stream, policies
from fxapprox.policies.topk import TopK
from fxapprox.policies.topk_weights import TopKWeights
from fxapprox.sampling.product import sampled_product
from fxapprox.sampling.streams import Draw

DRAW = Draw("site", seed=0, number=0)


@dataclass(frozen=True)
class Fixed(Policy):
    """The given pairs in every group, all with the given scales."""

    index: tuple[int, ...]
    scale: tuple[float, ...] | None = None
    unique: bool = True

    name, source, unbiased, random, scores = "fixed", "test", False, False, "pair"

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        groups = scores.shape[0]
        scale = None if self.scale is None else scores.new_tensor([self.scale]).expand(groups, -1)
        return Selection(torch.tensor([self.index]).expand(groups, -1).contiguous(), scale, self.unique)


def operation(function: Callable[..., Tensor], *args: object, **kwargs: object) -> Operation:
    """The normal form that the kind of the function gives this call."""
    kind, found = recognise(function=function), []

    def note(part: str, given: Operation | Refusal) -> Tensor:
        assert isinstance(given, Operation)
        found.append(given)
        return exact(given)

    assert kind is not None
    kind.run(Call(args, kwargs, function=function), note)
    return found[0]


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


# every forward product has 4 pairs (per group), so that one Fixed fits all
FORMS: dict[str, Callable[[], Operation]] = {
    "linear": lambda: operation(F.linear, leaf(5, 4), leaf(3, 4), leaf(3)),
    "linear, 3 dimensions": lambda: operation(F.linear, leaf(2, 5, 4), leaf(3, 4), leaf(3)),
    "linear, weight transposed": lambda: operation(F.linear, leaf(5, 4), leaf(4, 3).t(), leaf(3)),
    "addmm": lambda: operation(torch.addmm, leaf(3), leaf(5, 4), leaf(4, 3)),
    "conv": lambda: operation(F.conv2d, leaf(4, 4, 5, 6), leaf(4, 4, 3, 3), leaf(4), stride=2, padding=1),
    "conv, channels last": lambda: operation(
        F.conv2d, leaf(4, 4, 5, 6).to(memory_format=torch.channels_last), leaf(4, 4, 3, 3), leaf(4)
    ),
    "conv, groups": lambda: operation(F.conv2d, leaf(4, 8, 5, 6), leaf(8, 4, 3, 2), leaf(8), groups=2),
    "conv transposed": lambda: operation(
        F.conv_transpose2d, leaf(4, 8, 3, 4), leaf(8, 4, 3, 2), leaf(8), groups=2
    ),
    "matmul": lambda: operation(torch.matmul, leaf(2, 5, 4), leaf(2, 4, 3)),
    "matmul, broadcast": lambda: operation(torch.matmul, leaf(2, 3, 5, 4), leaf(3, 4, 6)),
    "einsum": lambda: operation(torch.einsum, "bqhd,bkhd->bhqk", leaf(2, 5, 3, 4), leaf(2, 6, 3, 4)),
}  # fmt: skip
SELECTIONS = {
    "plain": Fixed((0, 2)),
    "scaled": Fixed((1, 3), (1.5, 0.5)),
    "repeated": Fixed((1, 1, 2), (0.5, 1.5, 2.0), unique=False),
    "padded": Fixed((0, 2), (3.0, 0.0)),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Operation:
    torch.manual_seed(0)
    return FORMS[request.param]()


def finished(op: Operation, result: Tensor) -> Tensor:
    return op.finish(result) if op.finish else result


def run(op: Operation, result: Tensor) -> tuple[Tensor, ...]:
    """The result and the gradients of its operands under a fixed random cotangent."""
    wanted = [operand for operand in (op.left, op.right, op.bias) if operand is not None]
    cotangent = torch.randn(result.shape, dtype=result.dtype, generator=torch.Generator().manual_seed(7))
    return (result, *torch.autograd.grad(result, wanted, cotangent))


def close(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def exact(op: Operation) -> Tensor:
    return finished(op, op.bilinear.forward(op.left, op.right, op.bias))


def composed(op: Operation, how: Sampled) -> Tensor:
    """The forward product spelled in plain differentiable operations."""
    groups, pairs, _ = op.bilinear.sizes("forward", tuple(op.left.shape), tuple(op.right.shape))
    selection = how.policy.select(torch.ones(groups, pairs, dtype=torch.float64), 0, DRAW.stream("forward"))
    index = selection.index
    scale = torch.ones(index.shape, dtype=torch.float64) if selection.scale is None else selection.scale
    whole = torch.zeros(groups, pairs, dtype=torch.float64).scatter_add(1, index, scale)
    if not how.center:
        return finished(
            op, op.bilinear.forward(op.bilinear.scale("forward", 0, op.left, whole), op.right, op.bias)
        )
    mean = op.bilinear.center(op.left)
    apart = op.bilinear.scale("forward", 0, op.left - mean, whole)
    result = op.bilinear.forward(apart, op.right, op.bias) + op.bilinear.forward(mean, op.right, None)
    return finished(op, result)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_forward_scope_is_autograd_of_the_masked_product(
    form: Operation, selection: str, center: bool
) -> None:
    policy = SELECTIONS[selection]
    how = Sampled(policy, keep=len(policy.index) / 4, center=center)
    got = run(form, sampled_product(form, Choice.of_scope("forward", how), DRAW))
    close(got, run(form, composed(form, how)))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_straight_through_keeps_the_exact_gradients(form: Operation, selection: str) -> None:
    policy = SELECTIONS[selection]
    how = Sampled(policy, keep=len(policy.index) / 4)
    got = run(form, sampled_product(form, Choice.of_scope("straight-through", how), DRAW))
    close(got[:1], (composed(form, how),))
    close(got[1:], run(form, exact(form))[1:])


def test_keep_1_is_the_exact_operation_to_the_bit(form: Operation) -> None:
    wanted = run(form, exact(form))
    for scope in SCOPES:
        for center in (False, True):
            how = Sampled(TopK(), keep=1.0, center=center)
            got = run(form, sampled_product(form, Choice.of_scope(scope, how), DRAW))
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_exact_gradients_of_the_function_are_those_of_autograd(form: Operation) -> None:
    """One gradient is sampled, so the exact products run inside the function, not in autograd."""
    wanted = run(form, exact(form))
    how = Sampled(TopK(), keep=0.5)
    result, grad_left, *_ = run(form, sampled_product(form, Choice(grad_weight=how), DRAW))
    close((result, grad_left), wanted[:2])
    result, _, *rest = run(form, sampled_product(form, Choice(grad_input=how), DRAW))
    close((result, *rest), (wanted[0], *wanted[2:]))


def subsets(pairs: int) -> list[Fixed]:
    """Every choice of 2 pairs with its Horvitz–Thompson scale."""
    scale = (pairs / 2,) * 2
    return [Fixed(chosen, scale) for chosen in itertools.combinations(range(pairs), 2)]


@pytest.mark.parametrize("product", ["forward", "grad_input", "grad_weight"])
def test_each_product_is_unbiased_under_an_unbiased_policy(form: Operation, product: str) -> None:
    """The mean over all subsets of 2 pairs, equally likely, is the exact product: no statistics needed."""
    shapes = tuple(form.left.shape), tuple(form.right.shape)
    pairs = form.bilinear.sizes(product, *shapes)[1]  # type: ignore[arg-type]
    policies = subsets(pairs)

    def treated(how: Treatment) -> tuple[Tensor, ...]:
        return run(form, sampled_product(form, Choice(**{product: how}), DRAW))

    draws = [treated(Sampled(policy, keep=2 / pairs)) for policy in policies]
    mean = tuple(torch.stack(of_draws).mean(0) for of_draws in zip(*draws, strict=True))
    close(mean, run(form, exact(form)))
    where = {"forward": 0, "grad_input": 1, "grad_weight": 2}[product]
    assert not torch.allclose(draws[0][where], mean[where])


def test_centre_of_a_linear_layer_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(1)
    x, weight, bias = torch.randn(6, 4) + 3, torch.randn(3, 4), torch.randn(3)
    how = Sampled(Fixed((0, 3), (1.5, 0.5)), keep=0.5, center=True)
    got = sampled_product(operation(F.linear, x, weight, bias), Choice.of_scope("forward", how), DRAW)
    mean, z = x.mean(0), torch.tensor([1.5, 0, 0, 0.5])
    wanted = mean @ weight.t() + ((x - mean) * z) @ weight.t() + bias
    torch.testing.assert_close(got, wanted)


def test_centre_of_a_padded_convolution_is_a_plane() -> None:
    """An image that is constant in each channel is all mean, so its borders must come out exact, too."""
    x = torch.tensor([2.0, -1.0, 0.5, 4.0]).view(1, 4, 1, 1).expand(3, 4, 6, 6)
    weight = torch.randn(5, 4, 3, 3)
    how = Sampled(Fixed((1, 2), (2.0, 2.0)), keep=0.5, center=True)
    got = sampled_product(operation(F.conv2d, x, weight, None, padding=1), Choice(forward=how), DRAW)
    torch.testing.assert_close(got, F.conv2d(x, weight, padding=1))


def test_centred_scores_are_those_of_what_is_left_without_the_mean() -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    shifted = x + torch.tensor([1000.0, 500.0, 0.0, 0.0])
    weight = torch.ones(3, 4)
    choice = Choice(forward=Sampled(TopK(), keep=0.5, center=True))
    kept = torch.zeros(4)
    kept[2:] = 1
    got = sampled_product(operation(F.linear, shifted, weight), choice, DRAW)
    mean = shifted.mean(0)
    torch.testing.assert_close(got, mean @ weight.t() + ((shifted - mean) * kept) @ weight.t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", SCOPES)
def test_dtypes_pass_through(dtype: torch.dtype, scope: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 8, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(5, 8, dtype=dtype, requires_grad=True), torch.randn(5, dtype=dtype)
    choice = Choice.of_scope(scope, Sampled(TopK(), center=scope in ("forward", "straight-through")))  # type: ignore[arg-type]
    got = run(op := operation(F.linear, x, weight, bias.requires_grad_()), sampled_product(op, choice, DRAW))
    assert {tensor.dtype for tensor in got} == {dtype}


def test_autocast_runs_in_its_dtype_and_returns_gradients_in_the_parameters_dtype() -> None:
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    choice = Choice.of_scope("forward", Sampled(TopK(), center=True))
    op = operation(F.linear, x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        result = sampled_product(op, choice, DRAW)
        result.float().sum().backward()
    assert result.dtype == torch.bfloat16
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.float32
    low = operation(F.linear, x.bfloat16(), weight.bfloat16())
    assert torch.equal(result, sampled_product(low, choice, DRAW))


def test_only_wanted_products_are_computed_and_saved() -> None:
    calls: list[str] = []

    def spying(op: Operation) -> Operation:
        class Spy(type(op.bilinear)):  # type: ignore[misc]
            def grad_left(self, *args: object) -> Tensor:
                calls.append("grad_left")
                return super().grad_left(*args)

            def grad_right(self, *args: object) -> Tensor:
                calls.append("grad_right")
                return super().grad_right(*args)

        return Operation(Spy(), op.left, op.right, op.bias, op.finish, op.weight)

    how = Sampled(TopK())
    x, weight = torch.randn(6, 8), torch.randn(5, 8, requires_grad=True)
    for scope in SCOPES:
        calls.clear()
        op = spying(operation(F.linear, x, weight))
        sampled_product(op, Choice.of_scope(scope, how), DRAW).sum().backward()
        # a product that is exact in forward and in the only gradient wanted runs in plain autograd
        assert calls == ["grad_right"]
        calls.clear()
        op = spying(operation(F.linear, x.requires_grad_(), weight.detach()))
        sampled_product(op, Choice.of_scope(scope, how), DRAW).sum().backward()
        assert calls == ([] if scope == "grad-weight" else ["grad_left"])
        x.requires_grad_(False)


def saved(op: Operation, choice: Choice) -> dict[tuple[int, ...], int]:
    """Shapes of the floating tensors kept for backward that are neither operand, and how many of each."""
    own = {op.left.data_ptr(), op.right.data_ptr()}
    found: dict[tuple[int, ...], int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.data_ptr() not in own:
            found[tuple(tensor.shape)] = found.get(tuple(tensor.shape), 0) + 1
        if tensor.data_ptr() in own:
            name = (-1,) if tensor.data_ptr() == op.left.data_ptr() else (-2,)
            found[name] = found.get(name, 0) + 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sampled_product(op, choice, DRAW)
    return found


def test_what_is_kept_for_backward() -> None:
    whole_left, whole_right = (-1,), (-2,)
    how = Sampled(TopK())
    linear = operation(F.linear, leaf(6, 8), leaf(5, 8))
    activations = operation(torch.matmul, nn.Identity()(leaf(6, 8)), leaf(8, 5) * 1)
    assert saved(linear, Choice.of_scope("forward", how)) == {(6, 4): 1, (5, 4): 1}
    assert saved(activations, Choice.of_scope("forward", how)) == {(6, 4): 1, (4, 5): 1}
    assert saved(linear, Choice.of_scope("backward", how)) == {whole_left: 1, whole_right: 1}
    assert saved(linear, Choice.of_scope("straight-through", how)) == {whole_left: 1, whole_right: 1}
    centred = Sampled(TopK(), center=True)
    assert saved(linear, Choice.of_scope("forward", centred)) == {
        (6, 4): 1, (5, 4): 1, (1, 8): 1, whole_right: 1
    }  # fmt: skip
    frozen = operation(F.linear, leaf(6, 8), leaf(5, 8).detach())
    assert saved(frozen, Choice.of_scope("forward", how)) == {(5, 4): 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("policy", [p for p in policies.all().values() if p.scores == "pair"])
def test_what_is_not_finite_reaches_the_result(value: float, center: bool, policy: type[Policy]) -> None:
    x, weight = torch.randn(6, 80), torch.randn(5, 80)
    x[2, 7] = value
    how = Sampled(policy(), keep=0.02, center=center)
    for number in range(10):
        draw = Draw("site", seed=0, number=number)
        got = sampled_product(operation(F.linear, x, weight), Choice.of_scope("forward", how), draw)
        assert not got[2].isfinite().any()


@pytest.mark.parametrize("scope", SCOPES)
def test_zeros_and_an_empty_batch(scope: str) -> None:
    choice = Choice.of_scope(scope, Sampled(TopK()))  # type: ignore[arg-type]
    for rows in (0, 1, 4):
        op = operation(F.linear, torch.zeros(rows, 8, requires_grad=True), leaf(5, 8).float(), torch.ones(5))
        result = sampled_product(op, choice, DRAW)
        result.sum().backward()
        assert torch.equal(result, torch.ones(rows, 5))


def test_memory_formats_are_kept() -> None:
    x = torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    layer = nn.Conv2d(8, 5, 3).to(memory_format=torch.channels_last)
    op = operation(F.conv2d, x, layer.weight, layer.bias)
    result = sampled_product(op, Choice.of_scope("forward", Sampled(TopK())), DRAW)
    result.backward(torch.randn_like(result))
    assert x.grad is not None
    assert layer.weight.grad is not None
    for tensor in (result, x.grad, layer.weight.grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    weight = torch.randn(8, 5).t().requires_grad_()  # a weight kept with transposed strides
    op = operation(F.linear, torch.randn(6, 8), weight)
    sampled_product(op, Choice.of_scope("forward", Sampled(TopK())), DRAW).sum().backward()
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()


def test_a_weight_score_without_a_weight_is_refused() -> None:
    how = Sampled(TopKWeights())
    linear = operation(F.linear, leaf(6, 8), leaf(5, 8))
    with pytest.raises(RequestError, match="grad_weight has no weight"):
        sampled_product(linear, Choice.of_scope("backward", how), DRAW)
    product = operation(torch.matmul, leaf(6, 8), leaf(8, 5) * 1)
    with pytest.raises(RequestError, match="this product has no weight"):
        sampled_product(product, Choice(forward=how), DRAW)


def test_a_second_derivative_is_refused() -> None:
    x, weight = leaf(6, 8), leaf(5, 8)
    result = sampled_product(
        operation(F.linear, x, weight), Choice.of_scope("forward", Sampled(TopK())), DRAW
    )
    (grad,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
