"""Which method fits a model, a batch size and a machine: the papers' decisions, walked with the numbers.

[A]: Adelman et al. 2021. [E]: Ebrahimi, Advani, Asudeh 2023, whose Figure 16 is the walk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .advice import Context
from .advice.batch import LEAST
from .advice.depth import predicted, worst_path
from .api import planned, require_some
from .capture._types import Capture
from .choices import Choice, Sampled
from .errors import NothingRewritten
from .passes.ratios import ratios
from .plan import Plan
from .policies import policies
from .rules import Rule, silenced
from .sites import Site
from .toml import toml_key, toml_value

ALSH_LAYERS = 4
WIDE = 1024
LARGE_SIDE = 128
"""Pixels from which on images count as ImageNet's (224) rather than CIFAR's (32)."""
KEEP = 0.5
Table = Mapping[str, object]


@dataclass(frozen=True)
class Question:
    """One step of the walk: what is asked, the model's number, the answer, who says so."""

    topic: str
    asked: str
    found: str
    answer: str
    source: str


@dataclass(frozen=True)
class Guide:
    """Where the walk ends: the method ("MC-approx", "ALSH-approx" or "open"), the questions on the way, the
    rules it comes to as tables of a rules file, and what they make of the model."""

    batch_size: int
    cores: int
    method: str
    questions: tuple[Question, ...]
    tables: tuple[Table, ...]
    plan: Plan

    @property
    def rules_text(self) -> str:
        """The rules as a file."""
        head = "version = 1\n"
        if self.plan.silence:
            head += f"silence = {toml_value(self.plan.silence)}\n"
        return head + "".join(
            "\n[[rule]]\n"
            + "".join(f"{toml_key(key)} = {toml_value(value)}\n" for key, value in table.items())
            for table in self.tables
        )


def guide(captured: Capture, *, batch_size: int, cores: int, silence: tuple[str, ...] = ()) -> Guide:
    """The walk for a captured model. Measures c on the example inputs, whatever that costs.

    Raises NothingRewritten where the model has no site that rules may choose without naming its kind."""
    sites = [site for site in captured.sites if site.refusal is None and not site.opt_in]
    if not sites:
        raise NothingRewritten(
            "there is nothing to advise on: the model has no product that can be sampled",
            where=captured.origin,
            remedy="fxapprox inspect lists what it has, and why it can never be sampled",
        )
    method, walked = _method(sites, batch_size, cores)
    tables = _hidden(sites) if method == "ALSH-approx" else tuple(_tables(sites))
    rules = [Rule(**dict[str, Any](table)) for table in tables]
    plan = planned(captured, silenced(rules, silence), costly=True, gate=False)
    require_some(plan, captured.origin)
    questions = [*walked]
    if method != "ALSH-approx":
        questions += [*_layers(sites), _forward(captured, plan), _batch_norm(plan)]
    return Guide(batch_size, cores, method, tuple(questions), tables, plan)


def _method(sites: list[Site], batch_size: int, cores: int) -> tuple[str, list[Question]]:
    """[E] Figure 16, which is about CPUs."""
    figure = "[E] Figure 16"
    batch = "mini-batches, or one example at a time?"
    if batch_size > 1:
        walked = [
            Question("batch", batch, f"batch {batch_size}", "mini-batches: MC-approx, which samples the "
                     "backward pass (bernoulli, scope backward)", figure),
            _scores(batch_size),
        ]  # fmt: skip
        return "MC-approx", walked
    hidden = max(site.depth for site in sites)
    fits, several, linear = hidden <= ALSH_LAYERS, cores > 1, any(_hidden(sites))
    walked = [
        Question("batch", batch, f"batch {batch_size}", "one at a time: layers and cores decide", figure),
        Question("layers", f"at most {ALSH_LAYERS} hidden layers, all linear?", f"{hidden} hidden",
                 "yes" if fits and linear else "no: errors grow too far" if linear else
                 "no: a convolution's node sees few inputs, and hash tables do not find it", figure),
        Question("cores", "several cores?", str(cores), "yes" if several else "no", figure),
    ]  # fmt: skip
    found = fits and several and linear
    answer = (
        "ALSH-approx: active nodes by hash tables"
        if found
        else f"open: no method is known to gain here. The rules below are for mini-batches: use {LEAST} "
        "examples or more at a time if you can"
    )
    left = f"batch 1, {hidden} hidden layers, {cores} cores"
    walked.append(Question("method", "what is left?", left, answer, figure))
    return "ALSH-approx" if found else "open", walked


