import copy
import pickle

import pytest
from by_hand import site

from fxapprox.choices import Choice, Sampled
from fxapprox.errors import RequestError
from fxapprox.policies import policies
from fxapprox.rules import Match, NoMatch, Rule, rules_from


def policy(name, **options):
    return policies.get(name)(**options)


def test_the_short_form_spreads_the_policy_by_its_scope():
    rule = Rule(policy="topk", keep=0.25, min_k=4, scope="backward")
    assert rule.choice == Choice.of_scope("backward", Sampled(policy("topk"), 0.25, 4))


def test_defaults_are_half_the_pairs_and_the_forward_scope():
    assert Rule(policy="pps").choice == Choice.of_scope("forward", Sampled(policy("pps"), 0.5, 1))


def test_a_policy_takes_its_own_options():
    rule = Rule(policy="uniform", scale="none", scope="grad-weight")
    assert rule.choice.grad_weight.policy == policy("uniform", scale="none")
    assert not rule.choice.grad_weight.policy.unbiased


def test_products_can_be_named_one_by_one_and_the_others_are_exact():
    rule = Rule(forward={"policy": "bernoulli", "keep": 0.3, "center": True}, grad_weight="reuse")
    expected = Choice(Sampled(policy("bernoulli"), 0.3, center=True), "exact", "reuse", "per product")
    assert rule.choice == expected


@pytest.mark.parametrize(
    "keys",
    [{"policy": "exact"}, {"forward": "exact"}, {"grad_input": {"policy": "exact"}, "forward": "exact"}],
)
def test_exact_is_no_choice(keys):
    assert Rule(**keys).choice is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"policy": "topkk"}, "unknown policy 'topkk'"),
        ({"policy": "topk", "scope": "foward"}, "unknown scope 'foward'"),
        ({"policy": "topk", "keep": 0}, "keep = 0 is outside 0 < keep <= 1"),
        ({"policy": "topk", "keep": 1.01}, "keep = 1.01 is outside"),
        ({"policy": "topk", "keep": float("nan")}, "keep = nan is outside"),
        ({"policy": "topk", "keep": "0.5"}, "keep must be a number or a schedule, not '0.5'"),
        ({"policy": "topk", "keep": True}, "keep must be a number or a schedule, not True"),
        ({"policy": "topk", "min_k": 0}, "min_k = 0 is less than 1"),
        ({"policy": "topk", "min_k": 1.5}, "min_k must be a whole number"),
        ({"policy": "topk", "center": 1}, "center must be true or false"),
        ({"policy": "topk", "center": True, "scope": "backward"}, "center applies to the forward product"),
        (
            {"policy": "topk", "scale": "none"},
            "scale is an option of policy uniform, weighted, not of 'topk'",
        ),
        ({"policy": "uniform", "scale": "nine"}, "scale = 'nine' is not a value of policy 'uniform'"),
        ({"policy": "topk", "kepe": 0.5}, "unknown key 'kepe'"),
        ({"policy": "topk", "recall": True}, "unknown key 'recall'"),
        ({"policy": "topk-weights", "scope": "backward"}, "no operand of grad_weight"),
        ({"policy": "topk-weights", "scope": "grad-weight"}, "no operand of grad_weight"),
        ({"grad_weight": {"policy": "topk-weights"}}, "no operand of grad_weight"),
        ({"kind": "linear"}, "names no policy"),
        ({"keep": 0.5}, "names no policy"),
        ({"policy": "topk", "forward": "exact"}, "policy and forward exclude each other"),
        ({"forward": "exact", "keep": 0.5}, "keep beside forward"),
        ({"forward": "topk"}, 'forward must be "exact" or a table'),
        ({"forward": "reuse"}, 'forward must be "exact" or a table'),
        ({"grad_input": "reuse"}, "forward is exact"),
        ({"grad_input": {"policy": "topk", "center": True}}, "center applies to the forward product only"),
        ({"grad_input": {"keep": 0.5}}, "grad_input: names no policy"),
        ({"grad_input": {"policy": "topk", "scope": "forward"}}, "grad_input: unknown key 'scope'"),
        ({"kind": "liner", "policy": "topk"}, "unknown kind 'liner'"),
        ({"kind": [], "policy": "topk"}, "kind must be a name or a list"),
        ({"kind": 3, "policy": "topk"}, "kind must be a name or a list"),
        ({"path": "re:(", "policy": "topk"}, "is no regular expression"),
        ({"path": "", "policy": "topk"}, "fits no site"),
        ({"depth": "x", "policy": "topk"}, "depth = 'x'"),
        ({"depth": 1.5, "policy": "topk"}, "depth must be a whole number or a string"),
        ({"min_channels": 0, "policy": "topk"}, "min_channels = 0 is less than 1"),
        ({"min_channels": "64", "policy": "topk"}, "min_channels must be a whole number"),
        ({"name": 3, "policy": "topk"}, "name must be a string"),
    ],
)
def test_what_is_wrong_is_said(keys, message):
    with pytest.raises(RequestError) as caught:
        Rule(**keys)
    assert message in str(caught.value)
    assert "problems" not in caught.value.message  # one mistake, one problem


