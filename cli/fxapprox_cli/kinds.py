"""`fxapprox kinds`: every kind of operation that is recognised."""

from __future__ import annotations

from typing import TextIO

from . import _options as o
from ._running import command, show, show_json


@command
def kinds(out: TextIO, *, json: o.Json = False) -> None:
    """List the kinds of operations that are recognised as sites, and how models spell them."""
    from fxapprox.report.facts import kind_facts
    from fxapprox.report.listings import kinds_table

    told = kind_facts()
    if json:
        show_json(out, told)
    else:
        show(out, lambda width: kinds_table(told))
