"""Compare the captured forwards with the user's own, and name the modules whose capture is wrong.

No tracer is right about every forward (a random number drawn in Python, a counter, a branch on data
are frozen silently), so a capture is believed only where a copy of the model that runs it cannot be
told from a copy that runs the user's code: outputs, gradients, buffers and attributes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..passes.copying import deep_copy
from ..passes.install import install
from ._types import Forward, Inputs, Note, Traced
from .rng import RandomState, kept_random_state
from .trials import (
    Modes,
    Outcome,
    Trial,
    batch_size,
    copied,
    mismatch,
    other_batch_size,
    other_values,
    run,
    with_batch,
)
from .watchers import Watcher, unwatch, watchers

# A model whose step is larger than this is compared on two examples instead of the whole batch …
LARGE_FLOPS = 2e11
# … and one whose step is larger, or takes longer, than this once instead of in full: minutes on a CPU.
COSTLY_FLOPS = 5e12
COSTLY_SECONDS = 10.0

# What to try next where the user's own model does not run a trial (an index out of range in redrawn
# inputs, a batch size it does not take).
Alternatives = tuple[Trial, ...]


@dataclass(frozen=True)
class Verdict:
    """`guilty`: path of a module → how its captured forward differs. Empty: the capture is accepted.
    `idle`: the hooks that captured forwards do not need."""

    guilty: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    idle: frozenset[Watcher] = frozenset()


def check(model: nn.Module, traced: Traced, inputs: Inputs) -> Verdict:
    """Compare a copy of `model` in which every captured forward is installed with one that is as it was.

    Train mode: two seeds, two inputs, two batch sizes, one step after the other on the same copies (so
    that a counter shows); outputs, gradients of every parameter under a fixed random projection of the
    outputs, buffers, attributes. Then eval mode: outputs. On a mismatch each captured forward is tried by
    itself on the inputs its module was given, so that only the wrong ones are named.

    Costs two training steps and two evaluations of the model, for each side, of large models on two
    examples; where a step is very costly, one training step for each side, and a note says so. Leaves
    the global random states and `model` as they were."""
    if not traced.forwards:
        return Verdict()
    step = sum(call.flops * call.calls * (1 + sum(call.needs_grad)) for call in traced.calls)
    notes: list[Note] = []
    with kept_random_state():
        user = deep_copy(model)
        found = _first_mismatch(model, user, traced.forwards, inputs, step, notes)
        guilty = {} if found is None else _guilty(model, traced.forwards, *found)
        idle = frozenset() if guilty else _idle(model, user, traced.forwards, _trials(inputs, step))
    return Verdict(guilty, tuple(notes), idle)


def _idle(
    model: nn.Module, user: nn.Module, forwards: Mapping[str, Forward], trials: Sequence[Alternatives]
) -> frozenset[Watcher]:
    """The hooks without which the captured forwards do the same: those that `user`, a copy of `model` that
    has run, put on itself meanwhile, and those of `model` if a run of each side without them shows it."""
    before, after = watchers(model), watchers(user)
    if before:
        for trial in (trials[0][0], trials[2][0]):
            expected = run(deep_copy(model), trial)
            ours = unwatch(with_forwards(model, forwards, forwards))
            if expected.failure is not None or mismatch(expected, run(ours, trial)):
                return after - before
    return after


def _trials(inputs: Inputs, step_flops: int) -> list[Alternatives]:
    batch = batch_size(inputs)
    given = {"the example inputs": inputs}
    if batch > 2 and step_flops > LARGE_FLOPS:
        given = {f"2 of the {batch} examples": with_batch(inputs, 2)} | given
        batch = 2
    first = next(iter(given.values()))
    others = {"other inputs": other_values(first)}
    if batch:
        size = other_batch_size(batch)
        words = f"batch size {size} instead of {batch}"
        bigger = with_batch(first, size)
        others = {f"other inputs, {words}": other_values(bigger)} | others | {words: bigger}
    still = Modes(grad=False)
    return [
        tuple(Trial(f"train mode, {words}", True, values, 0) for words, values in given.items()),
        tuple(
            Trial(f"train mode, another seed, {words}", True, values, 1) for words, values in others.items()
        ),
        tuple(Trial(f"eval mode, {words}", False, values, 2, still) for words, values in given.items()),
        tuple(Trial(f"eval mode, {words}", False, values, 3, still) for words, values in others.items()),
    ]


def _first_mismatch(
    model: nn.Module, user: nn.Module, forwards: Mapping[str, Forward], inputs: Inputs, step_flops: int,
    notes: list[Note],
) -> tuple[Trial, str] | None:  # fmt: skip
    """The first trial in which the two sides differ, and how. Adds notes on what was not compared.

    `user` is a copy of `model` to begin with."""
    sides = user, with_forwards(model, forwards, forwards)
    ignored: frozenset[str] = frozenset()
    unfit: list[Inputs] = []
    started = time.perf_counter()
    for number, alternatives in enumerate(_trials(inputs, step_flops)):
        if number == 1 and (step_flops > COSTLY_FLOPS or time.perf_counter() - started > 2 * COSTLY_SECONDS):
            notes.append(_unchecked("one step takes long: compared once, in train mode only"))
            return None
        for trial in alternatives:
            if any(trial.inputs is one for one in unfit):
                continue
            expected = run(sides[0], trial)
            if expected.failure is None:
                wrong = mismatch(expected, run(sides[1], trial), ignored)
                break
            unfit.append(trial.inputs)
            notes.append(_unchecked(f"not compared in {trial.label}: {_line(expected.failure)}"))
            sides = deep_copy(model), with_forwards(model, forwards, forwards)
        else:
            continue
        if expected.backward is not None:
            notes.append(_unchecked(f"gradients not compared in {trial.label}: {_line(expected.backward)}"))
        if wrong:
            ignored |= _unsteady(model, trial, notes)
            wrong = {name: text for name, text in wrong.items() if name not in ignored}
        if wrong:
            return trial, f"{next(iter(wrong.values()))} ({trial.label})"
    return None


def _unsteady(model: nn.Module, trial: Trial, notes: list[Note]) -> frozenset[str]:
    """What the user's own model does not repeat under one seed; with a note, where there is any."""
    names = frozenset(mismatch(run(deep_copy(model), trial), run(deep_copy(model), trial)))
    if names:
        shown = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
        what = f"the model's own result changes from run to run under one seed ({trial.label})"
        notes.append(_unchecked(f"{what}: {shown} not compared"))
    return names


