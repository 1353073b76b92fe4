"""Builds the kernels by torch's own extension tools, checks them, and puts them in the cache."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import RequestError
from . import MAIN, NAME, library, loaded, look_again

FLAGS = ["-O3", "-march=native", "-fno-math-errno"]
# libgomp comes with torch: linked a second time it would keep threads of its own, which fight with torch's
THREADS = ["-fopenmp"] if sys.platform == "linux" else []
TOLERANCE = 1e-4


def build() -> Path:
    """The library, built where there is none that can be loaded. It is made aside and moved to its place when
    it has been found to compute what torch computes, so that a signal leaves nothing half done.

    Raises RequestError where there is no compiler, ninja or setuptools, or where the compiler fails."""
    target = library()
    if fits(target):
        return target
    with _scratch(target) as folder:
        made = _compiled(folder)
        check(loaded(made))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, target)
    look_again()
    return target


def fits(library: Path) -> bool:
    """Whether the library is there and can be loaded."""
    with contextlib.suppress(ImportError):
        return library.is_file() and loaded(library) is not None
    return False


def check(found: Any) -> None:
    """Compare products, gradients and scores with torch's on a few shapes. Raises RequestError."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for rows, pairs, columns in ((3, 40, 24), (20, 100, 77), (300, 64, 96)):
        left, right, grad = drawn(rows, pairs), drawn(pairs, columns), drawn(rows, columns)
        index = found.largest(found.scores(left, right, False), pairs // 3)
        scale, bias = drawn(1, pairs // 3), drawn(columns)
        results = []
        for sampled in (True, False):
            leaves = [tensor.clone().requires_grad_() for tensor in (left, right, bias)]
            if sampled:
                result = found.product(*leaves, index, scale, False)
            else:
                a, b, c = leaves
                result = (a[:, index[0]] * scale[0]) @ b[index[0]] + c
            result.backward(grad)
            results.append([result.detach(), *(leaf.grad for leaf in leaves)])
        for ours, wanted in zip(*results, strict=True):
            if not torch.allclose(ours, wanted, atol=TOLERANCE * float(wanted.abs().max())):
                raise RequestError(
                    f"what was built computes something else than torch, at {rows}×{pairs}×{columns}",
                    remedy="do without them, nothing was installed; please report compiler and processor",
                )


def _compiled(folder: Path) -> Path:
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        raise RequestError(
            f"torch's extension tools cannot be imported: {error}", remedy="pip install 'fxapprox[native]'"
        ) from None
    with _ninja_found():
        try:
            cpp_extension.verify_ninja_availability()
        except RuntimeError:
            raise RequestError("ninja is not installed", remedy="pip install 'fxapprox[native]'") from None
        compiler = cpp_extension.get_cxx_compiler()
        if shutil.which(compiler) is None:
            raise RequestError(
                f"there is no C++ compiler: {compiler} is not on the PATH",
                remedy="install g++ or clang++, or name one in the environment variable CXX",
            )
        try:
            cpp_extension.load(
                NAME,
                [str(MAIN)],
                [*FLAGS, *THREADS],
                build_directory=str(folder),
                is_python_module=False,
            )
        except (RuntimeError, OSError) as error:
            raise RequestError(
                f"{compiler} could not build the kernels:\n{_tail(str(error))}",
                remedy="they need g++ 10 or clang++ 12 and the headers of Python (python3-dev)",
            ) from None
    return folder / f"{NAME}.so"


def _tail(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() if "error" in line.lower())[:2000]


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside the place of the library, on the same disk; gone in the end, whatever happens."""
    try:
        target.parents[1].mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=target.parents[1], prefix=".building-")
    except OSError as error:
        raise RequestError(
            f"the cache cannot be written: {error}", remedy="name another folder in FXAPPROX_CACHE"
        ) from None
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ninja_found() -> Iterator[None]:
    """Ninja on the PATH, also where the environment that it is installed in is not activated."""
    before = os.environ.get("PATH", "")
    with contextlib.suppress(ImportError):
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, before])
    try:
        yield
    finally:
        os.environ["PATH"] = before
