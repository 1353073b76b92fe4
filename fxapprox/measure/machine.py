"""What a measurement must say of where it was made."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

import torch

from ..system import cpu


def machine() -> dict[str, Any]:
    """Date, processor, cores, torch's threads, and the versions that matter."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
