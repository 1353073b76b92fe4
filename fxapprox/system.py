"""Where this machine keeps caches, which processor it has, and what its environment turns off."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

CACHE = "FXAPPROX_CACHE"
OFF = ("0", "false", "no", "off")


def switched_on(variable: str) -> bool:
    """Whether a variable of the environment does not turn off what it names; unset it does not."""
    return os.environ.get(variable, "1").strip().lower() not in OFF


def cache_folder() -> Path:
    """The variable FXAPPROX_CACHE of the environment, else the system's place for caches."""
    if own := os.environ.get(CACHE):
        return Path(own)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fxapprox"


def cpu() -> str:
    """The processor's name, as far as the system tells it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(errors="replace").splitlines() if listing.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
