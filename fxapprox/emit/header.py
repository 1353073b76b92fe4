"""The header of an emitted file: which model, which plan, how to use it, what it needs."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..choices import Choice, Sampled
from ..plan import Decision, Plan
from ..record import Record
from ..sites import PRODUCTS
from .build import Content
from .files import MARKER
from .imports import Imports
from .wrap import filled

MOST_REASONS = 8
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Names:
    """What the file is called and who wrote it."""

    stem: str
    weights: str
    version: str


def header(record: Record, content: Content, imports: Imports, text: str, names: Names) -> str:
    """The marker and the docstring of a file whose code is `text`."""
    plan = record.plan
    left = [decision for decision in plan.decisions if decision.choice is None]
    lines = [
        f"{MARKER} {names.version} with torch {torch.__version__}; format 1.",
        f'"""{_origin(plan)} with sampled products.',
        "",
        *_plan_lines(plan),
        *(filled("Left exact: " + _reasons(left)) if left else ()),
        "",
        f"    from {names.stem} import build_model",
        "",
        "    model = build_model()                                # with the weights it was emitted with",
        '    model.load_state_dict(torch.load("checkpoint.pt"))   # the original model\'s keys',
        "",
        *filled(f"Training samples, evaluation is exact. The weights are in {names.weights}, beside it; "
                 "keep the two files together."),
        *_frozen_notes(record),
        *_unwatched(content.unwatched),
        *_needs(content.kept, imports.own(text), imports.packages(text)),
        '"""',
    ]  # fmt: skip
    text = "\n".join(lines)
    return text.replace("\\", "\\\\")


def _origin(plan: Plan) -> str:
    return plan.model.replace('"""', "'''")


def _plan_lines(plan: Plan) -> Iterator[str]:
    """The plan in short: one line a treatment."""
    counts = Counter(_treatment(decision.choice) for decision in plan.rewritten if decision.choice)
    for text, count in counts.items():
        yield from filled(f"Plan: {text} at {count} of {len(plan.decisions)} sites.")


def _treatment(choice: Choice) -> str:
    if choice.scope == "per product":
        spelled = ((product, choice.treatment(product)) for product in PRODUCTS)
        return ", ".join(f"{product} {_sampled(how)}" for product, how in spelled if how != "exact")
    treatments = [how for p in PRODUCTS if isinstance(how := choice.treatment(p), Sampled)]
    told = f"{treatments[0].policy.name} · {choice.scope} · {treatments[0].size_in_words}"
    told += " · centred" if any(how.center for how in treatments) else ""
    return told + (" · memory" if any(how.memory for how in treatments) else "")


def _sampled(how: Any) -> str:
    if not isinstance(how, Sampled):
        return str(how)
    return f"{how.policy.name} · {how.size_in_words}" + (" · memory" if how.memory else "")


def _reasons(left: Sequence[Decision]) -> str:
    if not left:
        return "nothing."
    alike: dict[str, set[str]] = defaultdict(set)  # reasons that differ in numbers only
    for decision in left:
        alike[_NUMBER.sub("N", decision.reason)].add(decision.reason)
    by_reason: dict[str, list[str]] = defaultdict(list)
    for decision in left:
        site = re.sub(r"(?<=\.)\d+(?=\.)", "*", decision.site.id)
        reason = _common_words(sorted(alike[_NUMBER.sub("N", decision.reason)]))
        if site not in by_reason[reason]:
            by_reason[reason].append(site)
    texts = [
        f"{', '.join(ids[:3])}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''} ({reason})"
        for reason, ids in list(by_reason.items())[:MOST_REASONS]
    ]
    more = len(by_reason) - len(texts)
    return "; ".join(texts).replace('"""', "'''") + (f"; {more} more reasons" if more > 0 else "") + "."


def _common_words(reasons: Sequence[str]) -> str:
    """Texts that differ in numbers only as one, with N for those that differ."""
    numbers = zip(*(_NUMBER.findall(reason) for reason in reasons), strict=True)
    shown = iter([values[0] if len(set(values)) == 1 else "N" for values in numbers])
    return _NUMBER.sub(lambda _: next(shown), reasons[0])


def _frozen_notes(record: Record) -> Iterator[str]:
    """What the forwards hold on to of the example inputs."""
    found = [note.message for note in record.notes if note.topic == "frozen"]
    if found:
        yield ""
        shown = "; ".join(found[:MOST_REASONS]) + (
            f"; {len(found) - MOST_REASONS} more" * (len(found) > MOST_REASONS)
        )
        yield from filled(
            f"Holds only for inputs like the examples: {shown.rstrip('.')}.".replace('"""', "'''")
        )


def _unwatched(hooks: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Hooks that are left out."""
    for module, paths in hooks.items():
        shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        yield ""
        yield from filled(f"Left out: the hooks of {module} on {shown}, which changed nothing here.")


def _needs(kept: Mapping[str, str], own: Sequence[str], packages: Mapping[str, list[str]]) -> Iterator[str]:
    """What else must be importable."""
    if kept:
        yield ""
        told = {path: reason for path, reason in kept.items() if reason} or kept
        shown = [f"{path or 'the model'} ({reason.rstrip('.')})" for path, reason in list(told.items())[:5]]
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        yield from filled(
            "Keeps the user's own forward, which is imported, of "
            f"{'; '.join(shown)}{more}, and what is in them."
        )
    if (own or packages) and not kept:
        yield ""
    for package, found in packages.items():
        shown_names = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        yield from filled(f"Needs {package} for {shown_names}.")
    if own:
        yield from filled(f"Needs on the path: {', '.join(own)} (the user's own).")
