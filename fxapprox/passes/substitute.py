"""A plan carried out: a copy of the user's model whose chosen sites sample their products."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ..capture._types import Capture, Forward, FunctionCall
from ..choices import Choice
from ..errors import FxApproxError
from ..kinds import Kind, recognise
from ..plan import Decision, Plan
from ..record import ATTRIBUTE, Record
from .copying import deep_copy
from .install import found, install
from .layers import FunctionSite, sample_module
from .layout import lay_out
from .verify import verify


@dataclass(frozen=True)
class _Layer:
    """A layer that will sample."""

    path: str
    site: str
    kind: Kind
    choice: Choice


@dataclass
class _Owner:
    """A module whose captured forward will run, and the calls in it that will sample."""

    forward: Forward
    calls: dict[str, FunctionCall] = field(default_factory=dict)  # by the name of the child
    choices: dict[str, dict[str, Choice]] = field(default_factory=dict)  # child → part → choice
    sites: dict[str, str] = field(default_factory=dict)  # child → id of its call


def substitute(capture: Capture, plan: Plan) -> nn.Module:
    """A copy of `capture.model` that does what `plan` chose, with a Record of how it came about.

    A layer changes its class and nothing else; a function call becomes a child module of the module
    whose forward holds it, and only such modules run their captured forward. Everything is checked
    before anything is made, and the result against the user's model after: state_dict, ties, and what it
    computes in evaluation. Raises FxApproxError; the user's model is untouched, whatever happens."""
    started = time.perf_counter()
    model, owners = carried_out(capture, plan)
    made = time.perf_counter()
    verify(capture, model)  # before weights are laid out anew, which changes the order of sums
    lay_out(model)
    seconds = {"substitute": made - started, "verify": time.perf_counter() - made}
    record = Record.of(capture, plan, owners).with_warnings(plan.warnings)
    model.__dict__[ATTRIBUTE] = replace(record, seconds={**record.seconds, **seconds})
    return model


def carried_out(capture: Capture, plan: Plan) -> tuple[nn.Module, tuple[str, ...]]:
    """The copy, not checked, and the paths of the modules that run their captured forward."""
    layers, owners = _work(capture, plan)
    model = deep_copy(capture.model)
    for layer in layers:
        sample_module(model.get_submodule(layer.path), site=layer.site, kind=layer.kind, choice=layer.choice)
    for path, owner in owners.items():
        _install(model.get_submodule(path), owner)
    return model, tuple(owners)


def _install(module: nn.Module, owner: _Owner) -> None:
    for name, call in owner.calls.items():
        function = found(*owner.forward.imports[call.target])
        kind = recognise(function=function)
        assert kind is not None
        child = FunctionSite(function, site=owner.sites[name], kind=kind, choices=owner.choices[name])
        child.train(module.training)
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            module.__dict__[name] = child  # one more item would change its length and its iteration
        else:
            module.add_module(name, child)
    install(module, owner.forward, owner.calls.values())


def _work(capture: Capture, plan: Plan) -> tuple[list[_Layer], dict[str, _Owner]]:
    """What the plan asks for. Raises FxApproxError with everything that cannot be done."""
    layers: list[_Layer] = []
    owners: dict[str, _Owner] = {}
    problems: list[str] = []
    modules = dict(capture.model.named_modules(remove_duplicate=False))
    calls = _calls(capture.forwards)
    for decision in plan.rewritten:
        try:
            if decision.site.call is None:
                layers.append(_layer(modules, decision))
            else:
                _function(modules, capture.forwards, calls, decision, owners)
        except _Impossible as problem:
            problems.append(f"{decision.site.id}: {problem}")
    if problems:
        raise FxApproxError("the plan cannot be carried out", remedy="\n  ".join(problems))
    return layers, owners


def _calls(forwards: Mapping[str, Forward]) -> dict[str, tuple[str, FunctionCall]]:
    """Site id → (path of its owner, its call)."""
    return {
        site_id: (path, call)
        for path, forward in forwards.items()
        for call in forward.calls
        for site_id in call.site_ids
    }


class _Impossible(Exception):
    """Why a decision cannot be carried out."""


def _layer(modules: Mapping[str, nn.Module], decision: Decision) -> _Layer:
    path = decision.site.owner
    if path not in modules:
        raise _Impossible(f"the model has no module {path!r}")
    kind = recognise(module=modules[path])
    if kind is None:
        raise _Impossible(f"{type(modules[path]).__name__} is no layer that can be sampled")
    assert decision.choice is not None
    return _Layer(path, decision.site.id, kind, decision.choice)


def _function(
    modules: Mapping[str, nn.Module],
    forwards: Mapping[str, Forward],
    calls: Mapping[str, tuple[str, FunctionCall]],
    decision: Decision,
    owners: dict[str, _Owner],
) -> None:
    """Note the call in its owner's work."""
    site, choice = decision.site, decision.choice
    assert choice is not None
    if site.id not in calls:
        raise _Impossible("its call is in no captured forward")
    path, call = calls[site.id]
    if hasattr(modules[path], call.name):
        raise _Impossible(f"{path or 'the model'} has an attribute {call.name!r} already")
    owner = owners.setdefault(path, _Owner(forwards[path]))
    owner.calls[call.name] = call
    owner.sites[call.name] = site.id.removesuffix(f".{site.part}") if site.part else site.id
    owner.choices.setdefault(call.name, {})[site.part] = choice
