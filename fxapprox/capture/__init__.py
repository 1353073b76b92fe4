"""From a user's model and example inputs to a checked Capture."""

from __future__ import annotations

import fnmatch
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ..errors import CaptureError, RequestError, one_of
from ._types import Capture, Inputs, Note, Traced
from .nests import unshared

FRONT_ENDS = ("trace", "modules")
# Each round makes every module that was found wrong opaque; what a coarser capture then reveals is rare.
ROUNDS = 5


def capture(
    model: nn.Module,
    inputs: Inputs,
    *,
    origin: str,
    leaf: Sequence[str] = (),
    front_end: str | None = None,
) -> Capture:
    """The sites of `model`, the graph they lie in, and its forwards as source text. `model` is untouched.

    A ladder of front-ends: a trace, accepted only after the check against the user's own code; the same
    with the modules at fault left as they are (opaque); where nothing can be traced, the layers that
    hooks meet. `leaf` names modules (globs over paths and class names) that are not looked into;
    `front_end` forces "trace" or "modules".

    Raises CaptureError where the model does not run on the inputs (with the user's line), or where the
    forced front-end fails; RequestError for an unknown front-end or leaf."""
    _check_request(model, leaf, front_end)
    args, kwargs = unshared((inputs.args, inputs.kwargs))
    inputs = replace(inputs, args=args, kwargs=kwargs)
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in the middle of
        return _capture(model, inputs, origin, tuple(leaf), front_end)


def _capture(
    model: nn.Module, inputs: Inputs, origin: str, leaf: tuple[str, ...], front_end: str | None
) -> Capture:
    clock = _Clock()
    with _quiet():
        traced, notes = _climbed(model, inputs, leaf, front_end, clock)
    with clock.stage("analyse"):
        from .analyse import sites_of  # networkx is not needed before there is a graph

        sites = sites_of(traced, model)
    with clock.stage("count"):
        outside = 0
        if traced.rung != "trace":  # else every contraction is in the graph
            from .outside import outside_flops

            outside = outside_flops(model, inputs, sites)
    return Capture(
        model=model,
        inputs=inputs,
        origin=origin,
        rung=traced.rung,
        sites=sites,
        forwards=traced.forwards,
        notes=notes,
        operators=traced.operators,
        edges=traced.edges,
        total_flops=sum(site.flops for site in sites) + outside,
        seconds=clock.seconds,
        idle=traced.idle,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No traceback in the log for an operation that fails on fake tensors: a probe with another size may,
    and a model that does not run on its inputs is told once, at the user's line."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@dataclass
class _Clock:
    """Seconds by stage; a stage may be entered again."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _check_request(model: nn.Module, leaf: Sequence[str], front_end: str | None) -> None:
    if front_end is not None and front_end not in FRONT_ENDS:
        raise RequestError(f"unknown front-end {front_end!r}", remedy=one_of(front_end, FRONT_ENDS))
    known = {path for path, _ in model.named_modules() if path}
    known |= {type(module).__name__ for module in model.modules()}
    for pattern in leaf:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise RequestError(
                f"leaf {pattern!r} is neither a module's path nor the class of one",
                remedy=one_of(pattern, known),
            )


def _climbed(
    model: nn.Module, inputs: Inputs, leaf: tuple[str, ...], front_end: str | None, clock: _Clock
) -> tuple[Traced, tuple[Note, ...]]:
    """The highest rung that holds, and every note on the way."""
    reason = "asked for"
    if front_end != "modules":
        outcome = _checked_trace(model, inputs, leaf, clock)
        if not isinstance(outcome, str):
            return outcome
        if front_end == "trace":
            raise CaptureError(f"the model cannot be traced: {outcome}", remedy='try front_end="modules"')
        reason = outcome
    from .hooks import by_hooks

    with clock.stage("hooks"):
        traced = by_hooks(model, inputs, reason)
    return traced, traced.notes


def _checked_trace(
    model: nn.Module, inputs: Inputs, leaf: tuple[str, ...], clock: _Clock
) -> tuple[Traced, tuple[Note, ...]] | str:
    """A trace that passed the check, with the notes; or why there is none."""
    from .check import check
    from .trace import trace

    opaque: dict[str, str] = {}
    for _ in range(ROUNDS):
        try:
            with clock.stage("trace"):
                traced = trace(model, inputs, leaf=leaf, opaque=opaque)
        except RequestError:
            raise
        except Exception as failure:
            with clock.stage("check"):
                _must_run(model, inputs)
            return _reason(failure)
        with clock.stage("check"):
            verdict = check(model, traced, inputs)
        fresh = {path: reason for path, reason in verdict.guilty.items() if path not in opaque}
        if not verdict.guilty:
            return replace(_with_rung(traced), idle=verdict.idle), (*traced.notes, *verdict.notes)
        if not fresh:
            break
        opaque |= fresh
    wrong = "; ".join(f"{path or 'the model'}: {reason}" for path, reason in list(verdict.guilty.items())[:3])
    return f"the captured forwards still differ from the user's after {ROUNDS} rounds: {wrong}"


def _with_rung(traced: Traced) -> Traced:
    opaque = any(note.topic == "opaque" for note in traced.notes)
    return replace(traced, rung="partial") if opaque and traced.rung == "trace" else traced


def _must_run(model: nn.Module, inputs: Inputs) -> None:
    """Raise CaptureError, at the user's line, where the model itself does not run on its inputs."""
    from ..passes.copying import deep_copy
    from .blame import where
    from .rng import kept_random_state
    from .trials import Trial, run

    with kept_random_state():
        failure = run(deep_copy(model), Trial("", True, inputs)).failure
    if failure is not None:
        raise CaptureError(
            f"the model does not run on the example inputs: {type(failure).__name__}: {failure}",
            where=where(failure.__traceback__),
            remedy="give inputs that model(*args, **kwargs) takes in train mode",
        ) from failure


def _reason(failure: Exception) -> str:
    from .blame import where

    text = str(failure).strip().splitlines()
    place = where(failure.__traceback__)
    said = f"{type(failure).__name__}: {text[0]}" if text else type(failure).__name__
    return f"{said} ({place})" if place else said
