import pytest
from by_hand import chain, site

from fxapprox.errors import RequestError
from fxapprox.rules import Match, NoMatch, Rule, decide, explain

RULES = (
    Rule(name="stem", depth="0", policy="exact"),
    Rule(name="wide", min_channels=100, policy="topk"),
    Rule(name="rest", policy="pps"),
    Rule(name="never", policy="crs"),
)
SITES = [*chain(2), site("wide", pairs=(128, 8, 8), depth=2), site("dw", depth=2, refusal="depthwise")]


def test_the_rules_that_were_tried_and_the_one_that_claimed():
    told = explain(SITES, RULES, "layers.1")
    assert [type(tried.outcome) for tried in told.tried] == [NoMatch, NoMatch, Match]
    assert told.tried[1].outcome.reason.startswith('in features 64 < 100 (rule "wide"')
    assert told.untried == RULES[3:]
    assert told.decision == decide(SITES, RULES, model="Net", fingerprint="").by_id["layers.1"]


def test_a_site_that_cannot_be_sampled_tries_no_rule():
    told = explain(SITES, RULES, "dw")
    assert told.tried == ()
    assert told.untried == RULES
    assert told.decision.reason == "depthwise"


def test_it_works_for_rules_that_decide_refuses():
    unmatched = Rule(name="x", path="nothing", policy="topk")
    assert explain(SITES, [unmatched], "layers.1").tried[0].outcome.condition == "path"


def test_a_plan_without_rules_knows_its_decision():
    plan = decide(SITES, RULES, model="Net", fingerprint="")
    told = explain(plan, (), "wide")
    assert (told.decision.rule, told.tried) == ("wide", ())
    assert explain(plan, RULES, "wide") == explain(SITES, RULES, "wide")


def test_an_unknown_site_suggests_the_nearest():
    with pytest.raises(RequestError, match=r"no site 'layer\.1'") as caught:
        explain(SITES, RULES, "layer.1")
    assert "did you mean 'layers.1'?" in str(caught.value)
    with pytest.raises(RequestError) as caught:
        explain(chain(500), RULES, "layers.7x")
    assert len(str(caught.value)) < 200
    with pytest.raises(RequestError, match="no site 'a'"):
        explain([], RULES, "a")
