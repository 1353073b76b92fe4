"""A model that no tracer can capture as a whole: its forward decides on the values it computes.

Its layers are rewritten all the same: `fxapprox rewrite examples/awkward.py --policy topk`.
"""

import torch
from torch import Tensor, nn


class EarlyExit(nn.Module):
    """Stops refining as soon as the mean confidence of the batch is high enough."""

    def __init__(self, width: int = 256, classes: int = 10, steps: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(784, width)
        self.steps = nn.ModuleList(nn.Linear(width, width) for _ in range(steps))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem(images.flatten(1)))
        for step in self.steps:
            x = x + torch.relu(step(x))
            if self.head(x).softmax(-1).amax(-1).mean() > 0.95:
                break
        return self.head(x)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(64, 1, 28, 28),)
