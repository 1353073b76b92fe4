"""Weights laid out so that what a sampled layer gathers lies together in memory.

A layer that samples its forward product cuts its weight to the kept pairs in every step. Where those
lie along an inner dimension (`nn.Linear` and convolutions keep their input channels second) each pair
is strewn over the whole weight. Here they are moved outermost: shape, values and state_dict stay as
they are, only the strides change, and gradients and optimizer state take over the new ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..choices import Sampled as SampledProduct
from ..kinds._strides import inverse, physical
from .layers import Sampled


def lay_out(model: nn.Module) -> None:
    """Give every weight whose layers all sample forward the strides that gathering its pairs wants, in place.

    Left alone: a weight that some other module holds, too (an embedding, say), one that is computed by a
    parametrization, has a subclass of its own, is not dense, or shares its memory with another tensor."""
    users = Counter(id(value) for module in model.modules() for value in module._parameters.values())
    storages = Counter(_storage(tensor) for tensor in _tensors(model))
    wanted: dict[int, list[tuple[nn.Parameter, int]]] = {}
    for module in model.modules():
        dim = _pairs(module)
        weight = module._parameters.get("weight")
        if dim is not None and weight is not None:
            wanted.setdefault(id(weight), []).append((weight, dim))
    for key, found in wanted.items():
        weight, dim = found[0]
        if len(found) == users[key] and storages[_storage(weight)] == 1 and _plain(weight):
            weight.data = with_outermost(weight.data, dim)


def with_outermost(tensor: Tensor, dim: int) -> Tensor:
    """The same tensor with `dim` outermost in memory; what was there takes its place."""
    order = physical(tensor.stride())
    at = order.index(dim)
    if at == 0:
        return tensor
    order[0], order[at] = order[at], order[0]
    return tensor.permute(order).contiguous().permute(inverse(order))


def _pairs(module: nn.Module) -> int | None:
    """The dimension of a layer's weight along which its forward product gathers, None where it does not."""
    if not isinstance(module, Sampled) or "parametrizations" in module._modules:
        return None
    part = module._fxapprox.parts.get("")
    how = "exact" if part is None or part.exact else part.choice.forward
    cuts = isinstance(how, SampledProduct) and how.policy.samples == "pairs"
    return module._fxapprox.kind.gathered if cuts else None


def _plain(weight: nn.Parameter) -> bool:
    dense = weight.layout is torch.strided and type(weight) is nn.Parameter and weight.dim() > 1
    return dense and weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module of the model holds, each once."""
    seen: set[int] = set()
    for module in model.modules():
        for held in (vars(module), module._parameters, module._buffers):
            for value in held.values():
                if isinstance(value, Tensor) and id(value) not in seen:
                    seen.add(id(value))
                    yield value


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
