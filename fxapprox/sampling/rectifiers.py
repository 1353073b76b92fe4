"""What a ReLU keeps for its backward pass, cut to what that needs: a bit for every entry.

torch's ReLU keeps its result, and an exact layer behind it keeps its input: the same tensor, held once. A
layer that samples its forward product keeps a copy of the kept part, so that the whole result would live
on for the ReLU alone: more memory than exact training, not less. Here the ReLU's node is told to hold instead
which entries are positive (the hooks of a saved tensor: "Hooks for saved tensors" in torch's autograd notes).
For batch norm, ReLU and convolution that is 1 + 1/32 + keep of a float32 tensor where exact ones hold 2.

The backward pass is torch's own kernel, which asks of an entry only whether it is positive, so gradients are
the same to the bit, NaN and inf included, and so are gradients of gradients; nothing but memory changes. It
takes a millisecond for two million entries, a hundredth of the convolution that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..kinds._strides import PLAIN, fused_for
from ..native import kernels

SMALLEST = 2**16
"""Entries from which on it is done: below, the bytes spared are not worth some 30 µs of Python."""
MOST_VIEWS = 4
KEY = "fxapprox: holds signs"

# Eight bytes of 0 or 1 times this have byte i's bit at 63 − i; a byte times it has its own bit 7 − i as the
# highest bit of byte i. No two of the terms meet, so nothing is carried.
GATHER = 0x8040201008040201 - (1 << 64)
HIGHEST = 0x8080808080808080 - (1 << 64)


RECTIFIERS: Mapping[str, tuple[str, bool]] = {
    "ReluBackward0": ("result", False),  # never negative; NaN lets gradients through, as in torch
    "LeakyReluBackward0": ("self", True),
    "LeakyReluBackward1": ("result", True),  # in place
}
"""Nodes of autograd: the tensor that each holds, and what its backward pass asks of an entry: whether it is
positive, or only whether it is not zero."""

VIEWS = frozenset(
    f"{name}Backward0"
    for name in (
        "Alias", "Clone", "ConstantPadNd", "Permute", "ReshapeAlias", "Squeeze", "T", "ToCopy",
        "Transpose", "UnsafeView", "Unsqueeze", "View",
    )
)  # fmt: skip
"""Nodes that hold no tensor: what is between a ReLU and a product without changing entries."""

Signs = tuple[Tensor, tuple[int, ...] | None, tuple[int, ...]]
"""Bits, and the shape and strides of the entries; without a shape: a byte for each entry."""


def hold_signs(left: Tensor) -> None:
    """Make the ReLU (or leaky ReLU) that `left` comes from hold the signs of its entries in their place.
    For a product that does not hold `left` itself; where another does (an exact layer that reads the same
    result) the bits come on top of what that holds.

    Nothing happens for small tensors, without a gradient, under torch.compile (which sees to this itself),
    and where hooks of somebody else (checkpointing, `save_on_cpu`) have the tensors that are kept."""
    if torch.compiler.is_compiling():  # asked first: a compiler cannot look at nodes
        return
    if left.grad_fn is None or left.numel() < SMALLEST or type(left) not in PLAIN:
        return
    if torch._C._autograd._top_saved_tensors_default_hooks(True):
        return
    node = _rectifier(left.grad_fn)
    if node is None or KEY in node.metadata:
        return
    name, above = RECTIFIERS[node.name()]
    try:
        getattr(node, f"_saved_{name}")  # raises where it was changed in place since, as backward would
        getattr(node, f"_raw_saved_{name}").register_hooks(partial(packed, above=above), unpacked)
    except RuntimeError:  # that, or hooks of somebody else: backward goes as it would have
        return
    node.metadata[KEY] = True


def _rectifier(node: Any) -> Any:
    """The node of the ReLU whose result this node passes on, None where it is another's."""
    for _ in range(MOST_VIEWS):
        if node is None or node.name() in RECTIFIERS:
            return node
        if node.name() not in VIEWS:
            return None
        ((node, _),) = node.next_functions
    return None


def packed(kept: Tensor, above: bool) -> Signs:
    """Which entries of a tensor that fills its memory without gaps are not zero, or with `above` positive:
    bits where eight of them make a byte."""
    count = kept.numel()
    fused = fused_for(kept) if kept.dtype == torch.float32 and count % 16 == 0 else None
    if fused:
        return fused.pack(kept, above), tuple(kept.shape), kept.stride()
    signs = kept > 0 if above else kept.bool()
    if count % 8:
        return signs, None, ()
    words = signs.as_strided((count,), (1,)).view(torch.int64)
    bits = words.mul_(GATHER).bitwise_right_shift_(56).to(torch.uint8)
    return bits, tuple(signs.shape), signs.stride()


def unpacked(signs: Signs) -> Tensor:
    """A number for each entry: 0, or a positive one where it was."""
    bits, shape, strides = signs
    if shape is None:
        return bits.view(torch.uint8)
    if bits.dtype == torch.int16:
        fused = kernels()
        assert fused is not None  # they made the bits
        return fused.unpack(bits, shape, strides)
    words = bits.to(torch.int64).mul_(GATHER).bitwise_and_(HIGHEST)
    return words.view(torch.uint8).as_strided(shape, strides)
