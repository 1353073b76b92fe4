"""The user's own parameters, as text."""

from __future__ import annotations

import inspect

from .names import Imports, literal


def signature_text(signature: inspect.Signature, imports: Imports) -> str:
    """`self, x, mask=None, *, flag=False`: the user's parameters, without annotations."""
    empty, parts, seen_star = inspect.Parameter.empty, ["self"], False
    parameters = list(signature.parameters.values())
    for number, parameter in enumerate(parameters):
        if parameter.kind is parameter.KEYWORD_ONLY and not seen_star:
            parts.append("*")
            seen_star = True
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        seen_star = seen_star or star == "*"
        text = star + parameter.name
        if parameter.default is not empty:
            text += f"={literal(parameter.default, imports) or 'None'}"
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
            star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
            parts.append(star + parameter.name)
    return ", ".join(parts)
