"""What emitted files import: the plan applied to a plain model, and its weights loaded.

The files outlive this version of fxapprox, so what stands here keeps its meaning."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..capture.objects import made
from ..errors import RequestError
from ..passes.layers import FunctionSite, sampled, sampled_function
from ..passes.layout import lay_out
from ..sites import layer_id

__all__ = ["FunctionCall", "apply_plan", "assembled", "load_weights", "made", "with_parts"]

APART = "constant:"
"""Begins the names of tensors in a weights file that no state_dict has: buffers that are not persistent."""
M = TypeVar("M", bound=nn.Module)


class FunctionCall(nn.Module):
    """A call of a function that a plan may sample; exact until `apply_plan` puts a site in its place."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


def apply_plan(model: M, plan: Mapping[str, Mapping[str, Any]]) -> M:
    """The model itself, with the sites that `plan` names sampled in training.

    `plan` maps a site's id to the keys of a rule: `policy`, `keep`, `scope` … A layer's id is its path
    ("model" where the model is itself the layer), a function call's the path of its FunctionCall; a call of
    several products has `<path>.<part>`. A `*` stands for any number: "layers.*.up" is that layer of every
    block.
    Raises RequestError for an id that the model does not have."""
    paths = {layer_id(path): module for path, module in model.named_modules()}
    calls: dict[str, dict[str, Mapping[str, Any]]] = {}
    for pattern, keys in plan.items():
        whole = matching(pattern, paths)
        path, _, part = pattern.rpartition(".")
        parts = [] if whole else matching(path, paths)
        if not whole and not any(_is_call(paths[found]) for found in parts):
            raise RequestError(
                f"the model has no site {pattern!r}", remedy="correct its line in the plan, or take it out"
            )
        for site in whole:
            if _is_call(paths[site]):
                calls.setdefault(site, {})[""] = keys
            else:
                sampled(paths[site], site=site, **keys)
        for site in parts:
            calls.setdefault(site, {})[part] = keys
    for site, choices in calls.items():
        parent, _, name = site.rpartition(".")
        function: Any = paths[site].function
        setattr(model.get_submodule(parent), name, sampled_function(function, site=site, parts=choices))
    lay_out(model)
    return model


def matching(pattern: str, ids: Collection[str]) -> list[str]:
    """The ids that `pattern` stands for; each `*` is one whole number."""
    if "*" not in pattern:
        return [pattern] if pattern in ids else []
    wanted = re.compile(r"\d+".join(map(re.escape, pattern.split("*"))))
    return [each for each in ids if wanted.fullmatch(each)]


def _is_call(module: nn.Module) -> bool:
    return isinstance(module, FunctionCall | FunctionSite)


def load_weights(model: M, path: str | Path, *, all: bool = True) -> M:
    """The model itself, with the tensors of a safetensors file copied into it.

    Tied tensors are stored once. `all=False` loads only what no checkpoint holds: the buffers that are
    not persistent. Raises RequestError where file and model do not fit, with what is missing or odd."""
    targets: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
    targets = {name: value for name, value in targets.items() if isinstance(value, Tensor)}
    known = set(targets)
    targets |= {APART + name: value for name, value in model.named_buffers() if name not in known}
    filled: set[int] = set()
    try:
        with safe_open(str(path), framework="pt") as file, torch.no_grad():
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if not all and not name.startswith(APART):
                    continue
                _fill(targets.get(name), name, file.get_tensor(name), path)
                filled.add(id(targets[name]))
    except FileNotFoundError as failure:
        raise RequestError(
            f"there is no file {path}",
            remedy="keep the weights beside the source, or build the model with weights=False",
        ) from failure
    except SafetensorError as failure:
        raise RequestError(f"{path} is not a safetensors file: {failure}") from failure
    missing = [n for n, value in targets.items() if id(value) not in filled and (all or n.startswith(APART))]
    if missing:
        raise RequestError(f"{path} lacks {len(missing)} tensors of the model: {', '.join(missing[:5])}")
    return model


def _fill(target: Tensor | None, name: str, value: Tensor, path: str | Path) -> None:
    if target is None:
        raise RequestError(f"{path} holds {name}, which the model does not have")
    if target.shape != value.shape or target.dtype != value.dtype:
        there, here = (f"{t.dtype} {list(t.shape)}" for t in (value, target))
        raise RequestError(f"{name} is {there} in {path} and {here} in the model")
    target.copy_(value)


def assembled(cls: type[M], attributes: Mapping[str, Any], **parts: nn.Module | Tensor) -> M:
    """A module with these attributes, parameters, buffers and children, made without its constructor."""
    module = object.__new__(cls)
    nn.Module.__init__(module)
    module.__dict__.update(attributes)
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            module.add_module(name, part)
        elif isinstance(part, nn.Parameter):
            module.register_parameter(name, part)
        else:
            module.register_buffer(name, part)
    return module


def with_parts(module: M, **parts: nn.Module) -> M:
    """The module itself, with these children in place of its own."""
    for name, part in parts.items():
        setattr(module, name, part)
    return module
