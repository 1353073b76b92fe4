import itertools

import pytest
from by_hand import chain, site
from hypothesis import given
from hypothesis import strategies as st

from fxapprox.advice import Ratios, advise, growth, heaviest_path
from fxapprox.plan import Decision
from fxapprox.rules import Rule, decide


def warnings(sites, *rules):
    return {w.name: w for w in decide(sites, rules, model="Net", fingerprint="").warnings}


def normed(length=2):
    return [site(f"conv{n}", kind="conv2d", norm_after=f"bn{n}") for n in range(length)]


def test_an_unscaled_forward_policy_before_batch_norm():
    warning = warnings([*normed(), site("fc")], Rule(policy="topk"))["batch-norm"]
    assert warning.sites == ("conv0", "conv1")
    assert warning.message.startswith(
        "2 sites before batch norm (bn0, bn1) under an unscaled forward policy (topk)"
    )
    assert "re-estimate" in warning.remedy
    assert str(warning) == warning.message


@pytest.mark.parametrize(
    ("keys", "earned"),
    [
        ({"policy": "topk"}, True),
        ({"policy": "topk", "scope": "straight-through", "center": True}, True),
        ({"policy": "uniform", "scale": "none"}, True),
        ({"policy": "uniform"}, False),
        ({"policy": "pps"}, False),
        ({"policy": "topk", "scope": "backward"}, False),
        ({"policy": "topk", "keep": 1.0}, False),
    ],
)
def test_when_batch_norm_matters(keys, earned):
    assert ("batch-norm" in warnings(normed(), Rule(**keys))) == earned


@pytest.mark.parametrize(
    ("keys", "earned"),
    [
        ({"policy": "crs"}, True),
        ({"policy": "wta"}, True),
        ({"policy": "pps"}, False),
        ({"policy": "crs", "keep": 1.0}, False),
        ({"policy": "crs", "scope": "backward"}, False),
        ({"policy": "crs", "scope": "straight-through"}, False),
        ({"policy": "bernoulli"}, False),
        ({"forward": {"policy": "crs"}, "grad_input": "reuse"}, False),
    ],
)
def test_a_draw_with_replacement_reused_backward(keys, earned):
    assert ("reused-draw" in warnings([site()], Rule(**keys))) == earned


def test_the_bias_of_a_reused_draw_comes_with_its_number():
    sites = [site("wide", pairs=(64, 32, 16)), site("narrow", pairs=(16, 32, 16))]
    warning = warnings(sites, Rule(policy="wta"))["reused-draw"]
    assert warning.message.startswith("wta reused backward at 2 sites: ")
    assert "up to 1/k = 0.12 " in warning.message  # 8 of 16
    assert 'scope "backward"' in warning.remedy


def test_growth_is_the_papers():
    # operators.md: what the paper prints for c = 5
    grown = [growth([5.0] * j) for j in range(1, 7)]
    assert grown == pytest.approx([0.2, 0.44, 0.728, 1.0736, 1.48832, 1.985984])
    assert growth([1.0, 0.5]) == pytest.approx(2 * 3 - 1)
    assert growth([5.0] * 5000) == growth([0.0]) == float("inf")
    assert growth([float("inf")]) == 0


def test_many_forward_samples_one_after_the_other_are_warned_about_with_their_growth():
    assert "deep-forward" not in warnings(chain(3), Rule(policy="pps"))
    warning = warnings(chain(4), Rule(policy="pps"))["deep-forward"]
    assert "4 sites one after the other: predicted relative error (6/5)^4 − 1 = 1.07" in warning.message
    assert "assumed c = 5, not measured: no batch at hand" in warning.message
    assert warning.sites == ("layers.0", "layers.1", "layers.2", "layers.3")


def test_an_exact_layer_passes_the_error_on():
    # relative errors go through a linear layer unchanged, so sites before and after it add up
    rules = [Rule(depth="2", policy="exact"), Rule(policy="pps")]
    assert "deep-forward" not in warnings(chain(4), *rules)
    assert warnings(chain(5), *rules)["deep-forward"].sites == tuple(f"layers.{i}" for i in (0, 1, 3, 4))
    assert "deep-forward" not in warnings(chain(8), Rule(policy="pps", scope="backward"))
    assert "deep-forward" not in warnings(chain(8), Rule(policy="topk", keep=1))


def measured(ratios):
    decisions = decide(chain(4), [Rule(policy="topk")], model="Net", fingerprint="").decisions
    found = advise(decisions, measure=lambda _: Ratios(ratios))
    return {warning.name: warning for warning in found}


def test_the_prediction_uses_the_measured_c():
    ratios = {f"layers.{i}": c for i, c in enumerate([10.0, 20.0, 1.0, 4.0])}
    message = measured(ratios)["deep-forward"].message
    assert f"{1.1 * 1.05 * 2 * 1.25 - 1:.3g}, with c = 1 to 20 measured on the example inputs" in message
    assert "assumed" not in message
    assert "deep-forward" not in measured(dict.fromkeys(ratios, 20.0))
    assert "5 assumed at 2" in measured({"layers.0": 1.0, "layers.1": 1.0})["deep-forward"].message


