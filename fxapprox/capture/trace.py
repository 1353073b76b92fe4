"""The trace: the user's model run under a recorder, a local forward of every module made from it.

The model runs on fake tensors (on real ones where its code reads data). Every module that is not one
operation gets a graph of its own forward; runs in train and eval mode, at another batch size and at
another image size or length are merged, so that the flag and the sizes are followed at run time.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ._types import Forward, Inputs, Note, Traced
from .merge import Mismatch, merge
from .names import Imports
from .probes import batch_of, other_batch, other_size
from .recorder import Fault, Treatment
from .runs import Run, Workshop, model_fails
from .solve import Sample
from .text import INDENT, Printer, Unspellable, passed_on, signature_text

# Retraces until no module asks to be recorded in its parent's forward any more; past that they stay opaque.
MOST_ROUNDS = 8


@dataclass
class _Attempt:
    """The runs of one set of treatments."""

    train: Run
    eval: Run | None = None
    others: list[tuple[Run, str]] = field(
        default_factory=list
    )  # in train mode, what is frozen if they differ


def trace(
    model: nn.Module, inputs: Inputs, *, leaf: Sequence[str] = (), opaque: Mapping[str, str] = {}
) -> Traced:
    """Capture the local forwards of `model`, its sites and the flow of data between them.

    Args:
        leaf: paths or class names (globs) of modules that keep their own forward.
        opaque: path → why the module there must keep its own forward.

    The modules inside those are captured all the same. Raises CaptureError where the model itself
    fails on the inputs, with the user's line."""
    treatment = Treatment({path: Fault(reason) for path, reason in opaque.items()})
    for path in _named(model, leaf):
        treatment.opaque.setdefault(path, Fault("named as a leaf"))
    shop = Workshop(model, real=False)
    for round_ in range(MOST_ROUNDS):
        attempt, shop = _base(shop, inputs, treatment)
        if not attempt.train.inline_wanted or round_ == MOST_ROUNDS - 1:
            _other_runs(shop, inputs, treatment, attempt)
        wanted = set().union(*(one.inline_wanted for one in _runs(attempt)))
        for one in _runs(attempt):
            for path, fault in one.faults.items():
                treatment.opaque.setdefault(path, fault)
        wanted -= set(treatment.opaque)
        if not wanted:
            break
        if round_ >= MOST_ROUNDS - 2:
            treatment.opaque.update({path: Fault("depends on values of its parent") for path in wanted})
        else:
            treatment.inline |= wanted
    return _assembled(attempt, treatment)


