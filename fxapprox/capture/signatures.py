"""The user's own parameters, as text."""

from __future__ import annotations

import inspect
from typing import Any

from .names import Imports, literal


def star(parameter: inspect.Parameter) -> str:
    """What stands before the parameter's name."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return "*"
    return "**" if parameter.kind is parameter.VAR_KEYWORD else ""


def signature_text(signature: inspect.Signature, imports: Imports) -> str:
    """`self, x, mask=None, *, flag=False`: the user's parameters, without annotations."""
    empty, parts, seen_star = inspect.Parameter.empty, ["self"], False
    parameters = list(signature.parameters.values())
    for number, parameter in enumerate(parameters):
        if parameter.kind is parameter.KEYWORD_ONLY and not seen_star:
            parts.append("*")
            seen_star = True
        seen_star = seen_star or star(parameter) == "*"
        text = star(parameter) + parameter.name
        if parameter.default is not empty:
            text += f"={_default(parameter.default, imports) or 'None'}"
        parts.append(text)
        after = parameters[number + 1 : number + 2]
        if parameter.kind is parameter.POSITIONAL_ONLY and not (after and after[0].kind is parameter.kind):
            parts.append("/")
    return ", ".join(parts)


def passed_on(signature: inspect.Signature) -> str:
    """The arguments of a call that hands every parameter on."""
    parts = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            parts.append(f"{parameter.name}={parameter.name}")
        else:
            parts.append(star(parameter) + parameter.name)
    return ", ".join(parts)


def _default(value: Any, imports: Imports) -> str | None:
    """Source text of a default: a constant, or plain containers of such; None for what text cannot say."""
    if type(value) is dict:
        pairs = [(_default(key, imports), _default(item, imports)) for key, item in value.items()]
        known = all(key and item for key, item in pairs)
        return "{" + ", ".join(f"{key}: {item}" for key, item in pairs) + "}" if known else None
    if type(value) in (list, tuple):
        items = [_default(item, imports) for item in value]
        if None in items:
            return None
        inner = ", ".join(map(str, items))
        return f"[{inner}]" if type(value) is list else f"({inner},)" if items else "()"
    return literal(value, imports)
