"""What reports say, as data: FLOPs before and after, memory, totals."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxapprox.capture._types import Edge, Note, Operator
from fxapprox.choices import Choice, Sampled, flops_after
from fxapprox.plan import Plan
from fxapprox.policies import policies
from fxapprox.report.facts import facts, kind_facts, policy_facts
from fxapprox.report.memory import kept_bytes, kept_in_all
from fxapprox.sites import PRODUCTS

from .made import Captured, choice, decided, resnet50, site

LAYER = site("fc", 100, 60, batch=32)
ONE = 2 * 32 * 100 * 60


def after(chosen: Choice | None) -> tuple[int, ...]:
    return tuple(flops_after(LAYER.products, chosen, product) for product in PRODUCTS)


def test_each_scope_saves_what_it_samples() -> None:
    assert after(None) == (ONE, ONE, ONE)
    assert after(choice(scope="forward", keep=0.25)) == (ONE / 4, ONE / 4, ONE / 4)
    assert after(choice(scope="straight-through", keep=0.25)) == (ONE / 4, ONE, ONE)
    assert after(choice("pps", scope="grad-weight", keep=0.25)) == (ONE, ONE, ONE / 4)
    assert after(choice("pps", scope="backward", keep=0.25)) == (ONE, ONE / 4, ONE / 4)


def test_k_is_what_the_choice_keeps_not_the_ratio() -> None:
    assert after(choice(keep=0.001))[0] == ONE / 100, "at least one pair"
    assert after(choice(keep=0.001, min_k=7))[0] == 7 * ONE / 100
    assert after(choice(keep=1.0)) == (ONE, ONE, ONE)


def test_reuse_goes_through_the_pairs_of_the_forward() -> None:
    # 50 of 100 forward; 50 of its own 60 pairs would be more
    assert after(choice(keep=0.1, min_k=50)) == (ONE / 2, ONE / 2, ONE / 2)
    assert after(choice(scope="backward", keep=0.1, min_k=30))[1] == ONE / 2


def test_a_product_that_is_never_computed_stays_at_nothing() -> None:
    first = site("first", 100, 60, depth=0)
    assert flops_after(first.products, choice(), "grad_input") == 0


def test_centring_adds_one_row_of_the_batch() -> None:
    assert after(choice(keep=0.25, center=True))[0] == ONE / 4 + ONE / 32


@given(st.floats(0.01, 1), st.integers(1, 200), st.booleans())
def test_sampling_never_costs_flops(keep: float, min_k: int, center: bool) -> None:
    chosen = choice(keep=keep, min_k=min_k, center=center)
    for product in PRODUCTS:
        assert 0 < flops_after(LAYER.products, chosen, product) <= ONE


def test_only_reuse_by_the_weight_gradient_saves_memory() -> None:
    whole = 32 * 100 * 4
    assert kept_bytes(LAYER, None) == (whole, whole)
    assert kept_bytes(LAYER, choice(keep=0.25)) == (whole, whole / 4)
    assert kept_bytes(LAYER, choice("pps", scope="backward")) == (whole, whole)
    assert kept_bytes(LAYER, choice(scope="straight-through")) == (whole, whole)
    own = Choice(Sampled(policies.get("topk")(), 0.5), "reuse", Sampled(policies.get("pps")(), 0.5))
    assert kept_bytes(LAYER, own) == (whole, whole)


def test_totals_add_up_and_the_facts_are_json() -> None:
    plan = resnet50()
    inside = sum(d.site.flops for d in plan.decisions)
    told = facts(plan, Captured(inside + 1000, (Note("frozen", "image size", source="net.py:3"),)))
    total = told["totals"]
    assert total["sites"] == 54
    assert total["rewritten"] == 52
    assert total["site_flops"] == inside == total["forward_flops"] + total["backward_flops"]
    assert total["model_flops"] - total["model_flops_after"] == inside - total["site_flops_after"]
    assert total["share_in_sites"] == pytest.approx(inside / (inside + 1000))
    assert json.loads(json.dumps(told)) == told
    assert told["warnings"][0]["name"] == "batch-norm"


def test_a_plan_alone_says_nothing_of_the_rest_of_the_model() -> None:
    told = facts(resnet50())
    assert told["totals"]["model_flops"] is None
    assert told["totals"]["share_in_sites"] is None
    assert told["rung"] is None


def test_a_count_of_the_model_below_its_parts_is_not_believed() -> None:
    plan = Plan("m", "f", (decided(LAYER, None),))
    assert facts(plan, Captured(1))["totals"]["share_in_sites"] == 1


def test_each_product_is_told() -> None:
    chosen = Choice(
        "exact", Sampled(policies.get("pps")(), 0.25), Sampled(policies.get("uniform")(), 0.5, min_k=3)
    )
    products = facts(Plan("m", "f", (decided(LAYER, chosen),)))["sites"][0]["products"]
    assert products["forward"]["treatment"] == "exact"
    assert products["grad_input"]["policy"] == "pps"
    assert products["grad_input"]["kept"] == 15
    assert products["grad_weight"]["options"] == {"scale": "inverse"}
    assert products["grad_weight"]["min_k"] == 3


def test_every_policy_and_kind_has_facts() -> None:
    assert {one["name"] for one in policy_facts()} == set(policies.all())
    assert all(one["summary"] and one["source"] for one in policy_facts())
    assert {"linear", "conv2d", "matmul"} <= {one["name"] for one in kind_facts()}
    json.dumps([policy_facts(), kind_facts()])


def test_a_model_counts_shared_inputs_once_and_bits_of_relus() -> None:
    facts_ = {"side": 16, "batch": 8}
    into = {name: site(name, 64, 64, **facts_) for name in ("block", "shortcut")}  # type: ignore[arg-type]
    whole = 8 * 64 * 256 * 4
    plan = [decided(into["block"], choice(keep=0.25)), decided(into["shortcut"], choice(keep=0.25))]
    assert kept_in_all(plan, None) == (2 * whole, whole / 2)
    graph = Captured(
        1,
        operators=tuple(Operator(name, op, "", None, None) for name, op in
                        (("r", "ReLU"), ("block", "Conv2d"), ("shortcut", "Conv2d"))),
        edges=(Edge("r", "block"), Edge("r", "shortcut")),
    )  # fmt: skip
    assert kept_in_all(plan, graph) == (whole, whole / 2 + whole / 32)
    half = [plan[0], decided(into["shortcut"], None)]
    assert kept_in_all(half, graph) == (whole, whole + whole / 4)
