"""The Python interface: rewrite a model, or only decide how it would be rewritten."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .advice import Ratios
from .capture import capture
from .capture._types import Capture, Inputs
from .errors import NothingRewritten, RequestError
from .plan import Decision, Plan, bind, fingerprint
from .problems import Problem, raise_problems, typed
from .record import ATTRIBUTE
from .rules import Rule, decide, load_rules, rules_from, silenced
from .verdict import Verdict

if TYPE_CHECKING:
    from .report import Summary

Rules = str | os.PathLike[str] | Sequence[Rule] | Rule | Plan
_REASONS_SHOWN = 8
_WRAPPERS = {
    "OptimizedModule": "rewrite the model first, then torch.compile the result",
    "DistributedDataParallel": "rewrite the model first, then wrap the result",
    "DataParallel": "rewrite the model first, then wrap the result",
    "FullyShardedDataParallel": "rewrite the model first, then wrap the result",
    "ScriptModule": "rewrite the Python module that was scripted",
    "RecursiveScriptModule": "rewrite the Python module that was scripted",
}


def rewrite(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    rules: Rules | None = None,
    policy: str | None = None,
    keep: float | Mapping[str, object] | None = None,
    min_k: int | None = None,
    scope: str | None = None,
    center: bool | None = None,
    memory: bool | Mapping[str, float] | None = None,
    gate: bool | None = None,
    silence: str | Sequence[str] = (),
    leaf: Sequence[str] = (),
    front_end: str | None = None,
    **options: Any,
) -> nn.Module:
    """A new module that trains as `model` does with sampled products; `model` is untouched.

    Say what is sampled with `rules` (a rules file, a list of Rule, or a Plan), or with the shorthand for
    one rule over every site: `policy`, `keep` (default 0.5), `min_k` (1), `scope` ("forward"), `center`
    (False), `memory` (False) and the policy's own `options`. `args` and `kwargs` are example inputs.
    `gate` leaves a site exact where sampling is not faster on this machine, measured on inputs like the
    examples; it is on unless the rules say otherwise, and off for a Plan, which has been decided already.
    `silence` names warnings that are not to be said (docs/advice.md lists them). `leaf` names modules that
    are not looked into, `front_end` forces "trace" or "modules".

    Evaluation computes what `model` computes; parameters, buffers and the keys of the state_dict are
    the same. Raises FxApproxError, among them NothingRewritten where every site was left exact."""
    keys = {
        "policy": policy, "keep": keep, "min_k": min_k, "scope": scope, "center": center, "memory": memory,
        **options,
    }  # fmt: skip
    given = silenced(_rules(rules, keys), silence)
    captured = _captured(model, args, kwargs, leaf, front_end)
    return rewritten(captured, planned(captured, given, gate=gate))


def plan(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    rules: Rules | None = None,
    policy: str | None = None,
    keep: float | Mapping[str, object] | None = None,
    min_k: int | None = None,
    scope: str | None = None,
    center: bool | None = None,
    memory: bool | Mapping[str, float] | None = None,
    gate: bool | None = None,
    silence: str | Sequence[str] = (),
    leaf: Sequence[str] = (),
    front_end: str | None = None,
    **options: Any,
) -> Plan:
    """What `rewrite` with the same arguments would do; does nothing."""
    keys = {
        "policy": policy, "keep": keep, "min_k": min_k, "scope": scope, "center": center, "memory": memory,
        **options,
    }  # fmt: skip
    given = silenced(_rules(rules, keys), silence)
    return planned(_captured(model, args, kwargs, leaf, front_end), given, gate=gate)


def summary(model_or_plan: nn.Module | Plan) -> Summary:
    """The table that the command line prints, of a rewritten model or a plan; `.facts` is it as data."""
    from . import report  # rich is not needed before something is printed

    return report.summary(model_or_plan)


def planned(
    captured: Capture,
    rules: Sequence[Rule] | Plan,
    *,
    costly: bool = False,
    gate: bool | None = None,
    tick: Callable[[str, float], object] | None = None,
) -> Plan:
    """The plan that rules make for a captured model; a Plan is fitted to the model's present sites.

    Warnings may measure on the example inputs, `costly` also where that takes more than a second. `gate`
    is as for `rewrite`; `tick` hears what it measures, and the share of its time that is spent.
    Raises PlanMismatch for a plan of another model, RequestError for rules that match nothing."""
    problems: list[Problem] = []
    typed({"gate": gate}, "gate", (bool,), problems)
    raise_problems(problems, "the request")

    def measure(decisions: Sequence[Decision]) -> Ratios:
        from .passes.ratios import ratios  # nothing is copied before somebody asks

        return ratios(captured, decisions, costly=costly)

    def measured(decisions: Sequence[Decision]) -> Mapping[str, Verdict]:
        from .measure.gate import verdicts

        return verdicts(captured, decisions, tick=tick)

    if isinstance(rules, Plan):
        return bind(rules, captured.sites, measure, measured if gate else None)
    name = captured.origin
    print_of = fingerprint(captured.sites, name)
    return decide(
        captured.sites, rules, model=name, fingerprint=print_of, measure=measure, gate=measured, asked=gate
    )


def rewritten(captured: Capture, plan: Plan) -> nn.Module:
    """The rewritten copy of a captured model. Raises NothingRewritten with the reasons where the plan
    leaves every site exact."""
    require_some(plan, captured.origin)
    from .passes.substitute import substitute

    with _no_inference_mode():
        return substitute(captured, plan)


def require_some(plan: Plan, origin: str) -> None:
    """Raise NothingRewritten with the reasons where the plan leaves every site exact."""
    if not plan.rewritten:
        raise NothingRewritten(
            f"nothing was rewritten: all {len(plan.decisions)} sites stay exact"
            if plan.decisions
            else "nothing was rewritten: the model has no product that fxapprox knows",
            where=origin,
            remedy="\n  ".join(_reasons(plan)) or None,
        )


def check_model(model: object) -> nn.Module:
    """The model itself where it can be rewritten. Raises RequestError that says what to pass instead."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise RequestError(f"a model must be a torch.nn.Module, not {what}", remedy="pass an instance")
    for cls in type(model).__mro__:
        if cls.__module__.startswith("torch.") and cls.__name__ in _WRAPPERS:
            raise RequestError(f"the model is wrapped in {cls.__name__}", remedy=_WRAPPERS[cls.__name__])
    if ATTRIBUTE in model.__dict__:
        raise RequestError(
            f"{type(model).__name__} was already rewritten by fxapprox",
            remedy="rewrite the original model again, with the other rules",
        )
    sampled = [path for path, module in model.named_modules() if "_fxapprox" in module.__dict__]
    if sampled:
        raise RequestError(
            f"the model already samples at {', '.join(sampled[:3])}{' …' if len(sampled) > 3 else ''}",
            remedy="rewrite a model that does not sample yet",
        )
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise RequestError(
            f"{', '.join(lazy[:3])} has no shape yet (a lazy layer)",
            remedy="run the model once, then rewrite",
        )
    return model


