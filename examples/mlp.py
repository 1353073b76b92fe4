"""A multilayer perceptron for 28×28 images: three hidden layers of 500, as in Adelman et al. 2021."""

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    def __init__(self, width: int = 500, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, width)
        self.fc2 = nn.Linear(width, width)
        self.fc3 = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        x = torch.relu(self.fc3(x))
        return self.head(x)


def example_inputs() -> tuple[Tensor]:
    return (torch.randn(64, 1, 28, 28),)
