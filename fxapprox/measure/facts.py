"""What a measurement says, as plain data: the table, `--json` and the plot all read this."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..syntax import spell_choice
from .sites import Side
from .timing import Ratio, Timing

if TYPE_CHECKING:
    from .bench import Bench, CallRow, StepRow

FORMAT = 1
MEMORY = "peak resident memory of a fresh process that trains, in bytes; step: what of it training adds"


def bench_facts(found: Bench) -> dict[str, Any]:
    """All that was measured. Times are seconds, FLOPs 2 per multiply-add, ratios exact over ours."""
    return {
        "format": FORMAT,
        "model": found.model,
        "about": dict(found.about),
        "settings": dict(found.settings),
        "step": _step(found.step),
        "sites": [_row(row) for row in found.rows],
        "totals": _totals(found.rows),
        "notes": list(found.notes),
    }


def _step(step: StepRow) -> dict[str, Any]:
    exact, ours = step.exact.best.median, step.ours.best.median
    memory = step.memory
    told = (
        {"reason": memory}
        if isinstance(memory, str)
        else {"what": MEMORY, **{name: dataclasses.asdict(peak) for name, peak in memory.items()}}
    )
    return {
        "exact": _side(step.exact),
        "ours": _side(step.ours),
        "ratio": _ratio(step.ratio),
        **_savings(step.flops, step.flops_after, exact, ours),
        "memory": told,
    }


def _row(row: CallRow) -> dict[str, Any]:
    call, times = row.call, row.times
    first = call.contracted[0]
    at_limit = times.limit_ratio
    return {
        "sites": list(row.sites),
        "calls": row.calls,
        "input_shape": list(first.left),
        "weight_shape": list(first.right),
        "output_shape": list(call.output),
        "treatment": {one.part: spell_choice(one.choice) for one in call.contracted},
        "exact": _side(times.exact),
        "ours": _side(times.ours),
        "limit": _side(times.limit) if times.limit else None,
        "ratio": _ratio(times.ratio),
        "limit_ratio": _ratio(at_limit) if at_limit else None,
        "reached": times.reached,
        **_savings(call.flops, call.flops_after, times.exact.best.median, times.ours.best.median),
    }


def _totals(rows: tuple[CallRow, ...]) -> dict[str, Any] | None:
    """Over all calls of a step; None where sites were not measured."""
    if not rows:
        return None
    sums = {
        "calls": sum(row.calls for row in rows),
        "exact": sum(row.calls * row.times.exact.best.median for row in rows),
        "ours": sum(row.calls * row.times.ours.best.median for row in rows),
        "limit": sum(row.calls * row.times.limit.best.median for row in rows if row.times.limit),
    }
    flops = [sum(row.calls * getattr(row.call, name) for row in rows) for name in ("flops", "flops_after")]
    return sums | _savings(flops[0], flops[1], sums["exact"], sums["ours"])


def _savings(flops: int, flops_after: int, exact: float, ours: float) -> dict[str, Any]:
    """Predicted from FLOPs, and measured: shares of the exact side's, negative where ours costs more."""
    return {
        "flops": flops,
        "flops_after": flops_after,
        "predicted_saving": 1 - flops_after / flops if flops else 0.0,
        "measured_saving": 1 - ours / exact,
    }


def _side(side: Side) -> dict[str, Any]:
    forms = {form: _timing(timing) for form, timing in side.timings.items()}
    return {"form": side.form, **_timing(side.best), "forms": forms}


def _timing(timing: Timing) -> dict[str, Any]:
    return {"seconds": timing.median, "quartiles": list(timing.quartiles), "repeats": len(timing.samples)}


def _ratio(ratio: Ratio) -> dict[str, Any]:
    return {"median": ratio.median, "quartiles": list(ratio.quartiles)}
