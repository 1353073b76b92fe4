"""What a report says, as plain data: the tables, `--json` and the drawing all read this."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, cast, get_args

from ..capture._types import Capture, Edge, Note, Operator
from ..choices import Choice, Sampled, Treatment, drawn_from, flops_after
from ..kinds import kinds
from ..plan import Decision, Plan, PlanWarning, fingerprint
from ..policies import policies
from ..rules import Explanation, Match
from ..schedules import Schedule
from ..sites import PRODUCTS, ProductName, Site
from ..verdict import How, Verdict
from .memory import kept_bytes, kept_in_all

FORMAT = 1
UNIT = "FLOPs, 2 per multiply-add, forward + backward"


class Captured(Protocol):
    """What a Capture and a Record share, and a report needs beside the plan."""

    @property
    def rung(self) -> str: ...
    @property
    def notes(self) -> tuple[Note, ...]: ...
    @property
    def operators(self) -> tuple[Operator, ...]: ...
    @property
    def edges(self) -> tuple[Edge, ...]: ...
    @property
    def total_flops(self) -> int: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...


def facts(
    plan: Plan,
    captured: Captured | None = None,
    *,
    warnings: Iterable[PlanWarning] = (),
    decided: bool = True,
) -> dict[str, Any]:
    """All that a summary prints, JSON-able.

    FLOPs are of one training step on the example inputs, 2 per multiply-add. `captured` (a Capture, or
    a rewritten model's Record) adds the model's FLOPs outside sites, the rung and the notes; with a
    plan alone these are None. Where keep follows a schedule FLOPs are averages over its steps, and
    `averaged_over` says how many (of the longest). `warnings` are said in addition to the plan's own.
    `decided` is False for a plan that nobody asked for (`undecided`)."""
    sites = [site_facts(decision) for decision in plan.decisions]
    said = dict.fromkeys([*plan.warnings, *warnings])
    return {
        "format": FORMAT,
        "fxapprox": _version(),
        "model": plan.model,
        "fingerprint": plan.fingerprint,
        "unit": UNIT,
        "decided": decided,
        "rung": captured.rung if captured else None,
        "seconds": dict(captured.seconds) if captured else None,
        "averaged_over": max(map(_steps, plan.rewritten), default=0) or None,
        "totals": _totals(
            sites, captured.total_flops if captured else None, kept_in_all(plan.decisions, captured)
        ),
        "gate": _gate_totals(plan),
        "sites": sites,
        "notes": [dataclasses.asdict(note) for note in captured.notes] if captured else [],
        "warnings": [_warning_facts(warning) for warning in said],
        "silenced": [_warning_facts(warning) for warning in plan.silenced],
    }


def _gate(verdict: Verdict | None) -> dict[str, Any] | None:
    return (
        dataclasses.asdict(verdict) | {"passes": verdict.passes, "words": str(verdict)} if verdict else None
    )


def _gate_totals(plan: Plan) -> dict[str, Any] | None:
    """How many sites the gate looked at, how it knows, and how many it left exact; None where it did not."""
    found = [decision.gate for decision in plan.decisions if decision.gate]
    if not found:
        return None
    counts = Counter(verdict.how for verdict in found)
    unmeasured = sorted({verdict.by for verdict in found if verdict.how == "unmeasured"})
    return {
        "sites": len(found),
        "left_exact": sum(not verdict.passes for verdict in found),
        **{how: counts[how] for how in get_args(How)},
        "why_unmeasured": unmeasured,
        "threads": found[0].threads,
    }


def _warning_facts(warning: PlanWarning) -> dict[str, Any]:
    return dataclasses.asdict(warning) | {"sites": list(warning.sites)}


def undecided(captured: Capture) -> Plan:
    """A plan that leaves every site as it is: to look at a model before anything is asked for."""
    decisions = tuple(Decision(site, None, None, site.refusal or "") for site in captured.sites)
    return Plan(captured.origin, fingerprint(captured.sites, captured.origin), decisions)


def site_facts(decision: Decision) -> dict[str, Any]:
    """One site, its three products before and after, and the rule or the reason."""
    site, choice = decision.site, decision.choice
    products = {name: _product(site, choice, name) for name in PRODUCTS}
    before, after = kept_bytes(site, choice)
    return {
        "id": site.id,
        "kind": site.kind,
        "op": site.op,
        "owner": site.owner,
        "source": site.source,
        "depth": site.depth,
        "height": site.height,
        "channels": site.channels,
        "norm_after": site.norm_after,
        "dtype": site.dtype.removeprefix("torch."),
        "weight": site.weight,
        "shared": site.shared,
        "calls": site.calls,
        "input_shape": list(site.input_shape),
        "weight_shape": list(site.weight_shape),
        "output_shape": list(site.output_shape),
        "rewritten": choice is not None,
        "scope": choice.scope if choice else None,
        "rule": decision.rule,
        "reason": decision.reason,
        "gate": _gate(decision.gate),
        "products": products,
        "flops": site.flops,
        "flops_after": sum(product["flops_after"] for product in products.values()),
        "kept_bytes": before,
        "kept_bytes_after": after,
    }


def _product(site: Site, choice: Choice | None, name: ProductName) -> dict[str, Any]:
    one = site.products[name]
    treatment: Treatment = choice.treatment(name) if choice else "exact"
    told: dict[str, Any] = {
        "over": one.over,
        "pairs": one.pairs,
        "groups": one.groups,
        "flops": one.flops,
        "flops_after": flops_after(site.products, choice, name),
        "treatment": treatment if isinstance(treatment, str) else "sampled",
    }
    if isinstance(treatment, Sampled):
        drawn = drawn_from(site.products, name, treatment)
        told |= {
            "policy": treatment.policy.name,
            "samples": treatment.policy.samples,
            "options": _options(treatment),
            "keep": _keep(treatment),
            "keep_words": None if treatment.policy.sized_by else f"{treatment.keep:g}",
            "kept": round(sum(k * share for k, share in treatment.ks(drawn.pairs))),
            "kept_range": list(treatment.range(drawn.pairs)),
            "kept_of": drawn.pairs,
            "kept_over": drawn.over,
            "min_k": treatment.min_k,
            "center": treatment.center,
            "memory": treatment.memory.decay if treatment.memory else None,
        }
    return told


def _keep(sampled: Sampled) -> float | dict[str, object] | None:
    """A number, the table of a schedule, None where the policy has a size of its own."""
    if sampled.policy.sized_by:
        return None
    return sampled.keep.spelled() if isinstance(sampled.keep, Schedule) else sampled.keep


def _steps(decision: Decision) -> int:
    """Steps until the longest schedule of a site changes no more; 0 without one."""
    treatments = (decision.choice.treatment(name) for name in PRODUCTS) if decision.choice else ()
    keeps = (how.keep for how in treatments if isinstance(how, Sampled))
    return max((keep.length for keep in keeps if isinstance(keep, Schedule)), default=0)


def _options(sampled: Sampled) -> dict[str, Any]:
    policy: Any = sampled.policy
    return {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}


def _totals(sites: list[dict[str, Any]], model: int | None, kept: tuple[int, int]) -> dict[str, Any]:
    """Sums over the sites, what share of the whole model's training FLOPs they hold, and the bytes kept."""
    inside = sum(site["flops"] for site in sites)
    after = sum(site["flops_after"] for site in sites)
    # a count of the whole that is below its parts is a count that missed something: say the parts
    whole = max(model, inside) if model is not None else None
    forward = sum(site["products"]["forward"]["flops"] for site in sites)
    forward_after = sum(site["products"]["forward"]["flops_after"] for site in sites)
    return {
        "sites": len(sites),
        "rewritten": sum(site["rewritten"] for site in sites),
        "model_flops": whole,
        "model_flops_after": whole - inside + after if whole is not None else None,
        "site_flops": inside,
        "site_flops_after": after,
        "forward_flops": forward,
        "forward_flops_after": forward_after,
        "backward_flops": inside - forward,
        "backward_flops_after": after - forward_after,
        "share_in_sites": inside / whole if whole else None,
        "kept_bytes": kept[0],
        "kept_bytes_after": kept[1],
    }


def explanation_facts(explanation: Explanation, warnings: Iterable[PlanWarning] = ()) -> dict[str, Any]:
    """A site's facts, what became of each rule ("matches", "fails" with the reason, or "not tried"), and
    those of the plan's warnings that are about the site."""
    tried = [
        {
            "rule": one.rule.label,
            "origin": one.rule.origin,
            "outcome": "matches" if isinstance(one.outcome, Match) else "fails",
            "reason": one.outcome.reason,
        }
        for one in explanation.tried
    ]
    untried = [
        {"rule": rule.label, "origin": rule.origin, "outcome": "not tried", "reason": ""}
        for rule in explanation.untried
    ]
    said = [_warning_facts(warning) for warning in warnings if explanation.site.id in warning.sites]
    facts = site_facts(explanation.decision)
    return {"format": FORMAT, **facts, "rules": [*tried, *untried], "warnings": said}


def policy_facts() -> list[dict[str, Any]]:
    """Every registered policy: name, what it samples, by which score, unbiased, random, source, options."""
    return [
        {
            "name": name,
            "summary": _first_sentence(cls),
            "samples": cls.samples,
            "scores": cls.scores,
            "scopes": list(cls.scopes),
            "evaluation": cls.evaluation,
            "unbiased": cls.unbiased,
            "random": cls.random,
            "source": cls.source,
            "options": {field.name: field.default for field in dataclasses.fields(cast(Any, cls))},
        }
        for name, cls in policies.all().items()
    ]


def kind_facts() -> list[dict[str, Any]]:
    """Every registered kind: name, summary, the layers and functions it recognises, opt-in."""
    return [
        {
            "name": name,
            "summary": cls.summary,
            "modules": [base.__name__ for base in cls.modules],
            "functions": [getattr(function, "__name__", str(function)) for function in cls.functions],
            "opt_in": cls.opt_in,
        }
        for name, cls in kinds.all().items()
    ]


def _first_sentence(cls: type) -> str:
    text = " ".join((cls.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".")


def _version() -> str:
    try:
        return version("fxapprox")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
