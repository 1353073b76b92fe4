"""What one trains instead of a whole network: some of its parameters, or low-rank adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

HEAD = "fc"


class Adapted(nn.Module):
    """A frozen linear layer or convolution, plus a trained product of rank `rank`, which is 0 at first (LoRA,
    Hu et al. 2021). Of a convolution: one of its shape to `rank` channels, then 1×1."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.layer = layer
        if isinstance(layer, nn.Linear):
            self.down: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
            self.up: nn.Module = nn.Linear(rank, layer.out_features, bias=False)
        else:
            shape: tuple[Any, ...] = (layer.kernel_size, layer.stride, layer.padding)
            kernel, stride, padding = shape
            self.down = nn.Conv2d(layer.in_channels, rank, kernel, stride, padding, bias=False)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.layer(x), self.up(self.down(x)))


def only_trains(model: nn.Module, parts: Sequence[str]) -> nn.Module:
    """The model with all parameters frozen but those of its modules `parts`. Batch norm goes on following the
    images that it sees."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{part}.") for part in parts))
    return model


def adapted(model: nn.Module, rank: int) -> nn.Module:
    """The model, frozen but for its head, with an adapter beside every other linear layer and convolution."""
    only_trains(model, (HEAD,))
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and path != HEAD:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, Adapted(layer, rank))
    return model