def test_the_path_is_the_one_that_grows_most():
    sites = [
        site("in"),
        *(site(f"long{i}", depth=1 + i, after=(f"long{i - 1}" if i else "in",)) for i in range(3)),
    ]
    sites.append(site("short", depth=1, after=("in",)))
    decisions = decide(sites, [Rule(policy="topk")], model="Net", fingerprint="").decisions
    ratios = dict.fromkeys(("in", "long0", "long1", "long2"), 9.0) | {"short": 0.5}
    (warning,) = (w for w in advise(decisions, measure=lambda _: Ratios(ratios)) if w.name == "deep-forward")
    assert warning.sites == ("in", "short")


def test_nothing_is_measured_that_nobody_needs():
    def never(_):
        raise AssertionError("measured")

    decisions = decide(
        chain(4), [Rule(policy="topk", scope="backward")], model="Net", fingerprint=""
    ).decisions
    advise(decisions, measure=never)


@given(edges=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20))
def test_the_heaviest_path_is_a_longest_path(edges):
    before = {n: sorted({a for a, b in edges if b == n and a < b}) for n in range(8)}
    longest = dict.fromkeys(range(8), 0)
    for n in range(8):
        longest[n] = 1 + max((longest[a] for a in before[n]), default=0)
    sites = [site(f"s{n}", depth=longest[n] - 1, after=tuple(f"s{a}" for a in before[n])) for n in range(8)]
    decisions = [Decision(s, None, None, "") for s in sites]
    found = [d.site for d in heaviest_path(decisions, lambda _: 1.0)]
    assert len(found) == max(longest.values())
    assert all(a.id in b.after for a, b in itertools.pairwise(found))
    assert heaviest_path(decisions, lambda _: None) == []


def test_sites_that_feed_each_other_end():
    loop = [Decision(s, None, None, "") for s in (site("a", after=("b",)), site("b", after=("a",), depth=1))]
    assert [d.site.id for d in heaviest_path(loop, lambda _: 1.0)] == ["a", "b"]
    assert heaviest_path([], lambda _: 1.0) == []


@pytest.mark.parametrize(
    ("keys", "earned"),
    [
        ({"policy": "topk", "scope": "backward"}, True),
        ({"grad_weight": {"policy": "weighted"}}, True),
        ({"grad_weight": {"policy": "weighted", "scale": "horvitz-thompson"}}, False),
        ({"policy": "pps", "scope": "backward"}, False),
        ({"policy": "topk"}, False),
    ],
)
def test_biased_draws_of_gradients(keys, earned):
    assert ("biased-backward" in warnings([site()], Rule(**keys))) == earned


def test_keep_1_is_obeyed_and_said():
    assert warnings([site()], Rule(policy="topk", keep=1))["keeps-all"].sites == ("fc",)
    assert "keeps-all" not in warnings([site()], Rule(policy="topk"))


def rows(batch, **facts):
    return site(pairs=(64, 32, batch), **facts)


@pytest.mark.parametrize(
    ("keys", "earned"),
    [
        ({"policy": "topk"}, True),
        ({"policy": "pps", "scope": "backward"}, True),
        ({"policy": "pps", "scope": "grad-weight"}, True),
        ({"policy": "topk-weights"}, False),
        ({"policy": "uniform", "scope": "backward"}, False),
        ({"policy": "topk", "keep": 1}, False),
    ],
)
def test_scores_from_a_small_batch(keys, earned):
    assert ("small-batch" in warnings([rows(9)], Rule(**keys))) == earned
    assert "small-batch" not in warnings([rows(10)], Rule(**keys))


def test_the_number_is_the_smallest_batch():
    sites = [rows(9), site("other", pairs=(64, 32, 4)), site("fine")]
    warning = warnings(sites, Rule(policy="pps"))["small-batch"]
    assert warning.sites == ("fc", "other")
    assert "norms over 4 rows at 2 sites (pps)" in warning.message
    assert "10 or more" in warning.remedy


def test_every_position_of_a_convolution_is_a_row():
    conv = {"kind": "conv2d", "pairs": (8, 4, 2), "input_shape": (2, 8, 6, 6), "output_shape": (2, 4, 6, 6)}
    assert "small-batch" not in warnings([site(**conv)], Rule(policy="topk"))
    assert "small-batch" in warnings([site(**conv)], Rule(policy="pps", scope="backward"))


def test_alsh_through_more_than_three_layers():
    assert "alsh-depth" not in warnings(chain(3), Rule(policy="alsh"))
    warning = warnings(chain(5), Rule(policy="alsh"))["alsh-depth"]
    assert warning.message.startswith("alsh through 5 layers")
    assert len(warning.sites) == 5
    assert "alsh-depth" not in warnings(chain(5), Rule(policy="topk"))