def test_all_problems_are_told_at_once_with_the_line_that_wrote_the_rule():
    with pytest.raises(RequestError) as caught:
        Rule(kind="liner", policy="topkk", keep=2, wrong=1)
    text = str(caught.value)
    assert text.startswith("4 problems with the rule")
    for piece in ("test_rule.py:", "did you mean 'linear'?", "did you mean 'topk'?", "keep = 2", "'wrong'"):
        assert piece in text


def test_the_nearest_name_is_suggested():
    with pytest.raises(RequestError, match="did you mean 'min_channels'"):
        Rule(policy="topk", min_chanels=3)


@pytest.mark.parametrize(
    ("keys", "facts", "reason"),
    [
        ({}, {}, 'every site (rule "r", '),
        ({"kind": "linear"}, {}, "kind linear ("),
        ({"kind": ["conv2d", "linear"]}, {}, "kind linear ("),
        ({"path": "layer*"}, {"site_id": "layer1.0.conv1"}, 'path layer1.0.conv1 fits "layer*" ('),
        ({"path": r"re:layer\d\.\d.*"}, {"site_id": "layer1.0.conv1"}, "path layer1.0.conv1 fits"),
        ({"depth": "1:-1"}, {"depth": 3, "height": 1}, 'depth 3 and height 1 in "1:-1" ('),
        ({"min_channels": 64}, {"pairs": (64, 1, 1)}, "in features 64 >= 64 ("),
    ],
)
def test_a_match_says_why(keys, facts, reason):
    outcome = Rule(name="r", policy="topk", **keys).match(site(**facts))
    assert isinstance(outcome, Match)
    assert outcome.reason.startswith(reason)


@pytest.mark.parametrize(
    ("keys", "facts", "condition", "reason"),
    [
        ({"kind": "conv2d"}, {}, "kind", 'kind linear, wanted conv2d (rule "r", test_rule.py:'),
        ({"path": "layer*"}, {"site_id": "fc.layer"}, "path", 'path fc.layer does not fit "layer*"'),
        ({"path": "re:layer"}, {"site_id": "layer1"}, "path", 'path layer1 does not fit "re:layer"'),
        ({"path": "Layer*"}, {"site_id": "layer1"}, "path", "path layer1 does not fit"),
        ({"depth": "2:"}, {"depth": 1, "height": 5}, "depth", "depth 1, wanted 2 or more"),
        ({"depth": "-1"}, {"depth": 1, "height": 5}, "depth", "depth 1 and height 5, wanted -1 (height 0)"),
        ({"min_channels": 64}, {"pairs": (12, 1, 1)}, "min_channels", "in features 12 < 64"),
        ({"min_channels": 64, "kind": "conv2d"}, {"pairs": (12, 1, 1)}, "kind", "kind linear"),
    ],
)
def test_a_miss_names_the_first_condition_that_fails_with_both_values(keys, facts, condition, reason):
    outcome = Rule(name="r", policy="topk", **keys).match(site(**facts))
    assert isinstance(outcome, NoMatch)
    assert outcome.condition == condition
    assert outcome.reason.startswith(reason)
    assert outcome.failed == len(keys)


def test_rules_compare_by_what_they_say_and_survive_copies():
    one, other = Rule(policy="topk", depth="1:"), Rule(depth="1:", policy="topk", keep=0.5)
    assert one == other
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one


def test_the_shorthand_is_one_rule_over_every_site():
    (rule,) = rules_from(policy="uniform", keep=0.25, scope="grad-weight", scale="none")
    assert rule.choice.grad_weight == Sampled(policy("uniform", scale="none"), 0.25)
    assert isinstance(rule.match(site()), Match)
    assert str(rule) == 'rule "every site"'


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "names no policy"),
        ({"keep": 0.5}, "names no policy"),
        ({"policy": "topk", "keep": 0.0}, "keep = 0.0 is outside"),
        ({"policy": "topk", "sclae": "none"}, "unknown key 'sclae'"),
        ({"policy": "topk", "depth": "1:"}, "depth is no option"),
    ],
)
def test_a_wrong_shorthand(keys, message):
    with pytest.raises(RequestError) as caught:
        rules_from(**keys)
    assert message in str(caught.value)
