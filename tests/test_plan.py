import dataclasses
import os
from pathlib import Path

import pytest
from by_hand import chain, site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxapprox.choices import SCOPES, Choice, Sampled
from fxapprox.errors import PlanMismatch, RequestError
from fxapprox.plan import Decision, Plan, PlanWarning, bind, diff, fingerprint
from fxapprox.policies import policies
from fxapprox.rules import Rule, decide
from fxapprox.sites import Product, Site
from fxapprox.syntax import read_choice, spell_choice
from fxapprox.verdict import Verdict

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
sizes = st.integers(0, 2**40)
shapes = st.lists(st.integers(0, 4096), max_size=4).map(tuple)
names = st.sampled_from(["topk", "pps", "crs", "bernoulli", "uniform", "weighted", "topk-weights"])


@st.composite
def sampled(draw, center=False):
    name = draw(names)
    options = {"scale": "none"} if name in ("uniform", "weighted") and draw(st.booleans()) else {}
    keep = draw(st.floats(0, 1, exclude_min=True))
    return Sampled(policies.get(name)(**options), keep, draw(st.integers(1, 999)), center)


@st.composite
def choices(draw):
    """Any choice that rules can spell."""
    if draw(st.booleans()):
        scope = draw(st.sampled_from(SCOPES))
        center = scope in ("forward", "straight-through") and draw(st.booleans())
        choice = Choice.of_scope(scope, draw(sampled(center=center)))
    else:
        forward = draw(sampled(center=draw(st.booleans())) | st.just("exact"))
        words = ["exact"] if forward == "exact" else ["exact", "reuse"]
        gradient = sampled() | st.sampled_from(words)
        choice = Choice(forward, draw(gradient), draw(gradient))
    assert spell_choice(choice)
    return None if read_choice(spell_choice(choice))[1] or choice == Choice() else choice


@st.composite
def sites(draw, site_id):
    products = {
        name: Product(draw(sizes), draw(sizes), draw(sizes), draw(text))
        for name in ("forward", "grad_input", "grad_weight")
    }
    return Site(
        site_id, draw(text), draw(text), draw(text), draw(st.none() | sizes), draw(text), products,
        draw(shapes), draw(shapes), draw(shapes), draw(text), draw(sizes), draw(sizes),
        draw(st.none() | text), draw(st.booleans()), draw(sizes), draw(st.none() | text),
        draw(st.none() | text), draw(st.booleans()), tuple(draw(st.lists(text, max_size=2))),
        draw(st.none() | text),
    )  # fmt: skip


@st.composite
def plans(draw):
    ids = draw(st.lists(text, max_size=3, unique=True))
    numbers = st.floats(0.01, 100)
    verdicts = st.builds(Verdict, st.sampled_from(["measured", "judged"]), sizes, numbers, text)
    gates = st.none() | verdicts | st.builds(Verdict, st.just("unmeasured"), sizes, by=text)
    decisions = tuple(
        Decision(
            draw(sites(site_id)), draw(st.none() | choices()), draw(st.none() | text), draw(text), draw(gates)
        )
        for site_id in ids
    )
    warnings = st.builds(PlanWarning, text, text, st.lists(text, max_size=2).map(tuple), text)
    return Plan(draw(text), draw(text), decisions, tuple(draw(st.lists(warnings, max_size=2))))


# one folder serves all examples: each writes the file anew
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(plan=plans())
def test_a_saved_plan_loads_as_it_was(plan, tmp_path):
    path = tmp_path / "plan.toml"
    plan.save(path)
    loaded = Plan.load(path)
    assert loaded == plan
    assert diff(loaded, plan) == ()


@settings(deadline=None)
@given(choice=choices())
def test_a_choice_is_read_as_it_is_spelled(choice):
    assert read_choice(spell_choice(choice)) == (choice, [])


def small_plan(**keys):
    rules = [Rule(name="stem", depth="0", policy="exact"), Rule(name="rest", policy="topk", **keys)]
    here = [*chain(3), site("attn.matmul_1", kind="matmul", weight=False, depth=1, opt_in=True)]
    return decide(here, rules, model="Net", fingerprint=fingerprint(here, "Net"))


def test_the_file_is_for_reading(tmp_path):
    small_plan().save(tmp_path / "plan.toml")
    written = (tmp_path / "plan.toml").read_text()
    assert written.startswith("# A plan of fxapprox")
    head, _, rest = written.partition('[site."layers.1"]\n')
    assert rest.startswith(
        'policy = "topk"\nkeep = 0.5\nmin_k = 1\nscope = "forward"\nrule = "rest"\nreason = '
    )
    assert '[site."layers.0"]\npolicy = "exact"\nrule = "stem"\n' in head
    assert 'forward = { pairs = 64, groups = 1, flops = 100, over = "in features" }\n' in written


def test_another_keep_changes_one_line_a_site(tmp_path):
    small_plan().save(tmp_path / "a.toml")
    small_plan(keep=0.25).save(tmp_path / "b.toml")
    a, b = ((tmp_path / name).read_text().split("\n") for name in ("a.toml", "b.toml"))
    changed = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
    # the lines of the rules in the reasons are the same: both were written by the same line of Python
    assert changed == [("keep = 0.5", "keep = 0.25")] * 2


