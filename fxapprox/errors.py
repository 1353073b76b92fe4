"""What fxapprox raises. Every message says what happened, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FxApproxError(Exception):
    """The base of every error that fxapprox raises on purpose.

    `message` is one sentence with both values; `where` is a site, or a file and line of the user's;
    `remedy` is what to do, and is printed as a line of its own.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message, self.where, self.remedy = message, where, remedy

    def __str__(self) -> str:
        head = f"{self.message} ({self.where})" if self.where else self.message
        return f"{head}\n  {self.remedy}" if self.remedy else head


class RequestError(FxApproxError):
    """The request is wrong: an option, a rule, a file, an input shape."""


class CaptureError(FxApproxError):
    """The model cannot be loaded or run on the example inputs."""


class PlanMismatch(FxApproxError):
    """A plan was made for another model; the message lists the difference."""


class EmitError(FxApproxError):
    """The rewritten model cannot be written as a file."""


class NothingRewritten(FxApproxError):
    """Every site was left exact; the message lists the reasons."""

    exit_code = 3


def one_of(name: str, known: Iterable[str]) -> str:
    """The tail of an unknown-name message: the nearest known name, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + "known: " + ", ".join(names)
