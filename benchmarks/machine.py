"""What a result must say of how it was made."""

from __future__ import annotations

from typing import Any

from fxapprox.measure.machine import machine as this_machine


def machine(command: str) -> dict[str, Any]:
    """Command, date, processor, cores, threads, and the versions that matter."""
    return {"command": command, **this_machine()}
