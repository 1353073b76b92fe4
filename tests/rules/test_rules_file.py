import pytest

from fxapprox.errors import RequestError
from fxapprox.rules import Rule, load_rules

HOUSE = """\
version = 1

[[rule]]                       # rules are tried top to bottom; the FIRST that matches a site decides
name = "leave the stem and the head"
depth = "0, -1"                # Python-style indices and slices: "1:-1", "-1", "0, 3:"
policy = "exact"

[[rule]]
name = "wide convolutions"
kind = ["conv2d"]
min_channels = 128             # of the sampled dimension
path = "layer*"                # glob on the site's id; "re:…" for a regular expression
policy = "topk"
keep = 0.5
scope = "forward"

[[rule]]                       # per product
kind = ["linear"]
forward = "exact"
grad_input = { policy = "pps", keep = 0.25 }
grad_weight = { policy = "uniform", keep = 0.25 }
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "rules.toml"
        path.write_text(text)
        return path

    return write


def problems(path):
    with pytest.raises(RequestError) as caught:
        load_rules(path)
    return str(caught.value)


def test_a_file_says_what_python_says_and_every_rule_knows_its_line(write):
    rules = load_rules(write(HOUSE))
    assert rules == (
        Rule(name="leave the stem and the head", depth="0, -1", policy="exact"),
        Rule(name="wide convolutions", kind=["conv2d"], min_channels=128, path="layer*", policy="topk",
             keep=0.5, scope="forward"),
        Rule(kind=["linear"], forward="exact", grad_input={"policy": "pps", "keep": 0.25},
             grad_weight={"policy": "uniform", "keep": 0.25}),
    )  # fmt: skip
    assert [rule.origin for rule in rules] == ["rules.toml:3", "rules.toml:8", "rules.toml:17"]
    assert str(rules[1]) == 'rule "wide convolutions", rules.toml:8'
    assert rules[2].label == "rule at rules.toml:17"


def test_every_problem_is_told_once_with_its_line_in_the_order_of_the_file(write):
    # in the third rule the condition that is wrong stands below the policy that is
    text = (
        HOUSE.replace('"0, -1"', '"0; -1"').replace("min_channels", "min_chanels").replace("0.25 }", "25 }")
        + "depth = true\n"
    )
    lines = problems(write(text)).split("\n")
    assert lines[0].startswith("5 problems with ")
    starts = [line.strip() for line in lines if line.strip().startswith("rules.toml:")]
    assert [line.split(": ")[0] for line in starts] == [f"rules.toml:{n}" for n in (5, 11, 20, 21, 22)]
    assert "did you mean 'min_channels'?" in "\n".join(lines)


def test_one_problem_is_one_message(write):
    assert problems(write(HOUSE.replace("pps", "ppz"))).startswith(
        "grad_input: unknown policy 'ppz' (rules.toml:20)\n  did you mean 'pps'?"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('format = 1\nfingerprint = "ab"\n[site.fc]\n', "rules.toml is a plan, not a rules file"),
        ("", "rules.toml is empty"),
        (" \n\n", "rules.toml is empty"),
        ("version = 1\n", "rules.toml holds no rules"),
        ("version = 1\nrule = []\n", "rules.toml holds no rules"),
        ('[[rule]]\npolicy = "topk"\n', "rules.toml names no version"),
        (
            'version = 2\n[[rule]]\npolicy = "topk"\n',
            "version = 2 of the rules language is not known (rules.toml:1)",
        ),
        ('version = true\n[[rule]]\npolicy = "topk"\n', "version = True of the rules language is not known"),
        ('version = 1\n[rule]\npolicy = "topk"\n', "rule must be a list of tables (rules.toml:2)"),
        ("version = 1\nrule = [3]\n", "rule must be a list of tables (rules.toml:2)"),
        (
            'version = 1\npolicy = "topk"\n[[rule]]\npolicy = "topk"\n',
            "a rule's keys stand below a [[rule]] line",
        ),
        ('version = 1\n[[rules]]\npolicy = "topk"\n[[rule]]\npolicy = "topk"\n', "did you mean 'rule'?"),
        ("version = 1\n[[rule]]\n", "names no policy (rules.toml:2)"),
        ('version = 1\n[[rule]]\npolicy = "topk\n', "is not TOML"),
        ('version = 1\n[[rule]]\npolicy = "uniform"\ngates = true\n', "unknown key 'gates' (rules.toml:4)"),
    ],
)
def test_files_that_are_no_rules(write, text, message):
    assert message in problems(write(text))


def test_a_file_that_is_not_there(tmp_path):
    assert "does not exist" in problems(tmp_path / "rules.toml")


def test_products_as_tables_of_their_own(write):
    path = write('version = 1\n[[rule]]\n[rule.forward]\npolicy = "topk"\nkeep = 2\n')
    assert "forward: keep = 2 is outside 0 < keep <= 1 (rules.toml:5)" in problems(path)
