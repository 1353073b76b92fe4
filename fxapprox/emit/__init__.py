"""A rewritten model as a source file that a person reads, with its weights beside it."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

__all__ = ["emit"]


def emit(model: nn.Module, path: str | os.PathLike[str], *, force: bool = False) -> tuple[Path, ...]:
    """Write the model that `fxapprox.rewrite` returned as an importable file; see `write.emit`."""
    from .write import write  # most users of this package are emitted files, which need the runtime only

    return write(model, path, force=force)
