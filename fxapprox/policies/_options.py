"""Checks of a policy's options, for `__post_init__`."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import RequestError, one_of


def require_one_of(policy: str, option: str, value: object, allowed: Sequence[str]) -> None:
    """Raises RequestError that names the policy, the option, the value and what is allowed."""
    if value not in allowed:
        raise RequestError(
            f"policy {policy!r}: {option} = {value!r} is not allowed",
            remedy=one_of(str(value), allowed),
        )
