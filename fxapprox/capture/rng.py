"""The global random states: equalised for the runs that capture compares, and put back after."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The states of torch's, Python's and (where it is imported) numpy's global generators."""

    torch_cpu: Tensor
    torch_cuda: tuple[Tensor, ...]
    python: Any
    numpy: Any

    @classmethod
    def now(cls) -> RandomState:
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
        numpy = sys.modules.get("numpy")
        legacy = None if numpy is None else numpy.random.get_state()
        return cls(torch.get_rng_state(), cuda, random.getstate(), legacy)

    def restore(self) -> None:
        """Make every generator go on from here; `torch.initial_seed()` is what it was, too."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda:
            torch.cuda.set_rng_state_all(list(self.torch_cuda))
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Leave the global generators as they were found, whatever runs inside."""
    before = RandomState.now()
    try:
        yield
    finally:
        before.restore()


def seed_all(seed: int) -> None:
    """Seed every global generator. Not by `torch.manual_seed`: sites that already sample in this
    process take a call of that for the user's wish to begin their streams anew."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)