def with_forwards(model: nn.Module, forwards: Mapping[str, Forward], paths: Collection[str]) -> nn.Module:
    """A copy of `model` that runs the captured forwards of `paths`."""
    replica = deep_copy(model)
    for path in paths:
        install(replica.get_submodule(path), forwards[path])
    return replica


def _guilty(model: nn.Module, forwards: Mapping[str, Forward], trial: Trial, reason: str) -> dict[str, str]:
    """Path → reason, of the captured forwards that are wrong by themselves."""
    recorded = _recorded(model, forwards, trial)
    guilty: dict[str, str] = {}
    for path, calls in recorded.items():
        if wrong := _replayed(model.get_submodule(path), forwards[path], calls):
            guilty[path] = f"{wrong} ({trial.label})"
    if guilty:
        return guilty
    # wrong only within the whole: search among installed sets
    return dict.fromkeys(_bisected(model, forwards, trial, list(forwards)), reason)


def _recorded(model: nn.Module, paths: Collection[str], trial: Trial) -> dict[str, list[Trial]]:
    """The first two calls of each module in a run of the user's model: inputs, random states, modes."""
    replica = deep_copy(model)
    calls: dict[str, list[Trial]] = {}

    def record_at(path: str, module: nn.Module) -> None:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = calls.setdefault(path, [])
            if len(found) < 2:
                given = copied(Inputs(args, kwargs))
                found.append(Trial(trial.label, trial.training, given, RandomState.now(), Modes.now()))

        module.register_forward_pre_hook(record, prepend=True, with_kwargs=True)

    for path in paths:
        record_at(path, replica.get_submodule(path))
    run(replica, trial)
    return calls


def _replayed(module: nn.Module, forward: Forward, calls: Sequence[Trial]) -> str | None:
    """How the module with its captured forward differs from the module, twice in sequence."""

    def outcomes(captured: bool) -> list[Outcome]:
        replica = deep_copy(module)
        if captured:
            install(replica, forward)
        return [run(replica, trial) for trial in (*calls, *calls)[:2]]

    theirs = outcomes(captured=False)
    if any(outcome.failure is not None for outcome in theirs):
        return None
    ours = outcomes(captured=True)
    wrong = [mismatch(expected, actual) for expected, actual in zip(theirs, ours, strict=True)]
    if not any(wrong):
        return None
    steady = [mismatch(first, again) for first, again in zip(theirs, outcomes(captured=False), strict=True)]
    for texts, unsteady in zip(wrong, steady, strict=True):
        for name, text in texts.items():
            if name not in unsteady:
                return text
    return None


def _bisected(model: nn.Module, forwards: Mapping[str, Forward], trial: Trial, paths: list[str]) -> list[str]:
    """The smallest set of `paths` found by halving whose forwards together change the trial's outcome."""
    if len(paths) == 1:
        return paths
    middle = len(paths) // 2
    for half in (paths[:middle], paths[middle:]):
        theirs, ours = deep_copy(model), with_forwards(model, forwards, half)
        for _ in range(2):  # the second run shows counters
            if mismatch(run(theirs, trial), run(ours, trial)):
                return _bisected(model, forwards, trial, half)
    return paths


def _unchecked(message: str) -> Note:
    return Note("unchecked", message)


def _line(failure: Exception) -> str:
    text = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {text[0]}" if text else type(failure).__name__
