"""`fxapprox bench`: seconds, exact against rewritten."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from . import _options as o
from ._model import captured, decision_rules, loaded
from ._running import command, progress, show, show_json, step

if TYPE_CHECKING:
    from torch import nn

    from fxapprox.capture._types import Inputs

_MEASURED = "What is measured"

Repeat = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Repetitions of everything. Default: as --seconds allow.", rich_help_panel=_MEASURED
    ),
]
Seconds = Annotated[
    float,
    typer.Option(metavar="S", help="Time for measuring, about. Default: 30.", rich_help_panel=_MEASURED),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", help="Threads of torch. Default: as torch chooses.", rich_help_panel=_MEASURED),
]
Optimizer = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="sgd (with momentum) or adam. Default: sgd.", rich_help_panel=_MEASURED
    ),
]
Sites = Annotated[
    bool,
    typer.Option("--sites/--no-sites", help="Measure each distinct site, too.", rich_help_panel=_MEASURED),
]
PeakMemory = Annotated[
    bool,
    typer.Option(
        "--peak-memory/--no-peak-memory",
        help="Measure peak memory, in a process of its own for each side.",
        rich_help_panel=_MEASURED,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.svg",
        help="Draw FLOPs saved against time saved, a dot for each distinct site (needs matplotlib).",
        rich_help_panel="Output",
    ),
]


@command
def bench(
    out: TextIO,
    asked: o.Asked,
    *,
    repeat: Repeat = None,
    seconds: Seconds = 30.0,
    threads: Threads = None,
    optimizer: Optimizer = "sgd",
    sites: Sites = True,
    peak_memory: PeakMemory = True,
    plot: Plot = None,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Measure a rewritten model against the exact one: training steps, each site, peak memory.

    MODEL with --policy, --rules or --plan is rewritten first. A file that fxapprox wrote needs none of
    these, only --input: it is compared with the same model, every site exact. Sites that the gate would
    leave exact are measured, too, unless --gate is given.

    Exact and rewritten run in turn in one process, each in its best memory format. Beside each site
    stands its limit, the exact operation on the kept pairs alone.

    Examples:
      fxapprox bench model.py --policy topk --keep 0.5 --input 32x3x32x32 --threads 2
      fxapprox bench model_topk.py --input 32x3x32x32 --no-peak-memory
      fxapprox bench model.py:Net --rules rules.toml --plot savings.svg
    """
    with step("starting torch"):
        from fxapprox.measure import Budget, check_request
        from fxapprox.measure import bench as measured
        from fxapprox.report.plot import check_plot

    check_request(optimizer, Budget(seconds, repeat), threads)
    if plot:
        check_plot(plot, force=force)
    with _pair(asked) as (exact, fast, inputs, name), progress() as tick:
        found = measured(
            exact, fast, inputs.args, inputs.kwargs, optimizer=optimizer, repeat=repeat, seconds=seconds,
            threads=threads, sites=sites, memory=peak_memory, name=name, tick=tick,
        )  # fmt: skip
    told, written = found.facts, []
    if plot:
        from fxapprox.report.plot import draw_savings

        draw_savings(told, plot)
        written = [plot]
    if json:
        show_json(out, told | {"written": [str(path) for path in written]})
        return
    from fxapprox.report.bench import bench_table

    show(out, lambda width: bench_table(told, width, written=written))


@contextlib.contextmanager
def _pair(asked: o.Asked) -> Iterator[tuple[nn.Module | None, nn.Module, Inputs, str]]:
    """The exact model (None: the rewritten one with its sites exact), the rewritten one, inputs, a name."""
    if asked.decides:
        wanted = decision_rules(asked)
        from fxapprox.api import planned, rewritten

        with captured(asked) as found:
            with step("rewriting"):
                # what is slower sampled is what one wants to see here: the gate only where it is asked for
                fast = rewritten(found, planned(found, wanted, gate=asked.gate or False))
            yield found.model, fast, found.inputs, found.origin
        return
    with loaded(asked) as (given, inputs):
        from fxapprox.errors import RequestError
        from fxapprox.passes.layers import sampling_modules

        if not any(True for _ in sampling_modules(given.model)):
            raise RequestError(
                f"{given.origin} samples nowhere, and nothing says what to sample",
                remedy="give --policy topk, or --rules FILE, or --plan FILE",
            )
        yield None, given.model, inputs, given.origin
