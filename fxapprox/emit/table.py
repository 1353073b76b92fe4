"""The plan as a table of the emitted file: a constant for every treatment, a line for every site."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..choices import Sampled, drawn_from
from ..plan import Decision, Plan
from ..schedules import Schedule
from ..sites import PRODUCTS
from ..syntax import spell_choice
from .imports import Imports
from .runtime import matching
from .wrap import WIDTH, quoted, wrapped

HEAD = (
    "# What is done in training. A site's id is the path of a layer or of a FunctionCall, * any number; the"
)
TAIL = "# keys are those of a rule."
FEWEST = 2
"""Sites of equal blocks that share a line from this many on."""


def plan_text(plan: Plan, paths: Sequence[str], imports: Imports) -> str:
    """The constants and the table. `paths` are all modules of the emitted model: a pattern must stand for
    its sites and for nothing else."""
    constants: dict[str, tuple[str, str]] = {}  # text of the keys → (constant, its definition)
    treatment: dict[str, str] = {}  # site → text of the keys
    for decision in plan.rewritten:
        assert decision.choice is not None
        keys = _short(spell_choice(decision.choice))
        text = _dict(keys)
        treatment[decision.site.id] = text
        if text not in constants:
            name = imports.reserve(_constant(keys))
            constants[text] = (name, f"{name} = {text}")
    rows = []
    for pattern, decisions in _grouped(plan, treatment, paths):
        name = constants[treatment[decisions[0].site.id]][0]
        rows.append((f"    {quoted(pattern)}: {name},", _remark(decisions)))
    width = max((len(row) for row, _ in rows), default=0)
    table = [line if len(line := f"{row:{width}}  # {remark}") <= WIDTH else row for row, remark in rows]
    definitions = wrapped("\n".join(definition for _, definition in constants.values()))
    return f"{definitions}\n\n{HEAD}\n{TAIL}\nPLAN = {{\n" + "\n".join(table) + "\n}"


def _grouped(
    plan: Plan, treatment: Mapping[str, str], paths: Sequence[str]
) -> list[tuple[str, list[Decision]]]:
    """(pattern or id, its decisions), in the order of the first of each."""
    groups: dict[tuple[str, str], list[Decision]] = defaultdict(list)
    for decision in plan.rewritten:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", decision.site.id)
        groups[pattern, treatment[decision.site.id]].append(decision)
    known = {*paths, *(decision.site.id for decision in plan.decisions)}
    found: list[tuple[str, list[Decision]]] = []
    for (pattern, _), decisions in groups.items():
        sites = {decision.site.id for decision in decisions}
        if len(sites) >= FEWEST and "*" in pattern and set(matching(pattern, known)) == sites:
            found.append((pattern, decisions))
        else:
            found.extend((decision.site.id, [decision]) for decision in decisions)
    order = {decision.site.id: place for place, decision in enumerate(plan.rewritten)}
    return sorted(found, key=lambda row: order[row[1][0].site.id])


def _remark(decisions: Sequence[Decision]) -> str:
    """`keeps 32 of 64 in channels, 4 times`; the share where the numbers differ."""
    texts = list(dict.fromkeys(_kept(decision) for decision in decisions))
    times = f", {len(decisions)} times" if len(decisions) > 1 else ""
    if len(texts) == 1:
        return texts[0] + times
    shares = list(dict.fromkeys(_share(decision) for decision in decisions))
    return (shares[0] if len(shares) == 1 else "keeps a part") + times


def _share(decision: Decision) -> str:
    """The share that is kept of the first product that is sampled."""
    assert decision.choice is not None
    for product in PRODUCTS:
        how = decision.choice.treatment(product)
        if isinstance(how, Sampled):
            over = drawn_from(decision.site.products, product, how).over
            return f"keeps {'a part' if isinstance(how.keep, Schedule) else f'{how.keep:.0%}'} of {over}"
    return "exact"


def _kept(decision: Decision) -> str:
    """What is kept of the first product that is sampled."""
    assert decision.choice is not None
    for product in PRODUCTS:
        how = decision.choice.treatment(product)
        if isinstance(how, Sampled):
            facts = drawn_from(decision.site.products, product, how)
            if facts is decision.site.products["grad_weight"]:  # over the batch, whose size is free
                return _share(decision)
            fewest, most = how.range(facts.pairs)
            kept = f"{fewest} to {most}" if fewest != most else str(fewest)
            return f"keeps {kept} of {facts.pairs} {facts.over}"
    return "exact"


def _short(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys without those that say nothing."""
    return {
        key: _short(value) if isinstance(value, Mapping) else value
        for key, value in keys.items()
        if not (key == "min_k" and value == 1) and value != "exact"
    }


def _dict(keys: Mapping[str, Any]) -> str:
    items = (
        f"{quoted(key)}: {_dict(value) if isinstance(value, Mapping) else _value(value)}"
        for key, value in keys.items()
    )
    return "{" + ", ".join(items) + "}"


def _value(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)


def _constant(keys: Mapping[str, Any]) -> str:
    """TOPK_50 for topk, keep 0.5; TOPK_25_COSINE for a schedule that begins with 0.25; ALSH for a policy that
    has a size of its own."""
    if "policy" not in keys:
        return "PER_PRODUCT"
    policy = "".join(c if c.isalnum() else "_" for c in str(keys["policy"])).upper()
    if "keep" not in keys:
        return policy
    keep = keys["keep"]
    value, *shape = (keep["from"], keep["schedule"].upper()) if isinstance(keep, Mapping) else (keep,)
    percent = format(100 * value, "g").replace(".", "_").replace("-", "_")
    return "_".join([policy, percent, *shape])