def _named(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    return [
        path
        for path, module in model.named_modules()
        if any(fnmatch.fnmatchcase(name, p) for p in patterns for name in (path, type(module).__name__))
    ]


def _runs(attempt: _Attempt) -> list[Run]:
    found = [attempt.train, *([attempt.eval] if attempt.eval else []), *(one for one, _ in attempt.others)]
    return [one for one in found if one.error is None]


def _base(shop: Workshop, inputs: Inputs, treatment: Treatment) -> tuple[_Attempt, Workshop]:
    """The run in train mode on the example inputs; on real tensors where fake ones do not do."""
    found = shop.run(inputs, treatment, training=True, observe=True)
    if found.error is not None and not shop.real:
        shop = Workshop(shop.model, real=True)
        found = shop.run(inputs, treatment, training=True, observe=True)
    if found.error is not None:
        raise model_fails(shop.model, found.error, found.error_line) from found.error
    return _Attempt(found), shop


def _other_runs(shop: Workshop, inputs: Inputs, treatment: Treatment, attempt: _Attempt) -> None:
    attempt.eval = shop.run(inputs, treatment, training=False)
    if (larger := other_batch(inputs)) is not None:
        found = shop.run(larger, treatment, training=True)
        attempt.others.append((found, f"batch size {batch_of(inputs)}"))
    if not shop.real and (changed := other_size(inputs)) is not None:
        found = shop.run(changed[0], treatment, training=True)
        attempt.others.append((found, changed[1]))


# ---- from runs to forwards


def _assembled(attempt: _Attempt, treatment: Treatment) -> Traced:
    notes: list[Note] = []
    forwards: dict[str, Forward] = {}
    runs = _runs(attempt)
    for other, what in attempt.others:
        if other.error is not None:
            notes.append(_frozen(what, "", other.error_line, str(other.error).strip().split("\n")[0]))
    paths = dict.fromkeys(path for one in runs for path in one.frames)
    for path in paths:
        if path in treatment.opaque:
            continue
        try:
            forwards[path] = _forward(path, attempt, notes)
        except Mismatch as mismatch:
            reason = f"its calls differ: {mismatch.message}"
            treatment.opaque[path] = Fault(reason, mismatch.line)
        except Unspellable as error:
            treatment.opaque[path] = Fault(str(error))
    for path, fault in treatment.opaque.items():
        notes.append(Note("opaque", fault.reason, path, fault.line))
    observer = attempt.train.observer
    assert observer is not None
    calls = observer.calls({path: fault.reason for path, fault in treatment.opaque.items()})
    operators, edges = tuple(observer.operators.values()), tuple(observer.edges.values())
    rung = "partial" if treatment.opaque else "trace"
    return Traced(rung, calls, forwards, tuple(_merged(notes)), operators, edges)


def _frozen(what: str, module: str, line: str | None, why: str) -> Note:
    return Note("frozen", f"{what}: {why}", module, line)


def _merged(notes: list[Note]) -> list[Note]:
    """One note a line of the user's, not one a module that runs it."""
    found: dict[tuple[str, str, str | None], Note] = {}
    for note in notes:
        by_line = note.topic == "frozen" and note.source is not None
        key = (note.topic, note.message, note.source if by_line else note.module)
        found.setdefault(key, note)
    return list(found.values())


def _forward(path: str, attempt: _Attempt, notes: list[Note]) -> Forward:
    """One forward for all calls of the module at `path`. Raises Mismatch where its calls differ."""
    train = [Sample(frame) for frame in attempt.train.frames.get(path, ())]
    in_eval = attempt.eval.frames.get(path, ()) if attempt.eval is not None else ()
    evals = [Sample(frame) for frame in in_eval]
    base = train or evals
    if train:
        merge(train)
    samples, split = list(base), False
    if train and evals:
        try:
            merge([*train, *evals])
            samples = [*train, *evals]
        except Mismatch:
            merge(evals)
            split = True
    for other, what in attempt.others:
        more = [Sample(frame) for frame in other.frames.get(path, ())] if other.error is None else []
        if not more or not train:
            continue
        try:
            merge([*samples, *more])
            samples += more
        except Mismatch as mismatch:
            notes.append(_frozen(what, path, mismatch.line, mismatch.message))
    return _printed(path, samples, evals if split else [])


def _printed(path: str, samples: list[Sample], evals: list[Sample]) -> Forward:
    imports = Imports({"self"})
    frame = samples[0].frame
    signature = frame.signature
    head = signature_text(signature, imports)
    imports.taken.update(signature.parameters)
    main = Printer(merge(samples), imports, placeholders=True).body()
    lines = [f"def forward({head}):"]
    constants: dict[str, Any] = dict(frame.constants)
    if evals:
        lines.append(f"{INDENT}if not self.training:")
        lines.append(f"{INDENT * 2}return self._forward_eval({passed_on(signature)})")
    lines += main.lines
    if evals:
        prefix = "_constant_eval_"
        other = Printer(merge(evals), imports, placeholders=False, constants=prefix).body()
        lines += ["", f"def _forward_eval({head}):", *other.lines]
        constants |= {name.replace("_constant_", prefix): t for name, t in evals[0].frame.constants.items()}
    return Forward(path, "\n".join(lines) + "\n", imports.names, tuple(main.calls), constants)
