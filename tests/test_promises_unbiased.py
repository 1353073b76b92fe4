"""Policies that say they are unbiased are, in whole models: z-tests over many draws."""

from __future__ import annotations

import math

import pytest
import torch
from promises import fresh, step, tensors
from torch import Tensor

import fxapprox
from fxapprox.capture.trials import projection

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
    if scope not in fxapprox.policies.policies.get(policy).scopes:
        return
    model, fast, args, kwargs = fresh(name, policy=policy, scope=scope, keep=0.5)
    fast.double(), model.double()
    args = tuple(arg.double() for arg in args)
    torch.manual_seed(3)
    draws = 250
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
