"""The printed summary: every fact, in 80 and in 160 columns."""

from __future__ import annotations

import dataclasses

import pytest

import fxapprox
from fxapprox.capture._types import Note
from fxapprox.choices import Choice, Sampled
from fxapprox.plan import Plan
from fxapprox.policies import policies
from fxapprox.report import Summary, facts, summary
from fxapprox.report.amounts import amount, change, percent, saving, size
from fxapprox.report.console import text_of
from fxapprox.report.facts import explanation_facts, kind_facts, policy_facts
from fxapprox.report.grouping import grouped
from fxapprox.report.listings import explanation_text, kinds_table, policies_table
from fxapprox.report.tables import summary_table
from fxapprox.rules import Rule, explain

from .made import Captured, choice, decided, resnet50, site

WIDTHS = (80, 160)
NOTES = (
    Note("frozen", "image size 32×32", source="models/x.py:41"),
    Note("opaque", "an if on data", module="neck", source="models/x.py:77"),
)


def text(plan: Plan, width: int, **options: object) -> str:
    total = sum(d.site.flops for d in plan.decisions) * 1004 // 1000
    return text_of(summary_table(facts(plan, Captured(total, NOTES)), width, **options), width)  # type: ignore[arg-type]


def flat(text: str) -> str:
    """Without spaces and breaks: narrow columns fold."""
    return "".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_is_said_and_no_line_is_longer(width: int) -> None:
    table = text(resnet50(), width, written=["out.py"], next_step="fxapprox explain x y")
    assert max(map(len, table.splitlines())) <= width
    for part in (
        "models/resnet.py:ResNet50", "54 sites", "52 rewritten, 2 left exact", "left exact · traced",
        "FLOPs, 2 per multiply-add, forward + backward", "layer1.{0-2}.conv2 ×3", "topk · forward · 0.5",
        "wide convolutions", "22.2 G → 11.1 G", "44.4 G → 22.2 G", "leave the stem and the head",
        "rules.toml:4", "sites hold 99.6% of the model's training FLOPs", "the whole training step:",
        "inputs kept for the backward pass",
        "frozen: image size 32×32, models/x.py:41", "opaque: an if on data, models/x.py:77",
        "warning: 52 sites before batch norm", "re-estimate the statistics", "wrote out.py",
        "next: fxapprox explain x y", "32×64×56×56 → 32×256×56×56", "conv2d",
    ):  # fmt: skip
        assert flat(part) in flat(table), part


def test_a_resnet_50_is_readable() -> None:
    assert len(text(resnet50(), 160).splitlines()) < 45
    assert len(text(resnet50(), 80).splitlines()) < 75
    assert len(text(resnet50(), 160, every=True).splitlines()) > 60


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_and_reasons_fold(width: int) -> None:
    long = site("encoder." * 30 + "fc", 10, 20)
    plan = Plan(
        "m" * 200,
        "f",
        (decided(long, choice(), "rule " * 30), decided(site("x" * 90, 1, 2), None, "r", "y" * 300)),
    )
    table = text(plan, width)
    assert max(map(len, table.splitlines())) <= width
    assert table.count("enc") > 20, "folded, not cut"
    assert table.count("y") >= 300


@pytest.mark.parametrize("width", WIDTHS)
def test_a_policy_per_product_and_its_options(width: int) -> None:
    chosen = Choice(
        "exact", Sampled(policies.get("pps")(), 0.25), Sampled(policies.get("uniform")(), 0.5, min_k=3)
    )
    table = text(
        Plan("m", "f", (decided(site("a", 50, 50), chosen), decided(site("b", 50, 50), choice()))), width
    )
    for part in ("fwd exact", "gi pps 0.25", "gw uniform 0.5 k≥3 scale=inverse", "topk · forward · 0.5"):
        assert flat(part) in flat(table), part
    assert max(map(len, table.splitlines())) <= width


def test_a_group_never_speaks_for_a_site_that_differs() -> None:
    layers = [decided(site(f"layers.{n}.fc", 64, 64), choice()) for n in range(4)]
    layers[2] = decided(site("layers.2.fc", 64, 65), choice())
    table = text(Plan("m", "f", tuple(layers)), 160)
    assert "layers.{0-1,3}.fc ×3" in table
    assert "layers.2.fc " in table


