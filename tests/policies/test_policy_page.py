"""docs/policies.md has a card for every policy, and its numbers are the measured ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.reproduce import _store, error
from fxapprox.policies import policies

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "policies.md").read_text()
CARDS = dict(re.findall(r"^## `([\w-]+)`\n(.*?)(?=^## )", PAGE, flags=re.M | re.S))
ROWS = [row for row in _store.read(DOCS / "results", "error").rows if row["arm"] in error.INPUTS]
ERRORS = {(row["policy"], row["arm"], row["keep"]): row for row in ROWS}


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


@pytest.mark.parametrize("row", error.variants())
def test_numbers_on_cards_are_the_measured_ones(row: str) -> None:
    name, _, option = row.partition(", ")
    label = f"**Measured error** with `{option}`: " if option else "**Measured error**: "
    card = CARDS[name].split(label)[1].splitlines()[0]
    assert card == " · ".join(f"{ERRORS[row, arm, 50]['error']:.3f}" for arm in error.INPUTS)


def test_what_the_page_says_of_the_tables_is_in_them() -> None:
    nothing = [f"{ERRORS['nothing kept', arm, 0]['error']:.2f}" for arm in error.INPUTS]
    assert f"has an error of {', '.join(nothing[:-1])} and {nothing[-1]}" in " ".join(PAGE.split())
    unbiased = [name for name, each in error.variants().items() if each.policy.unbiased and not each.center]
    assert {"pps", "crs", 'weighted, scale = "horvitz-thompson"'} < set(unbiased)
    for arm in error.INPUTS:
        for kept in error.TOLD:
            pps = ERRORS["pps", arm, kept]
            for name in unbiased:
                other = ERRORS[name, arm, kept]
                noise = 3 * ((pps["deviation"] ** 2 + other["deviation"] ** 2) / error.PAIRS) ** 0.5
                assert pps["error"] < other["error"] + noise, (arm, kept, name)
