"""What a rewrite costs besides a step's seconds: memory, the start of a program, the gate's calibration."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from fxapprox.api import planned
from fxapprox.capture import capture
from fxapprox.capture._types import Inputs
from fxapprox.measure.peak import peak_memory
from fxapprox.system import CACHE

from . import nets
from .nets import Net
from .turns import Claim, judged, spread

HELP = "import sys; sys.argv = ['fxapprox', '--help']; from fxapprox_cli.main import main; main()"


def memory(net: Net) -> dict[str, Any]:
    """Peak of training above what stood before the first step: exact and sampled, each in its better form."""
    name = next(iter(net.sampled))
    peaks: dict[str, int] = {}
    for form in net.forms:
        models = {"exact": net.model(form), name: nets.rewritten(net, name, form)}
        for side, model in models.items():
            peak = peak_memory(model, Inputs((net.batch(form)[0],), None), "sgd")
            if isinstance(peak, str):
                return {"title": net.title, "claims": [], "failed": {side: peak}}
            peaks[f"{side} {form}"] = peak.step
    least = [min(at for one, at in peaks.items() if one.startswith(f"{side} ")) for side in ("exact", name)]
    claim = judged(Claim("exact", name, 1.0), [round(least[0] / least[1], 3)] * 3)
    megabytes = {one: round(at / 1e6, 1) for one, at in peaks.items()}
    return {"title": net.title, "megabytes": megabytes, "claims": [claim]}


def helped() -> dict[str, Any]:
    """Seconds of `fxapprox --help`."""
    return below("fxapprox --help", command_seconds(HELP), 0.3)


def imported() -> dict[str, Any]:
    """Seconds that `import fxapprox` adds to `import torch`."""
    both, alone = command_seconds("import torch, fxapprox"), command_seconds("import torch")
    more = sorted(round(a - b, 4) for a, b in zip(both, alone, strict=True))
    return below("import fxapprox, after import torch", more, 0.2)


def calibrated(net: Net) -> dict[str, Any]:
    """Seconds in which the gate measures the net's sites, nothing known before."""
    captured = capture(net.model(None), Inputs((net.batch(None)[0],), None), origin=net.name)
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {CACHE: folder}):
        began = time.perf_counter()
        planned(captured, next(iter(net.sampled.values())), gate=True)
        spent = round(time.perf_counter() - began, 3)
    return below("the gate's measurements", [spent] * 3, 5.0) | {"title": net.title}


def command_seconds(program: str, repeats: int = 11) -> list[float]:
    """Wall seconds of a Python program as lower quartile, median, upper quartile; the first run, which
    fills the system's file cache, is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return spread(seconds[1:], 4)


def below(what: str, seconds: Sequence[float], bound: float) -> dict[str, Any]:
    """A row of seconds that should be less than `bound`."""
    reached = seconds[1] < bound
    claim = {"what": what, "unit": " s", "value": list(seconds), "target": bound, "reached": reached}
    return {"claims": [claim]}