def test_diff_is_a_line_a_site():
    before, after = small_plan(), small_plan(keep=0.25, scope="straight-through")
    assert before.diff(before) == ()
    assert before.diff(after) == tuple(
        f"~ layers.{n}: topk keep 0.5 scope forward → topk keep 0.25 scope straight-through" for n in (1, 2)
    )
    shorter = dataclasses.replace(after, decisions=after.decisions[:2])
    assert diff(after, shorter) == (
        "- layers.2: topk keep 0.25 scope straight-through",
        "- attn.matmul_1: exact",
    )
    assert diff(shorter, after)[0].startswith("+ layers.2: topk")
    per_product = small_plan()
    choice = Choice(grad_weight=Sampled(policies.get("uniform")(scale="none"), 0.25, 2))
    decisions = (dataclasses.replace(per_product.decisions[0], choice=choice),)
    assert diff(dataclasses.replace(per_product, decisions=decisions), small_plan())[0] == (
        "~ layers.0: forward: exact, grad_input: exact, "
        "grad_weight: uniform keep 0.25 min_k 2 scale none → exact"
    )


def test_the_fingerprint_knows_the_model_and_not_the_batch():
    here = [site("a"), site("mm", kind="matmul", weight=False)]
    same = [
        site("a", pairs=(64, 32, 999), dtype="bfloat16", source="x.py:3"),
        site("mm", kind="matmul", weight=False, weight_shape=(9, 9)),
    ]
    assert fingerprint(here, "Net") == fingerprint(same, "Net")
    for other in (
        [here[0]],
        [*here, site("b")],
        [site("a", pairs=(65, 32, 16)), here[1]],
        [site("a", kind="conv2d"), here[1]],
    ):
        assert fingerprint(other, "Net") != fingerprint(here, "Net")
    assert fingerprint(here, "Other") != fingerprint(here, "Net")


def test_a_plan_is_bound_to_the_sites_of_today(tmp_path):
    plan = small_plan()
    plan.save(tmp_path / "plan.toml")
    today = [dataclasses.replace(s, dtype="bfloat16", source="net.py:7") for s in plan.sites]
    bound = bind(Plan.load(tmp_path / "plan.toml"), today)
    assert bound.sites == tuple(today)
    assert [d.choice for d in bound.decisions] == [d.choice for d in plan.decisions]
    assert bound.warnings == plan.warnings


def test_a_plan_of_another_model_is_refused_with_the_difference():
    plan = small_plan()
    other = [site("layers.0", pairs=(64, 48, 16)), *plan.sites[1:3], site("head")]
    with pytest.raises(PlanMismatch) as caught:
        bind(plan, other)
    assert str(caught.value).split("\n") == [
        "the plan was made for another model (Net)",
        "  attn.matmul_1 (matmul): in the plan, not in the model",
        "  layers.0: linear 32×64 in the plan, linear 48×64 in the model",
        "  head (linear): in the model, not in the plan",
    ]
    with pytest.raises(PlanMismatch, match="and 96 more"):
        bind(plan, [*plan.sites, *(site(f"more.{n}") for n in range(101))])


def test_a_plan_that_asks_for_what_a_site_cannot_do_is_refused():
    plan = small_plan()
    refused = [dataclasses.replace(s, refusal="depthwise") if s.id == "layers.2" else s for s in plan.sites]
    with pytest.raises(PlanMismatch, match=r"layers\.2: depthwise"):
        bind(plan, refused)


def edited(tmp_path: Path, old: str, new: str) -> str:
    path = tmp_path / "plan.toml"
    small_plan().save(path)
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(RequestError) as caught:
        Plan.load(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keep = 0.5", "keep = 5", "site 'layers.1': keep = 5 is outside 0 < keep <= 1 (plan.toml:30)"),
        ('policy = "topk"', 'policy = "tpk"', "unknown policy 'tpk'"),
        ("format = 1", "format = 9", "is not a plan that this fxapprox reads: format = 9, wanted format = 1"),
        ("format = 1", "version = 1", "no format, wanted format = 1"),
        ("fingerprint", "#", "fingerprint must be a string, not None"),
        ("fingerprint", "extra = 1\nfingerprint", "unknown key 'extra' (plan.toml:5)"),
        ('kind = "linear"', 'knd = "linear"', "the facts of site 'layers.0' are damaged"),
        ("pairs = 64", "paris = 64", "the facts of site 'layers.0' are damaged"),
        ('[site."layers.0".facts]', '[site."layers.9".facts]', "the facts of site 'layers.0' are damaged"),
        ("format = 1", "format = ", "is not TOML"),
    ],
)
def test_a_damaged_plan_is_refused_with_the_line(tmp_path, old, new, message):
    assert message in edited(tmp_path, old, new)


def test_an_edited_plan_is_obeyed(tmp_path):
    path = tmp_path / "plan.toml"
    small_plan().save(path)
    path.write_text(path.read_text().replace("keep = 0.5", "keep = 0.125", 1))
    assert Plan.load(path).by_id["layers.1"].choice.forward.keep == 0.125


def test_only_plans_are_written_over(tmp_path):
    path = tmp_path / "plan.toml"
    small_plan().save(path)
    small_plan(keep=0.25).save(path)
    assert Plan.load(path).by_id["layers.1"].choice.forward.keep == 0.25
    path.write_text("mine")
    with pytest.raises(RequestError, match="exists and is not a plan"):
        small_plan().save(path)
    assert path.read_text() == "mine"
    small_plan().save(path, force=True)
    assert Plan.load(path) == small_plan()


def test_a_plan_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "plan.toml"
    small_plan().save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RequestError, match="cannot be written: No space left on device"):
        small_plan(keep=0.25).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["plan.toml"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="cannot be written: No such file or directory"):
        small_plan().save(tmp_path / "none" / "plan.toml")
