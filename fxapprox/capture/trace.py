"""The trace: the user's model run under a recorder, a local forward of every module made from it.

The model runs on fake tensors (on real ones where its code reads data). Every module that is not one
operation gets a graph of its own forward; runs in train and eval mode, at another batch size and at
another image size or length, and (where dtypes are named) in another precision are merged, so that
the flag, the sizes and the dtype are followed at run time.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ._types import Forward, Inputs, Note, Traced
from .guards import Guard, common
from .idle import never_run
from .merge import Merged, Mismatch, merge
from .names import Imports
from .probes import batch_of, other_batches, other_sizes
from .provenance import Fault, Treatment
from .reads import reads_of
from .runs import Run, Workshop, model_fails
from .signatures import passed_on, signature_text
from .solve import Sample, depends_on_precision
from .text import INDENT, Printer, Unspellable

# Retraces until no module asks to be recorded in its parent's forward any more; past that they stay opaque.
MOST_ROUNDS = 8
# A run on real tensors that takes longer is not repeated at other sizes.
LONG_SECONDS = 5.0
# A module whose calls differ is written out call by call, up to this many.
MOST_CALLS = 64


@dataclass
class _Probe:
    """Runs in another way than the example's: `what` ("batch size 4") is frozen where they do something else.
    A `silent` probe is one whose outcome is of no interest to a user."""

    inputs: Inputs
    what: str
    shop: Workshop
    train: Run
    eval: Run | None = None  # made where train and eval mode have different forwards
    silent: bool = False


@dataclass
class _Attempt:
    """The runs of one set of treatments."""

    shop: Workshop
    treatment: Treatment
    train: Run
    eval: Run | None = None
    probes: list[_Probe] = field(default_factory=list)

    def runs(self) -> list[Run]:
        """The runs in which the model did not fail."""
        found = [self.train, *([self.eval] if self.eval else []), *(probe.train for probe in self.probes)]
        return [one for one in found if one.error is None]

    def probe(
        self, inputs: Sequence[Inputs], what: str, shop: Workshop | None = None, *, silent: bool = False
    ) -> None:
        """Run on the first of `inputs` that the model takes."""
        shop, tried = shop or self.shop, []
        for given in inputs:
            run = shop.run(given, self.treatment, training=True)
            tried.append(_Probe(given, what, shop, run, silent=silent))
            if run.error is None:
                self.probes.append(tried[-1])
                return
        self.probes += tried[:1]

    def in_eval(self, probe: _Probe) -> Run:
        if probe.eval is None:
            probe.eval = probe.shop.run(probe.inputs, self.treatment, training=False)
        return probe.eval


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
    shop = Workshop(model)
    for round_ in range(MOST_ROUNDS):
        attempt = _base(shop, inputs, treatment)
        shop = attempt.shop
        if not attempt.train.inline_wanted or round_ == MOST_ROUNDS - 1:
            _more_runs(attempt, inputs)
        wanted = set().union(*(one.inline_wanted for one in attempt.runs()))
        for one in attempt.runs():
            for path, fault in one.faults.items():
                treatment.opaque.setdefault(path, fault)
        if not wanted and round_ < MOST_ROUNDS - 2:
            wanted = _differing(attempt)
        wanted -= set(treatment.opaque)
        if not wanted:
            break
        if round_ >= MOST_ROUNDS - 2:
            treatment.opaque.update({path: Fault("depends on values of its parent") for path in wanted})
        else:
            treatment.inline |= wanted
    return _assembled(attempt)


def _differing(attempt: _Attempt) -> set[str]:
    """Paths of modules whose calls do different things, to be recorded in their parent's forward."""
    found = set()
    for path, frames in attempt.train.frames.items():
        if 1 < len(frames) <= MOST_CALLS and all(f.parent is not None and f.recording for f in frames):
            try:
                merge([Sample(frame) for frame in frames])
            except Mismatch:
                found.add(path)
    return found


