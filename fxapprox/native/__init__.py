"""Fused kernels for matrices, in C++: optional, built on this machine by `fxapprox native`.

`kernels()` gives them where they have been built for this very torch, Python, processor and source, and
None elsewhere: sampling/matrices.py then computes the same with torch's own operations.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

import torch
from torch import Tensor

from ..system import cache_folder, cpu, switched_on

NAME = "fxapprox_kernels"
VARIABLE = "FXAPPROX_NATIVE"
MAIN = Path(__file__).parent / "products.cpp"
SOURCES = (MAIN, *sorted(MAIN.parent.glob("*.h")))
Gradients = Callable[..., tuple[Tensor | None, ...]]


class Kernels(Protocol):
    """What products.cpp exports: operands are contiguous float32 or float64 matrices of one type on the CPU
    ("inner": the right one is the transpose of such), an index is int64 `[1, k]`, ascending and distinct."""

    def scores(self, left: Tensor, right: Tensor, inner: bool, /) -> Tensor | None:
        """‖column i of left‖·‖row i of right‖, `[1, n]`; None where one is not finite or all are 0, or where
        the operands are not as above."""

    def row_scores(self, first: Tensor, second: Tensor, /) -> Tensor | None:
        """‖row i of first‖·‖row i of second‖, likewise."""

    def largest(self, scores: Tensor, k: int, /) -> Tensor:
        """`sampling.draws.largest`; of equal scores the first."""

    def inclusion(self, scores: Tensor, k: int, /) -> Tensor:
        """`sampling.draws.inclusion`."""

    def proportional(
        self, scores: Tensor, k: int, bits: int, generator: torch.Generator, /
    ) -> tuple[Tensor, Tensor]:
        """`sampling.draws.proportional` of one row."""

    def independent(self, scores: Tensor, k: int, generator: torch.Generator, /) -> tuple[Tensor, Tensor]:
        """`sampling.draws.independent` of one row."""

    def product(
        self,
        left: Tensor,
        right: Tensor,
        bias: Tensor | None,
        index: Tensor,
        scale: Tensor | None,
        inner: bool,
        /,
    ) -> Tensor:
        """left[:, index] · diag(scale) · right[index] (+ bias), with its gradients."""

    def through(self, left: Tensor, right: Tensor, index: Tensor, scale: Tensor | None, /) -> Tensor:
        """The same without bias and gradients."""

    def outer(self, first: Tensor, second: Tensor, index: Tensor, scale: Tensor | None, /) -> Tensor:
        """first[index]ᵀ · diag(scale) · second[index], without gradients."""

    def own(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, gradients: Gradients, draw: object, /
    ) -> Tensor:
        """torch's linear; for its gradients `gradients(grad, x, weight, wanted, draw)` is called, with None
        for an operand whose partner needs none; `wanted`: whether the bias needs one."""

    def energies(self, matrix: Tensor, /) -> Tensor:
        """Sums of squares of the columns; of bfloat16 (which `take` and `spread` read, too) in float32."""

    def take(self, matrix: Tensor, index: Tensor, /) -> Tensor:
        """Columns `[rows, k]`, for an index `[k]` in any order."""

    def spread(self, kept: Tensor, index: Tensor, n: int, /) -> Tensor:
        """Columns `[rows, k]` at their places among zeros, `[rows, n]`; equal places of the index add up."""

    def pack(self, values: Tensor, above: bool, /) -> Tensor:
        """A bit for each entry of a float32 tensor without gaps, in the order of memory, a multiple of 16:
        whether it is not zero, or with `above` whether it is positive."""

    def unpack(self, bits: Tensor, shape: Sequence[int], strides: Sequence[int], /) -> Tensor:
        """float32 of that shape and those strides: 1 where the bit is set, else 0."""


_known: list[Kernels | None] = []
"""What was found, once it has been looked for. No functools.cache: torch.compile looks into those."""


def kernels() -> Kernels | None:
    """The kernels, None where they are not built or FXAPPROX_NATIVE=0. Looked for once a process."""
    if not _known:
        _known.append(_found())
    return _known[0]


def look_again() -> None:
    """Have the next one who asks for the kernels look for them: they have been built, or turned off."""
    _known.clear()


def _found() -> Kernels | None:
    if not switched_on(VARIABLE):
        return None
    path = library()
    if not path.is_file():
        return None
    try:
        return cast(Kernels, loaded(path))
    except ImportError as error:
        warnings.warn(
            f"the fused kernels cannot be loaded, and are done without: {error}. "
            "`fxapprox native` builds them anew",
            stacklevel=2,
        )
        return None


def library() -> Path:
    """Where the kernels lie once they are built: in the cache, by all that they depend on."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update(source.read_bytes())
    facts = [torch.__version__, sys.implementation.cache_tag, sys.platform, cpu(), digest.hexdigest()]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return cache_folder() / "native" / key / f"{NAME}.so"


def loaded(path: Path) -> ModuleType:
    """The library as a module. Raises ImportError where it cannot be loaded."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no library that Python can load")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
