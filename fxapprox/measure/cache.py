"""What the gate measured on this machine, kept between processes: one small file a measurement.

A file is written beside its place and renamed, so that it is there whole or not at all; processes that
write the same one do no harm, for the last wins. Whatever is wrong with a file, it is measured again and
written anew. A folder that cannot be written is done without."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..native import kernels
from ..planfile import write_whole
from ..system import cache_folder, cpu

FORMAT = 1
_PACKAGE = Path(__file__).parents[1]
_KERNELS = ("kinds", "native", "policies", "sampling", "passes/layers.py")
"""The code whose speed is measured."""
_CODE = {".py", ".cpp", ".h"}


@dataclass(frozen=True)
class Timed:
    """A call as it was measured: seconds of the exact side, medians, and the ratio exact over sampled with
    its quartiles."""

    exact: float
    ratio: float
    lower: float
    upper: float

    @property
    def ours(self) -> float:
        return self.exact / self.ratio


class Cache:
    """Measurements by call key; what else they depend on (threads, torch, processor, the code of this
    package, whether its kernels are built, the device) is part of the file's name."""

    def __init__(self, threads: int, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "gate"
        self.about = [FORMAT, threads, torch.__version__, cpu(), code(), kernels() is not None]

    def get(self, key: str, device: torch.device) -> Timed | None:
        """The measurement; None where there is none that can be read."""
        try:
            table = json.loads(self._path(key, device).read_text(encoding="utf-8"))
            timed = Timed(**{name: float(value) for name, value in table.items()})
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return timed if all(math.isfinite(n) and n > 0 for n in asdict(timed).values()) else None

    def put(self, key: str, device: torch.device, timed: Timed) -> None:
        path = self._path(key, device)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(asdict(timed)))

    def _path(self, key: str, device: torch.device) -> Path:
        facts = [*self.about, _device_name(device), key]
        return self.folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"


@functools.cache
def code() -> str:
    """A fingerprint of the code that is measured: a version number says nothing of a checkout."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources() -> Iterator[Path]:
    for place in _KERNELS:
        path = _PACKAGE / place
        found = path.rglob("*") if path.is_dir() else (path,)
        yield from sorted(one for one in found if one.suffix in _CODE)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
