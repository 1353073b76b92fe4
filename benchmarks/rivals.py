"""Ours against others, in the same rounds: what else could be done with the same layer, net and machine.

    python -m benchmarks.rivals                              # all, some fifteen minutes
    python -m benchmarks.rivals --only 'nets/wrn' --missing
    python -m benchmarks.suite --tables                      # the tables of the page

* `exact`, in its best memory format;
* `ours`, as a rewrite with topk leaves it without the gate;
* `published`: topk as the published implementations do it (naive.py), of the same layers;
* `compiled`: exact under `torch.compile`; what it takes to compile is told, and more than two minutes are
  not waited for;
* `bfloat16`: exact under autocast;
* `narrower`: an exact model whose widths are smaller, so that its FLOPs are those of ours.

They do not compute the same: sampling and the narrower model approximate each in its way, bfloat16
rounds. Only seconds are compared. Results: docs/results/rivals.json.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import fxapprox
from fxapprox.choices import flops_after
from fxapprox.record import record_of
from fxapprox.sites import PRODUCTS

from . import kernels, nets, pages
from .naive import published
from .nets import Net
from .store import RESULTS, Measure, chosen, make
from .turns import Claim, Rival, keep_memory, line, rounds, told

FILE = RESULTS / "rivals.json"
LAYER_SECONDS, NET_SECONDS = 8.0, 60.0
COMPILING = 120.0
"""Seconds that a compilation may take."""
OTHERS = ("ours", "published", "compiled", "bfloat16", "narrower")
LAYERS = {
    "linear-1000-1000-64": "linear 1000→1000, batch 64, keep 0.5",
    "linear-1024-1024-128": "linear 1024→1024, batch 128, keep 0.5",
    "conv-128-16": "conv 3×3, 128→128, 16×16, batch 64, keep 0.5",
}
NETS = {
    "wrn": (nets.WRN, "topk-0.5", {"keep": 0.5}),
    "mlp": (nets.SEED_MLP, "topk-0.1", {"keep": 0.1, "scope": "backward", "stem": False}),
    "transformer": (nets.TRANSFORMER, "topk-0.5", {"keep": 0.5, "stem": False}),
}
Made = dict[str, Rival]
autocast = partial(torch.autocast, "cpu", torch.bfloat16)


class TooLong(Exception):
    """A compilation that is not waited for."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TooLong in the block after so many seconds."""

    def end(*_: object) -> None:
        raise TooLong(f"not compiled after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    # again and again: an exception that happens to be raised in a finalizer is swallowed
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compiled(rival: Callable[[nn.Module], Rival], model: nn.Module) -> tuple[Rival | None, str]:
    """The contender that runs the compiled model; or None; and the seconds it took, or why there is none."""
    torch._inductor.config.compile_threads = 1  # no workers that idle beside the measurement
    began = time.perf_counter()
    try:
        with at_most(COMPILING):
            made = rival(torch.compile(model, dynamic=False))  # type: ignore[arg-type]
            made.step()
            made.step()
    except Exception as failure:
        text = str(failure).strip().splitlines()
        return None, f"{type(failure).__name__}: {text[0] if text else ''}"
    return made, f"{time.perf_counter() - began:.1f} s to compile"


def layer_forms(name: str) -> list[tuple[str, kernels.Case]]:
    """The cases of this name, with the suffix of their memory format."""
    found = [case for case in kernels.CASES if case.name == name or case.name.rpartition("-")[0] == name]
    return [(f" {case.name.rpartition('-')[2]}" if case.convolution else "", case) for case in found]


def layer(name: str, seconds: float) -> dict[str, Any]:
    """A layer, forward and backward, in each of its memory formats."""
    made: Made = {}
    said: dict[str, str] = {}
    for suffix, case in layer_forms(name):
        module, x, grad = kernels.operands(case)
        step = partial(kernels.layer_step, x=x, grad=grad)
        both = kernels.contenders(case, 0.5, ["topk"], "forward")
        made[f"exact{suffix}"] = step(module)
        made[f"ours{suffix}"] = both["topk"]
        made[f"published{suffix}"] = step(published(deepcopy(module), 0.5, stem=False))
        _put(made, said, suffix, *compiled(step, deepcopy(module)))
        made[f"bfloat16{suffix}"] = _cast(module, x, grad)
        made[f"narrower{suffix}"] = _narrower(case)
    return _row(LAYERS[name], made, said, seconds)


def _cast(module: nn.Module, x: Tensor, grad: Tensor) -> Rival:
    cut = deepcopy(module)
    x = x.detach().requires_grad_()

    def step() -> None:
        with autocast():
            y = cut(x)
        y.backward(grad.to(y.dtype))

    return Rival(step, (x, *cut.parameters()))


def _narrower(case: kernels.Case) -> Rival:
    """The layer with both its widths times √keep."""
    whole = case.layer()
    if isinstance(whole, nn.Conv2d):
        inner, outer = (nets.times(n, math.sqrt(0.5)) for n in (whole.in_channels, whole.out_channels))
        small = kernels.conv(inner, case.shape[2], case.shape[0], case.last)
    else:
        assert isinstance(whole, nn.Linear)
        inner, outer = (nets.times(n, math.sqrt(0.5)) for n in (whole.in_features, whole.out_features))
        small = kernels.linear(case.shape[:-1], inner, outer)
    return kernels.layer_step(*kernels.operands(small))


def net(name: str, seconds: float) -> dict[str, Any]:
    """A net's training step, in each of its memory formats."""
    subject, rules, how = NETS[name]
    made: Made = {}
    said: dict[str, str] = {}
    factor = math.sqrt(kept_flops(subject, rules))
    for form in subject.forms:
        suffix = f" {form}" if form else ""
        step = partial(_step, subject, form)
        made[f"exact{suffix}"] = step(subject.model(form))
        made[f"ours{suffix}"] = step(nets.rewritten(subject, rules, form))
        made[f"published{suffix}"] = step(published(subject.model(form), **how))
        _put(made, said, suffix, *compiled(step, subject.model(form)))
        made[f"bfloat16{suffix}"] = nets.training_step(subject, subject.model(form), form, autocast)
        made[f"narrower{suffix}"] = step(subject.model(form, factor))
    return _row(f"{subject.title}, keep {rules.rpartition('-')[2]}", made, said, seconds)


def _step(subject: Net, form: str | None, model: nn.Module) -> Rival:
    return nets.training_step(subject, model, form)


def kept_flops(subject: Net, rules: str) -> float:
    """The share of the net's FLOPs, forward and backward, that the sampled net computes on the batch."""
    x, _ = subject.batch(None)
    ours = fxapprox.rewrite(subject.model(None), (x,), rules=subject.sampled[rules], gate=False)
    record = record_of(ours)
    sites = [(one.site.products, one.choice) for one in record.plan.decisions if one.choice is not None]
    saved = sum(
        products[name].flops - flops_after(products, choice, name)
        for products, choice in sites
        for name in PRODUCTS
    )
    return 1 - saved / record.total_flops


def _put(made: Made, said: dict[str, str], suffix: str, rival: Rival | None, told: str) -> None:
    said[f"compiled{suffix}"] = told
    if rival is not None:
        made[f"compiled{suffix}"] = rival


def _row(title: str, made: Made, said: Mapping[str, str], seconds: float) -> dict[str, Any]:
    there = {name.partition(" ")[0] for name in made}
    names = ["exact", *(name for name in OTHERS if name in there)]
    claims = [Claim("exact", name) for name in names[1:]]
    claims += [Claim(name, "ours") for name in names[2:]]
    row = {
        "title": title,
        "contenders": names,
        **told(rounds(made, seconds), claims),
        "compiling": dict(said),
    }
    if "compiled" not in there:
        row["failed"] = {"compiled": next(iter(said.values()))}
    return row


def rivals(seconds: float | None = None) -> dict[str, Measure]:
    """Every row by its name."""
    rows: dict[str, Measure] = {
        f"layers/{name}": partial(layer, name, seconds or LAYER_SECONDS) for name in LAYERS
    }
    return rows | {f"nets/{name}": partial(net, name, seconds or NET_SECONDS) for name in NETS}


def main(
    only: Annotated[list[str] | None, typer.Option(help="A glob on the rows' names; repeatable.")] = None,
    missing: Annotated[bool, typer.Option(help="Only rows that have no result yet.")] = False,
    seconds: Annotated[float | None, typer.Option(help="For each row; default 8 a layer, 60 a net.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
) -> None:
    """Measure ours against others."""
    torch.set_num_threads(threads)
    keep_memory()
    rows = rivals(seconds)
    make(FILE, rows, chosen(rows, only or [], FILE, missing=missing), line)
    pages.write()


if __name__ == "__main__":
    typer.run(main)
