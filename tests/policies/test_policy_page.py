"""docs/policies.md has a card for every policy, and its numbers are the measured ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fxapprox.policies import policies

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "policies.md").read_text()
CARDS = dict(re.findall(r"^## `([\w-]+)`\n(.*?)(?=^## )", PAGE, flags=re.M | re.S))
RESULTS = json.loads((DOCS / "results" / "policy_error.json").read_text())
ROWS = RESULTS["rows"]


def test_every_policy_of_ours_has_a_card() -> None:
    ours = {name for name, cls in policies.all().items() if cls.__module__.startswith("fxapprox.")}
    assert set(CARDS) == ours


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_card_says_everything(name: str) -> None:
    measured = ["Measured error"] if policies.get(name).samples == "pairs" else ["Size", "Work"]
    for fact in ("What", "How", "Suggested", "Bias", "Source", *measured):
        assert f"**{fact}**" in CARDS[name], fact
    bias = CARDS[name].split("**Bias**: ")[1]
    says = "unbiased" if policies.get(name).unbiased else "biased"
    assert bias.startswith("none" if name == "exact" else says)


@pytest.mark.parametrize("row", sorted(ROWS))
def test_numbers_on_cards_and_in_tables_are_the_measured_ones(row: str) -> None:
    name, _, option = row.partition(", ")
    label = f"**Measured error** with `{option}`: " if option else "**Measured error**: "
    card = CARDS[name].split(label)[1].splitlines()[0]
    assert card == " · ".join(f"{of_k['50']['mean']:.3f}" for of_k in ROWS[row]["error"].values())
    for of_k in ROWS[row]["error"].values():
        assert f"| {row} | " + " | ".join(f"{cell['mean']:.3f}" for cell in of_k.values()) + " |" in PAGE


def test_what_the_page_says_of_the_tables_is_in_them() -> None:
    nothing = [f"{error:.2f}" for error in RESULTS["nothing"].values()]
    assert f"has an error of {', '.join(nothing[:-1])} and {nothing[-1]}" in " ".join(PAGE.split())
    unbiased = [row for row in ROWS if policies.get(row.partition(",")[0]).unbiased != ("scale" in row)]
    assert {"pps", "crs", 'weighted, scale = "horvitz-thompson"'} < set(unbiased)
    for label, of_k in ROWS["pps"]["error"].items():
        for k, pps in of_k.items():
            for row in unbiased:
                other = ROWS[row]["error"][label][k]
                noise = 3 * ((pps["deviation"] ** 2 + other["deviation"] ** 2) / RESULTS["runs"]) ** 0.5
                assert pps["mean"] < other["mean"] + noise, (label, k, row)