def _scores(batch_size: int) -> Question:
    answer = "yes" if batch_size >= LEAST else "no: scores from so few rows are unreliable"
    return Question("scores", f"{LEAST} rows or more for norms?", str(batch_size), answer, "[E] §9.3")


def _hidden(sites: list[Site]) -> tuple[Table, ...]:
    """The rule for ALSH-approx: every linear layer but the last; none where there is no such layer, or
    something else that computes."""
    if any(site.kind != "linear" for site in sites) or not any(site.height for site in sites):
        return ()
    return ({"name": "hidden layers", "kind": ["linear"], "depth": ":-1", "policy": "alsh"},)


def _tables(sites: list[Site]) -> Iterator[Table]:
    """The rules for MC-approx, as [A] §8 spreads them over the layers."""
    later = _later(sites)
    if len(later) < len(sites):
        yield {"name": "first layer", "depth": "0", "policy": "exact"}
    chosen: Table = {"policy": "bernoulli", "keep": KEEP, "scope": "backward"}
    least = _least_channels(sites)
    convolutions = sorted({site.kind for site in later if _is_image(site)}) if least else []
    if least:
        yield {"name": "wide convolutions", "kind": convolutions, "min_channels": least, **chosen}
    if rest := sorted({site.kind for site in later} - set(convolutions)):
        yield {"name": "all others", "kind": rest, **chosen}


def _later(sites: list[Site]) -> list[Site]:
    """All but those that read the input; all where there are no others."""
    return [site for site in sites if site.depth] or sites


def _is_image(site: Site) -> bool:
    return site.kind.startswith("conv") and len(site.input_shape) == 4


def _least_channels(sites: list[Site]) -> int | None:
    """Channels that a convolution must have on large images: 1,024, or what the widest has where none has as
    many. None on small images."""
    side = max((max(site.input_shape[2:]) for site in sites if _is_image(site)), default=0)
    widest = max((site.channels for site in _later(sites) if _is_image(site)), default=None)
    return None if side < LARGE_SIDE or widest is None else min(WIDE, widest)


def _layers(sites: list[Site]) -> Iterator[Question]:
    """[A] §8."""
    source = "[A] §8"
    first = [site.id for site in sites if site.depth == 0]
    if len(first) < len(sites):
        told = ", ".join(first[:3]) + (" …" if len(first) > 3 else "")
        yield Question("first layer", "what reads the input?", told, "left exact", source)
    images = [site for site in sites if _is_image(site)]
    if not images:
        return
    side, widest = max(max(s.input_shape[2:]) for s in images), max(s.channels for s in images)
    least = _least_channels(sites)
    if least is None:
        answer = "small images: all of them but the first layer"
    elif least == WIDE:
        answer = f"large images: those of {WIDE} channels or more"
    else:
        answer = f"large images: those of {WIDE} channels or more; there are none: the widest ({least})"
    found = f"{side} pixels, up to {widest} channels"
    yield Question("convolutions", "which convolutions?", found, answer, source)


def _forward(captured: Capture, plan: Plan) -> Question:
    """Whether the forward pass may be sampled, too: topk at the sites that the rules choose."""
    topk = Choice.of_scope("forward", Sampled(policies.get("topk")(), KEEP))
    context = Context(tuple(replace(d, choice=topk) if d.choice else d for d in plan.decisions))
    found = ratios(captured, context.forward, costly=True)
    path, error = worst_path(context, found)
    answer = (
        "no: what is missing would be more than what is there"
        if error > 1
        else 'it may: policy "topk", scope "forward" saves more; watch the test accuracy'
    )
    told = f"{len(path)} sites one after the other, relative error {predicted(path, found, error)}"
    asked = f"may the forward be sampled, too (topk, keep {KEEP:g})?"
    return Question("forward", asked, told, answer, "[E] Theorem 2")


def _batch_norm(plan: Plan) -> Question:
    norms = [decision.site.norm_after for decision in plan.rewritten if decision.site.norm_after is not None]
    answer = (
        "the forward stays exact, so their statistics fit evaluation; sampled forward by topk they would not"
        if norms
        else "nothing to re-estimate"
    )
    found = f"{len(norms)} after sites that are sampled"
    return Question("batch norm", "statistics of a sampled forward?", found, answer, "docs/advice.md")
