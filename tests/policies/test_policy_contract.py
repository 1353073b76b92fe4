"""The contract over every registered policy and its options, one of a third party's among them."""

from __future__ import annotations

import itertools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from fxapprox.errors import RequestError
from fxapprox.policies import AnyPolicy, Policy, Selection, Stream, policies, policy
from fxapprox.testing.policies import SeededStream, check_policy, checks_of


@pytest.fixture(scope="module", autouse=True)
def third_party() -> Iterator[None]:
    """A policy registered from outside for the length of this module."""
    policies.add(Consecutive.name, Consecutive)
    yield
    del policies._entries[Consecutive.name]


@dataclass(frozen=True)
class Consecutive(Policy):
    """Keeps k neighbours from a random place on, scaled by n/k: unbiased, every place is as likely."""

    name = "consecutive"
    source = "this test"
    unbiased = True
    random = True
    scores = "none"
    size = "k"

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        groups, n = scores.shape
        start = torch.randint(n, (groups, 1), generator=stream.generator())
        index = ((start + torch.arange(k)) % n).sort().values
        return Selection(index, scores.new_full((groups, k), n / k))


def variants() -> list[AnyPolicy]:
    """Every registered policy with every combination of its options that take one of several names."""
    found: list[AnyPolicy] = []
    for cls in [*policies.all().values(), Consecutive]:
        hints = typing.get_type_hints(cls)
        choices = {
            field.name: typing.get_args(hints[field.name])
            for field in fields(cls)
            if typing.get_origin(hints[field.name]) is Literal
        }
        for values in itertools.product(*choices.values()):
            found.append(cls(**dict(zip(choices, values, strict=True))))
    return found


@pytest.mark.parametrize(
    ("instance", "check"),
    [
        pytest.param(instance, check, id=f"{instance!r}-{check.__name__}")
        for instance in variants()
        for check in checks_of(instance)
    ],
)
def test_contract(instance: AnyPolicy, check: types.FunctionType) -> None:
    check(instance)


def test_the_registry_serves_a_third_party_like_any_other() -> None:
    check_policy(policies.get("consecutive"))


def test_all_policies_of_the_design_are_there() -> None:
    known = {"exact", "topk", "topk-weights", "crs", "bernoulli", "wta", "pps", "uniform", "weighted"}
    known |= {"alsh", "dropout", "adaptive-dropout", "meprop"}
    assert known <= set(policies.all())


# One policy broken in each way the contract forbids; at module level, so that they can be pickled.
PPS = policies.get("pps")


class Scaled(PPS):
    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        drawn = super().select(scores, k, stream)
        return replace(drawn, scale=drawn.scale * 1.03)


class Descending(PPS):
    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        drawn = super().select(scores, k, stream)
        return replace(drawn, index=drawn.index.flip(-1))


class TooFew(PPS):
    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        drawn = super().select(scores, k, stream)
        return replace(drawn, index=drawn.index[:, 1:], scale=drawn.scale[:, 1:])


class OneDrawForAll(PPS):
    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        drawn = super().select(scores[:1], k, stream)
        return Selection(drawn.index.repeat(len(scores), 1), drawn.scale.repeat(len(scores), 1))


class GlobalGenerator(PPS):
    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        torch.rand(1)
        return super().select(scores, k, stream)


class InPlace(PPS):
    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        return super().select(scores.add_(1.0), k, stream)


class Undeclared(PPS):
    random = False


class Repeats(policies.get("crs")):
    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        return replace(super().select(scores, k, stream), unique=True)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (Scaled, "standard errors off"),
        (Descending, "not ascending"),
        (TooFew, "keeps 0 pairs, not 1"),
        (OneDrawForAll, "32 groups of equal scores share 1 draws"),
        (GlobalGenerator, "global generator"),
        (InPlace, "changed the scores"),
        (Undeclared, "declared random=False"),
        (Repeats, "a pair comes twice"),
    ],
)
def test_a_broken_policy_is_found(broken: type[Policy], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_policy(broken)


@pytest.mark.parametrize("name", ["uniform", "weighted"])
def test_an_option_that_does_not_exist_is_an_error_that_lists_the_known(name: str) -> None:
    with pytest.raises(RequestError) as error:
        policies.get(name)(scale="non")
    assert f"policy '{name}': scale = 'non' is not allowed" in str(error.value)
    assert "did you mean 'none'?" in str(error.value)


def test_registering_sets_the_facts_and_refuses_a_second_claim() -> None:
    with pytest.raises(RequestError, match="two entries claim the policy name 'topk'"):

        @policy("topk", source="nowhere", unbiased=False, random=False)
        @dataclass(frozen=True)
        class Another(Policy):
            def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
                raise NotImplementedError


def test_facts_follow_the_options() -> None:
    uniform, weighted = policies.get("uniform"), policies.get("weighted")
    assert uniform().unbiased
    assert not uniform(scale="none").unbiased
    assert not weighted().unbiased
    assert weighted(scale="horvitz-thompson").unbiased


@pytest.mark.parametrize("name", ["topk", "topk-weights"])
def test_deterministic_policies_compile_whole(name: str) -> None:
    instance = policies.get(name)()

    def kept(scores: Tensor) -> Tensor:
        return instance.select(scores, 7, SeededStream(0)).index

    scores = torch.rand(3, 20, generator=SeededStream(1).generator())
    compiled = torch.compile(kept, backend="eager", fullgraph=True)
    assert torch.equal(compiled(scores), kept(scores))
