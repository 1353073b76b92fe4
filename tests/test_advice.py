import itertools

import pytest
from by_hand import chain, site
from hypothesis import given
from hypothesis import strategies as st

from fxapprox.advice import growth, longest_chain
from fxapprox.plan import Decision
from fxapprox.rules import Rule, decide


def warnings(sites, *rules):
    return {w.name: w for w in decide(sites, rules, model="Net", fingerprint="").warnings}


def normed(length=2):
    return [site(f"conv{n}", kind="conv2d", norm_after=f"bn{n}") for n in range(length)]


def test_an_unscaled_forward_policy_before_batch_norm():
    warning = warnings([*normed(), site("fc")], Rule(policy="topk"))["batch-norm"]
    assert warning.sites == ("conv0", "conv1")
    assert warning.message.startswith("2 sites before batch norm under an unscaled forward policy (topk)")
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
        ({"policy": "crs", "scope": "backward"}, False),
        ({"policy": "crs", "scope": "straight-through"}, False),
        ({"policy": "bernoulli"}, False),
        ({"forward": {"policy": "crs"}, "grad_input": "reuse"}, False),
    ],
)
def test_crs_reused_backward(keys, earned):
    assert ("crs-reused" in warnings([site()], Rule(**keys))) == earned


def test_growth_is_the_papers():
    # operators.md: what the paper prints for c = 5
    assert [growth(j) for j in range(1, 7)] == pytest.approx([0.2, 0.44, 0.728, 1.0736, 1.48832, 1.985984])
    assert growth(5000) == float("inf")


def test_many_consecutive_forward_samples_are_warned_about_with_their_growth():
    assert "deep-forward" not in warnings(chain(3), Rule(policy="pps"))
    warning = warnings(chain(4), Rule(policy="pps"))["deep-forward"]
    assert "4 consecutive sites: predicted relative error (6/5)^4 − 1 = 1.07" in warning.message
    assert "assumes" in warning.message
    assert warning.sites == ("layers.0", "layers.1", "layers.2", "layers.3")


def test_exact_sites_break_the_chain():
    rules = [Rule(depth="3", policy="exact"), Rule(policy="pps")]
    assert "deep-forward" not in warnings(chain(7), *rules)
    assert len(warnings(chain(8), *rules)["deep-forward"].sites) == 4
    assert "deep-forward" not in warnings(chain(8), Rule(policy="pps", scope="backward"))


@given(edges=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20))
def test_the_longest_chain_is_a_longest_path(edges):
    before = {n: sorted({a for a, b in edges if b == n and a < b}) for n in range(8)}
    longest = dict.fromkeys(range(8), 0)
    for n in range(8):
        longest[n] = 1 + max((longest[a] for a in before[n]), default=0)
    sites = [site(f"s{n}", depth=longest[n] - 1, after=tuple(f"s{a}" for a in before[n])) for n in range(8)]
    chain_found = [d.site for d in longest_chain([Decision(s, None, None, "") for s in sites])]
    assert len(chain_found) == max(longest.values())
    assert all(a.id in b.after for a, b in itertools.pairwise(chain_found))


def test_sites_that_feed_each_other_end():
    loop = [site("a", after=("b",)), site("b", after=("a",), depth=1)]
    assert [d.site.id for d in longest_chain([Decision(s, None, None, "") for s in loop])] == ["a", "b"]
    assert longest_chain([]) == []


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
