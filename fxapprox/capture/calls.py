"""What calls of torch mean to a recorder: which read data, which have another form, which must be opened."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .facts import Applied
from .names import OPERATORS, tensor_method

# Tensor code that hands data to Python: what follows may depend on it, and a trace would freeze it.
READS = {
    "item": "reads a tensor's value with .item()",
    "__bool__": "branches on a tensor's value",
    "__int__": "turns a tensor's value into an int",
    "__float__": "turns a tensor's value into a float",
    "__complex__": "turns a tensor's value into a complex number",
    "__index__": "uses a tensor's value as an index of Python",
    "tolist": "reads a tensor's values with .tolist()",
    "numpy": "reads a tensor's values with .numpy()",
    "__array__": "hands a tensor to numpy",
    "__contains__": "searches a tensor with `in`",
    "equal": "compares tensors with torch.equal",
    "allclose": "compares tensors with torch.allclose",
    "is_nonzero": "branches on a tensor's value",
    "data_ptr": "asks for a tensor's address",
    "backward": "calls backward in its forward",
    "register_hook": "registers a hook on a tensor",
    "untyped_storage": "reaches into a tensor's storage",
    "storage": "reaches into a tensor's storage",
    "__deepcopy__": "copies a tensor with copy.deepcopy",
    "__reduce_ex__": "pickles a tensor",
    "share_memory_": "shares a tensor's memory",
    "set_": "replaces a tensor's storage",
}
# Results whose *shape* depends on data.
DATA_SHAPED = {
    "nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "_unique2", "bincount",
    "repeat_interleave",
}  # fmt: skip
SHAPE_READS = {
    "shape",
    "size",
    "numel",
    "nelement",
    "__len__",
    "unbind",
    "split",
    "chunk",
    "stride",
    "nbytes",
}

# F.multi_head_attention_forward asks whether a mode is on and, if so, hands itself over whole. This copy
# does not ask, so that the projections and products inside are seen.
OPENED_ATTENTION = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    F.multi_head_attention_forward.__name__,
    F.multi_head_attention_forward.__defaults__,
)
OPENED_ATTENTION.__kwdefaults__ = F.multi_head_attention_forward.__kwdefaults__


def made_from_numpy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The real tensor of a call that makes one from an array of numpy's, None for any other call."""
    if func not in (torch.tensor, torch.as_tensor, torch.asarray):
        return None
    array = args[0] if args else kwargs.get("data", kwargs.get("obj"))
    if not isinstance(array, numpy.ndarray):
        return None
    with unset_fake_temporarily():
        made: Tensor = func(*args, **kwargs)
        return made.detach().clone()


def normal_form(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The call by a name that text can say: Python's operators, methods and functions."""
    if isinstance(func, Applied) or func is getattr:
        return func, args, kwargs
    if name in OPERATORS and tensor_method(func) is not None:
        function, reflected = OPERATORS[name]
        return function, args[::-1] if reflected else args, kwargs
    return func, args, kwargs
