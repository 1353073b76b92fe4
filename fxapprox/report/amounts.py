"""Numbers as people read them: FLOPs, bytes, shares, shapes."""

from __future__ import annotations

from collections.abc import Iterable

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(number: float) -> str:
    """Three digits and a prefix of a thousand: "1.23 G"; "0" for none."""
    for size, prefix in _PREFIXES:
        if abs(number) >= size * 0.9995:
            return f"{_three(number / size)} {prefix}"
    return f"{number:.0f}"


def size(count: float) -> str:
    """Bytes, in units of a thousand: "1.23 GB"."""
    text = amount(count)
    return f"{text}B" if " " in text else f"{text} B"


def change(before: float, after: float) -> str:
    """ "1.23 G → 615 M", or one number where nothing changes."""
    return amount(before) if before == after else f"{amount(before)} → {amount(after)}"


def percent(part: float, whole: float) -> str:
    """A share; never "100%" or "0%" for what is neither."""
    if not whole or part in (0, whole):
        return "100%" if part else "0%"
    share = 100 * part / whole
    for digits in (0, 1, 2):
        if digits and round(share, digits) not in (0.0, 100.0):
            return f"{share:.{digits}f}%"
        if digits == 0 and 10 <= share < 99:
            return f"{share:.0f}%"
    return "<0.01%" if share < 1 else ">99.99%"


def saving(before: float, after: float) -> str:
    """ "−50%" of what was; "±0" where nothing changes."""
    if not before or before == after:
        return "±0"
    return f"−{percent(before - after, before)}" if after < before else f"+{percent(after - before, before)}"


def shape(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes)) or "scalar"


def _three(number: float) -> str:
    return (
        f"{number:.0f}"
        if abs(number) >= 99.95
        else f"{number:.1f}"
        if abs(number) >= 9.995
        else f"{number:.2f}"
    )
