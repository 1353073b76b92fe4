"""Layers whose tensors torch computes anew at every use: parametrizations, and the older hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..capture.watchers import hooks
from ..errors import EmitError
from .expressions import Argument, Build, Expression, Plain
from .imports import Imports
from .recover import constructor, user_class
from .wrap import quoted


def wrapped_layer(
    module: nn.Module,
    path: str,
    imports: Imports,
    inner: Callable[[nn.Module, str], Expression],
    idle: Callable[[object], bool],
) -> Expression | None:
    """The calls that make a parametrized layer, or one with a weight-norm hook; None for any other module.

    `inner(parametrization, path)` is the expression of a user's own parametrization; hooks for which
    `idle(hook)` holds can be left out. Raises EmitError for other hooks that fxapprox does not know, and
    for a parametrized layer that is not torch's."""
    known = [hook for hook in hooks(module) if isinstance(hook, WeightNorm | SpectralNorm)]
    odd = next((hook for hook in hooks(module) if hook not in known and not idle(hook)), None)
    if odd is not None:
        raise EmitError(
            f"{path or 'the model'} has a hook, {getattr(odd, '__qualname__', type(odd).__name__)}, "
            "which would be missing from the emitted file",
            remedy="remove it before emitting, and register it on the model that build_model makes",
        )
    if parametrize.is_parametrized(module):
        return _parametrized(module, path, imports, inner)
    return _hooked(module, path, imports, known) if known else None


def _parametrized(
    module: nn.Module, path: str, imports: Imports, inner: Callable[[nn.Module, str], Expression]
) -> Expression:
    lists: nn.ModuleDict = module.parametrizations  # type: ignore[assignment]
    replica = copy.deepcopy(module).eval()  # spectral norm iterates at every look in training
    with torch.no_grad():
        tensors = {name: getattr(replica, name) for name in lists}
    base = user_class(module).__bases__[0]
    while "_fxapprox_base" in vars(base):
        base = vars(base)["_fxapprox_base"]
    found: Expression = _plain(module, base, tensors, path, imports, hidden=("parametrizations",))
    for name, steps in lists.items():
        for position, step in enumerate(steps.children()):
            made = _known(step, found, name, imports)
            if made is None:
                where = f"{path}.parametrizations.{name}.{position}"
                register = imports.spell("torch.nn.utils.parametrize", "register_parametrization")
                arguments = (
                    Argument("", found), Argument("", Plain(quoted(name))), Argument("", inner(step, where)),
                    Argument("unsafe", Plain("True"), "False"),
                )  # fmt: skip
                made = Build(register, arguments)
            found = made
    return found


def _known(step: object, layer: Expression, name: str, imports: Imports) -> Build | None:
    """The call of torch's own function for its own parametrizations and hooks."""
    options: dict[str, tuple[object, object]]
    if isinstance(step, parametrizations._WeightNorm | WeightNorm):
        function, options = "weight_norm", {"dim": (step.dim, 0)}
    elif isinstance(step, parametrizations._SpectralNorm | SpectralNorm):
        function = "spectral_norm"
        options = {
            "n_power_iterations": (step.n_power_iterations, 1),
            "eps": (step.eps, 1e-12),
            "dim": (step.dim, None),
        }
    else:
        return None
    hooked = isinstance(step, WeightNorm | SpectralNorm)
    home = f"torch.nn.utils.{function}" if hooked else "torch.nn.utils.parametrizations"
    return _call(imports.spell(home, function), layer, name, options)


def _hooked(
    module: nn.Module, path: str, imports: Imports, hooks: list[WeightNorm | SpectralNorm]
) -> Expression:
    tensors = {hook.name: getattr(module, hook.name) for hook in hooks}
    hidden = {f"{hook.name}_{end}" for hook in hooks for end in ("g", "v", "orig", "u")}
    found: Expression = _plain(module, user_class(module), tensors, path, imports, hidden)
    for hook in hooks:
        found = _known(hook, found, hook.name, imports) or found
    return found


def _call(function: str, layer: Expression, name: str, options: dict[str, tuple[object, object]]) -> Build:
    """`function(layer, name, …)`; spectral norm's dim, None by default, is 0 or 1 by the layer's class."""
    arguments = [Argument("", layer), Argument("name", Plain(quoted(name)), quoted("weight"))]
    arguments += [
        Argument(key, Plain(repr(value)), repr(default)) for key, (value, default) in options.items()
    ]
    return Build(function, tuple(arguments))


def _plain(
    module: nn.Module, cls: type[nn.Module], tensors: dict[str, Tensor], path: str, imports: Imports,
    hidden: tuple[str, ...] | set[str],
) -> Expression:  # fmt: skip
    """The layer's constructor call as if nothing had been done to `tensors`."""
    bare = cls.__new__(cls)
    bare.__dict__.update(module.__dict__)
    for registry in ("_parameters", "_buffers", "_modules"):
        bare.__dict__[registry] = {k: v for k, v in module.__dict__[registry].items() if k not in hidden}
    for name, tensor in tensors.items():
        bare.__dict__.pop(name, None)
        bare.__dict__["_parameters"][name] = tensor
    found = constructor(bare, cls, imports) if cls.__module__.startswith("torch.") else None
    if found is None:
        raise EmitError(
            f"{path} is a {cls.__name__} with computed weights whose constructor's call cannot be written",
            remedy="make them plain before rewriting: torch.nn.utils.parametrize.remove_parametrizations",
        )
    return found.build
