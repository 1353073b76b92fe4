"""The tensors of a model: which are saved, which are tied, which do not train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import EmitError
from .runtime import APART


def tensors_of(model: nn.Module, extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor once, under its first name in the state_dict; buffers that are not persistent and
    `extra` (name → tensor) with `constant:` before their names. Contiguous, on the CPU."""
    state = {
        name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)
    }
    apart = {
        APART + name: value
        for name, value in model.named_buffers(remove_duplicate=False)
        if name not in state
    }
    apart |= {APART + name: value for name, value in extra.items()}
    found: dict[str, Tensor] = {}
    saved: set[int] = set()
    for name, value in (state | apart).items():
        if id(value) not in saved:
            saved.add(id(value))
            found[name] = value
    # safetensors refuses tensors that share memory, as views of one storage do
    storages: set[int] = set()
    for name, value in found.items():
        own = value.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        if place in storages or own.untyped_storage().nbytes() != own.numel() * own.element_size():
            own = own.clone()
        storages.add(place)
        found[name] = own.resolve_conj().resolve_neg()
    return found


def write_weights(tensors: Mapping[str, Tensor], path: Path, version: str) -> None:
    """Write a safetensors file. Raises EmitError for a dtype that the format does not know."""
    try:
        save_file(dict(tensors), str(path), metadata={"format": "pt", "fxapprox": version})
    except (KeyError, ValueError, TypeError) as failure:
        kinds = sorted({str(value.dtype) for value in tensors.values()})
        raise EmitError(
            f"the weights cannot be saved as safetensors ({', '.join(kinds)}): {failure}"
        ) from failure


def ties(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(name, first name) of every parameter or buffer that is another one's; shared modules aside."""
    first: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is None:
                continue
            full = f"{path}.{name}" if path else name
            if id(value) in first:
                yield full, first[id(value)]
            first.setdefault(id(value), full)


def trains(tensor: Tensor) -> bool:
    """Whether its dtype can require gradients."""
    return tensor.is_floating_point() or tensor.is_complex()


def frozen(module: nn.Module, path: str = "") -> Iterator[tuple[str, bool]]:
    """(path, is a module) of what does not require gradients: whole modules where all of it does not."""
    trainable = [p for p in module.parameters() if trains(p)]
    still = [p for p in trainable if not p.requires_grad]
    if not still:
        return
    if path and len(still) == len(trainable):
        yield path, True
        return
    for name, parameter in module._parameters.items():
        if parameter is not None and not parameter.requires_grad and trains(parameter):
            yield (f"{path}.{name}" if path else name), False
    for name, child in module._modules.items():
        if child is not None:
            yield from frozen(child, f"{path}.{name}" if path else name)


def in_evaluation(module: nn.Module, path: str = "") -> Iterator[str]:
    """Modules that are in evaluation mode inside a model that trains."""
    if path and not any(below.training for below in module.modules()):
        yield path
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from in_evaluation(child, f"{path}.{name}" if path else name)


def common_dtype(model: nn.Module) -> torch.dtype:
    """The one floating dtype of all parameters and buffers; float32 where there are several."""
    dtypes = {t.dtype for t in (*model.parameters(), *model.buffers()) if trains(t)}
    only = next(iter(dtypes)) if len(dtypes) == 1 else torch.float32
    return only if only.is_floating_point else torch.float32


def channels_last(model: nn.Module) -> bool:
    """Whether the convolutions' weights are all laid out channels-last, those that `passes.layout` turned
    over before it did."""
    weights = [
        p if p.is_contiguous() or _last(p) else p.transpose(0, 1) for p in model.parameters() if p.dim() == 4
    ]
    four = [p for p in weights if not p.is_contiguous()]
    rest = [p for p in weights if p.is_contiguous() and min(p.shape[1:]) > 1]
    return bool(four) and not rest and all(map(_last, four))


def _last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)