def _captured(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    leaf: Sequence[str],
    front_end: str | None,
) -> Capture:
    check_model(model)
    inputs = Inputs((args,) if isinstance(args, Tensor) else tuple(args), kwargs)
    leaves = (leaf,) if isinstance(leaf, str) else tuple(leaf)
    with _no_inference_mode():
        return capture(model, inputs, origin=type(model).__name__, leaf=leaves, front_end=front_end)


def _no_inference_mode() -> AbstractContextManager[object]:
    """Out of a caller's torch.inference_mode: parameters that are made there can never be trained."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _rules(rules: Rules | None, shorthand: Mapping[str, object]) -> Sequence[Rule] | Plan:
    """The request as rules, before the model is looked at."""
    named = [name for name, value in shorthand.items() if value is not None]
    if rules is None:
        if not named:
            raise RequestError(
                "nothing says what to sample",
                remedy='give policy="topk", or rules="rules.toml" (or a list of fxapprox.Rule, or a Plan)',
            )
        return rules_from(**shorthand)
    if named:
        raise RequestError(
            f"{', '.join(named)} cannot be given beside rules=",
            remedy="put it into the rules it is meant for",
        )
    if isinstance(rules, Plan):
        return rules
    if isinstance(rules, Rule):
        return (rules,)
    if isinstance(rules, str | os.PathLike):
        return load_rules(rules)
    listed = isinstance(rules, Sequence)
    wrong = [type(rule).__name__ for rule in rules if not isinstance(rule, Rule)] if listed else []
    if wrong or not listed or not rules:
        what = f"holds a {wrong[0]}" if wrong else "is empty" if listed else f"is a {type(rules).__name__}"
        raise RequestError(f"rules= {what}", remedy="give a rules file, a list of fxapprox.Rule, or a Plan")
    return rules


def _reasons(plan: Plan) -> Iterator[str]:
    """Why sites were left alone: the commonest reasons first, each with how many and one of them."""
    examples: dict[str, str] = {}
    for decision in plan.decisions:
        examples.setdefault(decision.reason, decision.site.id)
    counts = Counter(decision.reason for decision in plan.decisions).most_common()
    for reason, count in counts[:_REASONS_SHOWN]:
        others = f" and {count - 1} more" if count > 1 else ""
        yield f"{examples[reason]}{others}: {reason}"
    if len(counts) > _REASONS_SHOWN:
        yield f"and {len(counts) - _REASONS_SHOWN} more reasons"
    if any(decision.gate is not None for decision in plan.decisions):
        yield "to sample where it is not faster, too: --no-gate, in Python gate=False"
