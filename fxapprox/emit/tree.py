"""Small questions about a model's tree: paths, whose class it is, which calls in it are sites."""

from __future__ import annotations

import keyword
from collections import defaultdict

from torch import nn

from ..record import Record
from .methods import template
from .wrap import quoted


def redirected(record: Record) -> dict[str, set[str]]:
    """Owner → targets of the calls that are sites in the file.

    A call is one wherever the same call of an equal forward is one: repeated blocks stay one class."""
    chosen: dict[tuple[object, ...], set[str]] = defaultdict(set)
    sampled = {decision.site.id for decision in record.plan.rewritten}
    keys = {path: template(forward) for path, forward in record.forwards.items()}
    for path, forward in record.forwards.items():
        chosen[keys[path]] |= {call.target for call in forward.calls if sampled & set(call.site_ids)}
    found: dict[str, set[str]] = defaultdict(set)
    found.update({path: chosen[key] for path, key in keys.items()})
    return found


def reach(root: str, module: nn.Module, path: str) -> str:
    """`model.layers[0].attn` for "layers.0.attn" of `module`, whose name is `root`."""
    text, here = root, module
    for part in path.split("."):
        if part.isidentifier() and not keyword.iskeyword(part):
            text += f".{part}"
        elif isinstance(here, nn.Sequential | nn.ModuleList) and part.isdigit():
            text += f"[{part}]"
        elif isinstance(here, nn.ModuleDict):
            text += f"[{quoted(part)}]"
        else:
            text = f"getattr({text}, {quoted(part)})"
        here = here._modules.get(part) or here
    return text


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def is_torchs(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "torch"


def forwards_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class in whose body the forward of `cls` stands, ours aside."""
    theirs = (base for base in cls.__mro__ if not base.__module__.startswith("fxapprox."))
    return next(base for base in theirs if "forward" in vars(base))


def held_names(module: nn.Module) -> set[str]:
    return {*module._parameters, *module._buffers, *module._modules}


def origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
