"""Peak resident memory of training, read by a process of its own for each model.

Within one process the allocator keeps what was freed, so a second model would train in the first one's
memory. Each model therefore goes, pickled, to a fresh interpreter that trains it for a few steps and
reads the high-water mark which the system keeps of it. Its allocator is told to give blocks back at
once: otherwise the mark holds what fragmentation left over from earlier steps, which differs from run to
run by half. Needs /proc (Linux).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..capture._types import Inputs

STATUS = Path("/proc/self/status")
HIGH_WATER = Path("/proc/self/clear_refs")
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
"""glibc: blocks of 64 KiB and more are mapped one by one (by itself it stops that once one was freed)."""
PROGRAM = "import sys; from fxapprox.measure.peak import main; main(*sys.argv[1:])"
STEPS = 3
"""The first makes the gradients and the optimizer's state, later ones run beside them."""


@dataclass(frozen=True)
class Peak:
    """Bytes: `resident` of the process at most while it trained; `step`, what of that is above what stood
    before (interpreter, torch, weights, inputs): activations, gradients and the optimizer's state."""

    resident: int
    step: int


def peak_memory(model: nn.Module, inputs: Inputs, optimizer: str, *, timeout: float = 600.0) -> Peak | str:
    """The peak of a fresh process that trains `model` (it is only read here) for `STEPS` steps with as
    many threads as torch has here; or why it cannot be measured."""
    if not (STATUS.exists() and HIGH_WATER.exists()):
        return "the system does not tell a process's high-water mark (no /proc)"
    if any(p.device.type != "cpu" for p in model.parameters()):
        return "only memory of models on the CPU is measured"
    with tempfile.TemporaryDirectory(prefix="fxapprox-bench-") as folder:
        given, told = Path(folder, "model.pt"), Path(folder, "peak.json")
        try:
            torch.save((model, inputs.args, dict(inputs.kwargs or {}), optimizer), given)
        except Exception as failure:
            return f"the model cannot be pickled for a process of its own: {_first_line(failure)}"
        threads = str(torch.get_num_threads())
        command = [sys.executable, "-c", PROGRAM, str(given), str(told), threads]
        environment = {**AT_ONCE, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                errors="replace", timeout=timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"it took longer than {timeout:g} s"
        except OSError as failure:
            return f"no process can be started: {_first_line(failure)}"
        if done.returncode != 0 or not told.exists():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            return f"the process that should train it failed: {last[0]}"
        return Peak(**json.loads(told.read_text()))


def _first_line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"


def main(given: str, told: str, threads: str) -> None:
    """What the fresh process does."""
    from .step import optimizer_of, training_step

    torch.set_num_threads(int(threads))
    model, args, kwargs, optimizer = _loaded(given)
    inputs = Inputs(args, kwargs)
    training_step(model, inputs, optimizer_of(optimizer, model))()  # kernels are compiled, code is imported
    model.zero_grad(set_to_none=True)
    step = training_step(model, inputs, optimizer_of(optimizer, model))
    before = _settled()
    for _ in range(STEPS):
        step()
    peak = _status("VmHWM")
    Path(told).write_text(json.dumps({"resident": peak, "step": max(peak - before, 0)}))


def _loaded(given: str) -> tuple[nn.Module, Any, Any, str]:
    """Read once: the bytes of the file are not part of what is measured."""
    found: tuple[nn.Module, Any, Any, str] = torch.load(given, weights_only=False)
    return found


def _settled() -> int:
    """Resident bytes once freed memory has gone back to the system; the high-water mark starts from it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    HIGH_WATER.write_text("5")  # proc(5): resets VmHWM
    return _status("VmRSS")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None, f"no {name} in {STATUS}"
    return int(found.group(1)) * 1024
