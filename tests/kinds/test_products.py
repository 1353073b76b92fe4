"""linear, matmul, addmm, einsum and tensordot: normal forms, weights, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fxapprox.kinds import Call, Refusal, recognise

from .normal_form import flops_of, operation_of, parts_of, refusal_of, sizes_of


def test_linear_is_torchs_to_the_bit() -> None:
    layer = nn.Linear(6, 4)
    for shape in ((5, 6), (2, 3, 6), (6,), (0, 6), (2, 0, 6)):
        x = torch.randn(shape)
        assert torch.equal(parts_of(layer, x)[0], layer(x))
    assert torch.equal(parts_of(layer, input=torch.ones(3, 6))[0], layer(torch.ones(3, 6)))


def test_linear_keeps_the_parameter_itself() -> None:
    layer = nn.Linear(6, 4)
    operation = operation_of(layer, torch.randn(2, 3, 6))
    assert operation.right is layer.weight
    assert operation.bias is layer.bias
    assert operation.weight
    assert operation_of(parametrizations.weight_norm(layer), torch.randn(3, 6)).weight
    assert operation_of(F.linear, torch.randn(3, 6), torch.randn(4, 6)).weight


def test_linear_with_a_bias_of_another_shape() -> None:
    x, weight = torch.randn(2, 3, 6), torch.randn(4, 6)
    for bias in (torch.randn(1), torch.randn(3, 4)):
        torch.testing.assert_close(parts_of(F.linear, x, weight, bias)[0], x @ weight.t() + bias)


def test_sizes_of_a_linear_layer() -> None:
    operation = operation_of(nn.Linear(6, 4), torch.randn(2, 3, 6))
    assert sizes_of(operation) == {
        "forward": (1, 6, "in features"),
        "grad_input": (1, 4, "out features"),
        "grad_weight": (1, 6, "batch"),
    }
    assert flops_of(operation) == 2 * 6 * 6 * 4


def test_conv1d_of_gpt2_is_a_linear_layer() -> None:
    bias, x, weight = nn.Parameter(torch.randn(4)), torch.randn(5, 6), nn.Parameter(torch.randn(6, 4))
    operation = operation_of(torch.addmm, bias, x, weight)
    assert operation.right is weight
    assert operation.bias is bias
    assert operation.weight
    assert sizes_of(operation)["forward"] == (1, 6, "in features")
    assert torch.equal(parts_of(torch.addmm, bias, x, weight)[0], torch.addmm(bias, x, weight))


def test_addmm_ignores_its_input_where_beta_is_zero() -> None:
    start, a, b = torch.full((4,), math.nan, requires_grad=True), torch.randn(5, 6), torch.randn(6, 4)
    result, _ = parts_of(torch.addmm, start, a, b, beta=0, alpha=2)
    torch.testing.assert_close(result, 2 * (a @ b))
    result.sum().backward()
    assert start.grad is not None
    assert torch.equal(start.grad, torch.zeros(4))


def test_addmm_under_autocast_keeps_the_type_of_the_product() -> None:
    start, a, b = torch.randn(5, 4), torch.randn(5, 6), torch.randn(6, 4)
    with torch.autocast("cpu"):
        assert parts_of(torch.addmm, start, a, b)[0].dtype == torch.addmm(start, a, b).dtype == torch.bfloat16


def test_a_parameter_on_the_left_changes_places() -> None:
    weight, x = nn.Parameter(torch.randn(4, 6)), torch.randn(3, 6, 5)
    operation = operation_of(Tensor.matmul, weight, x)
    assert operation.weight
    assert torch.equal(operation.right, weight.t())
    assert operation.left.shape == (15, 6)
    torch.testing.assert_close(parts_of(Tensor.matmul, weight, x)[0], weight @ x)


def test_views_of_parameters_are_weights() -> None:
    weight, x = nn.Parameter(torch.randn(4, 6)), torch.randn(3, 6)
    assert operation_of(Tensor.matmul, x, weight.t()).weight
    assert not operation_of(Tensor.matmul, x, weight.t() * 2).weight
    assert not operation_of(Tensor.matmul, x, torch.randn(6, 4)).weight
    assert operation_of(torch.einsum, "ni,oi->no", x, weight).weight
    with FakeTensorMode() as fake:
        parameter = fake.from_tensor(weight)
        assert operation_of(Tensor.matmul, fake.from_tensor(x), parameter.t()).weight


def test_shared_batches_choose_for_themselves_and_others_are_rows() -> None:
    def sizes(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, int]:
        return sizes_of(operation_of(torch.matmul, torch.randn(left), torch.randn(right)))["forward"][:2]

    assert sizes((2, 3, 5, 6), (2, 3, 6, 4)) == (6, 6)
    assert sizes((2, 3, 5, 6), (6, 4)) == (1, 6)
    assert sizes((2, 3, 5, 6), (3, 6, 4)) == (3, 6)
    assert sizes((2, 1, 5, 6), (1, 3, 6, 4)) == (1, 6)
    assert sizes((5, 6), (3, 6, 4)) == (1, 6)


SHAPE = st.lists(st.integers(1, 3), max_size=3)


@settings(max_examples=60, deadline=None)
@given(batch=SHAPE, cut_left=st.integers(0, 3), cut_right=st.integers(0, 3), ones=st.integers(0, 255),
       rows=st.integers(0, 3), inner=st.integers(1, 4), columns=st.integers(0, 3))  # fmt: skip
def test_matmul_of_any_shapes(
    batch: list[int], cut_left: int, cut_right: int, ones: int, rows: int, inner: int, columns: int
) -> None:
    """Batches cut short or set to 1 in either operand, vectors (0 rows or columns stands for none)."""
    lefts = [1 if ones >> d & 1 else n for d, n in enumerate(batch)][cut_left:] if rows else []
    rights = [1 if ones >> (d + 4) & 1 else n for d, n in enumerate(batch)][cut_right:] if columns else []
    left = torch.randn(*lefts, *[rows][: rows > 0], inner, dtype=torch.float64)
    right = torch.randn(*rights, inner, *[columns][: columns > 0], dtype=torch.float64)
    wanted = left @ right
    result, parts = parts_of(torch.matmul, left, right)
    torch.testing.assert_close(result, wanted)
    assert flops_of(parts[""]) == 2 * wanted.numel() * inner


LETTERS = "abcdef"


@settings(max_examples=60, deadline=None)
@given(roles=st.lists(st.sampled_from(["batch", "row", "column", "inner"]), min_size=1, max_size=6),
       data=st.data())  # fmt: skip
def test_einsum_of_any_letters(roles: list[str], data: st.DataObject) -> None:
    """Any mixture of batches, rows, columns and contracted letters, in any order."""
    named = dict(zip(LETTERS, roles, strict=False))
    size = {letter: data.draw(st.integers(1, 3)) for letter in named}
    shuffled = data.draw(st.permutations(sorted(named)))
    first = [letter for letter in shuffled if named[letter] != "column"]
    second = [letter for letter in reversed(shuffled) if named[letter] != "row"]
    out = [letter for letter in data.draw(st.permutations(shuffled)) if named[letter] != "inner"]
    equation = f"{''.join(first)},{''.join(second)}->{''.join(out)}"
    left, right = (
        torch.randn([size[name] for name in names], dtype=torch.float64) for names in (first, second)
    )
    wanted = torch.einsum(equation, left, right)
    result, parts = parts_of(torch.einsum, equation, left, right)
    assert isinstance(parts[""], Refusal) == ("inner" not in roles)
    torch.testing.assert_close(result, wanted)
    if "inner" in roles:
        assert flops_of(parts[""]) == 2 * math.prod(size.values())


def test_einsum_of_one_operand_holds_no_product() -> None:
    result, parts = parts_of(torch.einsum, "ij->ji", torch.eye(3))
    assert not parts
    assert torch.equal(result, torch.eye(3))


X = torch.randn(5, 6)


@pytest.mark.parametrize(
    ("call", "reason", "flops"),
    [
        ((torch.einsum, "i,j->ij", X[0], X[1]),
         "operands of (6,) and (6,) have no dimension in common that is summed", 72),
        ((torch.einsum, "ni,nj->n", X, X), "a dimension of 6 is summed in one of its operands only", 360),
        ((torch.einsum, "ii,ij->j", torch.eye(6), torch.eye(6)),
         "a dimension occurs twice in its left operand, so it takes a diagonal", 72),
        ((torch.einsum, "ij,jk,kl->il", X, torch.eye(6), torch.eye(6)),
         "it multiplies 3 operands, and only products of two are sampled", 720),
        ((torch.matmul, X.long(), X.long().t()),
         "its left operand is int64, and only real floating-point numbers are sampled", 300),
        ((torch.matmul, X, X.t().cfloat()),
         "its right operand is complex64, and only real floating-point numbers are sampled", 300),
        ((torch.matmul, X.to_sparse(), X.t()),
         "its left operand is sparse_coo, and only dense tensors are sampled", 300),
        ((torch.tensordot, torch.tensor(2.0), torch.tensor(3.0), 0),
         "operands of 0 and 0 dimensions are scaled, not contracted", 0),
        ((F.linear, X.cfloat(), torch.randn(4, 6).cfloat()),
         "its left operand is complex64, and only real floating-point numbers are sampled", 240),
    ],
)  # fmt: skip
def test_refusals_say_why(call: tuple, reason: str, flops: int) -> None:
    function, *args = call
    kind = recognise(function=function)
    assert kind is not None
    noted: list = []
    try:
        kind.run(Call(tuple(args), function=function), lambda part, found: noted.append(found))
    except RuntimeError:  # float32 times complex64: torch's own complaint, after the note
        assert args[0].dtype != args[1].dtype
    assert (noted[0].reason, noted[0].flops) == (reason, flops)


def test_a_result_written_in_place_is_refused() -> None:
    out = torch.empty(5, 5)
    assert refusal_of(torch.matmul, X, X.t(), out=out).reason == (
        "it writes its result into out=, a tensor that exists already, of (5, 5)"
    )
    assert torch.equal(out, X @ X.t())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_normed_layer_of_the_older_form() -> None:
    layer = torch.nn.utils.weight_norm(nn.Conv1d(4, 5, 3))  # a hook sets a plain tensor as the weight
    x = torch.randn(2, 4, 8)
    wanted = layer(x)
    result, parts = parts_of(layer, x)
    assert torch.equal(result, wanted)
    assert operation_of(layer, x).weight
    assert list(parts) == [""]
