"""Every example of every kind can be sampled: in each scope, by a biased and an unbiased policy, centred."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fxapprox.choices import SCOPES, Choice, Sampled
from fxapprox.kinds import Call, Kind, Operation, Refusal, kinds
from fxapprox.policies.pps import ProportionalToSize
from fxapprox.policies.topk import TopK
from fxapprox.sampling.product import sampled_product
from fxapprox.sampling.streams import Draw

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:LSTM with projections")
POLICIES = (TopK(), ProportionalToSize())
CHOICES = [Choice.of_scope(scope, Sampled(policy, 0.5)) for scope in SCOPES for policy in POLICIES]
CHOICES.append(Choice.of_scope("forward", Sampled(TopK(), 0.5, center=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(kinds.all()))
def test_examples_can_be_sampled(name: str, dtype: torch.dtype) -> None:
    kind = kinds.get(name)()
    torch.manual_seed(0)
    for call in kind.examples(dtype):
        wanted: Any = kind.exact(call)
        for choice in CHOICES:
            found = _run(kind, call, choice)
            if found is None:
                break
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            found.sum().backward()
            _check_gradients(call)


def _run(kind: Kind, call: Call, choice: Choice) -> Tensor | None:
    """The call with every product sampled, None where it is refused."""
    refused: list[Refusal] = []

    def product(part: str, operation: Operation | Refusal) -> Any:
        if isinstance(operation, Refusal):
            return refused.append(operation)
        return sampled_product(operation, choice, Draw(part, seed=0, number=0))

    result = kind.run(call, product)
    return None if refused else result


def _check_gradients(call: Call) -> None:
    """Every operand and parameter has a finite gradient, which is then taken away."""
    operands = [t for t in (*call.args, *call.kwargs.values()) if isinstance(t, Tensor) and t.is_leaf]
    operands += list(call.module.parameters()) if call.module is not None else []
    for operand in operands:
        if operand.requires_grad and operand.numel():
            assert operand.grad is not None
            assert operand.grad.shape == operand.shape
            assert operand.grad.isfinite().all()
        operand.grad = None
