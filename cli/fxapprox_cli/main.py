"""The command line. Nothing here or in a command's head imports torch: `--help` must not wait for it."""

from __future__ import annotations

import os
import sys
import threading
from typing import Annotated

import typer

from ._running import paragraphs
from .advise import advise
from .bench import bench
from .explain import explain
from .inspect import inspect
from .kinds import kinds
from .native import native
from .policies import policies
from .recipes import recipes
from .rewrite import rewrite

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # it costs as much as all of typer

        typer.echo(f"fxapprox {version('fxapprox')}")
        raise typer.Exit


HELP = """Train PyTorch models with sampled matrix products and convolutions.

A model's file goes in; a file with the same model comes out, in which the products that your rules name
are computed from a part of their column-row pairs.

Begin with:
  fxapprox inspect model.py --input 32x3x32x32
  fxapprox rewrite model.py --policy topk --dry-run
"""


@app.callback(help=paragraphs(HELP))
def fxapprox(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for one in (rewrite, inspect, explain, advise, bench, policies, kinds, recipes, native):
    app.command()(one)


def main() -> None:
    """Run the command line and end the process, whatever threads the user's file has left running."""
    code: int | str | None = 0
    try:
        app()
    except SystemExit as ending:
        code = ending.code
    left = [
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.daemon
    ]
    if left:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)
