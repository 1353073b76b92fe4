"""`fxapprox native`: builds the fused kernels."""

from __future__ import annotations

from typing import TextIO

from ._running import command, step


@command
def native(out: TextIO) -> None:
    """Build the fused kernels of matrix products, once for this machine.

    Optional: everything runs without them, small linear layers slower. Needs a C++ compiler, and
    `pip install 'fxapprox[native]'`. The library goes to the cache (FXAPPROX_CACHE), is checked against torch
    before it is taken, and is used from then on; FXAPPROX_NATIVE=0 turns it off."""
    from fxapprox.native import library
    from fxapprox.native.build import build, fits

    known = fits(library())
    if not known:
        with step("compiling the fused kernels"):
            build()
    print(f"{'built already' if known else 'built'}: {library()}", file=out)
