"""Attention in pieces is torch's attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxapprox.kinds import Call, Operation, Refusal, recognise

from .normal_form import flops_of, parts_of, sizes_of

ATTENTION = F.scaled_dot_product_attention


def operands(dtype: torch.dtype = torch.float64, heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 4, 5, 8), (2, heads, 6, 8), (2, heads, 6, 3))
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.1},
        {"is_causal": True},
        {"attn_mask": torch.rand(5, 6) < 0.5},
        {"attn_mask": torch.randn(2, 1, 5, 6, dtype=torch.float64)},
        {"attn_mask": torch.zeros(5, 6, dtype=torch.bool)},  # queries that may see no key
    ],
    ids=lambda options: "+".join(options) or "plain",  # not the values: they differ between test processes
)
def test_equal_to_torchs(options: dict[str, Any]) -> None:
    q, k, v = operands()
    wanted = ATTENTION(q, k, v, **options)
    result, parts = parts_of(ATTENTION, q, k, v, **options)
    assert list(parts) == ["scores", "values"]
    torch.testing.assert_close(result, wanted)
    grad = torch.randn_like(wanted)
    for found, known in zip(
        torch.autograd.grad(result, (q, k, v), grad),
        torch.autograd.grad(wanted, (q, k, v), grad),
        strict=True,
    ):
        assert found.isfinite().all()
        torch.testing.assert_close(found, known)


def test_positional_arguments_and_grouped_queries() -> None:
    q, k, v = operands(heads=2)
    wanted = ATTENTION(q, k, v, enable_gqa=True)
    torch.testing.assert_close(parts_of(ATTENTION, q, k, v, None, 0.0, False, enable_gqa=True)[0], wanted)


def test_dropout_draws_what_torch_draws() -> None:
    q, k, v = operands()
    torch.manual_seed(3)
    wanted = ATTENTION(q, k, v, dropout_p=0.3)
    torch.manual_seed(3)
    torch.testing.assert_close(parts_of(ATTENTION, q, k, v, dropout_p=0.3)[0], wanted)


def test_sizes_and_flops() -> None:
    _, parts = parts_of(ATTENTION, *operands())
    scores, values = parts["scores"], parts["values"]
    assert isinstance(scores, Operation)
    assert isinstance(values, Operation)
    assert sizes_of(scores)["forward"] == (8, 8, "head features")
    assert sizes_of(scores)["grad_input"] == (8, 6, "keys")
    assert sizes_of(values)["forward"] == (8, 6, "keys")
    assert sizes_of(values)["grad_weight"] == (8, 5, "queries")
    assert flops_of(scores) == 2 * 8 * 5 * 6 * 8
    assert flops_of(values) == 2 * 8 * 5 * 6 * 3
    assert not scores.weight
    assert not values.weight


def test_sampled_only_where_a_rule_names_it() -> None:
    kind = recognise(function=ATTENTION)
    assert kind is not None
    assert kind.opt_in


def test_under_autocast() -> None:
    q, k, v = operands(torch.float32)
    with torch.autocast("cpu"):
        assert ATTENTION(q, k, v).dtype == torch.bfloat16
        result, _ = parts_of(ATTENTION, q, k, v)
    assert result.dtype == torch.bfloat16


def test_refused_parts_know_their_flops() -> None:
    q, k, v = (t.detach().cfloat() for t in operands(torch.float32))
    noted: dict[str, Any] = {}
    kind: Any = recognise(function=ATTENTION)
    with pytest.raises(RuntimeError):  # torch has none for complex numbers either
        kind.run(Call((q, k, v), function=ATTENTION), noted.__setitem__)
    assert all(isinstance(found, Refusal) and "complex64" in found.reason for found in noted.values())
    assert {part: found.flops for part, found in noted.items()} == {
        "scores": 2 * 8 * 5 * 6 * 8,
        "values": 2 * 8 * 5 * 6 * 3,
    }
