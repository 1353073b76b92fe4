"""The emitted file's text: header, imports, classes, plan, build_model."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..choices import Choice, Sampled
from ..plan import Decision, Plan
from ..record import Record
from ..sites import PRODUCTS
from . import weights
from .classes import Classes
from .expressions import Expression, holes, printed, resolved
from .files import MARKER
from .imports import Imports
from .reader import Reader
from .table import plan_text
from .tree import reach
from .wrap import filled, quoted, wrapped

MOST_REASONS = 8
MOST_LINES = 6
"""More statements of one sort than this in build_model become a loop over names."""


@dataclass(frozen=True)
class Names:
    """What the file is called and who wrote it."""

    stem: str
    weights: str
    version: str


def file_text(model: nn.Module, record: Record, reader: Reader, imports: Imports, names: Names) -> str:
    """The whole file."""
    for name in ("PLAN", "WEIGHTS", "FROZEN", "build_model"):
        imports.reserve(name)
    classes = Classes(reader.blueprints, imports)
    body = [classes.text(cls) for cls in classes.found]
    paths = [path for path, _ in model.named_modules()]
    plan = plan_text(record.plan, paths, imports)
    build = _build_text(model, reader, classes, imports)
    path = imports.spell("pathlib", "Path")
    constant = f"WEIGHTS = {path}(__file__).with_name({quoted(names.weights)})"
    text = "\n\n\n".join([constant, *body, plan, build]) + "\n"
    header = _header(record, reader, imports.own(text), names)
    return f"{header}\n\n{imports.lines(text)}\n\n{text}"


# ---- header


def _header(record: Record, reader: Reader, own: Sequence[str], names: Names) -> str:
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
        *_needs(reader, own),
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
    sampled = next(how for p in PRODUCTS if isinstance(how := choice.treatment(p), Sampled))
    return f"{sampled.policy.name} · {choice.scope} · keep {sampled.keep:g}" + (
        " · centred" if sampled.center else ""
    )


def _sampled(how: Any) -> str:
    return f"{how.policy.name} · keep {how.keep:g}" if isinstance(how, Sampled) else str(how)


def _reasons(left: Sequence[Decision]) -> str:
    if not left:
        return "nothing."
    by_reason: dict[str, list[str]] = defaultdict(list)
    for decision in left:
        site = re.sub(r"(?<=\.)\d+(?=\.)", "*", decision.site.id)
        if site not in by_reason[decision.reason]:
            by_reason[decision.reason].append(site)
    texts = [
        f"{', '.join(ids[:3])}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''} ({reason})"
        for reason, ids in list(by_reason.items())[:MOST_REASONS]
    ]
    more = len(by_reason) - len(texts)
    return "; ".join(texts).replace('"""', "'''") + (f"; {more} more reasons" if more > 0 else "") + "."


def _frozen_notes(record: Record) -> Iterator[str]:
    """What the forwards hold on to of the example inputs."""
    found = [note.message for note in record.notes if note.topic == "frozen"]
    if found:
        yield ""
        shown = "; ".join(found[:MOST_REASONS]) + (
            f"; {len(found) - MOST_REASONS} more" * (len(found) > MOST_REASONS)
        )
        yield from filled(f"Holds only for inputs like the examples: {shown}.".replace('"""', "'''"))


def _needs(reader: Reader, own: Sequence[str]) -> Iterator[str]:
    """What else must be importable."""
    if reader.kept:
        yield ""
        told = {path: reason for path, reason in reader.kept.items() if reason}
        shown = [f"{path or 'the model'} ({reason.rstrip('.')})" for path, reason in list(told.items())[:5]]
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        yield from filled(
            "Keeps the user's own forward, which is imported, of "
            f"{'; '.join(shown)}{more}, and what is in them."
        )
    if own:
        if not reader.kept:
            yield ""
        yield from filled(f"Needs on the path: {', '.join(own)} (the user's own).")


# ---- build_model


def _build_text(model: nn.Module, reader: Reader, classes: Classes, imports: Imports) -> str:
    root = resolved(reader.root, classes.call)
    load = imports.spell("fxapprox.emit.runtime", "load_weights")
    apply = imports.spell("fxapprox.emit.runtime", "apply_plan")
    path = imports.spell("pathlib", "Path")
    returns = root.callee if hasattr(root, "callee") else f"{imports.spell('torch.nn')}.Module"
    body = [
        f"model = {_line(root)}",
        *_ties(model, reader),
        *_frozen(model, imports),
        *_modes(model),
        *_layout(model, imports),
        f"{apply}(model, PLAN)",
    ]
    if reader.has_constants:
        body += [
            "if weights is False:",
            f"    {load}(model, WEIGHTS, all=False)  # constants that no checkpoint holds",
            "else:",
        ]
    else:
        body += ["if weights is not False:"]
    body += [f"    {load}(model, WEIGHTS if weights is True else weights)", "return model"]
    lines = [
        f"def build_model(weights: bool | str | {path} = True) -> {returns}:",
        '    """The model in training mode; with the emitted weights, those of another safetensors file, or',
        '    none (`weights=False`: fresh layers and zeros, to load a checkpoint into)."""',
        *(f"    {line}" for line in body),
    ]
    text = wrapped("\n".join(lines))
    if len(list(weights.frozen(model))) > MOST_LINES:
        text = _frozen_table(model) + "\n\n\n" + text
    return text


def _line(value: Expression) -> str:
    return printed(value, iter([hole.text for hole in holes(value, "")]))


def _ties(model: nn.Module, reader: Reader) -> Iterator[str]:
    for path, first in reader.shared:
        yield f"{reach('model', model, path)} = {reach('model', model, first)}"
    tied = list(weights.ties(model))
    if tied:
        yield "# tied"
    for name, first in tied:
        yield f"{reach('model', model, name)} = {reach('model', model, first)}"


def _frozen(model: nn.Module, imports: Imports) -> Iterator[str]:
    found = list(weights.frozen(model))
    if len(found) > MOST_LINES:
        yield "for name in FROZEN:"
        yield "    model.get_parameter(name).requires_grad_(False)"
        return
    for path, _ in found:
        yield f"{reach('model', model, path)}.requires_grad_(False)"


def _frozen_table(model: nn.Module) -> str:
    names = [n for n, p in model.named_parameters() if not p.requires_grad and weights.trains(p)]
    return "FROZEN = (\n" + "".join(f'    "{name}",\n' for name in names) + ")"


def _modes(model: nn.Module) -> Iterator[str]:
    if model.training:
        for path in weights.in_evaluation(model):
            yield f"{reach('model', model, path)}.eval()"


def _layout(model: nn.Module, imports: Imports) -> Iterator[str]:
    if imports.dtype is not torch.float32:
        yield f"model.to({imports.spell('torch', str(imports.dtype).removeprefix('torch.'))})"
    if weights.channels_last(model):
        yield f"model.to(memory_format={imports.spell('torch', 'channels_last')})"
