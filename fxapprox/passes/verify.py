"""The last look at a rewritten model: it holds what the user's model holds, and evaluates to the same."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import Tensor, nn

from ..capture._types import Capture
from ..capture.check import COSTLY_FLOPS
from ..capture.rng import kept_random_state
from ..capture.trials import Modes, Trial, mismatch, run
from ..choices import Choice
from ..errors import FxApproxError
from .copying import deep_copy
from .layers import sites_of


def verify(capture: Capture, model: nn.Module) -> None:
    """Raise FxApproxError where `model`, made from `capture.model`, broke a promise.

    The state_dict has the same keys, shapes and dtypes; what was tied is tied; in evaluation the example
    inputs give the same outputs, to rounding, and so they do in training with all pairs kept (neither is
    looked at where a step takes more than `COSTLY_FLOPS`). Runs copies only."""
    wrong = _state_differences(capture.model, model) or _tie_differences(capture.model, model)
    if not wrong and capture.total_flops <= COSTLY_FLOPS:
        with kept_random_state():
            wrong = _outcome_differences(capture, deep_copy(capture.model), deep_copy(model))
    if wrong:
        raise FxApproxError(
            f"the rewritten model is not the user's model: {wrong}",
            where=capture.origin,
            remedy="this is a fault of fxapprox; the model is untouched. leaf= goes around a module",
        )


def _state_differences(theirs: nn.Module, ours: nn.Module) -> str | None:
    expected, actual = theirs.state_dict(), ours.state_dict()
    if expected.keys() != actual.keys():
        odd = sorted(expected.keys() ^ actual.keys())
        return f"the state_dict's keys differ: {', '.join(odd[:5])}"
    for name, value in expected.items():
        if _facts(value) != _facts(actual[name]):
            return f"{name} in the state_dict is {_facts(actual[name])}, expected {_facts(value)}"
    return None


def _facts(value: Any) -> Any:
    return (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else type(value)


def _tie_differences(theirs: nn.Module, ours: nn.Module) -> str | None:
    expected, actual = _ties(theirs), _ties(ours)
    odd = sorted("=".join(sorted(group)) for group in expected ^ actual)
    return f"tied tensors differ: {', '.join(odd[:3])}" if odd else None


def _ties(model: nn.Module) -> set[frozenset[str]]:
    names: dict[int, set[str]] = defaultdict(set)
    tensors = (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    )
    for named in tensors:
        for name, tensor in named:
            names[id(tensor)].add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def _outcome_differences(capture: Capture, theirs: nn.Module, ours: nn.Module) -> str | None:
    """How two copies differ in evaluation, then in training with every product of `ours` exact."""
    still = Modes(grad=False)
    evaluation = Trial("eval mode, the example inputs", False, capture.inputs, 0, still)
    training = Trial("train mode, every product exact", True, capture.inputs, 0, still)
    for trial in (evaluation, training):
        # a policy with an evaluation of its own promises nothing there: what is left to compare is the rest
        _make_exact(ours, only_own_evaluation=trial is evaluation)
        expected, actual = run(theirs, trial), run(ours, trial)
        if expected.failure is not None:
            continue  # a model that only trains
        wrong = mismatch(expected, actual)
        if wrong:  # what the user's model itself does not repeat cannot be held against the copy
            again = [run(deep_copy(capture.model), trial) for _ in range(2)]
            unsteady = mismatch(again[0], again[1])
            wrong = {name: text for name, text in wrong.items() if name not in unsteady}
        if wrong:
            return f"{next(iter(wrong.values()))} ({trial.label})"
    return None


def _make_exact(model: nn.Module, *, only_own_evaluation: bool) -> None:
    """Make every site (or those that evaluate in a way of their own) compute all of its products, by the way
    that sampled ones go."""
    for sites in sites_of(model):
        for part in sites.parts.values():
            if part.evaluates or not only_own_evaluation:
                part.choice, part.clock = Choice(), None
