import re

import pytest
from by_hand import chain, site
from hypothesis import given
from hypothesis import strategies as st

from fxapprox.errors import RequestError
from fxapprox.rules import Match, Rule, decide, rules_from


def plan(sites, *rules):
    return decide(sites, rules, model="Net", fingerprint="0" * 16)


def only(one_site, *rules):
    (decision,) = plan([one_site], *rules).decisions
    return decision


def test_the_first_rule_that_matches_decides():
    first, second = Rule(name="a", depth="1:", policy="pps"), Rule(name="b", policy="topk")
    decisions = plan(chain(3), first, second).decisions
    assert [d.rule for d in decisions] == ["b", "a", "a"]
    assert [d.choice for d in decisions] == [second.choice, first.choice, first.choice]
    assert decisions[1].reason.startswith('depth 1 in "1:" (rule "a", test_decide.py:')


rule_pool = st.sampled_from(
    [
        Rule(name="ends", depth="0, -1", policy="exact"),
        Rule(name="wide", min_channels=32, policy="topk"),
        Rule(name="late", depth="3:", policy="pps", scope="backward"),
        Rule(name="even", depth="::2", policy="crs"),
        Rule(name="second", path="*.1", policy="bernoulli"),
    ]
)


@given(
    rules=st.lists(rule_pool, min_size=1, max_size=5, unique_by=lambda r: r.name),
    pairs=st.sampled_from([16, 64]),
)
def test_every_site_follows_its_first_match(rules, pairs):
    if pairs == 16:
        rules = [rule for rule in rules if rule.name != "wide"]
    sites = chain(6, pairs=(pairs, 8, 8))
    for decision in plan(sites, *rules).decisions:
        claims = [rule for rule in rules if isinstance(rule.match(decision.site), Match)]
        assert decision.rule == (claims[0].label if claims else None)
        assert decision.choice == (claims[0].choice if claims else None)
        assert decision.reason


def test_exact_is_left_alone_by_name():
    decision = only(site(), Rule(name="stem", policy="exact"))
    assert (decision.choice, decision.rule) == (None, "stem")
    assert decision.reason.startswith('left exact: every site (rule "stem", test_decide.py:')


def test_a_site_that_cannot_be_sampled_keeps_its_own_reason():
    decision = only(site(refusal="depthwise: groups 64 = channels 64"), Rule(policy="topk"))
    assert (decision.choice, decision.rule) == (None, None)
    assert decision.reason == "depthwise: groups 64 = channels 64"


def test_no_rule_matched_says_how_the_rules_were_missed():
    sites = [site("a", pairs=(12, 8, 8)), site("b")]
    one = plan(sites, Rule(name="wide", min_channels=64, policy="topk")).by_id["a"]
    assert one.choice is None
    assert one.rule is None
    assert one.reason.startswith('in features 12 < 64 (rule "wide", test_decide.py:')
    rules = [Rule(name=f"r{n}", min_channels=n, policy="topk") for n in (20, 30, 40, 50)]
    several = plan(sites, *rules).by_id["a"].reason
    assert several.startswith("no rule matched: in features 12 < 20 (")
    assert several.endswith("; 2 more")


def test_opt_in_kinds_are_sampled_only_by_name():
    attention = site("attn", kind="matmul", opt_in=True, weight=False)
    blanket = only(attention, *rules_from(policy="topk"))
    assert blanket.choice is None
    assert "kind matmul is sampled only where a rule names it" in blanket.reason
    assert only(attention, Rule(kind="matmul", policy="topk")).choice is not None
    # a rule that does not name the kind passes it on to one that does
    both = only(attention, Rule(name="all", policy="topk"), Rule(name="mine", kind="matmul", policy="pps"))
    assert both.rule == "mine"
    assert only(attention, Rule(name="leave", policy="exact")).rule == "leave"


def test_a_site_whose_pairs_are_all_kept_is_left_exact():
    decision = only(site(pairs=(3, 8, 8)), Rule(policy="topk", min_k=4))
    assert decision.choice is None
    assert decision.reason.startswith("forward keeps all 3 pairs (in features; keep 0.5, min_k 4) (rule at ")
    assert decision.rule is not None


@pytest.mark.parametrize(
    ("rule", "facts"),
    [
        (Rule(policy="topk", keep=0.9, min_k=4), {"pairs": (5, 8, 8)}),
        # one product of two is sampled
        (Rule(policy="pps", scope="backward", min_k=9), {"pairs": (8, 8, 16)}),
        # the batch of the example inputs is not the batch of the training
        (Rule(policy="pps", scope="grad-weight", min_k=64), {"pairs": (8, 8, 2)}),
        # asked for by name
        (Rule(policy="topk", keep=1), {}),
        # an empty example batch has no FLOPs anywhere
        (Rule(grad_input={"policy": "pps"}), {"flops": (0, 0, 0)}),
    ],
)
def test_what_is_sampled_all_the_same(rule, facts):
    assert only(site(**facts), rule).choice == rule.choice


