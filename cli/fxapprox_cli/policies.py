"""`fxapprox policies`: every policy that is installed."""

from __future__ import annotations

from typing import TextIO

from . import _options as o
from ._running import command, show, show_json


@command
def policies(out: TextIO, *, json: o.Json = False) -> None:
    """List the policies: what each keeps, biased or not, its options and its source."""
    from fxapprox.report.facts import policy_facts
    from fxapprox.report.listings import policies_table

    told = policy_facts()
    if json:
        show_json(out, told)
    else:
        show(out, lambda width: policies_table(told))
