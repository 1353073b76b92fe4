"""Layers that the example inputs never run: neither sites nor counted, and told as such."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from ..kinds import recognise
from ._types import Note
from .observe import Observer

# Modules that a note names; the rest are counted.
MOST_NAMED = 8


def never_run(observer: Observer) -> tuple[Note, ...]:
    """A note on the layers that could have been sites had the example inputs run them in training.

    Layers are told by the outermost module in which no layer ran. One whose parameters a call of a function
    took (attention multiplies with its out_proj's weight) has run."""
    idle: dict[str, str] = {}  # path → kind
    busy: set[str] = set()  # every module around a layer that ran
    for path, module in observer.tree.model.named_modules():
        kind = recognise(module=module)
        if kind is None:
            continue
        taken = any(id(parameter) in observer.used for parameter in module.parameters())
        if path in observer.ran or taken:
            busy.update(_around(path))
        else:
            idle[path] = kind.name
    if not idle:
        return ()
    groups: dict[str, Counter[str]] = {}
    for path, kind_name in idle.items():
        groups.setdefault(_outermost(path, busy), Counter())[kind_name] += 1
    named = [
        f"{path or 'the model'} ({', '.join(_layers(count, kind) for kind, count in counted.items())})"
        for path, counted in groups.items()
    ]
    more = [f"and {len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else []
    listed = ", ".join([*named[:MOST_NAMED], *more])
    return (Note("never run", f"{listed}: the example inputs do not reach them in training"),)


def _around(path: str) -> list[str]:
    """The path, after those of all modules around it but the root, outermost first."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _outermost(path: str, busy: Collection[str]) -> str:
    return next(around for around in _around(path) if around not in busy)


def _layers(count: int, kind: str) -> str:
    return f"{count} {kind} layer" + ("s" if count > 1 else "")
