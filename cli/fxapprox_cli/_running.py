"""What every command does around its work: streams, errors, exit codes, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, TextIO, get_type_hints

import typer

from ._options import CHOICE_OPTIONS, Asked, AskedModel, Debug
from ._streams import result_stream

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERRUPTED = 130
FAULT = 1
PATIENCE = 2.0
"""Seconds after which a step says that it is still at work."""
REFRESH = 0.2
"""Seconds between two drawings of a progress bar."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """The function as a command: its first parameter, `out`, is where the result goes; one of class Asked
    stands for the model and all the options that its fields name, AskedModel for those less CHOICE_OPTIONS.

    Errors become one message on stderr and an exit code: 2 the request or the input is wrong, 3 nothing
    was rewritten, 130 interrupted, 1 a fault of fxapprox itself. `debug=True` shows the traceback."""

    standing = inspect.signature(function, eval_str=True)
    asks = any(one.annotation in (Asked, AskedModel) for one in standing.parameters.values())

    @functools.wraps(function)
    def run(**options: Any) -> None:
        debug = options.pop("debug", False)
        if asks:
            names = [one.name for one in dataclasses.fields(Asked) if one.name in options]
            options["asked"] = Asked(**{name: options.pop(name) for name in names})
        with result_stream() as out:
            try:
                function(out, **options)
            except typer.Exit:
                raise
            except KeyboardInterrupt:
                complain("interrupted", "nothing was written")
                raise typer.Exit(INTERRUPTED) from None
            except BrokenPipeError:  # the reader of the result had enough, as `| head` does
                os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
                raise typer.Exit(FAULT) from None
            except Exception as error:
                if debug:
                    raise
                raise typer.Exit(_told(error)) from None

    # typer reads the signature and the type hints: `out` is in neither, `debug` in both
    signature = _signature(standing)
    del run.__wrapped__
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__doc__ = paragraphs(function.__doc__ or "")
    run.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
    return run


def paragraphs(doc: str) -> str:
    """The text with each paragraph on one line, for typer to wrap; indented lines stay as they are."""
    told: list[str] = []
    for line in inspect.cleandoc(doc).splitlines():
        goes_on = told and told[-1] and line and not line.startswith(" ") and not told[-1].startswith(" ")
        told[-1:] = [f"{told[-1]} {line}"] if goes_on else [*told[-1:], line]
    return "\n".join(told)


def _signature(standing: inspect.Signature) -> inspect.Signature:
    """As typer reads it: without `out`, with the fields of Asked in its place, and with `debug`."""
    parameters: list[inspect.Parameter] = []
    for one in list(standing.parameters.values())[1:]:
        if one.annotation in (Asked, AskedModel):
            parameters += _asked_parameters(() if one.annotation is Asked else CHOICE_OPTIONS)
        else:
            parameters.append(one)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    return standing.replace(parameters=sorted([*parameters, debug], key=lambda one: one.kind))


def _asked_parameters(left_out: Collection[str]) -> list[inspect.Parameter]:
    """A parameter for each other field: those without a default are arguments, the others options."""
    hints = get_type_hints(Asked, include_extras=True)
    made = []
    for one in dataclasses.fields(Asked):
        if one.name in left_out:
            continue
        factory = one.default_factory
        default = one.default if factory is dataclasses.MISSING else factory()
        required = default is dataclasses.MISSING
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if required else inspect.Parameter.KEYWORD_ONLY
        empty = inspect.Parameter.empty if required else default
        made.append(inspect.Parameter(one.name, kind, default=empty, annotation=hints[one.name]))
    return made


def _told(error: Exception) -> int:
    from fxapprox.errors import FxApproxError

    if isinstance(error, FxApproxError):
        message, *rest = str(error).split("\n")
        complain("error", message, *rest)
        return error.exit_code
    complain(
        "fault in fxapprox", f"{type(error).__name__}: {error}", "  run again with --debug for the traceback"
    )
    return FAULT


def complain(what: str, message: str, *rest: str) -> None:
    """One message on stderr: the first word in red on a terminal."""
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{red}{what}:{plain} {message}", *rest, sep="\n", file=sys.stderr)


def show(out: TextIO, renderable: Callable[[int], RenderableType]) -> None:
    """Print a result that is laid out for the width it gets."""
    from rich.console import Console

    from fxapprox.report.console import columns

    width = columns()
    console = Console(file=out, width=width, highlight=False, soft_wrap=False)
    console.print(renderable(width))


def show_json(out: TextIO, told: Any) -> None:
    out.write(json.dumps(told, indent=2, ensure_ascii=False, default=str) + "\n")


@contextlib.contextmanager
def step(doing: str) -> Iterator[None]:
    """A step of the work; from `PATIENCE` seconds on, a terminal sees that it goes on."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    spinner = Spinner("dots", text=f"{doing} …")
    live = Live(
        spinner, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )
    timer = threading.Timer(PATIENCE, live.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        live.stop()


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """A bar for work that tells what it does and the share that is done; on a terminal, from `PATIENCE`
    seconds on. It is drawn when it is told to and by no thread, which would disturb what is measured."""
    if not sys.stderr.isatty():
        yield lambda doing, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        console=Console(stderr=True), auto_refresh=False, transient=True,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    task = bar.add_task("", total=1.0)
    began = drawn = time.monotonic()

    def tick(doing: str, done: float) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - began < PATIENCE or now - drawn < REFRESH:
            return
        drawn = now
        bar.update(task, description=doing, completed=done)
        bar.start()
        bar.refresh()

    try:
        yield tick
    finally:
        bar.stop()
