"""Warnings that a plan earns: choices that theory or measurement says will hurt, and what to do instead.

One warning is one function with the `warning` decorator in a module of this package; its name is what
users silence it by, and docs/advice.md has an entry for it."""

from ._base import Context, Found, Measure, Ratios, advise, read_silence, warning, warnings
from ._paths import ASSUMED, growth, heaviest_path

__all__ = [
    "ASSUMED",
    "Context",
    "Found",
    "Measure",
    "Ratios",
    "advise",
    "growth",
    "heaviest_path",
    "read_silence",
    "warning",
    "warnings",
]