def test_a_label_names_no_site_that_is_not_there() -> None:
    names = [f"{a}.{b}" for a in range(3) for b in range(3) if (a, b) != (1, 1)]
    groups = grouped(names, name=str, same=len)
    assert {group.label: len(group.items) for group in groups} == {"0.{0-2}": 3, "1.{0,2}": 2, "2.{0-2}": 3}
    assert [group.label for group in grouped(["a", "a", "b.1"], name=str, same=len)] == ["a", "a", "b.1"]


def test_reasons_of_a_group_merge_their_numbers() -> None:
    layers = [
        decided(site(f"layers.{n}.fc", 64, 64), None, "r", f"layers.{n}.fc: depth {n}, wanted 9")
        for n in range(3)
    ]
    assert "layers.{0-2}.fc: depth 0…2, wanted 9" in text(Plan("m", "f", tuple(layers)), 160)


def test_a_plan_and_a_rewritten_model_have_a_summary() -> None:
    printed = str(summary(resnet50()))
    assert "54 sites" in printed
    assert "share" not in printed
    with pytest.raises(fxapprox.FxApproxError, match="cannot summarise str"):
        summary("model")  # type: ignore[arg-type]


def test_the_width_of_the_terminal_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Summary(facts(resnet50()))
    monkeypatch.setenv("COLUMNS", "100")
    assert 80 < max(map(len, str(told).splitlines())) <= 100


def test_notes_and_no_wall_of_them() -> None:
    notes = tuple(Note("frozen", f"value {n}", source=f"x.py:{n}") for n in range(30))
    same = tuple(Note("opaque", "an if on data", source=f"y.py:{n}") for n in range(5))
    table = text_of(summary_table(facts(resnet50(), Captured(10, notes + same)), 160), 160)
    assert table.count("frozen:") == 9
    assert "22 more" in table
    assert "an if on data, y.py:0 and 4 more" in table


@pytest.mark.parametrize("width", WIDTHS)
def test_explain_names_rules_in_order(width: int) -> None:
    sites = [d.site for d in resnet50().decisions]
    rules = [
        Rule(name="stem", depth="0", policy="exact"),
        Rule(name="wide", min_channels=128, policy="topk"),
        Rule(name="rest", policy="pps"),
    ]
    told = explanation_facts(explain(sites, rules, "layer2.1.conv1"))
    printed = text_of(explanation_text(told), width)
    assert max(map(len, printed.splitlines())) <= width
    assert "✗ stem" in printed
    assert "✓ wide" in printed
    assert "· rest" in printed
    assert [rule["outcome"] for rule in told["rules"]] == ["fails", "matches", "not tried"]
    assert "256 by topk" in printed


def test_explain_of_a_refusal_says_the_reason() -> None:
    refused = dataclasses.replace(site("dw", 8, 8), refusal="depthwise: one channel a group")
    printed = text_of(
        explanation_text(explanation_facts(explain([refused], [Rule(policy="topk")], "dw"))), 80
    )
    assert "stays exact\ndepthwise: one channel a group" in printed


@pytest.mark.parametrize("width", WIDTHS)
def test_listings_fit(width: int) -> None:
    for renderable in (policies_table(policy_facts()), kinds_table(kind_facts())):
        printed = text_of(renderable, width)
        assert max(map(len, printed.splitlines())) <= width
    assert "--option scale=inverse" in text_of(policies_table(policy_facts()), width)


def test_amounts() -> None:
    assert [amount(n) for n in (0, 7, 999, 1000, 12_345, 999_960, 4.1e9, 2e19)] == [
        "0", "7", "999", "1.00 k", "12.3 k", "1.00 M", "4.10 G", "20.0 E",
    ]  # fmt: skip
    assert size(512) == "512 B"
    assert size(1.5e6) == "1.50 MB"
    assert change(5, 5) == "5"
    assert [percent(n, 1000) for n in (1000, 999.9999, 999, 995, 500, 12, 1, 0.01, 0)] == [
        "100%", ">99.99%", "99.9%", "99.5%", "50%", "1.2%", "0.1%", "<0.01%", "0%",
    ]  # fmt: skip
    assert saving(100, 50) == "−50%"
    assert saving(100, 150) == "+50%"
    assert saving(0, 0) == "±0"