def test_a_product_that_no_step_computes_is_not_sampled():
    decision = only(site(flops=(100, 0, 100)), Rule(grad_input={"policy": "pps"}))
    assert decision.choice is None
    assert decision.reason.startswith("a training step never computes grad_input here")


def test_a_policy_on_the_weight_needs_a_weight():
    sites = [site("mm", kind="matmul", weight=False), site("fc")]
    rule = Rule(name="w", policy="topk-weights")
    decisions = plan(sites, rule).by_id
    assert decisions["fc"].choice == rule.choice
    assert decisions["mm"].choice is None
    told = "'topk-weights' scores pairs by the weight, and matmul here has no parameter"
    assert told in decisions["mm"].reason
    with pytest.raises(RequestError, match='rule "w" can sample no matmul site: policy ' + told):
        plan(sites, Rule(name="w", kind=["matmul", "linear"], policy="topk-weights"))


def test_no_sites_make_an_empty_plan():
    assert plan([], Rule(policy="topk")).decisions == ()


def test_a_rule_that_matches_nothing_is_an_error_with_the_closest_site():
    sites = [site("encoder.fc0"), site("encoder.fc1", depth=1), *(site(f"h{i}") for i in range(3))]
    with pytest.raises(RequestError) as caught:
        decide(sites, [Rule(name="deep and wide", kind="linear", depth="2:", policy="topk")],
               model="model.py", fingerprint="")  # fmt: skip
    head, closest, remedy = str(caught.value).split("\n")
    assert head.startswith('rule "deep and wide" matches no site (test_decide.py:')
    assert closest == "  5 linear sites; the closest is encoder.fc1: depth 1, wanted 2 or more"
    assert remedy == '  try depth = "1:", or: fxapprox explain model.py encoder.fc1'


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "conv2d"}, ("no conv2d site, the model has linear (2), matmul (1)", 'try kind = "linear"')),
        (
            {"min_channels": 500},
            ("3 sites; the closest is layers.1: in features 90 < 500", "try min_channels = 90"),
        ),
        ({"path": "layer.*"}, ('does not fit "layer.*"', 'try path = "layers.')),
        ({"depth": "-5"}, ("wanted -5 (height 4)", 'try depth = "0"')),
        ({"kind": "matmul", "min_channels": 70}, ("1 matmul site; the closest is mm: in features 64 < 70",)),
    ],
)
def test_the_closest_site_fails_least_and_the_remedy_fits_it(keys, said):
    sites = [
        site("layers.0", depth=0, height=1),
        site("layers.1", depth=1, pairs=(90, 1, 1)),
        site("mm", kind="matmul"),
    ]
    with pytest.raises(RequestError) as caught:
        plan(sites, Rule(policy="topk", **keys))
    for piece in said:
        assert piece in str(caught.value)


def test_all_rules_that_match_nothing_are_told_at_once():
    with pytest.raises(RequestError, match="2 problems with the rules") as caught:
        plan(
            chain(2),
            Rule(name="a", depth="9", policy="pps"),
            Rule(policy="pps"),
            Rule(name="b", path="x", policy="pps"),
        )
    assert 'rule "a" matches no site' in str(caught.value)
    assert 'rule "b" matches no site' in str(caught.value)


def test_a_shadowed_rule_is_a_warning_that_names_what_shades_it():
    rules = [
        Rule(name="odd", depth="1::2", policy="pps"),
        Rule(name="all", policy="topk"),
        Rule(name="low", depth="0, 1", policy="crs"),
    ]
    (warning,) = (w for w in plan(chain(4), *rules).warnings if w.name == "shadowed-rule")
    assert warning.sites == ("layers.0", "layers.1")
    assert warning.message.startswith('rule "low", test_decide.py:')
    assert "decides nothing: earlier rules claim all 2 sites that it matches (" in warning.message
    # the rule that decides a site, not another that matches it, too
    assert re.search(r'\(rule "all", \S+; rule "odd", \S+\)$', warning.message)


def test_a_rule_that_decides_one_site_is_not_shadowed():
    rules = [Rule(name="most", depth=":3", policy="pps"), Rule(name="rest", policy="topk")]
    assert not [w for w in plan(chain(4), *rules).warnings if w.name == "shadowed-rule"]


def test_a_kind_that_the_policy_cannot_serve_is_an_error_where_a_rule_names_it():
    sites = [*chain(2), site("conv", kind="conv2d", weight_shape=(4, 3, 1, 1))]
    with pytest.raises(
        RequestError, match=r"can sample no conv2d site: policy 'alsh' serves linear layers only"
    ):
        plan(sites, Rule(name="both", kind=["linear", "conv2d"], policy="alsh"))
    taken = plan(sites, Rule(policy="alsh")).decisions
    assert [d.choice is not None for d in taken] == [True, True, False]