def _named(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    return [
        path
        for path, module in model.named_modules()
        if any(fnmatch.fnmatchcase(name, p) for p in patterns for name in (path, type(module).__name__))
    ]


def _base(shop: Workshop, inputs: Inputs, treatment: Treatment) -> _Attempt:
    """The run in train mode on the example inputs; on real tensors where fake ones do not do."""
    found = shop.run(inputs, treatment, training=True, observe=True)
    if found.error is not None and not shop.real:
        shop = Workshop(shop.model, real=True)
        found = shop.run(inputs, treatment, training=True, observe=True)
    if found.error is None and shop.warm is None and any(fault.once for fault in found.faults.values()):
        warm = Workshop(shop.model, real=shop.real, warm=inputs)
        again = warm.run(inputs, treatment, training=True, observe=True)
        if again.error is None:
            found, shop = again, warm
    if found.error is not None:
        raise model_fails(shop.model, found.error, found.error_line) from found.error
    return _Attempt(shop, treatment, found)


def _more_runs(attempt: _Attempt, inputs: Inputs) -> None:
    """Eval mode, another batch size, and (where it costs little) other lengths or another image size, and
    another precision if the forwards name dtypes."""
    shop = attempt.shop
    attempt.eval = shop.run(inputs, attempt.treatment, training=False)
    attempt.probe(other_batches(inputs), f"batch size {batch_of(inputs)}")
    if shop.real and attempt.train.seconds > LONG_SECONDS:
        return
    for other in other_sizes(inputs):
        attempt.probe(other.inputs, other.what, silent=other.guess)
    if shop.real:
        return
    samples = (Sample(frame) for frames in attempt.train.frames.values() for frame in frames)
    if depends_on_precision(samples):
        precise = Workshop(shop.model, precise=True, warm=shop.warm)
        attempt.probe([inputs], "precision", precise, silent=True)


# ---- from runs to forwards


def _assembled(attempt: _Attempt) -> Traced:
    treatment = attempt.treatment
    notes: list[Note] = []
    forwards: dict[str, Forward] = {}
    for probe in attempt.probes:
        # what the user's own code refuses to do at another size is nothing that the trace has frozen
        if probe.train.error is not None and not probe.silent and probe.shop.takes(probe.inputs):
            notes.append(_frozen(probe.what, "", probe.train.error_line, "the trace fails at another one"))
    paths = dict.fromkeys(path for one in attempt.runs() for path in one.frames)
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
    notes += never_run(observer)
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
    train, evals = _samples(attempt.train, path), _samples(attempt.eval, path)
    probed = [sample for probe in attempt.probes for sample in _samples(probe.train, path)]
    try:  # most forwards are one and the same in all runs
        return _printed(path, merge([*train, *evals, *probed]), None)
    except Mismatch:
        pass
    if not train:
        return _printed(path, _widened(evals, path, attempt, notes, training=False), None)
    merge(train)
    try:
        merge([*train, *evals])
    except Mismatch:
        merge(evals)
        main = _widened(train, path, attempt, notes, training=True)
        return _printed(path, main, _widened(evals, path, attempt, notes, training=False))
    return _printed(path, _widened([*train, *evals], path, attempt, notes, training=True), None)


def _samples(run: Run | None, path: str) -> list[Sample]:
    if run is None or run.error is not None:
        return []
    return [Sample(frame) for frame in run.frames.get(path, ())]


def _widened(
    samples: list[Sample], path: str, attempt: _Attempt, notes: list[Note], *, training: bool
) -> Merged:
    """The samples with those at other sizes, as far as one forward holds for them; else a note."""
    merged = merge(samples)
    for probe in attempt.probes:
        if probe.train.error is not None or not (training or _has_numbers(samples)):
            continue
        more = _samples(probe.train if training else attempt.in_eval(probe), path)
        try:
            if more:
                merged = merge([*samples, *more])
                samples = [*samples, *more]
        except Mismatch as mismatch:
            if not probe.silent:
                why = f"the forward goes another way at another one ({mismatch.message})"
                notes.append(_frozen(probe.what, path, mismatch.line, why))
    return merged


def _has_numbers(samples: list[Sample]) -> bool:
    """Whether anything in these calls could depend on a size or a dtype."""

    def of(value: Any) -> bool:
        if isinstance(value, tuple | list):
            return any(of(item) for item in value)
        if isinstance(value, dict):
            return any(of(item) for item in value.values())
        return isinstance(value, float | torch.dtype | slice) or type(value) is int

    return any(of((node.args, node.kwargs)) for sample in samples for node in sample.nodes)


def _printed(path: str, merged: Merged, in_eval: Merged | None) -> Forward:
    """The text of a forward; with `in_eval`, of two."""
    imports = Imports({"self"})
    frame = merged.base.frame
    signature = frame.signature
    head = signature_text(signature, imports)
    imports.taken.update(signature.parameters)
    main = Printer(merged, imports, placeholders=True).body()
    lines = [f"def forward({head}):"]
    constants: dict[str, Any] = dict(frame.constants)
    if in_eval is not None:
        lines.append(f"{INDENT}if not self.training:")
        lines.append(f"{INDENT * 2}return self._forward_eval({passed_on(signature)})")
    lines += main.lines
    if in_eval is not None:
        prefix = "_constant_eval_"
        other = Printer(in_eval, imports, placeholders=False, constants=prefix).body()
        lines += ["", f"def _forward_eval({head}):", *other.lines]
        constants |= {
            name.replace("_constant_", prefix): t for name, t in in_eval.base.frame.constants.items()
        }
    guard = _guard(signature, [*merged.samples, *(in_eval.samples if in_eval else ())])
    reads = reads_of([merged, in_eval] if in_eval else [merged])
    return Forward(path, "\n".join(lines) + "\n", imports.names, tuple(main.calls), constants, guard, reads)


def _guard(signature: inspect.Signature, samples: Sequence[Sample]) -> Guard:
    names = tuple(signature.parameters)
    patterns = tuple(common([sample.frame.given[name] for sample in samples]) for name in names)
    shared = [sample.frame.aliases for sample in samples]
    aliases = tuple(one for one in shared[0] if all(one in others for others in shared))
    return Guard(names, patterns, passed_on(signature), aliases)
